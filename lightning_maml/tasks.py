"""What goes in: a batch of tasks, each a support set to adapt on and a query set to be judged by."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data._utils.collate import default_collate_fn_map

Inputs = Any
"""What a network is called with: a tensor, or a tuple or dictionary of tensors, ``[T, N, ...]`` each (of one task
``[N, ...]``): ``network(x)``, ``network((x, mask))``, ``network({"x": x, "mask": mask})``."""

Set = tuple[Inputs, Tensor]
"""Inputs, ``[T, N, ...]`` each, and targets ``[T, N, ...]`` of all tasks."""


def map_inputs(function: Callable[[Tensor], Any], inputs: Inputs) -> Inputs:
    """Inputs of the same structure, each tensor as ``function`` makes it.

    Example:
        >>> map_inputs(len, {"x": torch.zeros(3, 10, 2), "mask": torch.zeros(3, 10)})
        {'x': 3, 'mask': 3}
    """
    return function(inputs) if isinstance(inputs, Tensor) else tree_map(function, inputs)


def mean_over_tasks(values: Tensor, shares: Tensor | None) -> Tensor:
    """The mean of ``values [T]`` over tasks that count alike, or by their ``shares [T]``, of :attr:`TaskBatch.shares`.

    Example:
        >>> mean_over_tasks(torch.tensor([1.0, 5.0]), torch.tensor([0.75, 0.25]))
        tensor(2.)
    """
    return values.mean() if shares is None else (values * shares.to(values.dtype)).sum()


def exact(device: torch.device) -> torch.dtype:
    """The most precise dtype that a device has: Apple's GPU has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def tensors_in(*sets: Set) -> list[Tensor]:
    """The tensors of inputs and targets, in their order."""
    found: list[Tensor] = []
    for inputs, targets in sets:
        found += (inputs, targets) if isinstance(inputs, Tensor) else (*tree_leaves(inputs), targets)
    return found


def kinds(*sets: Set) -> tuple[tuple[Any, ...], ...]:
    """What tensors of inputs and targets are, but for their numbers: by it, of data, an engine decides what it runs."""
    return tuple([(v.shape, v.dtype, v.device, v.requires_grad, type(v)) for v in tensors_in(*sets)])


def _named(name: str, inputs: Inputs) -> list[tuple[str, Tensor]]:
    """The tensors of inputs, each with the code that leads to it: ``support_inputs["mask"]``."""
    if not isinstance(inputs, tuple | dict):
        return [(name, inputs)]
    pairs = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    return [(f"{name}[{key!r}]", tensor) for key, tensor in pairs]


def _structure(inputs: Inputs) -> str:
    """What inputs are made of, in words."""
    if isinstance(inputs, dict):
        return f"a dict of {sorted(inputs)}"
    return f"a tuple of {len(inputs)}" if isinstance(inputs, tuple) else "a tensor"


