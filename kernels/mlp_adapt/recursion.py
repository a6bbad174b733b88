"""The operator on the CPU: the Hessian-vector recursion written out in batched products, without autograd.

A meta-gradient of a small network is a few hundred tiny products, so what counts is how many calls torch gets, and what
it does around them: biases ride along as a last row, updates and scales are the ``alpha`` of the product that computes
them, the two halves of a Hessian-vector product lie one behind the other, so that one product adds them up, and all
buffers and their views are made once for a kind of problem. README.md derives the recursion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise, zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.checks import unknown
from lightning_maml.kernels.mlp_adapt.layout import LOSSES, Kind, in_torchs_order, into_matrices, matrices, size

CHUNK_NUMBERS = 1 << 21
"""Tasks are taken in chunks of about this many numbers, which stay in the cache from the way there to the way back."""
PLANS = 8
"""Buffers of the kinds of problem met last are kept for the next call: it takes as long to make them as to use them."""


def adapt(theta: Tensor, rates: Tensor, *batch: Any, kind: Kind, frequencies: Sequence[float] = ()) -> Adaptation:
    """As the operator (``op.py``); without a query set, the trajectory ``[T, m, P]`` and the support losses alone."""
    support_inputs, support_targets, query_inputs, query_targets = batch
    widths, activation, loss, order, rates_grad = kind
    tasks, rows = support_inputs.shape[:2]
    steps, queries = len(rates), 0 if query_inputs is None else query_inputs.shape[1]
    theta, rates = into_matrices(theta, widths), into_matrices(rates, widths)
    each = (steps + 2) * (theta.numel() + 5 * rows * sum(widths[1:]))
    count = min(tasks, max(1, round(tasks * each / CHUNK_NUMBERS)))
    targets = [support_targets, query_targets]
    if loss == "cross_entropy":
        targets = [None if labels is None else F.one_hot(labels, widths[-1]).to(theta.dtype) for labels in targets]
    parts, sets = [], (support_inputs, targets[0], query_inputs, targets[1])
    chunks: Any = ([None] * count if part is None else part.tensor_split(count) for part in sets)
    for chunk in zip(*chunks, strict=True):
        key = (len(chunk[0]), rows, queries, steps), tuple(widths), activation, tuple(frequencies), loss, theta.dtype
        # the plan's buffers are one thread's own
        parts.append(_plan(threading.get_ident(), *key).run(theta, rates, chunk, order, rates_grad, tasks))
    if count == 1:
        return in_torchs_order(parts[0], widths)
    cat = [torch.cat([result[i] for result in parts]) for i in (0, 1, 2, 5)]
    of_theta, of_rates = (torch.stack([result[i] for result in parts]).sum(0) for i in (3, 4))
    return in_torchs_order(Adaptation(*cat[:3], of_theta, of_rates, cat[3]), widths)


class _Hidden:
    """What passes through a hidden layer leave behind, for ``passes`` passes of ``rows`` rows.

    ``both [passes, T, 2 rows, width + 1]`` holds the tangents of the activations with a zero behind them, then the
    activations with a one behind them.
    """

    def __init__(self, empty: Callable[..., Tensor], passes: int, tasks: int, rows: int, width: int) -> None:
        both = empty(passes, tasks, 2 * rows, width + 1)
        both[:, :, :rows, -1] = 0
        both[:, :, rows:, -1] = 1
        self.both = both.unbind(0)
        self.tangents = both[:, :, :rows].unbind(0)
        self.inner_tangents = both[:, :, :rows, :-1].unbind(0)
        self.rows = both[:, :, rows:].unbind(0)
        self.inner = both[:, :, rows:, :-1].unbind(0)
        self.slopes = empty(passes, tasks, rows, width).fill_(1).unbind(0)
        self.bends = empty(passes, tasks, rows, width).unbind(0)  # second derivatives, later times what comes back
        self.sums = empty(tasks, rows, width)  # pre-activations, then gradients at the activations
        self.sum_tangents = empty(tasks, rows, width)


# Each fills the activations, slopes and second derivatives of a pass from its sums.


def _identity(sums: Tensor, inner: Tensor, slope: Tensor, bend: Tensor) -> None:
    inner.copy_(sums)


def _relu(sums: Tensor, inner: Tensor, slope: Tensor, bend: Tensor) -> None:
    torch.clamp_min(sums, 0, out=sums)
    inner.copy_(sums)
    torch.sign(sums, out=slope)


def _tanh(sums: Tensor, inner: Tensor, slope: Tensor, bend: Tensor) -> None:
    torch.tanh(sums, out=sums)
    inner.copy_(sums)
    torch.mul(sums, sums, out=slope).neg_().add_(1)
    torch.mul(sums, slope, out=bend).mul_(-2)


def _gelu(sums: Tensor, inner: Tensor, slope: Tensor, bend: Tensor) -> None:
    square = sums * sums
    density = torch.mul(square, -0.5).exp_().mul_(0.3989422804014327)
    torch.special.ndtr(sums, out=slope)
    torch.mul(sums, slope, out=inner)
    slope.addcmul_(sums, density)
    torch.mul(density, square.neg_().add_(2), out=bend)


def _silu(sums: Tensor, inner: Tensor, slope: Tensor, bend: Tensor) -> None:
    share = sums.sigmoid()
    torch.mul(sums, share, out=inner)
    torch.addcmul(share, inner, 1 - share, out=slope)
    torch.mul(share * (1 - share), (1 - 2 * share).mul_(sums).add_(2), out=bend)


def _sine(frequency: float, sums: Tensor, inner: Tensor, slope: Tensor, bend: Tensor) -> None:
    sums.mul_(frequency)
    inner.copy_(torch.sin(sums))
    torch.cos(sums, out=slope).mul_(frequency)
    torch.mul(inner, -(frequency**2), out=bend)


_ACTIVATIONS = {"identity": _identity, "relu": _relu, "tanh": _tanh, "gelu": _gelu, "silu": _silu}
_WITH_FREQUENCIES = {"sine": _sine}


# Products as calls with everything bound. With a single output they are thin: a row times a matrix is several times
# faster than a matrix times a column, and an outer product is a plain multiplication.


def _forward(rows: Tensor, weight: Tensor, out: Tensor, onto: bool = False) -> Callable[[], Any]:
    """``out = rows @ weight``, or added ``onto`` it; ``[T, N, in]``, ``[T, in, out]``, ``[T, N, out]``."""
    if weight.shape[2] == 1:
        rows, weight, out = weight.mT, rows.mT, out.mT
    return partial(out.baddbmm_, rows, weight) if onto else partial(torch.bmm, rows, weight, out=out)


def _back(deltas: Tensor, weight: Tensor, out: Tensor, onto: bool = False) -> Callable[[], Any]:
    """``out = deltas @ weight[:-1].T``: from a layer's outputs to its inputs, the bias left out."""
    inner = weight[:, :-1].mT
    if weight.shape[2] == 1:
        return partial(out.addcmul_, deltas, inner) if onto else partial(torch.mul, deltas, inner, out=out)
    return partial(out.baddbmm_, deltas, inner) if onto else partial(torch.bmm, deltas, inner, out=out)


