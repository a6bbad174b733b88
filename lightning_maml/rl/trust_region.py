"""TRPO's step: the natural gradient of the return after adaptation, as long as a trust region allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_maml.meta_gradient.implicit import conjugate_gradients
from lightning_maml.rl.adaptation import MetaObjective
from lightning_maml.rl.outer import TRPO
from lightning_maml.rl.rollouts import Rollouts


def trust_region_step(
    objective: MetaObjective, rollouts: Sequence[Rollouts], mean: Callable[[Tensor], Tensor] = lambda values: values
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What TRPO adds to each of ``objective.leaves``, and loss and mean divergence after it, scalars.

    Zeros where no step along the natural gradient makes the loss smaller within the trust region. The Hessian of the
    divergence is taken through the adaptation, exactly: all tasks' graphs are held at once.

    Args:
        objective: with :class:`~lightning_maml.rl.TRPO` outside.
        rollouts: before each inner step and after the last.
        mean: of a tensor over all processes.

    Raises:
        ValueError: the objective has something else outside.
    """
    outer = objective.outer
    if not isinstance(outer, TRPO):
        raise ValueError(f"Expected an objective with TRPO outside but got {type(outer).__name__}.")
    leaves = objective.leaves
    loss, kl = objective.loss_and_kl(rollouts)
    gradient = mean(_flat(torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)))
    slopes = torch.autograd.grad(kl, leaves, create_graph=True, materialize_grads=True)
    with torch.enable_grad():
        slope = _flat(slopes)

    def fisher(v: Tensor) -> Tensor:
        products = torch.autograd.grad(slope, leaves, v.reshape(-1), retain_graph=True, materialize_grads=True)
        return mean(_flat(products)) + outer.damping * v.reshape(-1)

    b = -gradient.unsqueeze(0)
    x = conjugate_gradients(lambda v: fisher(v).unsqueeze(0), b, outer.cg_steps, torch.zeros_like(b))[0][0]
    curvature = x @ fisher(x)
    before = mean(loss.detach())
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    if not curvature > 0:
        return zeros, before, mean(kl.detach())
    full = x * (2 * outer.max_kl / curvature).sqrt()
    origin = _flat(leaves).detach()
    try:
        for shortened in range(outer.backtracks):
            step = outer.shrink**shortened * full
            _put(origin + step, leaves)
            loss, kl = (mean(value.detach()) for value in objective.loss_and_kl(rollouts))
            if loss < before and kl <= outer.max_kl:
                return _like(step, leaves), loss, kl
    finally:
        _put(origin, leaves)
    return zeros, before, torch.zeros_like(before)


def _put(flat: Tensor, leaves: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for leaf, value in zip(leaves, _like(flat, leaves), strict=True):
            leaf.copy_(value)


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def _like(flat: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([leaf.numel() for leaf in leaves])
    return [part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)]
