"""The formula."""

from __future__ import annotations

from torch import Tensor

__all__ = ["sgd_update"]


def sgd_update(phi: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    """``phi [T, P]`` or ``[P]``, ``gradient [T, P]``, ``rate []`` or ``[P]`` -> ``[T, P]``."""
    return phi - rate * gradient
