"""The formula in plain autograd: what the operator is tested against."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.checks import check_choices
from lightning_maml.kernels.mlp_adapt.layout import size
from lightning_maml.kernels.mlp_adapt.naive import forward
from lightning_maml.kernels.policy_gradient.native import DISTRIBUTIONS, KINDS


def policy_gradient(
    phi: Tensor,
    observations: Tensor,
    actions: Tensor,
    weights: Tensor,
    old_log_probs: Tensor,
    widths: Sequence[int],
    activation: str,
    distribution: str,
    kind: str,
) -> Tensor:
    """As the operator (``op.py``), differentiable to any order."""
    check_choices(distribution=(distribution, DISTRIBUTIONS), kind=(kind, KINDS))
    if not phi.requires_grad:
        phi = phi.detach().requires_grad_()
    flat, log_std = phi.split([size(widths), phi.shape[1] - size(widths)], 1)
    outputs = forward(flat, observations, widths, activation)
    if distribution == "gaussian":
        log_std = log_std.unsqueeze(1)
        off = (actions - outputs) * torch.exp(-log_std)
        log_probs = -(off.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)
    else:
        log_probs = F.log_softmax(outputs, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    gains = log_probs if kind == "log_probability" else torch.exp(log_probs - old_log_probs)
    return torch.autograd.grad(-(weights * gains).sum(), phi, create_graph=True)[0]
