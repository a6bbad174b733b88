"""One meta-update's gradient from as many tasks as there are: a few at a time, and without those that diverge."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_maml.adaptation import meta_loss_of
from lightning_maml.engine import Engine, MetaOutput, Problem
from lightning_maml.engine.base import LossAndGradient
from lightning_maml.engine.divergence import bad_tasks, some_tasks
from lightning_maml.learner import Algorithm
from lightning_maml.losses import Loss, query_task_loss, task_loss
from lightning_maml.tasks import TaskBatch, UnequalTasks

OnDivergence = Literal["skip", "zero", "raise"]
"""What becomes of a task whose loss or meta-gradient is not finite. ``"skip"``: the mean is taken over the others.
``"zero"``: its gradient counts as zero, so that the others' weights do not change. ``"raise"``: an error."""


@dataclass(frozen=True, eq=False)
class MetaUpdate(LossAndGradient):
    """Losses, predictions and meta-gradient of the finite tasks of a meta-batch, ``T'`` of ``T``; zeros without any."""

    task_losses: Tensor
    """``[T']``, query losses after adaptation."""
    support_losses: Tensor
    """``[T', steps + 1]``."""
    parts: list[tuple[TaskBatch, Tensor]]
    """The finite tasks, as they ran together, and predictions ``[T, Nq, ...]`` of each part."""
    finite: list[bool]
    """Of each task of the meta-batch, ``[T]``."""
    explanation: str
    """Why the first task that is not finite is not; empty where all are."""

    @property
    def total_weight(self) -> float:
        """The sum of the finite tasks' weights; without weights their number."""
        return sum((tasks.total_weight for tasks, _ in self.parts), 0.0)


def meta_update(
    network: nn.Module,
    algorithm: Algorithm,
    tasks: TaskBatch | UnequalTasks,
    *,
    loss: Loss,
    query_loss: Loss | None = None,
    engine: Engine | str = "auto",
    accumulate_tasks: int | None = None,
) -> MetaUpdate:
    """The meta-gradient of a meta-batch, ``accumulate_tasks`` tasks at a time, of its finite tasks alone.

    Every rule's meta-gradient is a mean over tasks, so that parts add up to the whole, by their tasks' weights. Where a
    part is not finite, it runs again without the tasks whose losses are to blame, and where that does not help, one
    task after another: an ordinary update pays a look at its numbers and nothing else.

    Args:
        network, algorithm, tasks, loss, query_loss, engine: as in :func:`~lightning_maml.meta_loss`; or tasks of
            unequal size.
        accumulate_tasks: how many tasks run at once; None for all, or all of equal size.

    ValueError as in :func:`~lightning_maml.meta_loss`; and for data that is not finite, which no policy leaves out.

    Example:
        >>> from lightning_maml import maml
        >>> x = torch.randn(5, 10, 1)
        >>> far = torch.ones(5, 1, 1)
        >>> far[3] = 1e30  # of this task the loss is infinite
        >>> update = meta_update(nn.Linear(1, 1), maml(lr=0.1, steps=2), TaskBatch(x, x * far, x, x), loss="mse")
        >>> update.finite, len(update.task_losses)
        ([True, True, True, False, True], 4)
    """
    problem = Problem(network, algorithm, task_loss(loss), query_task_loss(query_loss))
    return meta_update_of(problem, tasks, engine, accumulate_tasks)


def meta_update_of(
    problem: Problem, tasks: TaskBatch | UnequalTasks, engine: Engine | str = "auto", at_once: int | None = None
) -> MetaUpdate:
    """:func:`meta_update` of a problem, which may be that of the meta-batch before: what does not depend on the tasks'
    numbers is then known already. Nothing may have changed its network since, but parameters' values.
    """
    run = _Run(problem.algorithm, partial(meta_loss_of, problem, engine=engine))
    losses: list[tuple[Tensor, Tensor]] = []
    parts: list[tuple[TaskBatch, Tensor]] = []
    total: tuple[Tensor, ...] | None = None
    means: list[Tensor] = []
    for part in tasks.parts(at_once or len(tasks)):
        for chosen, output in run.finite_parts(part):
            losses.append((output.task_losses, output.support_losses))
            parts.append((chosen, output.predictions))
            if len(chosen) == len(tasks):  # the ordinary case: all at once, and all finite
                found = output.loss, output.gradients, output.leaves
                return MetaUpdate(*found, *losses[0], parts, run.finite, "")
            weight = chosen.total_weight
            means.append(weight * output.loss)
            share = torch._foreach_mul([*output.gradients], weight)
            total = share if total is None else torch._foreach_add(total, share)
    leaves = problem.own_leaves
    if total is None:
        task_losses, zeros = leaves[0].new_zeros(0), [torch.zeros_like(leaf) for leaf in leaves]
        of_none = task_losses, task_losses.unsqueeze(1)
        return MetaUpdate(task_losses.sum(), zeros, leaves, *of_none, parts, run.finite, run.explanation)
    task_losses, support_losses = (torch.cat(each) for each in zip(*losses, strict=True))
    weights = sum(chosen.total_weight for chosen, _ in parts) or 1.0  # only tasks of weight 0 may be left
    found = torch.stack(means).sum() / weights, torch._foreach_div(total, weights), leaves
    return MetaUpdate(*found, task_losses, support_losses, parts, run.finite, run.explanation)


