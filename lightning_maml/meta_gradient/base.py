"""What a meta-gradient rule is given, and what it returns."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from lightning_maml.inner import InnerLoop, Parameters


class Query(NamedTuple):
    """The query sets under some parameters."""

    loss: Tensor
    """Scalar, differentiable: the mean over the tasks."""
    task_losses: Tensor
    """``[T]``, detached."""
    predictions: Tensor
    """``[T, Nq, ...]``, detached."""


class Loop(Protocol):
    """The inner loop of a batch of tasks, as an engine runs it. Parameters are ``{name: [T, *shape]}``."""

    @property
    def inner(self) -> InnerLoop:
        """What it is made of."""

    def initial(self) -> Parameters:
        """The meta-parameters as every task's own, differentiable."""

    def unroll(self, order: int) -> Parameters:
        """The parameters after all inner steps.

        ``order=2`` differentiates through the inner gradients; ``order=1`` takes them as constants.
        """

    def path(self, order: int) -> list[Parameters]:
        """The parameters before the first inner step and after each: ``steps + 1`` of what :meth:`unroll` gives."""

    def support(self, phi: Parameters) -> Tensor:
        """The losses ``[T]`` of all support rows under ``phi``, differentiable twice."""

    def query(self, phi: Parameters) -> Query:
        """The query sets under ``phi``, the parameters after all inner steps."""

    def query_after(self, phi: Parameters, steps: int) -> Query:
        """The query sets under ``phi``, the parameters after so many inner steps."""


@runtime_checkable
class MetaGradient(Protocol):
    """A rule: how the gradient of the query loss reaches the meta-parameters."""

    def __call__(self, loop: Loop) -> Query:
        """The query sets as the rule trains on them; the gradient of ``.loss`` is the meta-gradient."""


@runtime_checkable
class Annealed(MetaGradient, Protocol):
    """A rule that changes as training goes on."""

    def at(self, update: int) -> MetaGradient:
        """The rule at meta-update number ``update``, counted from 0."""


def training_steps(rule: Any, steps: int) -> int:
    """How many of an inner loop's ``steps`` a rule has tasks take in training: all, unless it says another number."""
    return getattr(rule, "training_steps", steps)
