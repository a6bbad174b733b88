"""The formula."""

from torch import Tensor


def step(
    phi: Tensor, gradient: Tensor, factors: Tensor | None, weight_decay: float, buffer: Tensor | None, momentum: float
) -> Tensor:
    """The step ``[T, P]``, which the rate multiplies."""
    if factors is not None:
        gradient = gradient * factors[:, None]
    if weight_decay:
        gradient = gradient + weight_decay * phi
    return gradient if buffer is None else gradient + momentum * buffer


def sgd_update(
    phi: Tensor,
    gradient: Tensor,
    rate: Tensor,
    factors: Tensor | None = None,
    weight_decay: float = 0.0,
    buffer: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """As the operator (``op.py``)."""
    taken = step(phi, gradient, factors, weight_decay, buffer, momentum)
    return phi - rate * taken, taken if momentum else None
