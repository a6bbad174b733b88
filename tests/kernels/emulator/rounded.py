"""The kernels' recursion in torch, in float64 but for the operands of products, which are rounded as on tensor cores.

The reference for "tf32" and "bf16": what is left between it and a kernel is the order of sums, and what that flips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.mlp_adapt.layout import in_torchs_order, into_matrices, matrices

Rounding = Callable[[Tensor], Tensor]


def cut(value: Tensor) -> Tensor:
    """To tf32, by leaving 13 bits out."""
    return (value.float().view(torch.int32) & -8192).view(torch.float32).double()


def bf16(value: Tensor) -> Tensor:
    return value.float().bfloat16().double()


def _single(value: Tensor) -> Tensor:
    """What is kept in memory is float32."""
    return value.float().double()


def _with(rows: Tensor, last: float) -> Tensor:
    return torch.cat([rows, torch.full_like(rows[:, :1], last)], 1)


def _cumulative(s: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.erf(s / math.sqrt(2))


def _density(s: Tensor) -> Tensor:
    return torch.exp(-0.5 * s * s) / math.sqrt(2 * math.pi)


def _value(activation: str, s: Tensor) -> Tensor:
    match activation:
        case "relu":
            return s.relu()
        case "tanh":
            return s.tanh()
        case "gelu":
            return s * _cumulative(s)
        case "silu":
            return s * s.sigmoid()
    return s


def _slope(activation: str, s: Tensor, h: Tensor) -> Tensor:
    match activation:
        case "relu":
            return (h > 0).double()
        case "tanh":
            return 1 - h * h
        case "gelu":
            return _cumulative(s) + s * _density(s)
        case "silu":
            return s.sigmoid() * (1 + s * (-s).sigmoid())
    return torch.ones_like(s)


def _bend(activation: str, s: Tensor, h: Tensor) -> Tensor:
    match activation:
        case "tanh":
            return -2 * h * (1 - h * h)
        case "gelu":
            return _density(s) * (2 - s * s)
        case "silu":
            return s.sigmoid() * (-s).sigmoid() * (2 + s * ((-s).sigmoid() - s.sigmoid()))
    return torch.zeros_like(s)


class _Pass(NamedTuple):
    h: list[Tensor]
    """Activations of each layer, inputs first, logits last."""
    sums: list[Tensor]
    loss: Tensor
    share: Tensor
    """The softmax or sigmoid of the logits."""
    deltas: list[Tensor]
    """Gradients at the sums of each layer."""
    upstream: list[Tensor]
    """Gradients at the activations of each hidden layer."""
    gradient: list[Tensor]


class _Network:
    def __init__(self, activation: str, loss: str, rounding: Rounding) -> None:
        self.activation, self.loss, self.rounding = activation, loss, rounding

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rounding(a) @ self.rounding(b)

    def both_ways(self, W: list[Tensor], inputs: Tensor, targets: Tensor) -> _Pass:
        layers, n = len(W), len(inputs)
        h, sums = [inputs], []
        for i in range(layers):
            sums.append(_single(self.mm(_with(h[-1], 1.0), W[i])))
            h.append(_single(_value(self.activation, sums[-1])) if i + 1 < layers else sums[-1])
        z = h[-1]
        if self.loss == "cross_entropy":
            share, hot = z.softmax(1), F.one_hot(targets, z.shape[1]).double()
            value, delta = -(z.log_softmax(1) * hot).sum() / n, (share - hot) / n
        elif self.loss == "bce":
            share = z.sigmoid()
            value = F.binary_cross_entropy_with_logits(z, targets.double())
            delta = (share - targets) / z.numel()
        else:
            share, value, delta = z, (z - targets).square().mean(), 2 * (z - targets) / z.numel()
        deltas, upstream = [_single(delta)], []
        for i in range(layers - 1, 0, -1):
            upstream.insert(0, _single(self.mm(deltas[0], W[i][:-1].T)))
            deltas.insert(0, _single(upstream[0] * _slope(self.activation, sums[i - 1], h[i])))
        gradient = [_single(self.mm(_with(h[i], 1.0).T, deltas[i])) for i in range(layers)]
        return _Pass(h, sums, value, share, deltas, upstream, gradient)

    def hessian_vector(self, W: list[Tensor], at: _Pass, u: list[Tensor]) -> list[Tensor]:
        """The Hessian of the loss that ``at`` is a pass of, times ``u``."""
        layers, (n, width) = len(W), at.h[-1].shape
        tangents, tangents_of_sums = [torch.zeros_like(at.h[0])], []
        for i in range(layers):
            through = self.mm(tangents[i], W[i][:-1]) if i else 0
            s = _single(self.mm(_with(at.h[i], 1.0), u[i]) + through)
            tangents_of_sums.append(s)
            tangents.append(_single(s * _slope(self.activation, at.sums[i], at.h[i + 1])) if i + 1 < layers else s)
        R, p = tangents_of_sums[-1], at.share
        if self.loss == "cross_entropy":
            deltas = [_single(p * (R - (p * R).sum(1, keepdim=True)) / n)]
        else:
            deltas = [_single((p * (1 - p) if self.loss == "bce" else 2) * R / (n * width))]
        for i in range(layers - 1, 0, -1):
            up = self.mm(deltas[0], W[i][:-1].T) + self.mm(at.deltas[i], u[i][:-1].T)
            s, h = at.sums[i - 1], at.h[i]
            bent = _bend(self.activation, s, h) * at.upstream[i - 1] * tangents_of_sums[i - 1]
            deltas.insert(0, _single(up * _slope(self.activation, s, h) + bent))
        return [
            self.mm(_with(at.h[i], 1.0).T, deltas[i]) + (self.mm(_with(tangents[i], 0.0).T, at.deltas[i]) if i else 0)
            for i in range(layers)
        ]


def adapt(
    theta: Tensor, rates: Tensor, x: Tensor, y: Tensor, xq: Tensor | None, yq: Tensor | None,
    widths: list[int], activation: str, loss: str, order: int, rates_grad: bool, rounding: Rounding,
) -> Adaptation:  # fmt: skip
    """As the operator, whose arguments these are, with products' operands rounded; without queries, a trajectory."""
    theta, rates = into_matrices(theta.double(), widths), into_matrices(rates.double(), widths)
    network, layers = _Network(activation, loss, rounding), len(widths) - 1
    rate = [[r] * layers if len(r) == 1 else matrices(r, widths) for r in rates]
    results, nothing = [], theta.new_empty(0)
    for t in range(len(x)):
        W, tape, losses = [part.clone() for part in matrices(theta, widths)], [], []
        for k in range(len(rates)):
            tape.append((W, network.both_ways(W, x[t].double(), y[t])))
            losses.append(tape[-1][1].loss)
            W = [_single(w - a * g) for w, a, g in zip(W, rate[k], tape[-1][1].gradient, strict=True)]
        losses.append(network.both_ways(W, x[t].double(), y[t]).loss)
        if xq is None or yq is None:
            path = [*(step[0] for step in tape[1:]), W]
            flat = torch.stack([torch.cat([part.flatten() for part in step]) for step in path])
            results.append((nothing, nothing, torch.stack(losses), nothing, nothing, flat))
            continue
        query = network.both_ways(W, xq[t].double(), yq[t])
        v, of_rates = query.gradient, torch.zeros_like(rates)
        for k in reversed(range(len(rates))):
            W, at = tape[k]
            products = [-_single(a) * b for a, b in zip(at.gradient, v, strict=True)]
            flat = torch.cat([part.flatten() for part in products])
            of_rates[k] = flat.sum() if rates.shape[1] == 1 else flat
            if order == 2:
                u = [_single(a * b) for a, b in zip(rate[k], v, strict=True)]
                curved = network.hessian_vector(W, at, u)
                v = [_single(a - b) for a, b in zip(v, curved, strict=True)]
        flat = torch.cat([part.flatten() for part in v])
        of_rates = of_rates if rates_grad else nothing
        results.append((query.loss, query.h[-1], torch.stack(losses), flat, of_rates, nothing))
    parts = Adaptation(*(torch.stack(part) for part in zip(*results, strict=True)))
    means = parts._replace(of_theta=parts.of_theta.mean(0), of_rates=parts.of_rates.mean(0))
    return in_torchs_order(means, widths)
