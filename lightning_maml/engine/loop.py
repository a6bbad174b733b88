"""The inner loop in plain autograd: what both engines run, for one task or for all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_maml.engine.base import Problem
from lightning_maml.engine.forward import forward_all, forward_one
from lightning_maml.inner import Parameters
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
        self.checked = False
        self.by_layer = not one and len(problem.names) == len(problem.parameters)  # each has one name only

    def initial(self) -> Parameters:
        if self.one:
            return dict(self.theta)
        return {name: value.expand(len(self.tasks), *value.shape) for name, value in self.theta.items()}

    def predict(self, phi: Parameters, inputs: Tensor) -> Tensor:
        """Predictions ``[T, N, ...]``."""
        if self.one:
            # buffers are cloned: a forward that writes to one in place must not reach the meta-network's
            constants = {n: v if isinstance(v, torch.nn.Parameter) else v.clone() for n, v in self.constants.items()}
            return forward_one(self.problem.network, phi, constants, inputs[0]).unsqueeze(0)
        return forward_all(self.problem.network, phi, self.constants, inputs, self.by_layer)

    def losses(self, phi: Parameters, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[T]`` and predictions ``[T, N, ...]``."""
        predictions = self.predict(phi, inputs)
        if not self.checked:
            self.problem.loss.check_shapes(predictions, targets)
            for values in (self.tasks.support_targets, self.tasks.query_targets):
                self.problem.loss.check_values(predictions.shape[-1], values)
            self.checked = True
        return self.problem.loss(predictions, targets), predictions

    def step(self, phi: Parameters, step: int, order: int) -> tuple[Parameters, Tensor]:
        """Inner step ``step`` from ``phi``: the next parameters, and the support losses ``[T]`` before it."""
        losses, _ = self.losses(phi, self.tasks.support_inputs, self.tasks.support_targets)
        gradients = torch.autograd.grad(
            losses.sum(), list(phi.values()), create_graph=order == 2, materialize_grads=True, retain_graph=order == 2
        )
        rates = {name: self.problem.inner.rate(name, step) for name in phi}
        return self.problem.inner.update(phi, dict(zip(phi, gradients, strict=True)), rates), losses.detach()

    def unroll(self, order: int) -> Parameters:
        phi = self.initial()
        for step in range(self.problem.inner.steps):
            phi, losses = self.step(phi, step, order)
            self.support_losses.append(losses)
        return phi

    def query(self, phi: Parameters) -> Query:
        losses, predictions = self.losses(phi, self.tasks.query_inputs, self.tasks.query_targets)
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
        phi = {name: value.detach() for name, value in self.initial().items()}
        for step in range(self.problem.inner.steps):
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in phi.items()}
                following, losses = self.step(leaves, step, order=1)
            yield phi, losses
            phi = {name: value.detach() for name, value in following.items()}
        with torch.no_grad():
            yield phi, self.losses(phi, self.tasks.support_inputs, self.tasks.support_targets)[0]
