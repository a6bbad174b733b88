"""The inner loop in plain autograd: what most engines run, for one task or for all at once."""

from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_maml.engine.base import Problem
from lightning_maml.engine.divergence import shortened
from lightning_maml.engine.functional.forward import Networks
from lightning_maml.engine.functional.statistics import training_is
from lightning_maml.inner import Parameters, Slope, State
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import Inputs, Set, map_inputs, mean_over_tasks


def networks_of(problem: Problem, one: bool = False) -> tuple[Parameters, Networks]:
    """The parameters that adapt ``{name: [*shape]}``, and the tasks' networks as a function of them."""
    names, constants = set(problem.adapted), dict(problem.network.named_buffers())
    theta = {name: value for name, value in problem.parameters.items() if name in names}
    constants |= {name: value for name, value in problem.parameters.items() if name not in names}
    norms = problem.norms if problem.algorithm.batch_norm == "support" else {}
    # a layer under two names is found to run twice where the network runs in one piece
    tied = problem.tied if len({*norms.values()}) == len(norms) else problem.tied or {}
    return theta, Networks(problem.network, constants, tied, one, problem.per_step, norms)


class TaskLoop:
    """A :class:`~lightning_maml.meta_gradient.Loop` over the tasks of a batch; ``one`` is as in :class:`Networks`."""

    def __init__(self, problem: Problem, support: Set, query: Set | None = None, one: bool = False) -> None:
        self.problem, self.support_set, self.query_set = problem, support, query
        self.inner, self.tasks = problem.inner, len(support[1])
        self.theta, self.networks = networks_of(problem, one)
        self.support_losses: list[Tensor] = []
        self.shares: Tensor | None = None  # [T], what the tasks count in a mean; None: alike
        self.checked: set[str] = set()  # which sets' targets fit the predictions
        self.rates: Parameters | None = None  # in the place of the inner loop's

    def initial(self) -> Parameters:
        return {name: value.expand(self.tasks, *value.shape) for name, value in self.theta.items()}

    @cached_property
    def origin(self) -> Parameters:
        """The meta-parameters, where tasks start, and to which a proximal loop is drawn back."""
        return self.initial()

    def elsewhere(self, theta: Parameters) -> Self:
        loop = copy(self)
        loop.theta, loop.support_losses = theta, []
        loop.__dict__.pop("origin", None)
        return loop

    def start(self) -> Parameters:
        """Where every task starts: the meta-parameters, or what the inner loop's ``start`` makes of them."""
        inputs, targets = self.support_set
        phi = self.inner.parts.start(self.origin, lambda phi: self.predict(phi, inputs, 0), targets)
        if phi is self.origin:
            return phi
        # views: the first inner gradient is taken at phi_0, and not through it at what it was made of
        return {name: value.view_as(value).requires_grad_() for name, value in phi.items()}

    def predict(self, phi: Parameters, inputs: Inputs, step: int | None = None) -> Tensor:
        return self.networks(phi, inputs, step)

    def losses(
        self, phi: Parameters, rows: Set, step: int | None = None, of: Literal["support", "query"] = "support"
    ) -> tuple[Tensor, Tensor]:
        """Losses ``[T]`` and predictions ``[T, N, ...]`` of rows of the support or of the query sets."""
        inputs, targets = rows
        predictions = self.predict(phi, inputs, step)
        loss = self.problem.loss if of == "support" else self.problem.judge
        if of not in self.checked:
            loss.check_shapes(predictions.shape, targets)
            _, values = (self.support_set if of == "support" else self.query_set) or rows
            loss.check_values(predictions.shape[-1], values)
            self.checked.add(of)
        return loss(predictions, targets), predictions

    def rows(self, step: int) -> Set:
        """What inner step ``step`` sees of the support set."""
        inputs, targets = self.support_set
        if (rows := self.inner.rows(step, targets.shape[1])) is None:
            return inputs, targets
        rows = rows.to(targets.device)
        return map_inputs(lambda value: value[:, rows], inputs), targets[:, rows]

    def step(self, phi: Parameters, state: State, step: int, order: int) -> tuple[Parameters, State, Tensor]:
        """Inner step ``step`` from ``phi``: the next parameters and state, and the support losses ``[T]`` before it."""
        rows = self.rows(step)
        seen: list[Tensor] = []

        def slope(where: Parameters) -> Parameters:
            where = {n: v if v.requires_grad else v.detach().requires_grad_() for n, v in where.items()}
            losses, _ = self.losses(where, rows, step)
            seen.append(losses.detach())
            at = [*where.values()]
            gradients = torch.autograd.grad(losses.sum(), at, create_graph=order == 2, materialize_grads=True)
            return dict(zip(where, gradients, strict=True))

        following, state = self.advance(phi, slope, state, step, order)
        return following, state, seen[0]

    def advance(self, phi: Parameters, slope: Slope, state: State, step: int, order: int) -> tuple[Parameters, State]:
        """The parameters and the state after a step, from what :meth:`InnerLoop.step` asks for."""
        return self.inner.step(phi, slope, state, step, self.origin, order, self.rates)

    def path(self, order: int) -> list[Parameters]:
        return list(self._path(order))

    def _path(self, order: int) -> Iterator[Parameters]:
        phi, state = self.start(), self.inner.no_state
        yield phi
        for step in range(self.inner.steps):
            phi, state, losses = self.step(phi, state, step, order)
            self.support_losses.append(losses)
            yield phi

    def unroll(self, order: int) -> Parameters:
        return deque(self._path(order), maxlen=1).pop()

    def support(self, phi: Parameters) -> Tensor:
        return self.losses(phi, self.support_set)[0]

    def query(self, phi: Parameters) -> Query:
        return self.query_after(phi, self.inner.steps)

    def query_after(self, phi: Parameters, steps: int) -> Query:
        assert self.query_set is not None  # a rule's loop has one
        losses, predictions = self.losses(self.with_statistics(phi, steps), self.query_set, max(steps - 1, 0), "query")
        self.final = {name: value.detach() for name, value in phi.items()}
        return Query(self.mean(losses), losses.detach(), predictions.detach())

    def mean(self, values: Tensor) -> Tensor:
        return mean_over_tasks(values, self.shares)

    def with_statistics(self, phi: Parameters, steps: int) -> Parameters:
        """``phi`` after so many steps, with what query rows are normalised by, where that is of the support sets."""
        if not self.networks.norms:
            return phi
        return phi | self.networks.statistics(phi, self.support_set[0], max(steps - 1, 0))

    @torch.no_grad()
    def _to_serve(self, phi: Parameters, steps: int) -> Parameters:
        with training_is(False, self.problem.modules if self.networks.norms else ()):  # no dropout in what is kept
            return self.with_statistics(phi, steps)

    def gradients(self, query: Query, weight: float, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of ``weight * query.loss``, zero where a leaf has no part in it."""
        return torch.autograd.grad(query.loss if weight == 1 else query.loss * weight, leaves, materialize_grads=True)

    def support_history(self) -> Tensor:
        """The support losses ``[T, steps + 1]`` seen on the way, and under the parameters last asked for."""
        with torch.no_grad():
            return torch.stack([*self.support_losses, self.support(self.final)], dim=1)

    @torch.no_grad()
    def guarded(self, phi: Parameters, proposed: Parameters, step: int) -> Parameters:
        """The parameters after inner step ``step`` as the safeguard has it, by what the step descends on its rows."""
        rows, pull = self.rows(step), self.inner.parts.pull
        height = lambda where: self.losses(where, rows, step)[0] + pull.height(where, self.origin)  # noqa: E731
        return shortened(phi, proposed, height)

    def trajectory(self) -> Iterator[tuple[Parameters, Tensor]]:
        """Detached parameters and support losses ``[T]`` before and after each inner step."""
        state = self.inner.no_state
        with torch.no_grad():
            phi = {name: value.detach() for name, value in self.start().items()}
        for step in range(self.inner.steps):
            with torch.enable_grad():
                following, state, losses = self.step(phi, state, step, order=1)
            if self.problem.safeguard:
                following = self.guarded(phi, following, step)
            yield self._to_serve(phi, step), losses
            phi, state = tree_map_only(Tensor, Tensor.detach, (following, state))
        with torch.no_grad():  # and not over the yield, where other loops go on
            losses = self.support(phi)
        yield self._to_serve(phi, self.inner.steps), losses
