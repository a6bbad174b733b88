"""A meta-batch a few tasks at a time: losses put together, gradients added up, each chunk's graph freed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_maml.engine.base import MetaOutput, Problem, attach
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.inner import Parameters
from lightning_maml.meta_gradient import Loop, Query
from lightning_maml.tasks import Set, TaskBatch


class ChunkLoop(Loop, Protocol):
    """A rule's loop that also knows its gradients and losses."""

    def gradients(self, query: Query, weight: float, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of ``weight * query.loss``, zero where a leaf has no part in it."""

    def support_history(self) -> Tensor:
        """The support losses ``[T, steps + 1]``."""


def meta_loss_in_chunks(
    problem: Problem, tasks: TaskBatch, size: int, loop_of: Callable[[Set, Set], ChunkLoop]
) -> MetaOutput:
    """The meta-gradient of all tasks, ``size`` at a time, each chunk run by the loop made of its sets."""
    leaves = problem.leaves(*(value for _, value in tasks.named()))
    gradients: Sequence[Tensor] | None = None
    losses, predictions, support_losses = [], [], []
    for start in range(0, len(tasks), size):
        chunk = tasks if size >= len(tasks) else tasks[start : start + size]
        loop = loop_of(*chunk.sets)
        query = problem.algorithm.meta_gradient(loop)
        share = loop.gradients(query, len(chunk) / len(tasks), leaves)
        gradients = share if gradients is None else [a + b for a, b in zip(gradients, share, strict=True)]
        losses.append(query.task_losses)
        predictions.append(query.predictions)
        support_losses.append(loop.support_history())
        mean = None if query.loss.requires_grad else query.loss
        del loop, query
    assert gradients is not None  # a TaskBatch holds at least one task
    task_losses = _joined(losses)
    # a loss without a graph is the mean already
    loss = mean if mean is not None and len(losses) == 1 else task_losses.mean()
    surrogate = attach(loss, gradients, leaves)
    return MetaOutput(loss, surrogate, task_losses, _joined(predictions), _joined(support_losses))


def trajectory_in_chunks(
    support: Set, size: int | None, loop_of: Callable[[Set], TaskLoop]
) -> Iterator[tuple[Parameters, Tensor]]:
    """Parameters and support losses before and after each inner step, ``size`` tasks at a time; None: all."""
    inputs, targets = support
    size = size or len(inputs)
    starts = range(0, len(inputs), size)
    parts = [loop_of((inputs[at : at + size], targets[at : at + size])).trajectory() for at in starts]
    for step in zip(*parts, strict=True):
        yield (
            {name: _joined([phi[name] for phi, _ in step]) for name in step[0][0]},
            _joined([loss for _, loss in step]),
        )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
