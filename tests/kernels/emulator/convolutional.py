"""Problems of ``conv_adapt``, run by the emulator, against autograd in float64; and what its launches move, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emulated import OUTPUTS, error
from lightning_maml.kernels.conv_adapt import Network
from lightning_maml.kernels.conv_adapt.naive import conv_adapt as naive
from lightning_maml.kernels.emulator import Emulation

LIMITS = {"ieee": 2e-5, "tf32": 0.1, "bf16": 0.5}
"""How far an output may be off, of its largest number. Rounded operands choose other places of some windows and turn
some units on or off: with operands that are not cut, tf32 has ieee's limit, so that nothing is in a wrong place."""


@dataclass(frozen=True)
class Problem:
    """A batch of tasks for ``conv_adapt``, and how they adapt."""

    name: str
    network: Network
    loss: str = "cross_entropy"
    tasks: int = 2
    rows: int = 4
    queries: int = 3
    steps: int = 2
    order: int = 2
    elements: bool = False
    """Whether each element has a rate of its own."""
    rates_grad: bool = True

    def __str__(self) -> str:
        return self.name

    def data(self) -> list[Tensor]:
        """theta, rates, support inputs and targets, query inputs and targets; float32."""
        draw, network = torch.Generator().manual_seed(0), self.network

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        parts = [normal(*shape).flatten() / torch.Size(shape[1:]).numel() ** 0.5 for shape in network.shapes()]
        rates = 0.05 + 0.05 * torch.rand(self.steps, network.size if self.elements else 1, generator=draw)
        batch = []
        for images in (self.rows, self.queries):
            labels = torch.randint(network.ways, (self.tasks, images), generator=draw)
            batch.append(normal(self.tasks, images, network.channels, network.height, network.width))
            batch.append(labels if self.loss == "cross_entropy" else normal(self.tasks, images, network.ways))
        return [torch.cat(parts), rates, *batch]


def complaints(
    problem: Problem,
    precision: str = "ieee",
    arch: int = 90,
    schedules: Sequence[str | int] = ("forward",),
    operands: str = "cut",
    scratch: int | None = None,
    change: Callable[[str], str] | None = None,
) -> list[str]:
    """What is wrong with the kernels on a problem: numbers, faults, lanes that disagree, orders of warps that matter.

    ``operands``, ``change``, see :class:`Emulation`; ``scratch``: numbers that a launch may take.
    """
    from lightning_maml.kernels.conv_adapt import launch

    data, results, found = problem.data(), [], []
    kind = problem.network, problem.loss
    kept, launch.SCRATCH_NUMBERS = launch.SCRATCH_NUMBERS, scratch or launch.SCRATCH_NUMBERS
    try:
        for schedule in schedules:
            with Emulation(arch, schedule, operands=operands, change=change) as emulation:
                result = launch.launch(*data, *kind, problem.order, problem.rates_grad, precision)
                path = launch.launch(*data[:4], None, None, *kind, 1, False, precision)
            results.append(result._replace(trajectory=path.trajectory))
            found += emulation.faults()
            found += [remark for remark in emulation.remarks() if "different values" in remark]
            if not torch.equal(path.support_losses.view(torch.int32), result.support_losses.view(torch.int32)):
                found.append("a trajectory has other losses")
    finally:
        launch.SCRATCH_NUMBERS = kept
    wanted = naive(*(part.double() if part.is_floating_point() else part for part in data), *kind, problem.order)
    limit = LIMITS[precision if operands == "cut" else "ieee"]
    for name in OUTPUTS:
        if name == "of_rates" and not problem.rates_grad:
            continue
        off = error(getattr(results[0], name), getattr(wanted, name))
        if not off <= limit:
            found.append(f"{name} is off by {off:.1e}, where {limit:.0e} may be")
    for schedule, result in zip(schedules[1:], results[1:], strict=True):
        pairs = zip(results[0], result, strict=True)
        if not all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs):
            found.append(f"the order {schedule} of warps gives other bits than {schedules[0]}")
    return found


