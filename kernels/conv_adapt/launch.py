"""The operator on a GPU: what is where, which program has what, and the launches of ``kernel.py`` in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil, prod
from typing import Any

import torch
import triton
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, room
from lightning_maml.kernels.conv_adapt.kernel import conv_back, conv_forward, conv_gradient, conv_head, conv_update
from lightning_maml.kernels.conv_adapt.layout import Network, in_rows, in_torchs_order
from lightning_maml.kernels.conv_adapt.tiles import MOST_PARTS

COMPILER = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
SCRATCH_NUMBERS = 1 << 29
"""Tasks are launched in chunks of at most this many numbers of scratch, 2 GiB."""
PROGRAMS = 264
"""So many are wanted of a launch: two for each multiprocessor of an H100."""
MOVED = 1.5
"""Of the bytes that a launch would move with one program a task: up to so many times as many, for more programs."""
SLICE = 16
"""Of what a product sums over: as many numbers of each operand as a tile takes at once."""
BLOCK = 1024
"""Of parameters, in a program that steps."""
TALLEST = {"ieee": 64, "tf32": 32, "bf16": 32}
"""Rows of a tile, by precision. For more of them Triton takes instructions of whole warp groups on sm_90 and sm_100,
which no test without a GPU runs."""
WIDE = 64 * 64
"""A tile of so many numbers is held by twice as many warps: four would have no registers for its tangents."""


@dataclass(frozen=True)
class Split:
    """Of a product's rows and columns, how many a tile has, how many parts the rows are in, and who has what."""

    tile: int
    columns: int
    slice: int
    parts: int
    part_rows: int
    spans: int = 1
    groups: int = 1

    def constants(self) -> dict[str, int]:
        """The compile-time arguments."""
        return {"BM": self.tile, "BN": self.columns, "BK": self.slice}


@dataclass(frozen=True)
class Layer:
    """A convolution, for so many images of each task."""

    first: bool
    channels: int
    filters: int
    size: tuple[int, int]
    """Of the images that come in."""
    stored: tuple[int, int]
    """The same with the windows that their rim cuts off."""
    to: tuple[int, int]
    """Of what the convolution gives."""
    windows: tuple[int, int]
    pooled: tuple[int, int]
    side: int
    rows: int
    weight: int
    gamma: int
    in_gamma: int
    forward: Split
    gradient: Split
    back: Split
    out_parts: int
    """In which the sums of the gradient in front of its ReLU are, that the layer above leaves."""


def compiler(constants: dict[str, Any]) -> dict[str, Any]:
    """The compiler's options for a kernel with these compile-time arguments."""
    wide = constants.get("BM", 1) * constants.get("BN", 1) >= WIDE
    return {**COMPILER, "num_warps": 2 * COMPILER["num_warps"] if wide else COMPILER["num_warps"]}


def _power(number: int, least: int = 16, most: int = 64) -> int:
    return min(most, max(least, triton.next_power_of_2(number)))


def _in_parts(rows: int, parts: int, tile: int) -> tuple[int, int]:
    """About so many parts of whole tiles; their number, and the rows of each."""
    part_rows = ceil(ceil(rows / parts) / tile) * tile
    return ceil(rows / part_rows), part_rows


def _split(tasks: int, rows: int, out: int, most: int, inputs: int, weights: int, others: int, tallest: int) -> Split:
    """As many programs as are wanted and :data:`MOVED` allows.

    Each part of the rows reads all ``weights``, and each block of columns all ``inputs``.
    """
    best, found = 0, None
    for columns in sorted({_power(out), 32, 16} & set(range(_power(out) + 1)), reverse=True):
        blocks = ceil(out / columns)
        for wanted in range(1, most + 1):
            tile = _power(ceil(rows / wanted), most=tallest)
            parts, part_rows = _in_parts(rows, wanted, tile)
            moved = blocks * inputs + parts * weights + others
            allowed = blocks * parts == 1 or moved <= MOVED * (inputs + weights + others)
            if allowed and best < min(tasks * blocks * parts, PROGRAMS):
                best, found = min(tasks * blocks * parts, PROGRAMS), Split(tile, columns, SLICE, parts, part_rows)
    if found is None:  # more filters than a tile has columns
        tile = _power(rows, most=tallest)
        found = Split(tile, _power(out), SLICE, *_in_parts(rows, 1, tile))
    return found


