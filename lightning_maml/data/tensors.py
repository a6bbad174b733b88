"""Tasks from the rows of two tensors, and a third that says to which task each row belongs."""

from typing import Any

import torch
from torch import Tensor

from lightning_maml.checks import check_seed, check_whole
from lightning_maml.data.class_tasks import check_split, draw_stages
from lightning_maml.data.rows import RowTasks
from lightning_maml.data.stream import Stage


class TensorTasks(RowTasks):
    """Tasks from the rows of tensors; ``shots`` rows of a task, drawn anew each time, are its support.

    Its other rows are its queries, so tasks may have any number of rows above ``shots``: where they differ, a batch is
    :class:`~lightning_maml.tasks.UnequalTasks`. A seeded choice of tasks trains, validates and tests; prediction has
    the test tasks.

    Args:
        inputs: ``[M, ...]``, rows of all tasks.
        targets: ``[M, ...]``: class labels ``[M]`` (int64), or values.
        task_index: ``[M]``, whole numbers: the task of each row.
        shots: support rows of a task.
        split: the shares of the tasks for training, validation and test, which ``seed`` draws.
        tasks_per_batch, batches_per_epoch, seed: as of :class:`~lightning_maml.data.TaskStream`.

    TypeError where one of the three is no tensor; ValueError where a number is out of range, their numbers of rows
    differ, ``task_index`` has no whole numbers, or a task too few rows.

    Example:
        >>> x, task = torch.randn(200, 1), torch.arange(200) // 10
        >>> tasks = TensorTasks(x, x * task.unsqueeze(1), task, shots=4, tasks_per_batch=5)
        >>> tasks.sample("train", 0).query_inputs.shape
        torch.Size([5, 6, 1])
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        task_index: Tensor,
        shots: int = 10,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        tasks_per_batch: int = 25,
        batches_per_epoch: int = 500,
        seed: int = 0,
    ) -> None:
        check_whole(1, shots=shots)
        check_split(split)
        check_seed(seed=seed)
        _check_tensors(inputs=inputs, targets=targets, task_index=task_index)
        names, place, counts = task_index.cpu().unique(return_inverse=True, return_counts=True)
        if (counts <= shots).any():
            few = int(counts.argmin())
            raise ValueError(
                f"Expected more than `shots` = {shots} rows of each task but got {counts[few]} of task {names[few]}: "
                "lower `shots`, or leave the task out."
            )
        rows: dict[Stage, list[Tensor]] = {"train": [], "val": [], "test": []}
        of_each = place.argsort(stable=True).split(counts.tolist())
        for stage, of_task in zip(draw_stages(len(names), split, seed), of_each, strict=True):
            rows[stage].append(of_task)
        if not rows["train"]:
            what = f"tasks for training by the `split` {list(split)}"
            raise ValueError(f"Expected {what} but there are {len(names)} tasks.")
        super().__init__(rows, [], shots, tasks_per_batch, batches_per_epoch, seed)
        self.inputs, self.targets = inputs, targets

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs ``[M, ...]`` and targets ``[M, ...]``."""
        return self.inputs, self.targets

    def predict_dataloader(self) -> Any:
        """Positions of the test tasks."""
        return self.test_dataloader()


def _check_tensors(**tensors: Any) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected `{name}` to be a tensor but got {type(value).__name__}.")
    index = tensors["task_index"]
    if index.ndim != 1 or len(index) == 0 or index.is_floating_point() or index.dtype == torch.bool:
        wanted = "`task_index` to be [M], a whole number (int64) for each row,"
        raise ValueError(f"Expected {wanted} but got {index.dtype} {list(index.shape)}.")
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    if any(shape[:1] != [len(index)] for shape in shapes.values()):
        raise ValueError(f"Expected as many rows in each tensor but got {shapes}.")
