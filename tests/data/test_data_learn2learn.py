"""learn2learn's Tasksets as a stream, and learn2learn imported without its noise."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from lightning_maml.data import Learn2LearnTasks, import_learn2learn


@pytest.fixture
def l2l() -> Any:
    """learn2learn, where it is installed."""
    try:
        return import_learn2learn()
    except ImportError:
        pytest.skip("learn2learn is not installed")


class Listed:
    """Gives the tasks it was given, as a Taskset's `sample()` does."""

    def __init__(self, *tasks: Any) -> None:
        self.tasks = tasks

    def sample(self) -> Any:
        return random.choice(self.tasks)


def taskset(l2l: Any, ways: int = 3, rows: int = 3, num_tasks: int = -1) -> Any:
    """Images [1] that hold 100 * class + number."""
    labels = torch.arange(8).repeat_interleave(6)
    images = (100 * labels + torch.arange(48) % 6).float().unsqueeze(1)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    transforms = [
        l2l.data.transforms.NWays(dataset, n=ways),
        l2l.data.transforms.KShots(dataset, k=rows),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
    ]
    return l2l.data.Taskset(dataset, transforms, num_tasks=num_tasks)


@pytest.mark.parametrize("num_tasks", [-1, 20])
def test_tasks_of_a_taskset_are_split_by_class(l2l: Any, num_tasks: int) -> None:
    source = taskset(l2l, num_tasks=num_tasks)
    tasks = Learn2LearnTasks(source, ways=3, shots=1, queries=2, tasks_per_batch=12).sample("train", 0)
    assert tasks.support_inputs.shape == (12, 3, 1)
    assert tasks.support_targets.tolist() == [[0, 1, 2]] * 12
    assert tasks.query_targets.tolist() == [[0, 0, 1, 1, 2, 2]] * 12
    support, query = tasks.support_inputs.view(12, 3, 1), tasks.query_inputs.view(12, 3, 2)
    values = torch.cat([support, query], 2)
    assert (values // 100 == values[:, :, :1] // 100).all()
    assert all(len(task.unique()) == 9 and len((task // 100).unique()) == 3 for task in values)


@pytest.mark.parametrize("num_tasks", [-1, 5])
def test_tasks_depend_on_seed_stage_and_position_alone(l2l: Any, num_tasks: int) -> None:
    def stream(seed: int = 0) -> Learn2LearnTasks:
        train, val = taskset(l2l, num_tasks=num_tasks), taskset(l2l, num_tasks=num_tasks)
        return Learn2LearnTasks(train, val, ways=3, shots=1, queries=2, tasks_per_batch=7, seed=seed)

    one, other = stream(), stream()
    forward = [one.sample("train", position).query_inputs for position in range(3)]
    random.seed(5)
    backward = [other.sample("train", position).query_inputs for position in reversed(range(3))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not torch.equal(forward[0], forward[1])
    assert not torch.equal(forward[0], one.sample("val", 0).query_inputs)
    assert not torch.equal(forward[0], stream(seed=1).sample("train", 0).query_inputs)
    if num_tasks > 0:
        assert len({tuple(sorted(task.flatten().tolist())) for batch in forward for task in batch}) <= num_tasks


def test_global_random_states_are_left_alone(l2l: Any) -> None:
    stream = Learn2LearnTasks(taskset(l2l), ways=3, shots=1, queries=2, tasks_per_batch=2)

    def numbers() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 - the global one is the point

    def restart() -> None:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    restart()
    undisturbed = numbers()
    restart()
    stream.sample("train", 0)
    assert numbers() == undisturbed


def test_benchmark_tasksets_are_taken_as_they_come(l2l: Any) -> None:
    benchmark = namedtuple("BenchmarkTasksets", ("train", "validation", "test"))
    tasksets = benchmark(taskset(l2l), taskset(l2l, ways=4, rows=5), taskset(l2l, ways=4, rows=5))
    stream = Learn2LearnTasks(tasksets, ways=3, shots=1, queries=2, test_ways=4, test_queries=4, test_tasks=3)
    assert stream.sample("train", 0).query_targets.shape == (32, 6)
    assert stream.sample("test", 0).query_targets.shape == (3, 16)
    with pytest.raises(ValueError, match="no `val` and no `test` beside get_tasksets"):
        Learn2LearnTasks(tasksets, tasksets.test, ways=3, shots=1, queries=2)


def test_rows_in_any_order_are_split_by_label() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 1, 2, 0])
    data = 10 * labels + torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    stream = Learn2LearnTasks(Listed((data.unsqueeze(1), labels)), ways=3, shots=2, queries=1, tasks_per_batch=1)
    tasks = stream.sample("train", 0)
    assert tasks.support_inputs.flatten().tolist() == [0, 1, 10, 11, 20, 21]
    assert tasks.query_inputs.flatten().tolist() == [2, 12, 22]
    assert tasks.query_targets.tolist() == [[0, 1, 2]]


def test_without_validation_and_test_sets_there_are_no_such_tasks() -> None:
    stream = Learn2LearnTasks(Listed(), ways=1, shots=1, queries=1)
    assert (stream.val_tasks, stream.test_tasks) == (0, 0)
    with pytest.raises(ValueError, match="some test tasks to go through but this stream has none"):
        stream.test_dataloader()


BAD = {
    "rows": (
        (torch.zeros(7, 1), torch.zeros(7).long()),
        r"shots \+ queries = 1 \+ 2 rows of each label from 0 to 1 but got data \[7, 1\] and labels \[7\] .*{0: 7}",
    ),
    "labels of other length": ((torch.zeros(6, 1), torch.zeros(5).long()), r"data \[6, 1\] and labels \[5\]"),
    "labels not remapped": (
        (torch.zeros(6, 1), torch.tensor([4, 4, 4, 9, 9, 9])),
        r"label from 0 to 1 .* the rows {4: 3, 9: 3}: learn2learn.data.transforms.RemapLabels",
    ),
    "classes unequal": (
        (torch.zeros(6, 1), torch.tensor([0, 0, 0, 0, 1, 1])),
        r"rows of each label .* the rows {0: 4, 1: 2}",
    ),
    "labels floating": ((torch.zeros(6, 1), torch.zeros(6)), "a task of `train` .* of torch.float32"),
    "not two": (torch.zeros(6, 1), r"to be \(data, labels\), two tensors, but got Tensor"),
    "not tensors": (([0], torch.zeros(6)), r"to be \(data, labels\), .* but got tuple of \['list', 'Tensor'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_tasks_of_another_make_are_refused(case: str) -> None:
    task, message = BAD[case]
    stream = Learn2LearnTasks(Listed(task), ways=2, shots=1, queries=2)
    with pytest.raises(ValueError, match=message):
        stream.sample("train", 0)


def test_what_is_no_taskset_is_refused() -> None:
    with pytest.raises(TypeError, match="`train` to be a learn2learn Taskset but got list"):
        Learn2LearnTasks([], ways=1, shots=1, queries=1)
    with pytest.raises(TypeError, match="`test` to be a learn2learn Taskset but got int"):
        Learn2LearnTasks(Listed(), test=3, ways=1, shots=1, queries=1)
    with pytest.raises(ValueError, match="`test_ways` to be a whole number of at least 1 but got 0"):
        Learn2LearnTasks(Listed(), ways=1, shots=1, queries=1, test_ways=0)


# Importing learn2learn


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True)


def test_learn2learn_is_imported_without_a_word_and_leaves_nothing_changed(l2l: Any) -> None:
    loud = python("import learn2learn")
    assert "Gym has been unmaintained" in loud.stderr  # otherwise this test would prove nothing
    quiet = python(
        "import warnings; filters = list(warnings.filters)\n"
        "from lightning_maml.data import import_learn2learn\n"
        "before = list(warnings.filters)\n"
        "print(import_learn2learn().data.Taskset.__name__, warnings.filters == before)\n"
        "import gym_notices.notices, sys\n"
        "print(len(gym_notices.notices.notices) > 0, sys.stderr is sys.__stderr__)"
    )
    assert quiet.returncode == 0
    assert quiet.stderr == ""
    assert quiet.stdout.split() == ["Taskset", "True", "True", "True"]


def test_missing_learn2learn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    filters = list(warnings.filters)
    with pytest.raises(ImportError) as raised:
        import_learn2learn()
    for line in (
        'pip install "setuptools<81" wheel cython numpy',
        "pip install learn2learn==0.2.0 --use-pep517 --no-build-isolation --no-deps \\\n",
        "--config-settings=--global-option=build_ext\n",
        'pip install "lightning-maml[l2l-runtime]"',
    ):
        assert line in str(raised.value)
    assert warnings.filters == filters
