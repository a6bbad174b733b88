"""The operator ``lightning_maml::sgd_update``, differentiable to any order."""

from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels.sgd_update.naive import step


@torch.library.custom_op("lightning_maml::sgd_update", mutates_args=(), device_types=("cpu", "cuda"))
def _sgd_update(
    phi: Tensor,
    gradient: Tensor,
    rate: Tensor,
    factors: Tensor | None,
    weight_decay: float,
    buffer: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    if not phi.is_cpu:
        from lightning_maml.kernels.sgd_update.kernel import launch  # Triton is not on every machine

        with torch.cuda.device(phi.device):
            return launch(phi, gradient, rate, factors, weight_decay, buffer, momentum)
    taken = step(phi, gradient, factors, weight_decay, buffer, momentum)
    following = torch.addcmul(phi, taken, rate, value=-1)
    # an operator must not return its inputs, nor views of them
    return following, gradient.new_empty(0) if not momentum else taken.clone() if taken is gradient else taken


@_sgd_update.register_fake
def _(phi: Tensor, gradient: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, momentum = others
    following = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    return following, torch.empty_like(following) if momentum else gradient.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    phi, gradient, rate, factors, weight_decay, buffer, momentum = inputs
    ctx.weight_decay, ctx.momentum = weight_decay, momentum
    ctx.save_for_backward(phi, gradient, rate, factors, buffer)


def _backward(ctx: Any, upstream: Tensor, of_step: Tensor) -> Any:
    # this is plain torch, which autograd looks into, so that every further derivative is right
    phi, gradient, rate, factors, buffer = ctx.saved_tensors
    total = of_step - rate * upstream if ctx.momentum else -rate * upstream  # the gradient at the step
    of_phi = of_gradient = of_rate = of_factors = of_buffer = None
    if ctx.needs_input_grad[0]:
        of_phi = upstream + ctx.weight_decay * total if ctx.weight_decay else upstream
        of_phi = of_phi.sum(0) if phi.ndim == 1 else of_phi
    if ctx.needs_input_grad[1]:
        of_gradient = total if factors is None else factors[:, None] * total
    if ctx.needs_input_grad[2]:
        taken = step(phi, gradient, factors, ctx.weight_decay, buffer, ctx.momentum)
        of_rate = -(upstream * taken).sum_to_size(rate.shape)
    if factors is not None and ctx.needs_input_grad[3]:
        of_factors = (gradient * total).sum(1)
    if buffer is not None and ctx.needs_input_grad[5]:
        of_buffer = ctx.momentum * total
    return of_phi, of_gradient, of_rate, of_factors, None, of_buffer, None


_sgd_update.register_autograd(_backward, setup_context=_setup_context)


def sgd_update(
    phi: Tensor,
    gradient: Tensor,
    rate: Tensor,
    factors: Tensor | None = None,
    weight_decay: float = 0.0,
    buffer: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """One step of all tasks in one launch, differentiable to any order in all tensors.

    The step is ``factors * gradient + weight_decay * phi + momentum * buffer``; out comes ``phi - rate * step``.

    Args:
        phi: the parameters, ``[T, P]``, or ``[P]`` where all tasks start from the same ones.
        gradient: ``[T, P]``.
        rate: one rate, ``[]``, or one for each element, ``[P]``.
        factors: of each task's gradient, ``[T]``, as clipping makes them; None for 1.
        weight_decay: multiples of the parameters that are added to the gradient.
        buffer: the step before, ``[T, P]``; None in the first.
        momentum: multiples of ``buffer``.

    Returns:
        The next parameters ``[T, P]``, and with momentum the step ``[T, P]``, the next ``buffer``; else None.

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
    if factors is not None and factors.shape != gradient.shape[:1]:
        raise ValueError(f"Expected `factors` [{len(gradient)}] but got {list(factors.shape)}.")
    if buffer is not None and (buffer.shape != gradient.shape or not momentum):
        raise ValueError(
            f"Expected `buffer` {list(gradient.shape)} and `momentum` but got {list(buffer.shape)} and {momentum}."
        )
    dtypes = [value.dtype for value in (phi, gradient, rate, factors, buffer) if value is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(f"Expected one dtype but got {', '.join(map(str, dtypes))}.")
    following, step = _sgd_update(phi, gradient, rate, factors, weight_decay, buffer, momentum)
    return following, step if momentum else None