@dataclass
class _Run:
    """Which tasks have been finite so far, and why the first one that was not is not."""

    algorithm: Algorithm
    meta_loss: Callable[[TaskBatch], MetaOutput]
    finite: list[bool] = field(default_factory=list)
    explanation: str = ""

    def finite_parts(self, tasks: TaskBatch) -> Iterator[tuple[TaskBatch, MetaOutput]]:
        """The finite ones of ``tasks``, in one part or in several; says of each in :attr:`finite` whether it is."""
        output = self.meta_loss(tasks)
        if _is_finite(output):
            self.finite += [True] * len(tasks)
            yield tasks, output
            return
        explanation = explain_divergence(tasks, output.support_losses, self.algorithm, output.task_losses)
        if any(bad_tasks(value) for _, value in tasks.named()):
            raise ValueError(explanation)  # on an accelerator nobody has looked before
        self.explanation = self.explanation or explanation
        good = output.task_losses.isfinite()
        if len(tasks) == 1 or not bool(good.any()):
            self.finite += [False] * len(tasks)
            return
        if not bool(good.all()):
            rest = tasks.each(lambda value: value[good])
            output = self.meta_loss(rest)
            if _is_finite(output):
                self.finite += good.tolist()
                yield rest, output
                return
        # finite losses with a gradient that is not: in a batch nothing tells whose it is
        for task, plausible in enumerate(good.tolist()):
            if plausible:
                yield from self.finite_parts(tasks[task : task + 1])
            else:
                self.finite.append(False)


def _is_finite(output: MetaOutput) -> bool:
    # one number for all of them, so that an accelerator is waited for once
    if (row := _row_of(output.gradients)) is not None:
        return math.isfinite((row.sum() + output.loss).item())
    norms = torch._foreach_norm([*output.gradients])
    return math.isfinite(torch.stack([output.loss.to(norms[0].dtype), *norms]).sum().item()) if norms else True


def _row_of(gradients: Sequence[Tensor]) -> Tensor | None:
    """The tensor of which gradients are the parts, if there is one: an operator leaves them in one row."""
    row = gradients[0]._base if gradients else None
    if row is None or any(part._base is not row for part in gradients):
        return None
    return row if sum(part.numel() for part in gradients) == row.numel() else None


def explain_divergence(
    tasks: TaskBatch, support_losses: Tensor, algorithm: Algorithm, task_losses: Tensor | None = None
) -> str:
    """Says what made the query loss or the meta-gradient of ``tasks`` infinite or NaN, and what to do about it.

    It is one sentence for the first cause that explains it: the data, the meta-parameters, or the inner loop.
    ``support_losses [T, steps + 1]`` are those before each inner step and after the last, ``task_losses [T]`` those of
    the query sets; None where one of them is known not to be finite.
    """
    start = "Expected a finite training loss but it is not: "
    for name, value in tasks.named():
        if which := bad_tasks(value):
            return f"{start}`{name}` holds NaN or infinite values in {some_tasks(which)} of {len(tasks)}."
    lr = algorithm.inner.lr
    known = isinstance(lr, float | int | tuple)
    advice = f"lower the inner rate (now {lr})" if known else "lower the initial inner rate"
    bad_steps = ((step, losses, which) for step, losses in enumerate(support_losses.T) if (which := bad_tasks(losses)))
    for step, losses, which in bad_steps:
        of_some, loss = f"the support loss of {some_tasks(which)}", losses[which[0]].item()
        if step > 0:
            after = f"after inner step {step} of {algorithm.inner.steps}"
            return f"{start}the inner loop diverged, {of_some} is {loss} {after}: {advice}."
        if len(which) < len(tasks):
            return (
                f"{start}{of_some} is {loss} before any inner step, that of others is finite, so the inputs or targets "
                "there are too large for the network."
            )
        return (
            f"{start}the support loss is {loss} before any inner step, on finite data, so the meta-parameters are to "
            "blame: lower the outer learning rate, or clip the meta-gradient."
        )
    if task_losses is not None and bool(task_losses.isfinite().all()):
        return (
            f"{start}all losses are, but the meta-gradient is not: {advice}, or look at what has no finite slope, such "
            "as a root at 0, in the network and the loss."
        )
    return (
        f"{start}the data and all support losses are finite (mean {float(support_losses[:, 0].mean()):.3g} before the "
        f"inner loop, {float(support_losses[:, -1].mean()):.3g} after it), so the adapted networks overflow on the "
        f"query rows: {advice}, or look at the loss function."
    )
