"""Tasks that the inner loop takes away from their examples, and steps that the safeguard shortens."""

from collections.abc import Callable

from torch import Tensor

from lightning_maml.engine.coverage import WHOLE
from lightning_maml.inner import InnerLoop, Parameters

HALVINGS = 10
"""How often the safeguard halves a step at most."""


def diverged(support_losses: Tensor, inner: InnerLoop) -> Tensor:
    """Which tasks have diverged after which inner step, ``[T, steps + 1]`` as ``support_losses``.

    A task has where its support loss is not finite, or higher than before the first step. One that comes down again
    later has not, at that later step; of the sinusoids of the demo, every tenth goes up on its way. Losses on
    mini-batches are of other rows each, and there only what is not finite counts.

    Example:
        >>> from torch import tensor
        >>> from lightning_maml.inner import SGD
        >>> diverged(tensor([[1.0, 0.5, 2.0], [1.0, 2.0, 0.9]]), SGD())
        tensor([[False, False,  True],
                [False,  True, False]])
    """
    bad = ~support_losses.isfinite()
    if type(inner.parts.rows) in WHOLE and type(inner).rows is InnerLoop.rows:
        bad |= support_losses > support_losses[:, :1]
    return bad


def warning_of_divergence(which: Tensor) -> str | None:
    """What to say of an adaptation in which some tasks, ``[T]``, diverged; None where none did."""
    numbers = [task for task, bad in enumerate(which.tolist()) if bad]  # of a device one copy, where `nonzero` asks
    said = "after the last inner step the support loss is not finite, or higher than before the first."
    said = f"{len(numbers)} of {len(which)} tasks diverged ({some_tasks(numbers)}): {said}"
    return f"{said} safeguard=True shortens steps that raise it." if numbers else None


def bad_tasks(values: Tensor) -> list[int]:
    """The tasks whose ``values [T, ...]`` hold NaN or infinities."""
    bad = (~values.isfinite()).unsqueeze(-1).flatten(1).any(1)
    return [task for task, one in enumerate(bad.tolist()) if one]


def some_tasks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"task{'s' if len(numbers) > 1 else ''} {shown}"


def shortened(phi: Parameters, proposed: Parameters, height: Callable[[Parameters], Tensor]) -> Parameters:
    """Where each task goes from ``phi {name: [T, *shape]}``: as far to ``proposed`` as lowers its ``height [T]``.

    Example:
        >>> from torch import tensor
        >>> phi, proposed = {"x": tensor([1.0, 1.0, 0.0])}, {"x": tensor([0.5, -3.0, 1.0])}
        >>> shortened(phi, proposed, lambda where: where["x"] ** 2)
        {'x': tensor([0.5000, 0.0000, 0.0000])}
    """
    start, taken = height(phi), proposed
    lower = height(taken) < start
    for halving in range(1, HALVINGS + 1):
        if lower.all():
            return taken
        shorter = {name: value + (proposed[name] - value) / 2**halving for name, value in phi.items()}
        taken = _chosen(lower, taken, shorter)
        lower = lower | (height(taken) < start)
    return _chosen(lower, taken, phi)


def _chosen(which: Tensor, these: Parameters, others: Parameters) -> Parameters:
    return {name: value.where(which.view(-1, *[1] * (value.ndim - 1)), others[name]) for name, value in these.items()}
