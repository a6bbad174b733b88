"""The operators ``lightning_maml::conv_adapt`` and ``lightning_maml::conv_trajectory``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, operators
from lightning_maml.kernels.checks import check_batch, check_choices, check_parameters, check_targets
from lightning_maml.kernels.conv_adapt import native
from lightning_maml.kernels.conv_adapt.layout import Network
from lightning_maml.kernels.mlp_adapt.op import PRECISIONS

LOSSES = native.LOSSES
MOST_WAYS = 128
"""Of a network on a GPU, where one program has all logits of some images."""


def _run(*arguments: Any) -> Adaptation:
    *batch, numbers, eps, loss, order, rates_grad, precision = arguments
    kind = Network(*numbers, eps), loss, order, rates_grad
    if batch[0].is_cpu:
        return native.adapt(*batch, *kind)
    from lightning_maml.kernels.conv_adapt.launch import launch  # Triton is not on every machine

    with torch.cuda.device(batch[0].device):
        return launch(*batch, *kind, precision)


_conv_adapt, _conv_trajectory = operators(
    "conv", "int[] network, float eps, str loss", ", str precision", _run, ("cpu", "cuda")
)


def conv_adapt(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor,
    query_targets: Tensor,
    network: Network,
    loss: str = "cross_entropy",
    order: int = 2,
    rates_grad: bool = False,
    precision: str = "ieee",
) -> Adaptation:
    """The inner loops of all tasks on a convolutional network, and the meta-gradient of the mean query loss.

    Args:
        theta: ``[P]``, the parameters in turn, see :meth:`~lightning_maml.kernels.conv_adapt.layout.Network.shapes`.
        rates: ``[m, 1]``, a rate for each of the m inner steps, or ``[m, P]``, one for each element too. A rate of 0
            keeps an element out of the inner loop.
        support_inputs, query_inputs: ``[T, N, C, H, W]`` and ``[T, Nq, C, H, W]``.
        support_targets, query_targets: labels ``[T, N]`` for the cross-entropy, or ``[T, N, ways]``.
        network: its blocks.
        loss: one of :data:`LOSSES`, as means over a task's rows.
        order: 2, or 1 for inner gradients taken as constants.
        rates_grad: whether to return the gradient of the rates too.
        precision: of the products on a GPU, one of :data:`PRECISIONS`, see ``mlp_adapt``. The CPU computes in the dtype
            of ``theta``, a GPU in float32, and there up to 128 ways.

    Raises:
        ValueError: shapes that do not fit each other, or an argument outside of what is covered.
        RuntimeError: on differentiating an output, which the operator refuses; on the CPU, no compiler, or a label out
            of range. On a GPU such a label makes the task's loss NaN.
    """
    batch = (support_inputs, support_targets, query_inputs, query_targets)
    _check(theta, rates, batch, network, loss, precision, order)
    outputs = _conv_adapt(theta, rates, *batch, network.plain(), network.eps, loss, order, rates_grad, precision)
    return Adaptation(*outputs, theta.new_empty(0))


def conv_trajectory(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    network: Network,
    loss: str = "cross_entropy",
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """The parameters ``[T, m, P]`` after each inner step and the losses ``[T, m + 1]``, as :func:`conv_adapt`."""
    batch = support_inputs, support_targets
    _check(theta, rates, batch, network, loss, precision)
    return _conv_trajectory(theta, rates, *batch, network.plain(), network.eps, loss, precision)


def _check(
    theta: Tensor,
    rates: Tensor,
    batch: Sequence[Tensor],
    network: Network,
    loss: str,
    precision: str,
    order: int = 1,
) -> None:
    """Raise ValueError for what the operator does not cover; ``batch`` are inputs and targets, of one set or of two."""
    check_choices(loss=(loss, LOSSES), precision=(precision, PRECISIONS))
    if not theta.is_cpu and theta.dtype != torch.float32:
        raise ValueError(f"Expected float32 on a GPU but got {theta.dtype}.")
    if not theta.is_cpu and network.ways > MOST_WAYS:
        raise ValueError(f"Expected up to {MOST_WAYS} ways on a GPU but got {network.ways}.")
    check_parameters(theta, rates, network.size, str(network))
    image = network.channels, network.height, network.width
    for inputs, targets in zip(batch[::2], batch[1::2], strict=True):
        if inputs.ndim != 5 or tuple(inputs.shape[2:]) != image or inputs.shape[1] < 1:
            raise ValueError(f"Expected images [T, N, {', '.join(map(str, image))}] but got {list(inputs.shape)}.")
        if network.norm and inputs.shape[1] * network.fewest_places() < 2:
            raise ValueError(f"Expected more than 1 value a channel for batch-norm but got {list(inputs.shape)}.")
        check_targets(theta, rates, inputs, targets, network.ways, loss, "images")
        if not theta.is_cpu and network.most_numbers(inputs.shape[1]) >= 1 << 31:
            raise ValueError(f"Expected less than 2^31 numbers of a task and layer but got {list(inputs.shape)}.")
    check_batch(batch, order)
