"""One meta-update's gradient from as many tasks as there are: a few at a time, and without those that diverge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_maml.adaptation import meta_loss
from lightning_maml.diagnosis import explain_divergence
from lightning_maml.engine import Engine, MetaOutput, Problem
from lightning_maml.engine.base import attach
from lightning_maml.learner import Algorithm
from lightning_maml.losses import Loss, task_loss
from lightning_maml.tasks import TaskBatch

OnDivergence = Literal["skip", "zero", "raise"]
"""What becomes of a task whose loss or meta-gradient is not finite. ``"skip"``: the mean is taken over the others.
``"zero"``: its gradient counts as zero, so that the others' weights do not change. ``"raise"``: an error."""


@dataclass(frozen=True, eq=False)
class MetaUpdate(MetaOutput):
    """What the finite tasks of a meta-batch, ``T'`` of ``T``, have to say: their mean, or zeros without any."""

    tasks: TaskBatch | None
    """The finite tasks; None without any."""
    finite: list[bool]
    """Of each task of the meta-batch, ``[T]``."""
    explanation: str
    """Why the first task that is not finite is not; empty where all are."""


def meta_update(
    network: nn.Module,
    algorithm: Algorithm,
    tasks: TaskBatch,
    *,
    loss: Loss,
    engine: Engine | str = "auto",
    accumulate_tasks: int | None = None,
) -> MetaUpdate:
    """The meta-gradient of a meta-batch, ``accumulate_tasks`` tasks at a time, of its finite tasks alone.

    Every rule's meta-gradient is a mean over tasks, so that parts add up to the whole, weighted by their sizes. Where a
    part is not finite, it runs again without the tasks whose losses are to blame, and where that does not help, one
    task after another: an ordinary update pays a look at its numbers and nothing else.

    Args:
        network, algorithm, tasks, loss, engine: as in :func:`~lightning_maml.meta_loss`.
        accumulate_tasks: how many tasks run at once; None for all.

    Raises:
        ValueError: as :func:`~lightning_maml.meta_loss`; and data that is not finite, which no policy leaves out.

    Example:
        >>> from lightning_maml import maml
        >>> x = torch.randn(5, 10, 1)
        >>> far = torch.ones(5, 1, 1)
        >>> far[3] = 1e30  # of this task the loss is infinite
        >>> update = meta_update(nn.Linear(1, 1), maml(lr=0.1, steps=2), TaskBatch(x, x * far, x, x), loss="mse")
        >>> update.finite, len(update.task_losses)
        ([True, True, True, False, True], 4)
    """
    size = accumulate_tasks or len(tasks)
    parts = [tasks] if size >= len(tasks) else [tasks[start : start + size] for start in range(0, len(tasks), size)]
    run = _Run(network, algorithm, loss, engine)
    outputs, kept = [], []
    finite: list[bool] = []
    total: tuple[Tensor, ...] | None = None
    for part in parts:
        for chosen, output in run.finite_parts(part, finite):
            if len(chosen) == len(tasks):  # the ordinary case: all at once, and all finite
                return MetaUpdate(**vars(output), tasks=tasks, finite=finite, explanation="")
            share = torch._foreach_mul(output.gradients, float(len(chosen)))
            total = share if total is None else torch._foreach_add(total, share)
            outputs.append((output.task_losses, output.predictions, output.support_losses))
            kept.append(chosen)
    leaves = Problem(network, algorithm, task_loss(loss)).leaves()
    if total is None:
        zero = leaves[0].new_zeros(())
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        nothing = zero.new_zeros(0)
        none = MetaOutput(zero, attach(zero, gradients, leaves), nothing, nothing, nothing.unsqueeze(1))
        return MetaUpdate(**vars(none), tasks=None, finite=finite, explanation=run.explanation)
    losses, predictions, support_losses = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    mean = losses.mean()
    surrogate = attach(mean, torch._foreach_div(total, float(len(losses))), leaves)
    return MetaUpdate(
        *(mean, surrogate, losses, predictions, support_losses),
        tasks=TaskBatch(*(torch.cat(values) for values in zip(*(_values(part) for part in kept), strict=True))),
        finite=finite,
        explanation=run.explanation,
    )


@dataclass
class _Run:
    network: nn.Module
    algorithm: Algorithm
    loss: Loss
    engine: Engine | str
    explanation: str = ""

    def finite_parts(self, tasks: TaskBatch, finite: list[bool]) -> Iterator[tuple[TaskBatch, MetaOutput]]:
        """The finite ones of ``tasks``, in one part or in several; says of each in ``finite`` whether it is."""
        output = self._meta_loss(tasks)
        if _is_finite(output):
            finite += [True] * len(tasks)
            yield tasks, output
            return
        self._explain(tasks, output)
        good = output.task_losses.isfinite()
        if len(tasks) == 1 or not bool(good.any()):
            finite += [False] * len(tasks)
            return
        if not bool(good.all()):
            rest = TaskBatch(*(value[good] for value in _values(tasks)))
            output = self._meta_loss(rest)
            if _is_finite(output):
                finite += good.tolist()
                yield rest, output
                return
        # finite losses with a gradient that is not: in a batch nothing tells whose it is
        for task, plausible in enumerate(good.tolist()):
            if plausible:
                yield from self.finite_parts(tasks[task : task + 1], finite)
            else:
                finite.append(False)

    def _meta_loss(self, tasks: TaskBatch) -> MetaOutput:
        return meta_loss(self.network, self.algorithm, tasks, loss=self.loss, engine=self.engine)

    def _explain(self, tasks: TaskBatch, output: MetaOutput) -> None:
        explanation = explain_divergence(tasks, output.support_losses, self.algorithm, output.task_losses)
        if not all(bool(value.isfinite().all()) for value in _values(tasks) if value.is_floating_point()):
            raise ValueError(explanation)  # on an accelerator nobody has looked before
        self.explanation = self.explanation or explanation


def _is_finite(output: MetaOutput) -> bool:
    # one number for all of them, so that an accelerator is waited for once
    norms = torch._foreach_norm(output.gradients)
    return bool(torch.stack([output.loss.to(norms[0].dtype), *norms]).sum().isfinite()) if norms else True


def _values(tasks: TaskBatch) -> list[Tensor]:
    return [value for _, value in tasks.named()]


def check_on_divergence(policy: str) -> None:
    """Raise ValueError where ``policy`` is no :data:`OnDivergence`."""
    if policy not in get_args(OnDivergence):
        raise ValueError(f"Expected `on_divergence` to be one of {get_args(OnDivergence)} but got {policy!r}.")
