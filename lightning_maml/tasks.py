"""What goes in: a batch of tasks, each a support set to adapt on and a query set to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

Set = tuple[Tensor, Tensor]
"""Inputs ``[T, N, ...]`` and targets ``[T, N, ...]`` of all tasks."""


@dataclass(eq=False)  # not frozen: Lightning converts the precision of a batch in place
class TaskBatch:
    """A meta-batch: ``T`` tasks, tasks first in every tensor.

    Args:
        support_inputs: ``[T, Ns, ...]``, what each task adapts on.
        support_targets: ``[T, Ns, ...]``: class labels ``[T, Ns]`` (int64), or values.
        query_inputs, query_targets: ``[T, Nq, ...]``, what the adapted networks are judged by.

    Raises:
        TypeError: one of the four is not a tensor.
        ValueError: the number of tasks or of rows differs, or there are none.

    Example:
        >>> x, y = torch.randn(3, 10, 1), torch.randn(3, 10, 1)
        >>> tasks = TaskBatch(x, y, x, y)
        >>> len(tasks), tasks[:2].query_inputs.shape
        (3, torch.Size([2, 10, 1]))
    """

    support_inputs: Tensor
    support_targets: Tensor
    query_inputs: Tensor
    query_targets: Tensor

    def __post_init__(self) -> None:
        for name, value in self.named():
            if not isinstance(value, Tensor):
                raise TypeError(f"Expected `{name}` to be a tensor [tasks, rows, ...] but got {type(value).__name__}.")
            shape = list(value.shape)
            if len(shape) < 2:
                alone = ": one task alone needs .unsqueeze(0)" if shape else ""
                raise ValueError(f"Expected `{name}` to have shape [tasks, rows, ...] but got {shape}{alone}.")
            if 0 in shape[:2]:
                raise ValueError(f"Expected `{name}` to hold at least one task and one row but got {shape}.")
        tasks = {name: value.shape[0] for name, value in self.named()}
        if len(set(tasks.values())) > 1:
            raise ValueError(f"Expected the same number of tasks everywhere but got {tasks}.")
        for part, (inputs, targets) in zip(("support", "query"), self.sets, strict=True):
            if inputs.shape[1] != targets.shape[1]:
                rows = f"{targets.shape[1]} and {inputs.shape[1]}"
                rows += ": one task alone needs .unsqueeze(0)" if inputs.ndim == 2 else ""
                raise ValueError(f"Expected as many {part} targets as {part} inputs in each task but got {rows}.")

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The four tensors with their names."""
        support, query = self.sets
        return zip(TaskBatch.__match_args__, (*support, *query), strict=True)

    @property
    def sets(self) -> tuple[Set, Set]:
        """The support sets and the query sets, inputs and targets of each."""
        return (self.support_inputs, self.support_targets), (self.query_inputs, self.query_targets)

    def __len__(self) -> int:
        """The number of tasks, ``T``."""
        return self.support_inputs.shape[0]

    def __getitem__(self, index: slice) -> TaskBatch:
        """A part of the tasks, as views: ``tasks[2:5]``."""
        if not isinstance(index, slice):
            raise TypeError(
                f"Expected a slice of tasks, as in tasks[2:3], but got {index!r}: tasks.parts(1) has all in turn, and "
                "in the place of a list of batches a trainer takes DataLoader(batches, batch_size=None)."
            )
        return TaskBatch(*(value[index] for _, value in self.named()))

    def parts(self, size: int) -> Iterator[TaskBatch]:
        """All tasks, ``size`` or fewer at a time, as views."""
        yield from [self] if size >= len(self) else (self[start : start + size] for start in range(0, len(self), size))

    def to(self, *args: Any, **kwargs: Any) -> TaskBatch:
        """All four tensors moved, as by :meth:`torch.Tensor.to`; a dtype changes floating inputs and targets alone."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        every = [(value, dtype if value.is_floating_point() else None) for _, value in self.named()]
        return TaskBatch(*(value.to(device, own, non_blocking=non_blocking) for value, own in every))

    def pin_memory(self) -> TaskBatch:
        """All four tensors in page-locked memory, for a data loader with ``pin_memory=True``."""
        return TaskBatch(*(value.pin_memory() for _, value in self.named()))


@dataclass(eq=False)
class UnequalTasks:
    """A meta-batch of tasks with different numbers of rows: those with equal numbers are a :class:`TaskBatch` each.

    No row is padded, so that nothing is seen of one that is not there, and losses and gradients are those of one task
    after another. :class:`~lightning_maml.MetaModule` takes it wherever it takes a :class:`TaskBatch`.

    Args:
        groups: the tasks, those of equal numbers of rows together.

    Raises:
        ValueError: there are no groups.

    Example:
        >>> x, few = torch.randn(3, 10, 1), torch.randn(1, 4, 1)
        >>> tasks = UnequalTasks([TaskBatch(x, x, x, x), TaskBatch(few, few, x[:1], x[:1])])
        >>> len(tasks), [len(part) for part in tasks.parts(2)]
        (4, [2, 1, 1])
    """

    groups: list[TaskBatch]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("Expected `groups` to hold at least one task batch but got none.")

    def __len__(self) -> int:
        """The number of tasks, ``T``."""
        return sum(map(len, self.groups))

    def parts(self, size: int) -> Iterator[TaskBatch]:
        """All tasks, ``size`` or fewer at a time, in the groups' order."""
        for group in self.groups:
            yield from group.parts(size)


def _uncollated(batch: Any, **_: Any) -> Any:
    raise TypeError(
        f"Expected `DataLoader(..., batch_size=None)`, which hands on each {type(batch[0]).__name__} as it is, but got "
        "a data loader that puts several together."
    )


# torch's place for what its data loaders do with a class that they do not know
default_collate_fn_map.update({TaskBatch: _uncollated, UnequalTasks: _uncollated})
