"""The operator on the CPU: the Hessian-vector recursion written out in batched products, without autograd.

A meta-gradient of a small network is a few hundred tiny products, so what counts is how many calls torch gets: biases
ride along as a last row, updates and scales are the ``beta`` and ``alpha`` of the product that computes them, and the two
halves of a Hessian-vector product lie one behind the other, so that one product adds them up. README.md derives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.mlp_adapt.layout import matrices

__all__ = ["Result", "adapt"]

CHUNK_NUMBERS = 1 << 20
"""Tasks are taken in chunks of about this many numbers, which stay in the cache from the way there to the way back."""


class Result(NamedTuple):
    """What :func:`adapt` returns; the first axis of the trajectory's matrices is the step."""

    task_losses: Tensor
    predictions: Tensor
    support_losses: Tensor
    of_theta: Tensor
    of_rates: Tensor
    trajectory: Tensor


class _Tape:
    """What the inner steps of one hidden layer leave for the way back, for ``steps`` steps and ``rows`` rows.

    ``both [steps, T, 2 rows, width + 1]`` holds the tangents of the activations with a zero behind them, then the
    activations with a one behind them.
    """

    def __init__(self, like: Tensor, steps: int, rows: int, width: int, bent: bool) -> None:
        tasks = len(like)
        both = like.new_empty(steps, tasks, 2 * rows, width + 1)
        both[:, :, :rows, -1] = 0
        both[:, :, rows:, -1] = 1
        self.both = both.transpose(-1, -2).unbind(0)
        self.tangents = both[:, :, :rows].unbind(0)
        self.inner_tangents = both[:, :, :rows, :-1].unbind(0)
        self.rows = both[:, :, rows:].unbind(0)
        self.inner = both[:, :, rows:, :-1].unbind(0)
        self.transposed = both[:, :, rows:].transpose(-1, -2).unbind(0)
        self.sums = like.new_empty(tasks, rows, width)  # pre-activations, then gradients at the activations
        self.sum_tangents = like.new_empty(tasks, rows, width)
        self.slopes = like.new_empty(steps, tasks, rows, width).unbind(0) if bent else ()
        self.bends = like.new_empty(steps, tasks, rows, width).unbind(0) if bent else ()


class _Activation:
    """One activation: its value, its slope times something, and its curvature."""

    curved = False
    keeps = False
    """Whether slope and curvature have to be kept, as they are no function of the activation's value."""

    def value(self, tape: _Tape, k: int) -> None:
        tape.inner[k].copy_(tape.sums)

    def slope(self, tape: _Tape, k: int, upstream: Tensor, out: Tensor) -> None:
        out.copy_(upstream)

    def bend(self, tape: _Tape, k: int, deltas: Tensor, out: Tensor) -> None:
        """Add curvature times the gradient at the activations times the tangents of the sums to ``out``."""


class _ReLU(_Activation):
    def value(self, tape: _Tape, k: int) -> None:
        torch.clamp_min(tape.sums, 0, out=tape.inner[k])

    def slope(self, tape: _Tape, k: int, upstream: Tensor, out: Tensor) -> None:
        torch.ops.aten.threshold_backward.grad_input(upstream, tape.inner[k], 0, grad_input=out)


class _Tanh(_Activation):
    curved = True

    def value(self, tape: _Tape, k: int) -> None:
        torch.tanh(tape.sums, out=tape.inner[k])

    def slope(self, tape: _Tape, k: int, upstream: Tensor, out: Tensor) -> None:
        torch.ops.aten.tanh_backward.grad_input(upstream, tape.inner[k], grad_input=out)

    def bend(self, tape: _Tape, k: int, deltas: Tensor, out: Tensor) -> None:
        out.addcmul_(torch.mul(deltas, tape.inner[k]), tape.sum_tangents, value=-2)  # curvature = -2 tanh slope