def _split_gradient(
    tasks: int, rows: int, channels: int, filters: int, outputs: int, inputs: int, tallest: int
) -> Split:
    """As :func:`_split`: each span of taps and channels reads all rows, and each part of the rows leaves a gradient."""
    taps = 9 * channels
    tile, columns = _power(taps if taps < 64 else channels, most=tallest), _power(filters)
    groups, gradient = ceil(taps / tile), 2 * taps * filters
    best, found = 0, None
    for spans in (span for span in (1, 3, 9) if span <= groups):
        for wanted in range(1, MOST_PARTS.value + 1):
            parts, part_rows = _in_parts(rows, wanted, SLICE)
            moved = spans * (outputs + inputs) + parts * gradient
            allowed = spans * parts == 1 or moved <= MOVED * (outputs + inputs + gradient)
            programs = min(tasks * spans * parts * ceil(filters / columns), PROGRAMS)
            if allowed and best < programs:
                best, found = programs, Split(tile, columns, SLICE, parts, part_rows, spans, groups)
    assert found is not None
    return found


@lru_cache(64)
def layers_of(network: Network, images: int, tasks: int, precision: str = "ieee") -> tuple[Layer, ...]:
    """The convolutions, for so many images of each task."""
    tallest = TALLEST[precision]
    side, stride, filters = 2 if network.pool else 1, network.stride, network.filters
    size = stored = network.height, network.width
    channels, at, in_gamma = network.channels, 0, 0
    found: list[dict[str, Any]] = []
    for index in range(network.blocks):
        to = tuple((each - 1) // stride + 1 for each in size)
        windows, pooled = tuple(ceil(each / side) for each in to), tuple(each // side for each in to)
        rows, weights = images * prod(windows) * side * side, 9 * channels * filters
        inputs, outputs, of_windows = images * channels * prod(stored), rows * filters, images * prod(windows) * filters
        # what a product reads or writes beside inputs, weights and z: what is chosen, and the gradient there
        others = 2 * of_windows
        kind_rows = images * prod(ceil(each / stride) for each in size)
        found.append(
            {
                "first": index == 0, "channels": channels, "filters": filters, "size": size, "stored": stored, "to": to,
                "windows": windows, "pooled": pooled, "side": side, "rows": rows, "weight": at, "gamma": at + weights,
                "in_gamma": in_gamma,
                "forward": _split(
                    tasks, rows, filters, MOST_PARTS.value, inputs, weights, outputs + others // 2 * (side > 1), tallest
                ),
                "gradient": _split_gradient(tasks, rows, channels, filters, 2 * outputs + others, inputs, tallest),
                "back": _split(
                    tasks * stride * stride, kind_rows, channels, MOST_PARTS.value // stride**2, outputs, weights,
                    2 * inputs, tallest,
                ),
            }
        )  # fmt: skip
        in_gamma, at = at + weights, at + weights + 2 * filters
        channels, size, stored = filters, pooled, windows
    above = [stride * stride * layer["back"].parts for layer in found[1:]]
    return tuple(Layer(**layer, out_parts=parts) for layer, parts in zip(found, [*above, 1], strict=True))


@dataclass
class Pass:
    """What a pass over a set of images leaves, of each layer one; or the tangents of that."""

    z: list[Tensor]
    chosen: list[Tensor]
    moments: list[Tensor]
    dy: list[Tensor]
    sums: list[Tensor]
    dz: list[Tensor]
    logits: Tensor
    delta: Tensor


def numbers_of(layers: Sequence[Layer], images: int, ways: int) -> int:
    """How many numbers a pass leaves, of a task."""
    windows = [images * prod(layer.windows) for layer in layers]
    each = [
        layer.filters * ((2 if index else 1) * layer.rows + (layer.side > 1) * seen + seen)
        for index, (layer, seen) in enumerate(zip(layers, windows, strict=True))
    ]
    sums = [layer.filters * 2 * (layer.forward.parts + layer.out_parts) + layer.forward.parts for layer in layers]
    return sum(each) + sum(sums) + 2 * images * ways


@dataclass(frozen=True)
class Tasks:
    """A set of images of some tasks, and the launches that pass over it."""

    layers: Sequence[Layer]
    images: Tensor
    targets: Tensor
    network: Network
    loss: str
    precision: str
    P: int

    @property
    def most_parts(self) -> int:
        """In which a gradient is kept."""
        return max(layer.gradient.parts for layer in self.layers)

    @property
    def head(self) -> int:
        """Where the linear layer's weights begin."""
        last = self.layers[-1]
        return last.gamma + 2 * last.filters

    def new_pass(self) -> Pass:
        """Room for what a pass leaves."""
        new, (tasks, images), ways = self.images.new_empty, self.images.shape[:2], self.network.ways
        z = [new(tasks, layer.rows, layer.filters) for layer in self.layers]
        windows = [(tasks, images * prod(layer.windows), layer.filters) for layer in self.layers]
        return Pass(
            z,
            [new(shape) for shape in windows] if self.network.pool else z,
            [new(tasks, layer.forward.parts * (2 * layer.filters + 1)) for layer in self.layers],
            [new(shape) for shape in windows],
            [new(tasks, layer.out_parts, 2, layer.filters) for layer in self.layers],
            [new(0) if layer.first else new(tasks, layer.rows, layer.filters) for layer in self.layers],
            new(tasks, images, ways),
            new(tasks, images, ways),
        )

    def _sizes(self, layer: Layer) -> dict[str, int]:
        (height, width), (in_high, in_wide), (to_height, to_width) = layer.size, layer.stored, layer.to
        return {
            "images": self.images.shape[1], "height": height, "width": width, "in_high": in_high, "in_wide": in_wide,
            "to_height": to_height, "to_width": to_width,
        }  # fmt: skip

    def of_layer(self, layer: Layer, split: Split, tangent: bool) -> dict[str, Any]:
        """The compile-time arguments of a layer's kernels; ``conv_back`` is of no first one."""
        network = self.network
        return {
            "FIRST": layer.first, "TANGENT": tangent, "NORM": network.norm, "STRIDE": network.stride,
            "SIDE": layer.side, "IN": layer.channels, "OUT": layer.filters, "PRECISION": self.precision,
            **split.constants(),
        }  # fmt: skip

    def of_head(self, back: bool, tangent: bool) -> dict[str, Any]:
        """The compile-time arguments of the head's kernel."""
        network, images = self.network, self.images.shape[1]
        return {
            "LOSS": self.loss, "BACK": back, "TANGENT": tangent, "NORM": network.norm, "FLAT": network.flat,
            "IN": network.filters, "PRECISION": self.precision, "BM": _power(images, most=32),
            "BW": _power(network.ways, most=1 << 20), "BK": 16,
        }  # fmt: skip

    def _total(self, layer: Layer) -> int:
        """The places of which batch-norm takes the mean."""
        return self.images.shape[1] * prod(layer.to)

    def _below(self, index: int, a: Pass, t: Pass | None) -> tuple[list[Tensor], dict[str, int]]:
        """What comes into a layer, with its moments, and in how many parts those are."""
        if index == 0:
            return [self.images] * 4, {"in_parts": 1, "in_total": 1}
        b = t or a
        given = [a.chosen[index - 1], b.chosen[index - 1], a.moments[index - 1], b.moments[index - 1]]
        below = self.layers[index - 1]
        return given, {"in_parts": below.forward.parts, "in_total": self._total(below)}

    def forward(self, phi: Tensor, u: Tensor, a: Pass, t: Pass | None) -> None:
        """The convolutions: z, what is chosen of it, and moments; with ``t`` the tangents of those."""
        b = t or a
        for index, layer in enumerate(self.layers):
            below, counts = self._below(index, a, t)
            split = layer.forward
            kind = self.of_layer(layer, split, t is not None)
            grid = len(self.images) * split.parts * ceil(layer.filters / split.columns)
            conv_forward[(grid,)](
                *below, phi, u, a.z[index], b.z[index], a.chosen[index], b.chosen[index], a.moments[index],
                b.moments[index], **self._sizes(layer), part_rows=split.part_rows, parts=split.parts, **counts,
                phi_stride=_stride(phi), P=self.P, o_weight=layer.weight, o_gamma=layer.gamma,
                o_in_gamma=layer.in_gamma, total=self._total(layer), eps=self.network.eps,
                **kind, **compiler(kind),
            )  # fmt: skip

    def head_and_loss(
        self, phi: Tensor, u: Tensor, a: Pass, t: Pass | None, losses: Tensor, gradient: Tensor, back: bool
    ) -> None:
        """The linear layer and the loss; with ``back`` their gradients, down to the last ReLU."""
        b, last = t or a, self.layers[-1]
        below, counts = self._below(len(self.layers), a, t)
        (height, width), (in_high, in_wide) = last.pooled, last.windows
        conv_head[(len(self.images),)](
            *below, phi, u, self.targets, a.logits, a.delta, b.delta, losses, a.dy[-1], b.dy[-1], a.sums[-1],
            b.sums[-1], gradient, images=self.images.shape[1], height=height, width=width, in_high=in_high,
            in_wide=in_wide, most_parts=gradient.shape[1], phi_stride=_stride(phi), P=self.P, o_weight=self.head,
            o_in_gamma=last.gamma, ways=self.network.ways, loss_stride=losses.stride(0), eps=self.network.eps, **counts,
            **self.of_head(back, t is not None), **COMPILER,
        )  # fmt: skip

    def back(self, phi: Tensor, u: Tensor, a: Pass, t: Pass | None, gradient: Tensor) -> None:
        """The gradients of all parameters below the head, in parts; with ``t`` the Hessian times u."""
        b = t or a
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            below, counts = self._below(index, a, t)
            split, sizes = layer.gradient, self._sizes(layer)
            places = {"o_weight": layer.weight, "o_in_gamma": layer.in_gamma, "phi_stride": _stride(phi), "P": self.P}
            kind = self.of_layer(layer, split, t is not None)
            grid = len(self.images) * split.parts * split.spans * ceil(layer.filters / split.columns)
            conv_gradient[(grid,)](
                *below, phi, u, a.z[index], b.z[index], a.chosen[index], a.moments[index], b.moments[index],
                a.dy[index], b.dy[index], a.sums[index], b.sums[index], a.dz[index], b.dz[index], gradient, **sizes,
                part_rows=split.part_rows, parts=split.parts, own_parts=layer.forward.parts, out_parts=layer.out_parts,
                groups=split.groups, spans=split.spans, most_parts=gradient.shape[1], o_gamma=layer.gamma,
                total=self._total(layer), eps=self.network.eps, **counts, **places,
                **kind, **compiler(kind),
            )  # fmt: skip
            if layer.first:
                continue
            split = layer.back
            kind = self.of_layer(layer, split, t is not None)
            grid = len(self.images) * split.parts * self.network.stride**2 * ceil(layer.channels / split.columns)
            conv_back[(grid,)](
                a.dz[index], b.dz[index], phi, u, *below, a.dy[index - 1], b.dy[index - 1], a.sums[index - 1],
                b.sums[index - 1], **sizes, part_rows=split.part_rows, parts=split.parts, eps=self.network.eps,
                **counts, **places, **kind, **compiler(kind),
            )  # fmt: skip

    def update(
        self, way: str, base: Tensor, gradient: Tensor, rates: Tensor | None, out: Tensor, u: Tensor,
        kept: Tensor | None,
    ) -> None:  # fmt: skip
        """A step of all parameters from what the passes left in ``gradient``, see :func:`conv_update`."""
        blocks = ceil(self.P / BLOCK)
        table = _table(tuple((each.weight, each.gamma, each.gradient.parts) for each in self.layers), base.device)
        conv_update[(len(self.images) * blocks,)](
            base, gradient, table, base if rates is None else rates, out, u, out if kept is None else kept,
            most_parts=gradient.shape[1], P=self.P, layers=len(table), blocks=blocks, base_stride=_stride(base),
            out_stride=_stride(out), kept_stride=0 if kept is None else _stride(kept),
            rate_stride=int(rates is not None and len(rates) > 1), WAY=way, KEEP=kept is not None,
            RATED=rates is not None, BLOCK=BLOCK, **COMPILER,
        )  # fmt: skip


def _stride(phi: Tensor) -> int:
    """Between the tasks' parameters; 0 where all share them."""
    return phi.stride(0) if phi.ndim == 2 else 0


@cache  # for good: a CUDA graph reads it where it lies
def _table(ranges: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    return torch.tensor(ranges, dtype=torch.int32, device=device)


def constants_of(
    network: Network, images: int, tasks: int, precision: str, tangent: bool, loss: str = "cross_entropy"
) -> list[tuple[str, dict[str, Any]]]:
    """The kernels of a pass over so many images of each task, there and back, with their compile-time arguments.

    Each kernel of the first layer, and of the one behind it, whose tiles are the largest.
    """
    nobody = torch.empty(tasks, images, network.channels, network.height, network.width, device="meta")
    of = Tasks(layers_of(network, images, tasks, precision), nobody, nobody, network, loss, precision, 0)
    found = [("conv_head", of.of_head(True, tangent))]
    for layer in of.layers[:2]:
        found.append(("conv_forward", of.of_layer(layer, layer.forward, tangent)))
        found.append(("conv_gradient", of.of_layer(layer, layer.gradient, tangent)))
        if not layer.first:
            found.append(("conv_back", of.of_layer(layer, layer.back, tangent)))
    return found


def launch(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor | None,
    query_targets: Tensor | None,
    network: Network,
    loss: str,
    order: int,
    rates_grad: bool,
    precision: str,
) -> Adaptation:
    """As the operator (``op.py``); without a query set, the trajectory ``[T, m, P]`` and the support losses alone."""
    as_torch = theta, rates
    theta, rates = (value.contiguous() for value in in_rows(theta, rates, network, network.filters))
    given = (support_inputs, support_targets, query_inputs, query_targets)
    batch = [None if value is None else value.to(theta.dtype).contiguous() for value in given]  # labels too
    result = room(theta, rates, support_inputs, query_inputs, network.ways, rates_grad)
    result.of_theta.zero_(), result.of_rates.zero_()
    tasks, sizes = len(support_inputs), [0 if value is None else value.shape[1] for value in given[::2]]
    chunk = max(1, min(tasks, SCRATCH_NUMBERS // scratch(network, sizes, len(rates), order, rates_grad)))
    for start in range(0, tasks, chunk):
        part = slice(start, min(start + chunk, tasks))
        own = [None if value is None else value[part] for value in batch]
        each = [value[part] if value.numel() else value for value in (*result[:3], result.trajectory)]
        _adapt(theta, rates, own, network, loss, order, precision, Adaptation(*each[:3], *result[3:5], each[3]))
    for total in (result.of_theta, result.of_rates):
        total /= max(tasks, 1)
    return in_torchs_order(result, *as_torch, network, network.filters)


def scratch(network: Network, sizes: Sequence[int], steps: int, order: int, rates_grad: bool) -> int:
    """About how many numbers a task takes, with so many images in its two sets."""
    rows, queries = sizes
    passes = (steps if order == 2 and queries else 1) + 1
    each = [
        numbers_of(layers_of(network, images, 1), images, network.ways) if images else 0 for images in (rows, queries)
    ]
    parts = max(layer.gradient.parts for images in (rows, queries) if images for layer in layers_of(network, images, 1))
    return passes * each[0] + each[1] + (steps * (1 + rates_grad) + parts + 2) * network.size


def _adapt(
    theta: Tensor, rates: Tensor, batch: Sequence[Any], network: Network, loss: str, order: int, precision: str,
    result: Adaptation,
) -> None:  # fmt: skip
    """Of some tasks; the gradients are added to those of the tasks before."""
    images, targets, asked, answers = batch
    tasks, steps, P = len(images), len(rates), theta.numel()
    rows, sets = images.shape[1], [network, loss, precision, P]
    support = Tasks(layers_of(network, rows, tasks, precision), images, targets, *sets)
    query = (
        support if asked is None else Tasks(layers_of(network, asked.shape[1], tasks, precision), asked, answers, *sets)
    )
    gradient = theta.new_empty(tasks, max(support.most_parts, query.most_parts), P)
    path = theta.new_empty(tasks, steps, P) if asked is not None else result.trajectory
    rates_grad = result.of_rates.numel() > 0
    kept = theta.new_empty(tasks, steps, P) if rates_grad else None
    v, u = theta.new_empty(tasks, P), theta.new_empty(tasks, P)
    second = order == 2 and asked is not None
    passes = [support.new_pass() for _ in range(steps if second else 1)]
    spare = support.new_pass()

    def before(step: int) -> Tensor:
        return path[:, step - 1] if step else theta

    for step in range(steps + 1):
        phi, losses = before(step), result.support_losses[:, step]
        a = spare if step == steps else passes[step if second else 0]
        support.forward(phi, u, a, None)
        support.head_and_loss(phi, u, a, None, losses, gradient, back=step < steps)
        if step < steps:
            support.back(phi, u, a, None, gradient)
            keep = None if kept is None else kept[:, step]
            support.update("down", phi, gradient, rates[step], path[:, step], u, keep)
    if asked is None:
        return
    phi, a = before(steps), query.new_pass()
    a.logits = result.predictions
    query.forward(phi, u, a, None)
    query.head_and_loss(phi, u, a, None, result.task_losses, gradient, back=True)
    query.back(phi, u, a, None, gradient)
    query.update("seed", v, gradient, rates[-1] if second and steps else None, v, u, None)
    for step in range(steps - 1, -1, -1):
        if kept is not None:
            product = v * kept[:, step]
            result.of_rates[step] -= product.sum() if rates.shape[1] == 1 else product.sum(0)
        if not second:
            continue
        phi, a = before(step), passes[step]
        support.forward(phi, u, a, spare)
        support.head_and_loss(phi, u, a, spare, result.task_losses, gradient, back=True)
        support.back(phi, u, a, spare, gradient)
        support.update("back", v, gradient, rates[step - 1] if step else None, v, u, None)
    result.of_theta.add_(v.sum(0))
