"""Inner loops whose memory does not grow with the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_maml.engine.base import Problem
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.inner import Parameters
from lightning_maml.tasks import TaskBatch

__all__ = ["CheckpointedLoop", "restore_rng", "rng_state"]


class _Unroll(torch.autograd.Function):
    r"""All inner steps as one node of the graph, keeping the parameters before each step and nothing else.

    Backward is the recursion :math:`v \leftarrow v - \alpha H_k v` for plain SGD: each step is run again, and
    differentiated by itself. Exact to rounding against the unrolled graph.
    """

    @staticmethod
    def forward(ctx: Any, loop: CheckpointedLoop, order: int, every: bool, *tensors: Tensor) -> Any:
        phi = list(tensors[: len(loop.theta)])
        ctx.loop, ctx.order, ctx.kept, ctx.rng = loop, order, [], []
        between: list[Tensor] = []
        for step in range(loop.problem.inner.steps):
            if loop.draws:
                ctx.rng.append(rng_state(phi[0].device))
            phi, losses, kept = loop.advance(phi, step, order)
            ctx.kept.append(kept)
            loop.support_losses.append(losses)
            if every and step < loop.problem.inner.steps - 1:
                between += [value.clone() for value in phi]  # what is kept must not hold on to the graph
        return (*between, *phi) if ctx.kept else tuple(value.clone() for value in phi)

    @staticmethod
    @torch.autograd.function.once_differentiable  # differentiating again raises, instead of being silently wrong
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        loop, size = ctx.loop, len(ctx.loop.theta)
        v = list(upstream[-size:])
        earlier = [upstream[at : at + size] for at in range(0, len(upstream) - size, size)]  # after steps 1, 2, ...
        extras = [torch.zeros_like(leaf) for leaf in loop.extras]
        if ctx.order == 1 and not loop.extras:  # every step is the identity
            return None, None, None, *(sum(parts, start=last) for last, *parts in zip(v, *earlier, strict=True))
        now = rng_state(v[0].device) if loop.draws else None
        for step in reversed(range(len(ctx.kept))):
            if loop.draws:
                restore_rng(v[0].device, ctx.rng[step])  # the same dropout masks as on the way forward
            v, more = loop.pull_back(ctx.kept.pop(), step, v, ctx.order)
            extras = [total + part for total, part in zip(extras, more, strict=True)]
            if earlier and step > 0:
                v = [value + part for value, part in zip(v, earlier[step - 1], strict=True)]
        if now is not None:
            restore_rng(v[0].device, now)
        return None, None, None, *v, *extras


def rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def restore_rng(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


class CheckpointedLoop(TaskLoop):
    """:class:`TaskLoop` with memory flat in the number of inner steps (``checkpoint="step"``)."""

    draws = True
    """Whether the network may draw random numbers."""

    def __init__(self, problem: Problem, tasks: TaskBatch) -> None:
        super().__init__(problem, tasks)
        adapted = {id(value) for value in self.theta.values()}
        # what else the inner steps depend on: shared parameters, learned rates, support inputs that want a gradient
        # (and the adapted ones where every step is drawn back to them)
        leaves = problem.leaves(tasks.support_inputs)
        self.extras = [leaf for leaf in leaves if id(leaf) not in adapted or problem.inner.proximal]

    def unroll(self, order: int) -> Parameters:
        outputs = _Unroll.apply(self, order, False, *self.start().values(), *self.extras)
        return dict(zip(self.theta, outputs, strict=True))

    def path(self, order: int) -> list[Parameters]:
        start, size = self.start(), len(self.theta)
        outputs = _Unroll.apply(self, order, True, *start.values(), *self.extras) if self.problem.inner.steps else ()
        parts = [outputs[at : at + size] for at in range(0, len(outputs), size)]
        return [start, *(dict(zip(self.theta, part, strict=True)) for part in parts)]

    def advance(self, phi: Sequence[Tensor], step: int, order: int) -> tuple[list[Tensor], Tensor, Sequence[Tensor]]:
        """One inner step, without a graph.

        Returns the next parameters, the support losses ``[T]`` before the step, and what :meth:`pull_back` needs of it.
        """
        with torch.enable_grad():
            following, losses = self.step(self._leaves(phi), step, order=1)
        return [value.detach() for value in following.values()], losses, phi

    def pull_back(
        self, kept: Sequence[Tensor], step: int, v: Sequence[Tensor], order: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient ``v`` at the parameters after a step, brought to those before it and to ``extras``."""
        with torch.enable_grad():
            leaves = self._leaves(kept)
            following, _ = self.step(leaves, step, order)
            gradients = torch.autograd.grad(
                list(following.values()), [*leaves.values(), *self.extras], v, materialize_grads=True
            )
        return list(gradients[: len(leaves)]), list(gradients[len(leaves) :])

    def _leaves(self, phi: Sequence[Tensor]) -> Parameters:
        return {name: value.detach().requires_grad_() for name, value in zip(self.theta, phi, strict=True)}
