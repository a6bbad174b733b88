"""Which tasks the inner loop has taken away from their examples."""

from torch import Tensor

from lightning_maml.engine.coverage import WHOLE
from lightning_maml.inner import InnerLoop


def diverged(support_losses: Tensor, inner: InnerLoop) -> Tensor:
    """Which tasks have diverged after which inner step, ``[T, steps + 1]`` as ``support_losses``.

    A task has where its support loss is not finite, or higher than before the first step: it would be better off
    without the steps. One that comes down again later has not, at that later step; of the sinusoids of the demo, every
    tenth goes up on its way. Losses on mini-batches are of other rows each, and there only what is not finite counts.

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
    if not numbers:
        return None
    return (
        f"{len(numbers)} of {len(which)} tasks diverged ({some_tasks(numbers)}): after the last inner step the "
        "support loss is not finite, or higher than before the first. safeguard=True shortens steps that raise it."
    )


def bad_tasks(values: Tensor) -> list[int]:
    """The tasks whose ``values [T, ...]`` hold NaN or infinities."""
    bad = (~values.isfinite()).unsqueeze(-1).flatten(1).any(1)
    return [task for task, one in enumerate(bad.tolist()) if one]


def some_tasks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"task{'s' if len(numbers) > 1 else ''} {shown}"
