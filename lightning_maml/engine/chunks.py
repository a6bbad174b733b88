"""A meta-batch a few tasks at a time: losses put together, gradients added up, each chunk's graph freed at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_maml.engine.base import MetaOutput, Problem, attach
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.tasks import TaskBatch

__all__ = ["meta_loss_in_chunks"]


def meta_loss_in_chunks(
    problem: Problem, tasks: TaskBatch, size: int, loop_of: Callable[[TaskBatch], TaskLoop]
) -> MetaOutput:
    """The meta-gradient of all tasks, ``size`` at a time, each chunk run by the loop that ``loop_of`` makes of it."""
    leaves = problem.leaves(*(value for _, value in tasks.named()))
    gradients: Sequence[Tensor] | None = None
    losses, predictions, support_losses = [], [], []
    for start in range(0, len(tasks), size):
        chunk = tasks if size >= len(tasks) else tasks[start : start + size]
        loop = loop_of(chunk)
        query = problem.algorithm.meta_gradient(loop)
        share = loop.gradients(query, len(chunk) / len(tasks), leaves)
        gradients = share if gradients is None else [a + b for a, b in zip(gradients, share, strict=True)]
        losses.append(query.task_losses)
        predictions.append(query.predictions)
        support_losses.append(loop.support_history())
        del loop, query
    assert gradients is not None  # a TaskBatch holds at least one task
    task_losses = _joined(losses)
    loss = task_losses.mean()
    surrogate = attach(loss, gradients, leaves)
    return MetaOutput(loss, surrogate, task_losses, _joined(predictions), _joined(support_losses))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