def _gradient(rows: Tensor, deltas: Tensor, out: Tensor, base: Tensor | None = None) -> Callable[..., Any]:
    """``out = rows.T @ deltas``, a gradient ``[T, in, out]``, or ``base`` and that times the call's ``alpha``."""
    thin = deltas.shape[2] == 1
    a, b, to = (deltas.mT, rows, out.mT) if thin else (rows.mT, deltas, out)
    if base is None:
        return partial(torch.bmm, a, b, out=to)
    if base is out:
        return partial(to.baddbmm_, a, b)
    return partial(torch.baddbmm, base.mT if thin else base, a, b, out=to)


@lru_cache(PLANS)
def _plan(thread: int, *key: Any) -> _Plan:
    with torch.inference_mode(False), torch.no_grad():
        return _Plan(*key)


class _Plan:
    """Buffers for one kind of problem, and all products on them."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        widths: tuple[int, ...],
        activation: str,
        frequencies: tuple[float, ...],
        loss: str,
        dtype: torch.dtype,
    ) -> None:
        tasks, rows, queries, steps = sizes
        self.rows, self.steps, self.widths, self.loss = rows, steps, widths, loss
        if activation in _WITH_FREQUENCIES:
            self.activate: Any = [partial(_WITH_FREQUENCIES[activation], frequency) for frequency in frequencies]
        else:
            self.activate = [_ACTIVATIONS[activation]] * (len(widths) - 2)
        self.curved = activation not in ("identity", "relu")
        self.layers = layers = len(widths) - 1
        empty = partial(torch.empty, dtype=dtype)
        passes = max(steps, 1)
        pairs = list(pairwise(widths))

        self.theta = empty(size(widths))
        initial = [matrix.expand(tasks, -1, -1) for matrix in matrices(self.theta, widths)]
        self.path = [empty(passes, tasks, a + 1, b) for a, b in pairs]
        self.weights = [[first, *path.unbind(0)] for first, path in zip(initial, self.path, strict=True)]
        self.v, self.u, self.gradients = ([empty(tasks, a + 1, b) for a, b in pairs] for _ in range(3))

        # the first rows are the support's, and all rows are seen under the last parameters
        self.inputs = empty(tasks, rows + queries, widths[0] + 1).fill_(1)
        support = self.inputs[:, :rows]
        self.hidden = [_Hidden(empty, passes, tasks, rows, width) for width in widths[1:-1]]
        self.last = [_Hidden(empty, 1, tasks, rows + queries, width) for width in widths[1:-1]]
        self.logits = empty(steps + 1, tasks, rows, widths[-1])
        self.each_logits = self.logits.unbind(0)
        self.outputs = empty(tasks, rows + queries, widths[-1])
        self.logit_tangents = empty(tasks, rows, widths[-1])
        # gradients at the sums, then their tangents
        both = [empty(passes, tasks, 2 * rows, width) for width in widths[1:]]
        both_deltas = [deltas.unbind(0) for deltas in both]
        self.deltas = [deltas[:, :, :rows].unbind(0) for deltas in both]
        self.delta_tangents = [deltas[:, :, rows:].unbind(0) for deltas in both]
        self.last_deltas = [empty(tasks, queries, width) for width in widths[1:]]
        self.last_sums = [empty(tasks, queries, width) for width in widths[1:-1]]

        def products(make: Callable[[int, int], Any], first: int = 0) -> list[list[Any]]:
            """Of each step those of each layer, from the ``first`` on."""
            return [[make(i, k) for i in range(first, layers)] for k in range(steps)]

        weights, hidden, deltas, v = self.weights, self.hidden, self.deltas, self.v
        before = [[support] * steps, *(each.rows for each in hidden)]
        sums = [*([each.sums] * steps for each in hidden), self.each_logits]
        sum_tangents = [*(each.sum_tangents for each in hidden), self.logit_tangents]
        self.forward = products(lambda i, k: _forward(before[i][k], weights[i][k], sums[i][k]))
        self.back = products(lambda i, k: _back(deltas[i][k], weights[i][k], hidden[i - 1].sums), first=1)
        self.update = products(lambda i, k: _gradient(before[i][k], deltas[i][k], weights[i][k + 1], weights[i][k]))
        self.gradient = products(lambda i, k: _gradient(before[i][k], deltas[i][k], self.gradients[i]))

        all_rows = [self.inputs, *(each.rows[0] for each in self.last)]
        all_sums = [*(each.sums for each in self.last), self.outputs]
        self.forward_last = [_forward(all_rows[i], weights[i][steps], all_sums[i]) for i in range(layers)]
        self.back_last = [
            _back(self.last_deltas[i], weights[i][steps], self.last_sums[i - 1]) for i in range(1, layers)
        ]
        self.slopes_last = [each.slopes[0][:, rows:] for each in self.last]
        self.gradient_last = [_gradient(all_rows[i][:, rows:], self.last_deltas[i], v[i]) for i in range(layers)]

        # Hessian-vector products of the direction u; with one rate for all, u is v itself
        def tangent(u: list[Tensor], i: int, k: int) -> list[Callable[[], Any]]:
            of_weights = _forward(before[i][k], u[i], sum_tangents[i])
            if i == 0:
                return [of_weights]
            return [of_weights, _forward(hidden[i - 1].tangents[k], weights[i][k], sum_tangents[i], onto=True)]

        def tangent_back(u: list[Tensor], i: int, k: int) -> list[Callable[[], Any]]:
            out = hidden[i - 1].sums
            return [_back(self.delta_tangents[i][k], weights[i][k], out), _back(deltas[i][k], u[i], out, onto=True)]

        directions = {False: v, True: self.u}
        self.tangent = {own: products(partial(tangent, u)) for own, u in directions.items()}
        self.tangent_back = {own: products(partial(tangent_back, u), first=1) for own, u in directions.items()}
        both_rows = [before[0], *(each.both for each in hidden)]
        both_deltas[0] = self.delta_tangents[0]  # inputs have no tangents
        self.descend = products(lambda i, k: _gradient(both_rows[i][k], both_deltas[i][k], v[i], v[i]))

    def run(
        self, theta: Tensor, rates: Tensor, batch: Sequence[Any], order: int, rates_grad: bool, all_tasks: int
    ) -> Adaptation:
        """These tasks, ``tasks`` out of ``all_tasks``: their share of the gradients of the mean query loss."""
        support_inputs, support_targets, query_inputs, query_targets = batch
        rows, steps, layers = self.rows, self.steps, self.layers
        # the factor of the mean goes into the rates: deltas are gradients of sums, of half the squares
        factor = 2.0 if self.loss == "mse" else 1.0
        scale = factor / (rows if self.loss == "cross_entropy" else rows * self.widths[-1])
        shared = rates.shape[1] == 1
        numbers = [-scale * rate for rate in rates.flatten().tolist()] if shared else []
        elements = [] if shared else [matrices(rate, self.widths) for rate in rates]
        self.theta.copy_(theta)
        self.inputs[:, :rows, :-1] = support_inputs
        if query_inputs is not None:
            self.inputs[:, rows:, :-1] = query_inputs

        shares = []
        for k in range(steps):
            for layer, hidden in enumerate(self.hidden):
                self.forward[k][layer]()
                self.activate[layer](hidden.sums, hidden.inner[k], hidden.slopes[k], hidden.bends[k])
            self.forward[k][-1]()
            shares.append(_delta(self.each_logits[k], support_targets, self.loss, self.deltas[-1][k]))
            for layer in range(layers - 1, 0, -1):
                hidden = self.hidden[layer - 1]
                self.back[k][layer - 1]()
                torch.mul(hidden.sums, hidden.slopes[k], out=self.deltas[layer - 1][k])
                if self.curved and order == 2:
                    hidden.bends[k].mul_(hidden.sums)
            for layer in range(layers):
                if shared:
                    self.update[k][layer](alpha=numbers[k])
                    continue
                self.gradient[k][layer]()
                following = self.weights[layer][k + 1]
                rate = elements[k][layer]
                torch.addcmul(self.weights[layer][k], self.gradients[layer], rate, value=-scale, out=following)

        for layer, hidden in enumerate(self.last):
            self.forward_last[layer]()
            self.activate[layer](hidden.sums, hidden.inner[0], hidden.slopes[0], hidden.bends[0])
        self.forward_last[-1]()
        self.each_logits[steps].copy_(self.outputs[:, :rows])
        support_losses = _losses(self.logits, support_targets, self.loss).T.contiguous()
        nothing = theta.new_empty(0)
        if query_inputs is None or query_targets is None:
            trajectory = torch.cat([path[:steps].flatten(2) for path in self.path], -1).transpose(0, 1).contiguous()
            return Adaptation(nothing, nothing, support_losses, nothing, nothing, trajectory)
        predictions = self.outputs[:, rows:].clone()
        task_losses = _losses(predictions, query_targets, self.loss)

        queries = predictions.shape[1]
        terms = queries if self.loss == "cross_entropy" else queries * self.widths[-1]
        _delta(predictions, query_targets, self.loss, self.last_deltas[-1])
        self.last_deltas[-1].mul_(factor / (terms * all_tasks))
        for layer in range(layers - 1, 0, -1):
            self.back_last[layer - 1]()
            torch.mul(self.last_sums[layer - 1], self.slopes_last[layer - 1], out=self.last_deltas[layer - 1])
        for gradient in self.gradient_last:
            gradient()

        of_rates = torch.zeros_like(rates) if rates_grad else nothing
        for k in range(steps - 1, -1, -1):
            if rates_grad:
                self._of_rates(k, of_rates[k], scale)
            if order == 1:
                continue
            for layer in range(0 if shared else layers):
                torch.mul(self.v[layer], elements[k][layer], out=self.u[layer])
            for products, hidden in zip_longest(self.tangent[not shared][k], self.hidden):
                for product in products:
                    product()
                if hidden is not None:
                    torch.mul(hidden.sum_tangents, hidden.slopes[k], out=hidden.inner_tangents[k])
            _delta_tangent(shares[k], self.logit_tangents, self.loss, self.delta_tangents[-1][k])
            for layer in range(layers - 1, -1, -1):
                if layer > 0:
                    hidden, tangents = self.hidden[layer - 1], self.delta_tangents[layer - 1][k]
                    for product in self.tangent_back[not shared][k][layer - 1]:
                        product()
                    torch.mul(hidden.sums, hidden.slopes[k], out=tangents)
                    if self.curved:
                        tangents.addcmul_(hidden.bends[k], hidden.sum_tangents)
                self.descend[k][layer](alpha=numbers[k] if shared else -scale)
        of_theta = torch.cat([part.sum(0).flatten() for part in self.v])
        return Adaptation(task_losses, predictions, support_losses, of_theta, of_rates, nothing)

    def _of_rates(self, k: int, out: Tensor, scale: float) -> None:
        """The gradient of the rates of step ``k``, from the gradient ``v`` at the parameters after it."""
        shared = len(out) == 1
        for layer in range(self.layers):
            self.gradient[k][layer]()
            product = self.gradients[layer].mul_(self.v[layer])
            into = out if shared else matrices(out, self.widths)[layer]
            into.sub_(product.sum() if shared else product.sum(0), alpha=scale)


def _delta(logits: Tensor, targets: Tensor, loss: str, out: Tensor) -> Tensor:
    """The gradient of the loss at the logits ``[T, N, out]``, of half the square or the likelihood, into ``out``.

    Returns the probabilities, or the logits where there are none.
    """
    if loss == "mse":
        shares = logits
    elif loss == "cross_entropy":
        shares = torch.softmax(logits, -1)
    elif loss == "bce":
        shares = torch.sigmoid(logits)
    else:
        raise unknown("loss", loss, LOSSES)
    torch.sub(shares, targets, out=out)
    return shares


def _delta_tangent(shares: Tensor, tangents: Tensor, loss: str, out: Tensor) -> None:
    """The tangents of the above, from those of the logits."""
    if loss == "mse":
        out.copy_(tangents)
    elif loss == "cross_entropy":
        product = shares * tangents
        torch.addcmul(product, shares, product.sum(-1, keepdim=True), value=-1, out=out)
    elif loss == "bce":
        torch.mul(shares - shares.square(), tangents, out=out)
    else:
        raise unknown("loss", loss, LOSSES)


def _losses(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Mean losses over the last two dimensions: ``[..., N, out]`` -> ``[...]``; targets of classes as one-hot rows."""
    if loss == "mse":
        return (logits - targets).square_().mean((-2, -1))
    if loss == "cross_entropy":
        return -(torch.log_softmax(logits, -1) * targets).sum(-1).mean(-1)
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none").mean((-2, -1))
    raise unknown("loss", loss, LOSSES)
