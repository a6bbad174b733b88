"""The orders of a task's classes: which class is which output of the head decides how well a task is learned."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from lightning_maml.tasks import TaskBatch, exact, tensors_in

ClassOrders = int | Literal["all"]
"""In how many orders of its classes each task is tested: a number from 1 on, or ``"all"``, 120 of 5 classes."""

MOST = math.factorial(7)


def check_class_orders(number: ClassOrders) -> None:
    """Raise ValueError where it is none of :data:`ClassOrders`."""
    whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    if not whole and number != "all":
        got = f"a whole number of at least 1, or 'all', but got {number!r}"
        raise ValueError(f"Expected `test_class_orders` to be {got}.")


def in_class_orders(tasks: TaskBatch, number: ClassOrders) -> list[TaskBatch]:
    """The tasks with their classes in ``number`` different orders, alike in support and query, their own one first.

    The others are drawn by a seed made of a task's support set: a task has the same ones in every batch and run. Where
    ``number`` is ``"all"``, or more than there are, it is all orders of the classes, 0 up to the greatest label.
    ValueError where targets are no class labels, or ``"all"`` are more than 5,040.

    Example:
        >>> x, labels = torch.zeros(1, 3, 2), torch.tensor([[0, 1, 2]])
        >>> [batch.support_targets.tolist() for batch in in_class_orders(TaskBatch(x, labels, x, labels), "all")[:3]]
        [[[0, 1, 2]], [[0, 2, 1]], [[1, 0, 2]]]
    """
    if number == 1:
        return [tasks]
    targets = tasks.support_targets, tasks.query_targets
    if any(each.is_floating_point() or each.ndim != 2 for each in targets):
        got = f"{targets[0].dtype} {list(targets[0].shape)}"
        raise ValueError(f"Expected class labels [tasks, rows] for test_class_orders={number!r} but got {got}.")
    classes = 1 + int(max(each.max() for each in targets))
    if number == "all" and math.factorial(classes) > MOST:
        raise ValueError(
            f"Expected `test_class_orders` to be a number for tasks of {classes} classes but got 'all', which are "
            f"{math.factorial(classes):,}."
        )
    if number == "all" or number >= math.factorial(classes):
        every = torch.tensor([*permutations(range(classes))])
        orders = every.expand(len(tasks), *every.shape)
    else:
        orders = torch.stack([_drawn(tasks[place : place + 1], classes, number) for place in range(len(tasks))])
    return [_relabelled(tasks, order) for order in orders.to(targets[0].device).unbind(1)]


def mean_over_orders(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over orders of what was found in each of them, ``{name: [T, ...]}``, as exact as that over tasks."""
    stacked = {name: torch.stack([found[name] for found in each]) for name in each[0]}
    return {name: values.to(exact(values.device)).mean(0) for name, values in stacked.items()}


def _drawn(task: TaskBatch, classes: int, number: int) -> Tensor:
    """As many different orders, ``[number, classes]``, the first of which changes nothing."""
    digest = hashlib.blake2b(digest_size=8)
    for value in tensors_in(task.sets[0]):
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()) % 2**63)
    found = {tuple(range(classes)): None}  # in the order in which they are drawn
    while len(found) < number:
        found[tuple(torch.randperm(classes, generator=generator).tolist())] = None
    return torch.tensor([*found])


def _relabelled(tasks: TaskBatch, order: Tensor) -> TaskBatch:
    """The tasks with ``order [T, classes]`` of each label in its place."""
    support, query = (order.gather(1, labels.long()) for labels in (tasks.support_targets, tasks.query_targets))
    return replace(tasks, support_targets=support, query_targets=query)
