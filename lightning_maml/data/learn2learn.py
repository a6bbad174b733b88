"""learn2learn's Tasksets (Arnold et al. 2020, https://arxiv.org/abs/2008.12284) as a stream of tasks."""

import importlib
import random
import warnings
from collections import Counter
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_maml.data.episodes import split_by_class
from lightning_maml.data.stream import Stage, TaskStream, sizes_of_stages
from lightning_maml.tasks import TaskBatch

INSTALL = """learn2learn is not installed, or does not import. Its last release installs on Python 3.11 and later by
    pip install "setuptools<81" wheel cython numpy
    pip install learn2learn==0.2.0 --use-pep517 --no-build-isolation --no-deps \\
      --config-settings=--global-option=build_ext
    pip install "lightning-maml[l2l-runtime]\""""


class Learn2LearnTasks(TaskStream):
    """Tasks from any learn2learn ``Taskset``, split by class into support and query set.

    The Taskset itself draws one task after another, each from a seed of its own; Python's, numpy's and torch's random
    states are as before afterwards. For a ``MetaDataset`` with learn2learn's usual transforms
    :meth:`lightning_maml.data.EpisodeSampler.from_meta_dataset` draws the same tasks, many times faster.
    Arguments that are not described here are those of :class:`~lightning_maml.data.TaskStream`.

    Args:
        train: the ``Taskset`` of training tasks, or all three, of ``learn2learn.vision.benchmarks.get_tasksets``.
        val: the ``Taskset`` of validation tasks; None for no validation.
        test: the ``Taskset`` of test tasks; None for no test.
        ways: ``N``, classes of a task.
        shots: support rows of each class.
        queries: query rows of each class: the Taskset's tasks have ``shots + queries`` rows of each class.
        test_ways, test_shots, test_queries: the same in validation and test, where they are not None.

    Raises:
        TypeError: ``train``, ``val`` or ``test`` is no Taskset.
        ValueError: a number is out of range, or a task has other rows than these, said when it is drawn.
    """

    def __init__(
        self,
        train: Any,
        val: Any = None,
        test: Any = None,
        *,
        ways: int,
        shots: int,
        queries: int,
        tasks_per_batch: int = 32,
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        test_ways: int | None = None,
        test_shots: int | None = None,
        test_queries: int | None = None,
        seed: int = 0,
    ) -> None:
        if all(hasattr(train, name) for name in ("train", "validation", "test")):
            if val is not None or test is not None:
                raise ValueError("Expected no `val` and no `test` beside get_tasksets(...), which has its own.")
            train, val, test = train.train, train.validation, train.test
        val_tasks, test_tasks = (0 if val is None else val_tasks), (0 if test is None else test_tasks)
        super().__init__(tasks_per_batch, batches_per_epoch, val_tasks, test_tasks, seed)
        self.sizes = sizes_of_stages(ways=(ways, test_ways), shots=(shots, test_shots), queries=(queries, test_queries))
        self.tasksets = {"train": train, "val": val, "test": test}
        for name, taskset in self.tasksets.items():
            if not hasattr(taskset, "sample") and (name == "train" or taskset is not None):
                raise TypeError(f"Expected `{name}` to be a learn2learn Taskset but got {type(taskset).__name__}.")

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A seed for each task ``[T]``: learn2learn draws from Python's global generator."""
        return (torch.randint(2**63 - 1, (tasks,), generator=generator),)

    def build(self, stage: Stage, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        """Inputs ``[T, ways * rows, ...]`` and labels ``[T, ways * rows]``, both sorted by label."""
        with isolate_rng(include_cuda=False):
            tasks = [self._by_class(stage, self._task(stage, int(seed))) for seed in drawn[0]]
        return split_by_class(torch.stack(tasks).to(device), self.sizes[stage]["shots"])

    def _task(self, stage: Stage, seed: int) -> Any:
        taskset = self.tasksets[stage]
        _seed(seed)
        if getattr(taskset, "num_tasks", -1) > 0:
            # It keeps the description of each of its tasks, drawn from a seed of the task's own number, whenever it is.
            index = random.randrange(taskset.num_tasks)
            if index not in taskset.sampled_descriptions:
                _seed(self._generator(stage, index).initial_seed())
                taskset.sampled_descriptions[index] = taskset.sample_task_description()
            _seed(seed + 1)
            return taskset[index]
        return taskset.sample()

    def _by_class(self, stage: Stage, task: Any) -> Tensor:
        """The data of a task, ``[ways, shots + queries, ...]``, whose rows may come in any order."""
        parts = [type(part).__name__ for part in task] if isinstance(task, tuple | list) else []
        if len(parts) != 2 or not all(isinstance(part, Tensor) for part in task):
            got = type(task).__name__ + (f" of {parts}" if parts else "")
            raise ValueError(f"Expected a task of `{stage}` to be (data, labels), two tensors, but got {got}.")
        data, labels = task
        ways, shots, queries = self.sizes[stage].values()
        rows = dict(sorted(Counter(labels.flatten().tolist()).items()))
        right = labels.shape == data.shape[:1] and not labels.is_floating_point()
        if not right or rows != dict.fromkeys(range(ways), shots + queries):
            raise ValueError(
                f"Expected a task of `{stage}` to have shots + queries = {shots} + {queries} rows of each label from 0 "
                f"to {ways - 1} but got data {list(data.shape)} and labels {list(labels.shape)} of {labels.dtype}, "
                f"with the rows {rows}: learn2learn.data.transforms.RemapLabels makes such labels."
            )
        return data[labels.argsort(stable=True)].unflatten(0, (ways, -1))


def import_learn2learn() -> ModuleType:
    """learn2learn, imported without the notices of gym and old interfaces; ImportError says how it installs."""
    try:
        with patch.dict("gym_notices.notices.notices", clear=True), warnings.catch_warnings(action="ignore"):
            return importlib.import_module("learn2learn")
    except ImportError as error:
        raise ImportError(f"{INSTALL}\nThe import says: {error}") from error


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - data sets' transforms use the global one
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU's as well