def moved(problem: Problem, arch: int) -> list[tuple[str, int, int, float]]:
    """Of each launch its kernel, the bytes that it moves, by sectors and counted, and its products, of the count."""
    from lightning_maml.kernels.conv_adapt import launch, tiles, traffic

    lines = Path(tiles.__file__).read_text().split("\n")
    line = next(number for number, text in enumerate(lines, 1) if "input_precision=" in text)
    with Emulation(arch) as emulation:
        launch.launch(*problem.data(), problem.network, problem.loss, problem.order, False, "ieee")
    expected, stride = [], problem.network.stride
    numbers = sum(torch.Size(shape).numel() for shape in problem.network.shapes())

    def forward(images: int, tangent: bool, back: bool) -> None:
        layers = launch.layers_of(problem.network, images, problem.tasks)
        below = [None, *layers]
        for under, layer in zip(below, layers, strict=False):
            expected.append(traffic.of_forward(layer, under, stride, images, tangent))
        expected.append(traffic.of_head(problem.network, layers[-1], images, tangent, back))

    def both_ways(images: int, tangent: bool, way: str, rated: bool) -> None:
        forward(images, tangent, True)
        layers = launch.layers_of(problem.network, images, problem.tasks)
        for under, layer in zip(layers[-2::-1], layers[:0:-1], strict=True):
            expected.append(traffic.of_gradient(layer, under, stride, images, tangent))
            expected.append(traffic.of_back(layer, under, stride, images, tangent))
        expected.append(traffic.of_gradient(layers[0], None, stride, images, tangent))
        expected.append(traffic.of_update(problem.network, layers, numbers, way, rated))

    for _ in range(problem.steps):
        both_ways(problem.rows, False, "down", True)
    forward(problem.rows, False, False)
    both_ways(problem.queries, False, "seed", problem.steps > 0)
    for step in range(problem.steps - 1, -1, -1):
        both_ways(problem.rows, True, "back", step > 0)
    found = []
    for each, count in zip(emulation.launches, expected, strict=True):
        sectors = int(each.missed[each.of("ldg")].sum() + each.sectors[each.of("stg")].sum())
        issued = sum(
            lanes * (2 if "f32x2" in instruction.text else 1)
            for instruction, lanes in zip(each.program.instructions, each.lanes.tolist(), strict=True)
            if "fma.rn.f32" in instruction.text and instruction.source.startswith(f"tiles.py:{line}")
        )
        share = issued / (count.issued * problem.tasks) if count.issued else 1.0
        found.append((each.kernel, sectors * 32, count.moved * traffic.BYTES * problem.tasks, share))
    return found


def network(channels: int, height: int, width: int, filters: int, blocks: int, stride: int, **more: Any) -> Network:
    """With batch-norm, a bias and an affine one, over all places, of 3 ways, unless ``more`` says otherwise."""
    kind = {"pool": False, "norm": True, "bias": True, "affine": True, "flat": True, "ways": 3} | more
    return Network(channels, height, width, filters, blocks, stride, **kind)


STRIDED = Problem("strided, odd, a mean", network(2, 7, 5, 5, 3, 2, flat=False), elements=True)
POOLED = Problem("pooled, with a rim, more filters than a tile", network(3, 7, 6, 17, 2, 1, pool=True), tasks=1)
PROBLEMS = [
    STRIDED,
    POOLED,
    Problem("no norm", network(1, 5, 4, 6, 2, 1, norm=False, affine=False, ways=5), "mse", elements=True),
    Problem("no norm, no bias", network(2, 4, 5, 3, 1, 2, norm=False, affine=False, bias=False), "mse"),
    Problem("not affine, pooled, strided", network(1, 11, 13, 7, 2, 2, pool=True, affine=False, bias=False)),
    replace(STRIDED, name="first order", order=1),
    replace(STRIDED, name="first order, no rates' gradient", order=1, rates_grad=False, elements=False),
    Problem("one task, one image, one query", network(1, 5, 5, 3, 2, 1), tasks=1, rows=1, queries=1, steps=1),
    Problem("primes", network(3, 7, 5, 13, 2, 2, ways=7), "mse", tasks=3, rows=11, queries=5, steps=1),
    replace(STRIDED, name="no steps", steps=0, elements=False),
]
WIDE = Problem("64 filters", network(3, 8, 8, 64, 2, 1, pool=True, ways=5), tasks=1, rows=3, queries=5, steps=1)
"""The tiles of Conv4."""
WIDE_STRIDED = Problem(
    "64 filters, strided", network(1, 8, 8, 64, 2, 2, flat=False), tasks=1, rows=3, queries=5, steps=1
)
