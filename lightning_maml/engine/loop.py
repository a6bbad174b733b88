"""The inner loop in plain autograd: what both engines run, for one task or for all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_maml.engine.base import Problem
from lightning_maml.engine.forward import forward_all, forward_one
from lightning_maml.inner import Adam, Parameters
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import TaskBatch

__all__ = ["TaskLoop"]


class TaskLoop:
    """A :class:`~lightning_maml.meta_gradient.Loop` over the tasks of a batch.

    With ``one=True`` the batch is a single task and parameters carry no task dimension: the network is called as
    the user wrote it.
    """

    def __init__(self, problem: Problem, tasks: TaskBatch, one: bool = False) -> None:
        self.problem, self.tasks, self.one = problem, tasks, one
        self.theta, self.constants = problem.split()
        self.support_losses: list[Tensor] = []
        self.final: Parameters = {}
        self.state: Parameters = {}
        self.checked = False
        self.by_layer = not one and len(problem.names) == len(problem.parameters)  # each has one name only

    @property
    def proximal(self) -> float:
        return self.problem.inner.proximal

    def initial(self) -> Parameters:
        if self.one:
            return dict(self.theta)
        return {name: value.expand(len(self.tasks), *value.shape) for name, value in self.theta.items()}

    def start(self) -> Parameters:
        """Where every task starts: the meta-parameters, or what the inner loop's ``start`` makes of them."""
        start, initial = self.problem.inner.start, self.initial()
        if start is None:
            return initial
        phi = start(initial, lambda phi: self.predict(phi, self.tasks.support_inputs, 0), self.tasks.support_targets)
        # views: the first inner gradient is taken at phi_0, and not through it at what it was made of
        views = {name: value.view_as(value) for name, value in phi.items()}
        return {name: value if value.requires_grad else value.requires_grad_() for name, value in views.items()}

    def predict(self, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        """Predictions ``[T, N, ...]``; ``step`` chooses among parameters of several steps, None the last one's."""
        constants = self.constants
        if self.problem.per_step:
            constants = {
                n: v[-1 if step is None else min(step, len(v) - 1)] if n in self.problem.per_step else v
                for n, v in constants.items()
            }
        if self.one:
            # buffers are cloned: a forward that writes to one in place must not reach the meta-network's
            constants = {n: v if isinstance(v, torch.nn.Parameter) else v.clone() for n, v in constants.items()}
            return forward_one(self.problem.network, phi, constants, inputs[0]).unsqueeze(0)
        return forward_all(self.problem.network, phi, constants, inputs, self.by_layer)

    def predict_after(self, phi: Parameters, inputs: Tensor, steps: int | None) -> Tensor:
        """Predictions ``[T, N, ...]`` after so many inner steps: with the parameters of the last step taken."""
        return self.predict(phi, inputs, None if steps is None else max(steps - 1, 0))

    def losses(
        self, phi: Parameters, inputs: Tensor, targets: Tensor, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses ``[T]`` and predictions ``[T, N, ...]``."""
        predictions = self.predict(phi, inputs, step)
        if not self.checked:
            self.problem.loss.check_shapes(predictions.shape, targets)
            for values in (self.tasks.support_targets, self.tasks.query_targets):
                self.problem.loss.check_values(predictions.shape[-1], values)
            self.checked = True
        return self.problem.loss(predictions, targets), predictions

    def step(self, phi: Parameters, step: int, order: int) -> tuple[Parameters, Tensor]:
        """Inner step ``step`` from ``phi``: the next parameters, and the support losses ``[T]`` before it."""
        inner = self.problem.inner
        losses, _ = self.losses(phi, *self._support(step), step)
        gradients = torch.autograd.grad(
            losses.sum(), list(phi.values()), create_graph=order == 2, materialize_grads=True, retain_graph=order == 2
        )
        named = dict(zip(phi, gradients, strict=True))
        with torch.set_grad_enabled(order == 2):
            if inner.proximal:
                origin = self.initial()
                named = {name: g + inner.proximal * (phi[name] - origin[name]) for name, g in named.items()}
            if inner.tolerance:
                named = self._scaled(named, (self._norms(named).detach() > inner.tolerance).to(losses.dtype))
            if inner.max_norm is not None:
                named = self._scaled(named, inner.clipping(self._norms(named)))
            if inner.weight_decay:
                named = {name: g + inner.weight_decay * phi[name] for name, g in named.items()}
        named = inner.direction(named, step, self.state)
        rates = {name: inner.rate(name, step) for name in phi}
        return inner.update(phi, named, rates), losses.detach()

    def _support(self, step: int) -> tuple[Tensor, Tensor]:
        """The support rows that an inner step sees, inputs and targets ``[T, n, ...]``."""
        inputs, targets = self.tasks.support_inputs, self.tasks.support_targets
        rows = self.problem.inner.rows(step, inputs.shape[1])
        return (
            (inputs, targets)
            if rows is None
            else (inputs[:, rows.to(inputs.device)], targets[:, rows.to(targets.device)])
        )

    def _norms(self, gradients: Parameters) -> Tensor:
        """The norm of each task's gradient, all parameters together, ``[T]``."""
        flat = [gradient.reshape(len(self.tasks), -1) for gradient in gradients.values()]
        return torch.linalg.vector_norm(torch.cat(flat, 1), dim=1)

    def _scaled(self, gradients: Parameters, factors: Tensor) -> Parameters:
        """The gradients, each task's times its factor ``[T]``."""
        if self.one:
            return {name: gradient * factors[0] for name, gradient in gradients.items()}
        return {name: gradient * factors.view(-1, *[1] * (gradient.ndim - 1)) for name, gradient in gradients.items()}

    def path(self, order: int) -> list[Parameters]:
        return list(self._path(order))

    def _path(self, order: int) -> Iterator[Parameters]:
        inner = self.problem.inner
        if order == 2 and isinstance(inner, Adam):
            raise NotImplementedError(
                "Expected a first-order meta-gradient for the inner loop Adam, which has no second order: use "
                "FirstOrder() or Reptile(), or the inner loop SGD."
            )
        phi = self.start()
        yield phi
        for step in range(inner.steps):
            phi, losses = self.step(phi, step, order)
            self.support_losses.append(losses)
            yield phi

    def unroll(self, order: int) -> Parameters:
        for phi in self._path(order):  # noqa: B007
            pass
        return phi

    def support(self, phi: Parameters) -> Tensor:
        losses, _ = self.losses(phi, self.tasks.support_inputs, self.tasks.support_targets)
        return losses

    def query(self, phi: Parameters) -> Query:
        return self.query_after(phi, self.problem.inner.steps)

    def query_after(self, phi: Parameters, steps: int) -> Query:
        losses, predictions = self.losses(phi, self.tasks.query_inputs, self.tasks.query_targets, max(steps - 1, 0))
        self.final = {name: value.detach() for name, value in phi.items()}
        return Query(losses.mean(), losses.detach(), predictions.detach())

    def gradients(self, query: Query, weight: float, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of ``weight * query.loss``, zero where a leaf has no part in it."""
        loss = query.loss if weight == 1 else query.loss * weight
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    def support_history(self) -> Tensor:
        """The support losses ``[T, steps + 1]`` seen on the way, and under the parameters last asked for."""
        with torch.no_grad():
            last, _ = self.losses(self.final, self.tasks.support_inputs, self.tasks.support_targets)
        return torch.stack([*self.support_losses, last], dim=1)

    def trajectory(self) -> Iterator[tuple[Parameters, Tensor]]:
        """Detached parameters and support losses ``[T]`` before and after each inner step."""
        with torch.no_grad():
            phi = {name: value.detach() for name, value in self.start().items()}
        for step in range(self.problem.inner.steps):
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in phi.items()}
                following, losses = self.step(leaves, step, order=1)
            yield phi, losses
            phi = {name: value.detach() for name, value in following.items()}
        with torch.no_grad():
            yield phi, self.losses(phi, self.tasks.support_inputs, self.tasks.support_targets)[0]