class _GELU(_Activation):
    curved = keeps = True

    def value(self, tape: _Tape, k: int) -> None:
        sums, slope, bend = tape.sums, tape.slopes[k], tape.bends[k]
        torch.mul(sums, sums, out=bend).mul_(-0.5).exp_().mul_(0.3989422804014327)  # the normal density
        torch.special.ndtr(sums, out=slope)
        torch.mul(sums, slope, out=tape.inner[k])
        slope.addcmul_(sums, bend)
        bend.mul_(2 - sums * sums)

    def slope(self, tape: _Tape, k: int, upstream: Tensor, out: Tensor) -> None:
        torch.mul(upstream, tape.slopes[k], out=out)

    def bend(self, tape: _Tape, k: int, deltas: Tensor, out: Tensor) -> None:
        out.addcmul_(tape.bends[k], tape.sum_tangents)


_ACTIVATIONS = {"identity": _Activation(), "relu": _ReLU(), "tanh": _Tanh(), "gelu": _GELU()}


def _likelihood(logits: Tensor, targets: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """The gradient of the loss at the logits ``[T, N, out]`` times the number of terms, and the probabilities."""
    if loss == "mse":
        return logits - targets, logits
    probabilities = torch.softmax(logits, -1) if loss == "cross_entropy" else torch.sigmoid(logits)
    return probabilities - targets, probabilities


def _tangent(probabilities: Tensor, tangents: Tensor, loss: str, out: Tensor) -> None:
    """The tangents of the above, from those of the logits."""
    if loss == "mse":
        out.copy_(tangents)
    elif loss == "bce":
        torch.mul(probabilities - probabilities.square(), tangents, out=out)
    else:
        product = probabilities * tangents
        torch.addcmul(product, probabilities, product.sum(-1, keepdim=True), value=-1, out=out)


def _losses(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Mean losses over the last two dimensions: ``[..., N, out]`` -> ``[...]``; targets of classes as one-hot rows."""
    if loss == "mse":
        return (logits - targets).square_().mean((-2, -1))
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none").mean((-2, -1))
    return -(torch.log_softmax(logits, -1) * targets).sum(-1).mean(-1)


def adapt(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor | None,
    query_targets: Tensor | None,
    widths: Sequence[int],
    activation: str,
    loss: str,
    order: int,
    rates_grad: bool,
) -> Result:
    """As the operator (``op.py``); without a query set, the trajectory ``[T, m, P]`` and the support losses alone."""
    tasks, rows = support_inputs.shape[:2]
    with_query = query_inputs is not None and query_targets is not None
    each = (len(rates) + 2) * (theta.numel() + 4 * rows * sum(widths[1:]))
    count = max(1, -(-tasks * each // CHUNK_NUMBERS)) if with_query else 1
    chunk = -(-tasks // count)
    parts = []
    for start in range(0, tasks, chunk):
        part = slice(start, start + chunk)
        query = (query_inputs[part], query_targets[part]) if with_query else (None, None)  # type: ignore[index]
        share = min(chunk, tasks - start) / tasks
        parts.append(
            _adapt(
                theta,
                rates,
                support_inputs[part],
                support_targets[part],
                *query,
                widths,
                activation,
                loss,
                order,
                rates_grad,
                share,
            )
        )
    if len(parts) == 1:
        return parts[0]
    first, of_theta, of_rates = parts[0], parts[0].of_theta, parts[0].of_rates
    for result in parts[1:]:
        of_theta, of_rates = of_theta + result.of_theta, of_rates + result.of_rates
    losses, predictions, support = (torch.cat([result[i] for result in parts]) for i in range(3))
    return Result(losses, predictions, support, of_theta, of_rates, first.trajectory)


def _adapt(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor | None,
    query_targets: Tensor | None,
    widths: Sequence[int],
    activation: str,
    loss: str,
    order: int,
    rates_grad: bool,
    share: float,
) -> Result:
    act = _ACTIVATIONS[activation]
    tasks, rows, _ = support_inputs.shape
    steps, depth, out = len(rates), len(widths) - 1, widths[-1]
    kept = max(steps, 1)
    with_query = query_inputs is not None and query_targets is not None
    one_hot = loss == "cross_entropy"
    support_targets = F.one_hot(support_targets, out).to(theta.dtype) if one_hot else support_targets
    # the mean over rows (and outputs), whose factor goes into the rates: the tape holds gradients of sums
    terms = rows if one_hot else rows * out
    scale = (2.0 if loss == "mse" else 1.0) / terms
    scalar = rates.shape[1] == 1
    numbers = rates.flatten().tolist() if scalar else []
    matrix_rates = [matrices(rate, widths) for rate in rates] if not scalar else []

    inputs = theta.new_ones(tasks, rows, widths[0] + 1)
    inputs[..., :-1] = support_inputs
    inputs_mT = inputs.mT
    tapes = [_Tape(inputs, kept, rows, width, act.keeps) for width in widths[1:-1]]
    logits = theta.new_empty(steps + 1, tasks, rows, out)
    each_logits = logits.unbind(0)
    # gradients at the sums of each layer, then their tangents
    both_deltas = [theta.new_empty(kept, tasks, 2 * rows, width) for width in widths[1:]]
    pairs = [both.unbind(0) for both in both_deltas]
    deltas = [both[:, :, :rows].unbind(0) for both in both_deltas]
    delta_tangents = [both[:, :, rows:].unbind(0) for both in both_deltas]
    path = [theta.new_empty(kept, tasks, a + 1, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    initial = [matrix.expand(tasks, -1, -1) for matrix in matrices(theta, widths)]
    weights = [[first, *matrix.unbind(0)] for first, matrix in zip(initial, path, strict=True)]
    weights_mT = [
        [first[:, :-1].mT, *matrix[:, :, :-1].transpose(-1, -2).unbind(0)]
        for first, matrix in zip(initial, path, strict=True)
    ]
    gradient = None if scalar else [torch.empty_like(matrix[0]) for matrix in path]
    probabilities = []

    for k in range(steps):
        current = inputs
        for l, tape in enumerate(tapes):  # noqa: E741
            torch.bmm(current, weights[l][k], out=tape.sums)
            act.value(tape, k)
            current = tape.rows[k]
        torch.bmm(current, weights[-1][k], out=each_logits[k])
        if loss == "mse":
            torch.sub(each_logits[k], support_targets, out=deltas[-1][k])
        else:
            delta, probability = _likelihood(each_logits[k], support_targets, loss)
            deltas[-1][k].copy_(delta)
            probabilities.append(probability)
        for l in range(depth - 1, -1, -1):  # noqa: E741
            if l > 0:
                tape = tapes[l - 1]
                torch.bmm(deltas[l][k], weights_mT[l][k], out=tape.sums)
                act.slope(tape, k, tape.sums, deltas[l - 1][k])
                if act.keeps:
                    tape.bends[k].mul_(tape.sums)
            before = tapes[l - 1].transposed[k] if l > 0 else inputs_mT
            if gradient is None:
                torch.baddbmm(
                    weights[l][k], before, deltas[l][k], alpha=-scale * numbers[k], out=weights[l][k + 1]
                )
            else:
                torch.bmm(before, deltas[l][k], out=gradient[l])
                torch.addcmul(weights[l][k], gradient[l], matrix_rates[k][l], value=-scale, out=weights[l][k + 1])

    # the last parameters see the support set once more, and the query set: one pass over the rows of both
    together = inputs
    queries = 0
    if query_inputs is not None:
        queries = query_inputs.shape[1]
        together = theta.new_ones(tasks, rows + queries, widths[0] + 1)
        together[:, :rows] = inputs
        together[:, rows:, :-1] = query_inputs
    last_tapes = [_Tape(inputs, 1, rows + queries, width, act.keeps) for width in widths[1:-1]]
    current = together
    for l, tape in enumerate(last_tapes):  # noqa: E741
        torch.bmm(current, weights[l][steps], out=tape.sums)
        act.value(tape, 0)
        current = tape.rows[0]
    outputs = torch.bmm(current, weights[-1][steps])
    logits[steps] = outputs[:, :rows]
    support_losses = _losses(logits, support_targets, loss).T.contiguous()
    if not with_query:
        trajectory = torch.cat([matrix[:steps].flatten(2) for matrix in path], -1).transpose(0, 1).contiguous()
        nothing = theta.new_empty(0)
        return Result(nothing, nothing, support_losses, nothing, nothing, trajectory)
    assert query_targets is not None
    query_targets = F.one_hot(query_targets, out).to(theta.dtype) if one_hot else query_targets
    predictions = outputs[:, rows:].contiguous()
    task_losses = _losses(predictions, query_targets, loss)

    # v, the gradient of the mean query loss at the last parameters
    query_scale = share / tasks * (2.0 if loss == "mse" else 1.0) / (queries if one_hot else queries * out)
    delta, _ = _likelihood(predictions, query_targets, loss)
    v = [torch.empty_like(matrix[0]) for matrix in path]
    for l in range(depth - 1, -1, -1):  # noqa: E741
        before = last_tapes[l - 1].rows[0][:, rows:] if l > 0 else together[:, rows:]
        torch.baddbmm(v[l], before.mT, delta, beta=0, alpha=query_scale, out=v[l])
        if l > 0:
            tape = last_tapes[l - 1]
            # every row of the tape, the support's with no gradient
            upstream = torch.zeros_like(tape.sums)
            upstream[:, rows:] = torch.bmm(delta, weights_mT[l][steps])
            act.slope(tape, 0, upstream, upstream)
            delta = upstream[:, rows:]

    of_rates = torch.zeros_like(rates) if rates_grad else rates.new_empty(0)
    for k in range(steps - 1, -1, -1):
        if rates_grad:
            for l in range(depth):  # noqa: E741
                before = tapes[l - 1].transposed[k] if l > 0 else inputs_mT
                product = torch.bmm(before, deltas[l][k]).mul_(v[l])
                if scalar:
                    of_rates[k] -= scale * product.sum()
                else:
                    matrices(of_rates[k], widths)[l].sub_(product.sum(0), alpha=scale)
        if order == 1:
            continue
        if scalar:
            u, factor = v, -scale * numbers[k]
        else:
            u, factor = [part * rate for part, rate in zip(v, matrix_rates[k], strict=True)], -scale
        current, tangents = inputs, None
        for l, tape in enumerate(tapes):  # noqa: E741
            if tangents is None:
                torch.bmm(current, u[l], out=tape.sum_tangents)
            else:
                torch.bmm(tangents, weights[l][k], out=tape.sum_tangents)
                tape.sum_tangents.baddbmm_(current, u[l])
            act.slope(tape, k, tape.sum_tangents, tape.inner_tangents[k])
            current, tangents = tape.rows[k], tape.tangents[k]
        logit_tangents = torch.bmm(current, u[-1])
        if tangents is not None:
            logit_tangents.baddbmm_(tangents, weights[-1][k])
        _tangent(probabilities[k] if probabilities else logits, logit_tangents, loss, delta_tangents[-1][k])
        for l in range(depth - 1, -1, -1):  # noqa: E741
            if l == 0:
                v[0].baddbmm_(inputs_mT, delta_tangents[0][k], alpha=factor)
                continue
            tape = tapes[l - 1]
            torch.bmm(delta_tangents[l][k], weights_mT[l][k], out=tape.sums)
            tape.sums.baddbmm_(deltas[l][k], u[l][:, :-1].mT)
            act.slope(tape, k, tape.sums, delta_tangents[l - 1][k])
            if act.curved:
                act.bend(tape, k, deltas[l - 1][k], delta_tangents[l - 1][k])
            v[l].baddbmm_(tape.both[k], pairs[l][k], alpha=factor)
    of_theta = torch.cat([part.sum(0).flatten() for part in v])
    return Result(task_losses, predictions, support_losses, of_theta, of_rates, theta.new_empty(0))
