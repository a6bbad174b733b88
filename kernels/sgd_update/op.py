"""The operator ``lightning_maml::sgd_update``, differentiable to any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["sgd_update"]


@torch.library.custom_op("lightning_maml::sgd_update", mutates_args=(), device_types="cpu")
def _sgd_update(phi: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    return torch.addcmul(phi, gradient, rate, value=-1)


@_sgd_update.register_kernel("cuda")
def _(phi: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    from lightning_maml.kernels.sgd_update.kernel import launch  # Triton is not on every machine

    with torch.cuda.device(phi.device):
        return launch(phi, gradient, rate)


@_sgd_update.register_fake
def _(phi: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    phi, gradient, rate = inputs
    ctx.shared = phi.ndim == 1
    ctx.save_for_backward(gradient, rate)


def _backward(ctx: Any, upstream: Tensor) -> Any:
    # plain torch: autograd looks into it, so that every further derivative is right
    gradient, rate = ctx.saved_tensors
    of_phi = of_gradient = of_rate = None
    if ctx.needs_input_grad[0]:
        of_phi = upstream.sum(0) if ctx.shared else upstream
    if ctx.needs_input_grad[1]:
        of_gradient = -rate * upstream
    if ctx.needs_input_grad[2]:
        of_rate = -(upstream * gradient).sum_to_size(rate.shape)
    return of_phi, of_gradient, of_rate


_sgd_update.register_autograd(_backward, setup_context=_setup_context)


def sgd_update(phi: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    """One step of all tasks, ``phi - rate * gradient``, differentiable to any order in all three.

    Args:
        phi: the parameters, ``[T, P]``, or ``[P]`` where all tasks start from the same ones.
        gradient: ``[T, P]``.
        rate: one rate, ``[]``, or one for each element, ``[P]``.

    Returns:
        The next parameters, ``[T, P]``.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: dtypes that differ.
    """
    if gradient.ndim != 2 or phi.shape not in (gradient.shape, gradient.shape[1:]):
        raise ValueError(
            f"Expected `gradient` [T, P] and `phi` [T, P] or [P] but got {list(gradient.shape)} and {list(phi.shape)}."
        )
    if rate.shape not in ((), gradient.shape[1:]):
        raise ValueError(f"Expected `rate` [] or [{gradient.shape[1]}] but got {list(rate.shape)}.")
    if not phi.dtype == gradient.dtype == rate.dtype:
        raise TypeError(f"Expected one dtype but got {phi.dtype}, {gradient.dtype} and {rate.dtype}.")
    return _sgd_update(phi, gradient, rate)
