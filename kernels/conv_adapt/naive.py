"""The formula in plain autograd: what the hand-written recursion is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.conv_adapt.layout import Network, parameters_of
from lightning_maml.kernels.mlp_adapt.naive import adapt


def forward(phi: Tensor, images: Tensor, network: Network) -> Tensor:
    """One task: ``phi [P]``, ``images [N, C, H, W]`` -> ``[N, ways]``."""
    parameters = iter(parameters_of(phi, network))
    for _ in range(network.blocks):
        weight, bias = next(parameters), next(parameters) if network.bias else None
        images = F.conv2d(images, weight, bias, network.stride, 1)
        if network.norm:
            gamma, beta = (next(parameters), next(parameters)) if network.affine else (None, None)
            images = F.batch_norm(images, None, None, gamma, beta, training=True, eps=network.eps)
        images = images.relu()
        images = F.max_pool2d(images, 2) if network.pool else images
    rows = images.flatten(1) if network.flat else images.mean((2, 3))
    return F.linear(rows, *parameters)


def conv_adapt(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor,
    query_targets: Tensor,
    network: Network,
    loss: str,
    order: int,
) -> Adaptation:
    """As the operator (``op.py``), and the parameters on the way."""

    def each(phi: Tensor, images: Tensor) -> Tensor:
        return torch.stack([forward(*task, network) for task in zip(phi, images, strict=True)])

    batch = (support_inputs, support_targets, query_inputs, query_targets)
    return adapt(each, theta, rates, *batch, loss=loss, order=order)
