"""Inner loops that keep the parameters before a step, and run the step again on the way back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_maml.engine.base import Problem
from lightning_maml.engine.generators import restore_rng, rng_state
from lightning_maml.engine.loops.loop import TaskLoop
from lightning_maml.inner import InnerLoop, Parameters, State
from lightning_maml.tasks import Set

Tensors = Sequence[Tensor]


class _Unroll(torch.autograd.Function):
    r"""All inner steps as one node of the graph: backward is :math:`v \leftarrow v - \alpha H_k v` for plain SGD."""

    @staticmethod
    def forward(ctx: Any, loop: CheckpointedLoop, order: int, every: bool, *tensors: Tensor) -> Any:
        ctx.loop, ctx.order = loop, order
        between: list[Tensor] = []
        phi, ctx.kept = loop.go_forth(tensors[: len(loop.theta)], order, between if every else None)
        return *between, *phi

    @staticmethod
    @torch.autograd.function.once_differentiable  # differentiating again raises, instead of being silently wrong
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        size = len(ctx.loop.theta)
        between = [upstream[at : at + size] for at in range(0, len(upstream) - size, size)]
        v, extras = ctx.loop.go_back(ctx.kept, upstream[-size:], ctx.order, between)
        return None, None, None, *v, *extras


class CheckpointedLoop(TaskLoop):
    r""":class:`TaskLoop` that holds the activations of a single step at a time (``checkpoint="step"``).

    Besides those it keeps the parameters before each of up to 8 steps. Of more steps it keeps every
    :math:`\sqrt m`-th, and runs those between once more on the way back: their parameters alone would grow too.
    """

    def __init__(self, problem: Problem, support: Set, query: Set | None = None, one: bool = False) -> None:
        super().__init__(problem, support, query, one)
        self.spacing = 1 if self.inner.steps <= 8 else math.isqrt(self.inner.steps)  # from a kept step to the next
        adapted = {id(value) for value in self.theta.values()}
        # what else the inner steps depend on: shared parameters, learned rates, support inputs that want a gradient
        # (and the adapted ones where every step is drawn back to them)
        self.extras = [leaf for leaf in problem.leaves(support) if id(leaf) not in adapted or self.inner.pulled]

    def unroll(self, order: int) -> Parameters:
        return self.path(order, every=False)[-1]

    def path(self, order: int, every: bool = True) -> list[Parameters]:
        start, size = self.start(), len(self.theta)
        outputs = _Unroll.apply(self, order, every, *start.values(), *self.extras) if self.inner.steps else ()
        parts = [outputs[at : at + size] for at in range(0, len(outputs), size)]
        return [start, *(dict(zip(self.theta, part, strict=True)) for part in parts)]

    def go_forth(self, phi: Tensors, order: int, between: list[Tensor] | None = None) -> tuple[Tensors, list[Any]]:
        """The parameters after all steps, and what :meth:`go_back` needs; ``between`` gets those after earlier ones."""
        kept, steps = [], self._steps(phi, self.inner.no_state, range(self.inner.steps), order)
        for step, (phi, losses, own) in enumerate(steps):
            self.support_losses.append(losses)
            if step % self.spacing == 0:
                kept.append(own)
            if between is not None and step < self.inner.steps - 1:
                between += [value.clone() for value in phi]  # what is kept must not hold on to the graph
        return phi, kept

    def _steps(self, phi: Tensors, state: State, steps: range, order: int) -> Iterator[tuple[Any, Tensor, Any]]:
        """The parameters after each step, the support losses before it, and what its way back needs."""
        for step in steps:
            rng = self._rng(phi)
            phi, state, losses, own = self.forth(phi, state, step, order)
            yield phi, losses, (own, rng)

    def go_back(
        self, kept: list[Any], v: Tensors, order: int, between: Sequence[Tensors] = ()
    ) -> tuple[Tensors, Tensors]:
        """The gradients at the parameters after all steps, brought to those before them and to ``extras``.

        ``between`` holds further ones, at the parameters after earlier steps. Empties ``kept`` from its end.
        """
        kind, device = type(self.inner), v[0].device
        if order == 1 and not self.extras and kind.step is InnerLoop.step and kind.update is InnerLoop.update:
            # such steps subtract constants
            return [sum(parts, start=last) for last, *parts in zip(v, *between, strict=True)], ()
        extras = [torch.zeros_like(leaf) for leaf in self.extras]
        now = self._rng(v)
        of_state: Tensors = ()  # the gradient at the state after a step; nobody asks for that of the last one
        while kept:
            steps = [kept.pop()]
            first = len(kept) * self.spacing
            if self.spacing > 1:  # from a kept step to the next, once more
                (phi, state), rng = steps[0]
                restore_rng(device, rng)
                numbers = range(first, min(first + self.spacing, self.inner.steps))
                steps = [own for _, _, own in self._steps(phi, state, numbers, order)]
            for step in reversed(range(first, first + len(steps))):
                own, rng = steps.pop()
                restore_rng(device, rng)  # the same dropout masks as on the way forward
                v, of_state, more = self.back(own, step, v, of_state, order)
                extras = [total + part for total, part in zip(extras, more, strict=True)]
                if between and step > 0:
                    v = [value + part for value, part in zip(v, between[step - 1], strict=True)]
        restore_rng(device, now)
        return v, extras

    def _rng(self, tensors: Tensors) -> Tensor | None:
        return rng_state(tensors[0].device)

    def forth(self, phi: Tensors, state: State, step: int, order: int) -> tuple[Tensors, State, Tensor, Any]:
        """One step without a graph: the next parameters and state, losses before it, and what :meth:`back` needs."""
        with torch.enable_grad():
            following, after, losses = self.step(self._leaves(phi), state, step, order=1)
        following, after = tree_map_only(Tensor, Tensor.detach, (following, after))
        return list(following.values()), after, losses, (phi, state)

    def back(self, kept: Any, step: int, v: Tensors, of_state: Tensors, order: int) -> tuple[Tensors, Tensors, Tensors]:
        """The gradients at parameters and state after a step, brought to those before it and to ``extras``."""
        phi, state = kept
        with torch.enable_grad():
            state = tree_map_only(Tensor, lambda value: value.detach().requires_grad_(value.is_floating_point()), state)
            before, memory = self._leaves(phi), _smooth(state)
            following, after, _ = self.step(before, state, step, order)
            outputs = (*following.values(), *(_smooth(after) if of_state else ()))
            pairs = [pair for pair in zip(outputs, (*v, *of_state), strict=True) if pair[0].requires_grad]
            outputs, upstream = zip(*pairs, strict=True)
            wanted = [*before.values(), *memory, *self.extras]
            gradients = torch.autograd.grad(outputs, wanted, upstream, materialize_grads=True)
        size, both = len(before), len(before) + len(memory)
        return gradients[:size], gradients[size:both], gradients[both:]

    def _leaves(self, phi: Tensors) -> Parameters:
        return {name: value.detach().requires_grad_() for name, value in zip(self.theta, phi, strict=True)}


def _smooth(state: State) -> list[Tensor]:
    """The tensors of a state that have a gradient."""
    return [value for value in tree_leaves(state) if isinstance(value, Tensor) and value.is_floating_point()]
