"""Bytes and multiply-adds of the launches of an adaptation, counted from their sizes: no GPU is needed.

    python -m lightning_maml.kernels.conv_adapt.traffic [--json FILE]

Moved is what programs load and store: each number once a program, however often that program takes it, as the emulator
counts sectors that a program had not loaded before. At least is what has to move where every layer of every step, all
programs of a task together, reads its inputs, weights, tape and gradients once and writes each once, one time forward
and one time back; the gradient of a convolution's output, which a layer could keep to itself, is not in it. Useful are
the multiply-adds of rows, taps and channels that there are, neither padding nor border, of those that are issued.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_maml.kernels.conv_adapt.launch import BLOCK, SLICE, Layer, layers_of
from lightning_maml.kernels.conv_adapt.layout import Network

BYTES = 4
Rows = NDArray[np.int64]


@dataclass
class Count:
    """Of all programs of a launch for one task, in numbers and in multiply-adds."""

    moved: int = 0
    useful: int = 0
    issued: int = 0

    def __iadd__(self, other: Count) -> Count:
        self.moved += other.moved
        self.useful += other.useful
        self.issued += other.issued
        return self


def _met(layer: Layer, stride: int, images: int) -> tuple[Rows, NDArray[np.bool_]]:
    """Which place of the input each row of the output meets at each tap, ``[rows, 9]``, and whether there is one."""
    (high, wide), side, row = layer.windows, layer.side, np.arange(layer.rows)
    window, inside = row // side**2, row % side**2
    y, x = window // wide % high * side + inside // side, window % wide * side + inside % side
    in_y, in_x = (at[:, None] * stride - 1 + step for at, step in ((y, np.arange(9) // 3), (x, np.arange(9) % 3)))
    there = ((y < layer.to[0]) & (x < layer.to[1]))[:, None]
    there = there & (in_y >= 0) & (in_y < layer.size[0]) & (in_x >= 0) & (in_x < layer.size[1])
    return ((window // (high * wide))[:, None] * layer.size[0] + in_y) * layer.size[1] + in_x, there


def _parts(rows: int, each: int) -> list[slice]:
    return [slice(start, min(start + each, rows)) for start in range(0, rows, each)]


def _stats(parts: int, channels: int, tangent: bool) -> int:
    """Of a layer's moments."""
    return parts * (2 * channels + 1) + tangent * parts * 2 * channels


def of_forward(layer: Layer, below: Layer | None, stride: int, images: int, tangent: bool) -> Count:
    split, both = layer.forward, 1 + tangent
    place, there = _met(layer, stride, images)
    blocks, taps, windows = ceil(layer.filters / split.columns), 9 * layer.channels, layer.rows // layer.side**2
    found = Count(useful=int(there.sum()) * layer.channels * layer.filters * (1 if below is None else both))
    stats = _stats(below.forward.parts, layer.channels, tangent) if below else 0
    affine = (2 * layer.channels * both if below else 0) + layer.filters
    for part in _parts(layer.rows, split.part_rows):
        inputs = len(np.unique(place[part][there[part]])) * layer.channels * (both if below else 1)
        found.moved += blocks * (inputs + stats + affine) + taps * layer.filters * (both if below else 1)
        tiles = ceil((part.stop - part.start) / split.tile) * split.tile * blocks * split.columns
        slices = ceil(taps / split.slice) if below is None else 9 * ceil(layer.channels / split.slice)
        found.issued += tiles * slices * split.slice * (1 if below is None else both)
    rows = images * prod(layer.to)
    pooled = images * prod(layer.pooled) if layer.side > 1 else 0
    found.moved += (rows + pooled) * layer.filters * both + split.parts * (2 * layer.filters + 1)
    assert windows * layer.side**2 == layer.rows
    return found


