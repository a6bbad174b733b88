"""The result of the operators that run whole inner loops."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Adaptation"]


class Adaptation(NamedTuple):
    """A batch of adaptations and their meta-gradient; what was not asked for has no elements."""

    task_losses: Tensor
    """``[T]``: each task's query loss after adaptation."""
    predictions: Tensor
    """``[T, Nq, out]``, of the query inputs."""
    support_losses: Tensor
    """``[T, m + 1]``: before each inner step and after the last."""
    of_theta: Tensor
    """``[P]``: the gradient of the mean query loss."""
    of_rates: Tensor
    """``[m, 1]`` or ``[m, P]``."""
    trajectory: Tensor
    """``[T, m, P]``: the parameters after each inner step."""
