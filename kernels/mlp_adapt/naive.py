"""The formula in plain autograd: what the kernels and the hand-written recursion are tested against."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.checks import unknown
from lightning_maml.kernels.mlp_adapt.layout import LOSSES, parameters_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sine": torch.sin,
}


def forward(
    phi: Tensor, inputs: Tensor, widths: Sequence[int], activation: str, frequencies: Sequence[float] = ()
) -> Tensor:
    """``phi [T, P]``, ``inputs [T, N, in]`` -> ``[T, N, out]``; sums are multiplied by ``frequencies``, where given."""
    rows = inputs
    for index, (weight, bias) in enumerate(parameters_of(phi, widths)):
        if index:
            rows = ACTIVATIONS[activation](rows * frequencies[index - 1] if frequencies else rows)
        rows = rows @ weight.mT + bias.unsqueeze(1)
    return rows


def losses(predictions: Tensor, targets: Tensor, loss: str) -> Tensor:
    """The mean loss of each task, ``[T]``."""
    if loss == "cross_entropy":
        each = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none")
    elif loss == "bce":
        each = F.binary_cross_entropy_with_logits(predictions, targets, reduction="none")
    elif loss == "mse":
        each = (predictions - targets).square()
    else:
        raise unknown("loss", loss, LOSSES)
    return each.reshape(len(predictions), -1).mean(1)


def adapt(
    forward: Callable[[Tensor, Tensor], Tensor], theta: Tensor, rates: Tensor, *batch: Tensor, loss: str, order: int
) -> Adaptation:
    """With a network ``forward(phi [T, P], inputs [T, N, ...])`` as the operators, and the parameters on the way."""
    support_inputs, support_targets, query_inputs, query_targets = batch
    theta, rates = theta.detach().requires_grad_(), rates.detach().requires_grad_()
    phi = theta.expand(len(support_inputs), -1)
    seen, trajectory = [], []
    for rate in rates:
        support = losses(forward(phi, support_inputs), support_targets, loss)
        (gradient,) = torch.autograd.grad(support.sum(), phi, create_graph=order == 2, retain_graph=True)
        phi = phi - rate * gradient
        seen.append(support)
        trajectory.append(phi)
    seen.append(losses(forward(phi, support_inputs), support_targets, loss))
    predictions = forward(phi, query_inputs)
    query = losses(predictions, query_targets, loss)
    of_theta, of_rates = torch.autograd.grad(query.mean(), [theta, rates], materialize_grads=True)
    path = torch.stack(trajectory, 1) if trajectory else phi.new_empty(len(phi), 0, phi.shape[1])
    outputs = query, predictions, torch.stack(seen, 1), of_theta, of_rates, path
    return Adaptation(*(output.detach() for output in outputs))


def mlp_adapt(theta: Tensor, rates: Tensor, *arguments: Any, frequencies: Sequence[float] = ()) -> Adaptation:
    """As the operator (``op.py``) with its arguments up to the order, and the parameters on the way."""
    *batch, widths, activation, loss, order = arguments
    network = partial(forward, widths=widths, activation=activation, frequencies=frequencies)
    return adapt(network, theta, rates, *batch, loss=loss, order=order)