@dataclass(eq=False)  # not frozen: Lightning converts the precision of a batch in place
class TaskBatch:
    """A meta-batch: ``T`` tasks, tasks first in every tensor.

    Args:
        support_inputs: ``[T, Ns, ...]``, what each task adapts on: a tensor, or a tuple or dictionary of such tensors,
            with which networks are called as they are, :data:`Inputs`.
        support_targets: ``[T, Ns, ...]``: class labels ``[T, Ns]`` (int64), or values.
        query_inputs: ``[T, Nq, ...]``, what the adapted networks are judged by, of the same structure.
        query_targets: ``[T, Nq, ...]``.
        task_weights: ``[T]``, what tasks count in the mean over them, ``sum(w_t loss_t) / sum(w_t)``, and so in the
            meta-gradient: finite, not negative and not all 0 (looked at on the CPU). None: tasks count alike. What is
            logged and evaluated stays each task's own.

    Raises:
        TypeError: targets or weights are not a tensor, inputs not of :data:`Inputs`.
        ValueError: the number of tasks or of rows differs, or there are none; support and query inputs are of different
            structures; weights are out of range, or ask for a gradient.

    Example:
        >>> x, y = torch.randn(3, 10, 1), torch.randn(3, 10, 1)
        >>> tasks = TaskBatch(x, y, x, y)
        >>> len(tasks), tasks[:2].query_inputs.shape
        (3, torch.Size([2, 10, 1]))
        >>> mask = torch.ones(3, 10, dtype=torch.bool)
        >>> TaskBatch({"x": x, "mask": mask}, y, {"x": x, "mask": mask}, y)[:2].query_inputs["mask"].shape
        torch.Size([2, 10])
    """

    support_inputs: Inputs
    support_targets: Tensor
    query_inputs: Inputs
    query_targets: Tensor
    task_weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self._fits():
            return
        if type(self.support_inputs) is not Tensor or type(self.query_inputs) is not Tensor:
            self._check_structures()
        for name, value in self._named_sets():
            if not isinstance(value, Tensor):
                raise TypeError(f"Expected `{name}` to be a tensor [tasks, rows, ...] but got {type(value).__name__}.")
            shape = list(value.shape)
            if len(shape) < 2:
                alone = ": one task alone needs .unsqueeze(0)" if shape else ""
                raise ValueError(f"Expected `{name}` to have shape [tasks, rows, ...] but got {shape}{alone}.")
            if 0 in shape[:2]:
                raise ValueError(f"Expected `{name}` to hold at least one task and one row but got {shape}.")
        tasks = {name: value.shape[0] for name, value in self._named_sets()}
        if len(set(tasks.values())) > 1:
            raise ValueError(f"Expected the same number of tasks everywhere but got {tasks}.")
        for part, (inputs, targets) in zip(("support", "query"), self.sets, strict=True):
            for name, value in _named(f"{part} inputs", inputs):
                if value.shape[1] != targets.shape[1]:
                    rows = f"{targets.shape[1]} and {value.shape[1]}"
                    rows += ": one task alone needs .unsqueeze(0)" if value.ndim == 2 else ""
                    raise ValueError(f"Expected as many {part} targets as {name} in each task but got {rows}.")
        if self.task_weights is not None:
            self._check_weights(self.task_weights)

    def _fits(self) -> bool:
        """Whether all is well, of tensors alone: streams make thousands of batches in a second."""
        if self.task_weights is not None:
            return False
        shapes = []
        for value in (self.support_inputs, self.support_targets, self.query_inputs, self.query_targets):
            if type(value) is not Tensor or len(shape := value.shape) < 2:
                return False
            shapes.append(shape)
        (tasks, rows, *_), support, asked, query = shapes
        return (
            tasks > 0 < rows
            and support[:2] == (tasks, rows)
            and query[0] == tasks
            and query[1] > 0
            and asked[:2] == query[:2]
        )

    def _check_structures(self) -> None:
        for name, inputs in (("support_inputs", self.support_inputs), ("query_inputs", self.query_inputs)):
            words = isinstance(inputs, dict) and all(isinstance(key, str) for key in inputs)
            opaque = any(leaf is inputs for leaf in tree_leaves(inputs))  # classes that torch does not look into
            if not isinstance(inputs, Tensor) and (opaque or not inputs or not (words or isinstance(inputs, tuple))):
                keys = f" with the keys {[*inputs]}" if isinstance(inputs, dict) else ""
                raise TypeError(
                    f"Expected `{name}` to be a tensor [tasks, rows, ...], or a tuple or a dictionary by names of such "
                    f"tensors, but got {'an empty ' if isinstance(inputs, tuple) else ''}{type(inputs).__name__}{keys}."
                )
        support, query = _structure(self.support_inputs), _structure(self.query_inputs)
        if support != query:
            raise ValueError(f"Expected support and query inputs of one structure but got {support} and {query}.")

    def _check_weights(self, weights: Tensor) -> None:
        if not isinstance(weights, Tensor):
            raise TypeError(f"Expected `task_weights` to be a tensor [tasks] but got {type(weights).__name__}.")
        if weights.shape != (len(self),):
            raise ValueError(f"Expected `task_weights` to have shape [{len(self)}] but got {list(weights.shape)}.")
        if weights.requires_grad:
            raise ValueError("Expected `task_weights` without a gradient but they ask for one: detach them.")
        if weights.is_cpu and not (bool(((weights >= 0) & weights.isfinite()).all()) and bool(weights.any())):
            got = f"{weights[:10].tolist()}{' and more' if len(weights) > 10 else ''}"
            raise ValueError(f"Expected `task_weights` to be finite, not negative and not all 0 but got {got}.")

    def _named_sets(self) -> Iterator[tuple[str, Tensor]]:
        support, query = self.sets
        pairs = zip(TaskBatch.__match_args__, (*support, *query), strict=False)  # weights have no rows
        if isinstance(self.support_inputs, Tensor) and isinstance(self.query_inputs, Tensor):
            return pairs
        return itertools.chain.from_iterable(itertools.starmap(_named, pairs))

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors with their names: ``support_inputs``, ``support_inputs[0]`` or ``support_inputs['mask']``."""
        if self.task_weights is None:
            return self._named_sets()
        return itertools.chain(self._named_sets(), [("task_weights", self.task_weights)])

    @property
    def shares(self) -> Tensor | None:
        """What each task counts in the mean, ``[T]``, in sum 1, or all 0 where all weights are; None: all alike."""
        if self.task_weights is None:
            return None
        weights = self.task_weights.to(exact(self.task_weights.device))
        total = weights.sum()
        return weights / total.where(total > 0, 1)

    @property
    def total_weight(self) -> float:
        """The sum of the tasks' weights; without weights their number."""
        return float(len(self) if self.task_weights is None else self.task_weights.cpu().double().sum())

    def each(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        """The same tasks, every tensor as ``function`` makes it, unchecked."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            setattr(made, name, None if value is None else map_inputs(function, value))
        return made

    @property
    def sets(self) -> tuple[Set, Set]:
        """The support sets and the query sets, inputs and targets of each."""
        return (self.support_inputs, self.support_targets), (self.query_inputs, self.query_targets)

    def __len__(self) -> int:
        """The number of tasks, ``T``."""
        return self.support_targets.shape[0]

    def __getitem__(self, index: slice) -> TaskBatch:
        """A part of the tasks, as views: ``tasks[2:5]``."""
        if not isinstance(index, slice):
            raise TypeError(
                f"Expected a slice of tasks, as in tasks[2:3], but got {index!r}: tasks.parts(1) has all in turn, and "
                "in the place of a list of batches a trainer takes DataLoader(batches, batch_size=None)."
            )
        part = self.each(lambda value: value[index])
        if len(part) == 0:
            raise ValueError(f"Expected a slice with at least one of the {len(self)} tasks but got {index}.")
        return part

    def parts(self, size: int) -> Iterator[TaskBatch]:
        """All tasks, ``size`` or fewer at a time, as views."""
        yield from [self] if size >= len(self) else (self[start : start + size] for start in range(0, len(self), size))

    def to(self, *args: Any, **kwargs: Any) -> TaskBatch:
        """All tensors moved, as by :meth:`torch.Tensor.to`; a dtype changes those of floating point alone."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None, non_blocking=non_blocking)

        return self.each(moved)

    def pin_memory(self) -> TaskBatch:
        """All tensors in page-locked memory, for a data loader with ``pin_memory=True``."""
        return self.each(Tensor.pin_memory)


@dataclass(eq=False)
class UnequalTasks:
    """A meta-batch of tasks with different numbers of rows: those with equal numbers are a :class:`TaskBatch` each.

    No row is padded: losses and gradients are those of one task after another. :class:`~lightning_maml.MetaModule`
    takes it wherever it takes a :class:`TaskBatch`. ValueError where there are no groups.

    Args:
        groups: the tasks, those of equal numbers of rows together. Where groups have weights, each task counts by its
            own among all of them, and a task of a group without weights as 1.

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

    @property
    def total_weight(self) -> float:
        """The sum of the tasks' weights; a task of a group without weights has weight 1."""
        return sum(group.total_weight for group in self.groups)

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
