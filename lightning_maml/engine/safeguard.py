"""Inner steps that make nothing worse: what does not lower a task's loss is halved, and at last not taken."""

from collections.abc import Callable

from torch import Tensor

from lightning_maml.inner import Parameters

HALVINGS = 10


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