def of_gradient(layer: Layer, below: Layer | None, stride: int, images: int, tangent: bool) -> Count:
    split, both = layer.gradient, 1 + tangent
    place, there = _met(layer, stride, images)
    taps, terms = 9 * layer.channels, 1 if below is None else both
    found = Count(useful=int(there.sum()) * layer.channels * layer.filters * terms)
    blocks, pooled = ceil(layer.filters / split.columns), images * prod(layer.pooled)
    rows = images * prod(layer.to)
    outputs = (rows * both + pooled * (both + (layer.side > 1))) * layer.filters
    stats = _stats(layer.forward.parts, layer.filters, tangent) + both * layer.out_parts * 2 * layer.filters
    stats += blocks * _stats(below.forward.parts, layer.channels, tangent) if below else 0
    tap = np.arange(taps) // layer.channels
    for part in _parts(layer.rows, split.part_rows):
        for span in range(split.spans):
            groups = [split.groups * (span + end) // split.spans * split.tile for end in (0, 1)]
            own = np.unique(tap[groups[0] : groups[1]])
            met, seen = place[part][:, own], there[part][:, own]
            share = (
                layer.channels if len(own) * layer.channels >= groups[1] - groups[0] or below is None else split.tile
            )
            found.moved += blocks * len(np.unique(met[seen])) * min(share, layer.channels) * terms + stats
            slices = ceil((part.stop - part.start) / split.slice) * split.slice
            found.issued += slices * (groups[1] - groups[0]) * blocks * split.columns * terms
    found.moved += split.spans * outputs + split.parts * taps * layer.filters + 2 * layer.filters
    found.moved += 0 if below is None else rows * layer.filters
    return found


def of_back(layer: Layer, below: Layer, stride: int, images: int, tangent: bool) -> Count:
    split, both = layer.back, 1 + tangent
    place, there = _met(layer, stride, images)
    blocks, places = ceil(layer.channels / split.columns), images * prod(layer.size)
    found = Count(useful=int(there.sum()) * layer.channels * layer.filters * both)
    row = np.broadcast_to(np.arange(layer.rows)[:, None], place.shape)
    y, x = place // layer.size[1] % layer.size[0], place % layer.size[1]
    image = place // prod(layer.size)
    stats = _stats(below.forward.parts, layer.channels, tangent) + 2 * layer.channels
    for kind in range(stride * stride):
        from_y, from_x = divmod(kind, stride)
        high, wide = (
            (side - start + stride - 1) // stride for side, start in zip(layer.size, (from_y, from_x), strict=True)
        )
        count = images * high * wide
        taps = prod(len(range((start + 1) % stride, 3, stride)) for start in (from_y, from_x))
        own = there & (y % stride == from_y) & (x % stride == from_x)
        number = (image * high + y // stride) * wide + x // stride
        for part in _parts(count, split.part_rows):
            seen = own & (number >= part.start) & (number < part.stop)
            found.moved += blocks * len(np.unique(row[seen])) * layer.filters * both
            found.moved += taps * layer.channels * layer.filters * both
            tiles = ceil((part.stop - part.start) / split.tile) * split.tile * blocks * split.columns
            found.issued += tiles * taps * ceil(layer.filters / split.slice) * split.slice * both
        found.moved += split.parts * (stats + 2 * layer.channels)
    found.moved += places * layer.channels * (2 + 2 * tangent)  # z and the gradient in front of the ReLU below
    return found


def of_head(network: Network, last: Layer, images: int, tangent: bool, back: bool = True) -> Count:
    places, width, both = prod(last.pooled), network.filters, 1 + tangent
    weights = network.ways * (width * (places if network.flat else 1) + 1)
    numbers = images * places * width
    once = images * places * width * network.ways * both
    tile = ceil(images / 32) * 32 if images > 16 else 16
    padded = tile * places * ceil(width / SLICE) * SLICE * max(16, network.ways)
    stats = _stats(last.forward.parts, width, tangent) + 2 * width * both
    moved = numbers * both + weights * both + stats + 2 * images * network.ways + images
    if back:
        moved += numbers * both + weights + 2 * width
    return Count(moved, once * (3 if back else 1), padded * both * (3 if back else 1))


def of_update(network: Network, layers: Sequence[Layer], numbers: int, way: str, rated: bool) -> Count:
    """A step of the parameters; ``rated``, with v times a rate, u, where it is v that steps."""
    parts = sum((layer.gradient.parts - 1) * 9 * layer.channels * layer.filters for layer in layers)
    each = {"down": 2, "seed": 1 + rated, "back": 2 + rated}[way]
    return Count((1 + each) * numbers + parts + ceil(numbers / BLOCK))


def least(layer: Layer, below: Layer | None, images: int, tangent: bool) -> int:
    """What has to move, forward and back."""
    both, weights = 1 + tangent, 9 * layer.channels * layer.filters * (1 + tangent)
    inputs = images * prod(layer.size) * layer.channels
    tape, pooled = images * prod(layer.to) * layer.filters, images * prod(layer.pooled) * layer.filters
    chosen = pooled if layer.side > 1 else 0
    forward = inputs * (both if below else 1) + weights * (1 if below else 1 / both) + (tape + chosen) * both
    back = (tape + chosen + pooled) * both + inputs * (both if below else 1) + 9 * layer.channels * layer.filters
    if below:
        back += weights + inputs * both  # the gradient in front of the ReLU below
    return int(forward + back)


@dataclass
class Total(Count):
    """Of a meta-gradient of one task."""

    least: int = 0


def of_meta_gradient(network: Network, rows: int, queries: int, steps: int, tasks: int, order: int = 2) -> Total:
    """Of an adaptation and its meta-gradient, of one of so many tasks."""
    total, stride = Total(), network.stride
    numbers = sum(map(prod, network.shapes()))

    def both_ways(images: int, way: str, tangent: bool, rated: bool) -> None:
        layers = layers_of(network, images, tasks)
        for below, layer in zip([None, *layers], layers, strict=False):
            found = of_forward(layer, below, stride, images, tangent)
            found += of_gradient(layer, below, stride, images, tangent)
            if below:
                found += of_back(layer, below, stride, images, tangent)
            total.__iadd__(found)
            total.least += least(layer, below, images, tangent)
        head = of_head(network, layers[-1], images, tangent)
        total.__iadd__(head)
        total.least += head.moved
        total.__iadd__(of_update(network, layers, numbers, way, rated))
        total.least += {"down": 3, "seed": 2 + rated, "back": 3 + rated}[way] * numbers

    for _ in range(steps):
        both_ways(rows, "down", False, True)
    layers = layers_of(network, rows, tasks)
    for below, layer in zip([None, *layers], layers, strict=False):
        found = of_forward(layer, below, stride, rows, False)
        total.__iadd__(found)
        inputs, pooled = rows * prod(layer.size) * layer.channels, rows * prod(layer.pooled) * layer.filters
        total.least += inputs + 9 * layer.channels * layer.filters + rows * prod(layer.to) * layer.filters
        total.least += pooled if layer.side > 1 else 0
    head = of_head(network, layers[-1], rows, False, back=False)
    total.__iadd__(head)
    total.least += head.moved
    both_ways(queries, "seed", False, order == 2 and steps > 0)
    for step in range(steps if order == 2 else 0):
        both_ways(rows, "back", True, step > 0)
    return total


CONV4 = {
    "Conv4 28 x 28 x 1, strided": Network(
        1, 28, 28, 64, 4, 2, pool=False, norm=True, bias=True, affine=True, flat=False, ways=5
    ),
    "Conv4 32 x 32 x 3, max-pool": Network(
        3, 32, 32, 64, 4, 1, pool=True, norm=True, bias=True, affine=True, flat=True, ways=5
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the table")
    chosen = parser.parse_args(arguments)
    rows = []
    for name, network in CONV4.items():
        for shots, tasks, order in ((1, 8, 2), (1, 8, 1), (5, 8, 2), (1, 1, 2)):
            total = of_meta_gradient(network, 5 * shots, 75, 5, tasks, order)
            row = {
                "network": name, "shots": shots, "tasks": tasks, "order": order, "steps": 5, "queries": 75,
                "bytes_moved": total.moved * BYTES * tasks, "bytes_least": total.least * BYTES * tasks,
                "times_least": round(total.moved / total.least, 3), "useful": round(total.useful / total.issued, 3),
                "multiply_adds": total.useful * tasks,
            }  # fmt: skip
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()))
    if chosen.json:
        what = "5-way, 15 queries a class, 5 steps; counted from the launches' sizes (traffic.py), not measured"
        text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        chosen.json.write_text(f'{{"what": {json.dumps(what)},\n"problems": [\n{text}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
