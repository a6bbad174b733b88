"""What a meta-gradient rule is given, and what it returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from lightning_maml.inner import Parameters

__all__ = ["Loop", "MetaGradient", "Query"]


class Query(NamedTuple):
    """The query sets under some parameters."""

    loss: Tensor
    """Scalar, differentiable: the mean over the tasks."""
    task_losses: Tensor
    """``[T]``, detached."""
    predictions: Tensor
    """``[T, Nq, ...]``, detached."""


class Loop(Protocol):
    """The inner loop of a batch of tasks, as an engine runs it."""

    def initial(self) -> Parameters:
        """The meta-parameters as every task's own, ``{name: [T, *shape]}``, differentiable."""

    def unroll(self, order: int) -> Parameters:
        """The parameters after all inner steps, ``{name: [T, *shape]}``.

        ``order=2`` differentiates through the inner gradients; ``order=1`` takes them as constants.
        """

    def query(self, phi: Parameters) -> Query:
        """The query sets under ``phi``."""


@runtime_checkable
class MetaGradient(Protocol):
    """A rule: how the gradient of the query loss reaches the meta-parameters."""

    def __call__(self, loop: Loop) -> Query:
        """The query sets as the rule trains on them; the gradient of ``.loss`` is the meta-gradient."""
