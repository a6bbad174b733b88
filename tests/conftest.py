"""What every test runs under: few threads, a seed of its own, and the real images where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Read by Triton where a kernel is defined: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

REPOSITORY = Path(__file__).parents[1]
REAL_IMAGES = REPOSITORY / "../shared/data"

# The tensors of the tests are small: threads beyond two cost more than they bring, and beyond one where tests run in
# several processes, whose children have one, too. OMP_NUM_THREADS wins.
if "OMP_NUM_THREADS" not in os.environ:
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(min(2, os.cpu_count() or 1) if alone else 1)
    if not alone:
        os.environ["OMP_NUM_THREADS"] = "1"


# Files that take longest, in order: where processes share the tests, all would wait for one that was begun last.
LONGEST = (
    "tests/cli/test_cli.py",
    "tests/test_benchmarks.py",
    "tests/cli/test_configurations.py",
    "tests/meta_gradient/test_meta_gradients.py",
    "tests/cli/test_bad_command_lines.py",
    "tests/saving/test_before.py",
    "tests/test_stand_in_device.py",
    "tests/saving/test_best_and_last.py",
    "tests/saving/test_reliability_runs.py",
    "tests/cli/test_own_data.py",
    "tests/test_readme.py",
    "tests/test_family.py",
    "tests/training/test_distributed.py",
    "tests/kernels/emulator/test_emulator_variants.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were found."""
    places = {REPOSITORY / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in a test, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """A test that leaves torch's global state changed fails, instead of changing the next one."""
    before = _global_state()
    yield
    after = _global_state()
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["grad enabled"])
    torch.use_deterministic_algorithms(before["deterministic algorithms"])
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"the test left torch's {', '.join(changed)} changed"


def _global_state() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder with Omniglot's two arrays."""
    return _real_images("omniglot", "images_background.npz", "images_evaluation.npz")


@pytest.fixture(scope="session")
def cifar100_root() -> Path:
    """The folder with CIFAR-100's four arrays."""
    return _real_images("cifar_fs", "train_a.npz", "train_b.npz", "val.npz", "test.npz")


@pytest.fixture(scope="session")
def mini_imagenet_root() -> Path:
    """The folder with mini-ImageNet's validation and test classes."""
    return _real_images("mini_imagenet", "val.npz", "test.npz")


def _real_images(name: str, *files: str) -> Path:
    missing = [file for file in files if not (REAL_IMAGES / name / file).is_file()]
    if missing:
        pytest.skip(f"the real images are not beside this checkout: no {', '.join(missing)} in ../shared/data/{name}")
    return (REAL_IMAGES / name).resolve()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to reads as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
