"""The formula in plain autograd: what the hand-written recursion is tested against."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.conv_adapt.layout import Network, parameters_of

__all__ = ["conv_adapt", "forward"]


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
    function: Any = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}[loss]
    theta, rates = theta.detach().requires_grad_(), rates.detach().requires_grad_()
    task_losses, predictions, support_losses, paths = [], [], [], []
    for task in range(len(support_inputs)):
        phi, path, seen = theta, [], []
        for step in count():
            support_loss = function(forward(phi, support_inputs[task], network), support_targets[task])
            seen.append(support_loss.detach())
            if step == len(rates):
                break
            (gradient,) = torch.autograd.grad(support_loss, phi, create_graph=order == 2, retain_graph=True)
            phi = phi - rates[step] * gradient
            path.append(phi.detach())
        predictions.append(forward(phi, query_inputs[task], network))
        task_losses.append(function(predictions[-1], query_targets[task]))
        support_losses.append(torch.stack(seen))
        paths.append(torch.stack(path) if path else theta.new_empty(0, len(theta)))
    losses = torch.stack(task_losses)
    gradients = torch.autograd.grad(losses.mean(), (theta, rates), materialize_grads=True)
    details = (losses.detach(), torch.stack(predictions).detach(), torch.stack(support_losses))
    return Adaptation(*details, *gradients, torch.stack(paths))
