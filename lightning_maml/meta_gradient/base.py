"""What a meta-gradient rule is given, and what it returns."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor

from lightning_maml.inner import InnerLoop, Parameters


class Query(NamedTuple):
    """The query sets under some parameters."""

    loss: Tensor  # scalar, differentiable: the mean over the tasks, by their weights
    task_losses: Tensor  # [T], detached
    predictions: Tensor  # [T, Nq, ...], detached


class Loop(Protocol):
    """The inner loop of a batch of tasks, as an engine runs it. Parameters are ``{name: [T, *shape]}``.

    ``initial``: the meta-parameters as every task's own, differentiable. ``unroll``: those after all inner steps, whose
    gradients are differentiated by ``order=2``, and constants by ``order=1``. ``path``: these, ``steps + 1``, from
    before the first step on. ``support``: the losses ``[T]`` of all support rows, differentiable twice. ``query``: the
    query sets after all steps; ``query_after``: after so many. ``mean``: of values ``[T]``, by the tasks' weights.
    ``elsewhere``: the same loop from other meta-parameters ``{name: [*shape]}``.
    """

    @property
    def inner(self) -> InnerLoop: ...
    def initial(self) -> Parameters: ...
    def unroll(self, order: int) -> Parameters: ...
    def path(self, order: int) -> list[Parameters]: ...
    def support(self, phi: Parameters) -> Tensor: ...
    def query(self, phi: Parameters) -> Query: ...
    def query_after(self, phi: Parameters, steps: int) -> Query: ...
    def mean(self, values: Tensor) -> Tensor: ...
    def elsewhere(self, theta: Mapping[str, Tensor]) -> Self: ...


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
