"""The tests of this folder run in a process of their own: a backend, once registered, is everybody's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _alone(config: pytest.Config) -> bool:
    """Whether all that was asked for lies in this folder."""
    return all(Path(argument.split("::")[0]).resolve().is_relative_to(HERE) for argument in config.args)


def pytest_configure(config: pytest.Config) -> None:
    if _alone(config):
        os.environ.pop("TRITON_INTERPRET", None)  # the emulator runs what Triton compiles
        import standin

        standin.install()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if _alone(config) else True  # tests/test_stand_in_device.py runs them


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """In float64, so that numbers can be compared closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
