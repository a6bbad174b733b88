"""TRPO's step: the natural gradient of the return after adaptation, as long as a trust region allows."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from lightning_maml.meta_gradient.implicit import conjugate_gradients
from lightning_maml.rl.adaptation import MetaObjective
from lightning_maml.rl.environments import Rollouts
from lightning_maml.rl.outer import TRPO


@torch.enable_grad()
def trust_region_step(
    objective: MetaObjective, rollouts: Sequence[Rollouts], mean: Callable[[Tensor], Tensor] = lambda values: values
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What TRPO adds to each of ``objective.leaves``, and loss and mean divergence after it, scalars.

    Zeros where no step along the natural gradient makes the loss smaller within the trust region. The Hessian of the
    divergence is taken through the adaptation, exactly: all tasks' graphs are held at once. ValueError where the
    objective has something else outside, or its gradient is not finite.

    Args:
        objective: with :class:`~lightning_maml.rl.TRPO` outside.
        rollouts: before each inner step and after the last.
        mean: of a tensor over all processes.
    """
    outer = objective.outer
    if not isinstance(outer, TRPO):
        raise ValueError(f"Expected an objective with TRPO outside but got {type(outer).__name__}.")
    leaves = objective.leaves
    loss, kl = objective.loss_and_kl(rollouts)
    gradient = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
    slope = _flatten_dense_tensors(torch.autograd.grad(kl, leaves, create_graph=True, materialize_grads=True))

    def fisher(v: Tensor) -> Tensor:
        products = torch.autograd.grad(slope, leaves, v[0], retain_graph=True, materialize_grads=True)
        return mean(_flatten_dense_tensors(products)).unsqueeze(0) + outer.damping * v  # [1, P]

    b = -mean(_flatten_dense_tensors(gradient)).unsqueeze(0)
    x, *_ = conjugate_gradients(fisher, b, outer.cg_steps, torch.zeros_like(b))
    curvature = x[0] @ fisher(x)[0]
    steepness, length = torch.stack([curvature, b.norm()]).tolist()  # a device is waited for once
    if not math.isfinite(length):
        raise ValueError(
            f"Expected a finite meta-gradient but it is {length}: use a smaller inner rate, and look at the "
            "environment's rewards."
        )
    before, zeros = mean(loss.detach()), [torch.zeros_like(leaf) for leaf in leaves]
    if not steepness > 0:
        return zeros, before, mean(kl.detach())
    full = _unflatten_dense_tensors(x[0] * (2 * outer.max_kl / curvature).sqrt(), leaves)
    origin = [leaf.detach().clone() for leaf in leaves]
    try:
        for shortened in range(outer.backtracks):
            step = torch._foreach_mul(full, outer.shrink**shortened)
            with torch.no_grad():
                torch._foreach_copy_(leaves, torch._foreach_add(origin, step))
            loss, kl = (mean(value.detach()) for value in objective.loss_and_kl(rollouts))
            if (loss < before) & (kl <= outer.max_kl):  # one question: a device is waited for at each
                return [*step], loss, kl
    finally:
        with torch.no_grad():
            torch._foreach_copy_(leaves, origin)
    return zeros, before, torch.zeros_like(before)
