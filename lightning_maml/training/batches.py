"""What a training step is given, as batches of tasks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_maml.tasks import TaskBatch, UnequalTasks


def as_task_batch(batch: Any) -> Any:
    """A :class:`TaskBatch` or :class:`UnequalTasks` as it is, or one built of four in a tuple; else ValueError."""
    if isinstance(batch, TaskBatch | UnequalTasks):
        return batch
    if are_sets(batch, 4):
        return TaskBatch(*as_sets(batch))
    got = type(batch).__name__
    if isinstance(batch, list | tuple | dict):
        parts = batch.values() if isinstance(batch, dict) else batch
        shapes = [str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        got += f" of {len(batch)}: {', '.join(shapes)}"
    raise ValueError(
        "Expected a batch of tasks, TaskBatch(support_inputs, support_targets, query_inputs, query_targets) with "
        f"tensors [tasks, rows, ...], or those four in a tuple, but got {got}."
    )


def are_sets(batch: Any, number: int) -> bool:
    """Whether a batch is so many of inputs and targets by turns, and no sequence of batches."""
    several = isinstance(batch, list | tuple) and len(batch) == number
    return several and all(
        isinstance(part, Tensor if place % 2 else Tensor | tuple | list | dict) for place, part in enumerate(batch)
    )


def as_sets(batch: Sequence[Any]) -> list[Any]:
    # a data loader makes lists of the tuples in a batch that is a tuple itself
    return [tuple(part) if isinstance(part, list) else part for part in batch]
