"""Explains why a training loss is not finite."""

from torch import Tensor

from lightning_maml.engine.divergence import bad_tasks, some_tasks
from lightning_maml.learner import Algorithm
from lightning_maml.tasks import TaskBatch


def explain_divergence(
    tasks: TaskBatch, support_losses: Tensor, algorithm: Algorithm, task_losses: Tensor | None = None
) -> str:
    """Says what made the query loss or the meta-gradient of ``tasks`` infinite or NaN, and what to do about it.

    Args:
        tasks: the meta-batch.
        support_losses: ``[T, steps + 1]``, before each inner step and after the last.
        algorithm: the one that ran.
        task_losses: ``[T]``, the query losses; None where one of them is known not to be finite.

    Returns:
        One sentence for the first cause that explains it: the data, the meta-parameters, or the inner loop.
    """
    start = "Expected a finite training loss but it is not: "
    for name, value in tasks.named():
        if which := bad_tasks(value):
            return f"{start}`{name}` holds NaN or infinite values in {some_tasks(which)} of {len(tasks)}."
    lr = algorithm.inner.lr
    advice = (
        f"lower the inner rate (now {lr})" if isinstance(lr, float | int | tuple) else "lower the initial inner rate"
    )
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
