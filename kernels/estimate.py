r"""How long ``mlp_adapt`` takes for a task on paper: what hardware and waiting allow at best, not a measurement.

All numbers are for a chip full of tasks. Three bounds, the largest of which counts:

- *compute*: the floating-point operations of all tiles, with their padding, against the peak of the products' units;
- *memory*: the scratch of a task, written once and read once, against the bandwidth; what stays in the L2 cache costs
  less;
- *latency*: within a program one tile's product follows on the other, each after a load from the L2 cache. Several
  resident programs wait at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from lightning_maml.kernels.chips import Chip
from lightning_maml.kernels.mlp_adapt.layout import size

__all__ = ["CYCLES", "Estimate", "estimate", "tiles"]

CYCLES = 300
"""Of one load from the L2 cache and the product after it: about 260 and 35 on an H100, in published microbenchmarks."""
TILE = 16, 64, 16
"""Rows and columns of a tile of results, and how long the slices of its operands are: see ``options``."""


@dataclass(frozen=True)
class Estimate:
    """Of one task, in microseconds of the whole chip."""

    compute: float
    memory: float
    latency: float

    @property
    def bound(self) -> str:
        """Which of the three decides."""
        return max(("compute", "memory", "latency"), key=lambda name: float(getattr(self, name)))


def tiles(widths: Sequence[int], support: int, queries: int, steps: int) -> int:
    """How many tile products a task takes: all steps, the losses after them, and the recursion back."""
    rows, columns, inner = TILE

    def product(m: int, k: int, n: int) -> int:
        return ceil(m / rows) * ceil(n / columns) * ceil(k / inner)

    def through(count: int, back: bool) -> int:
        total = 0
        for layer, (ins, outs) in enumerate(pairwise(widths)):
            total += product(count, ins + 1, outs)
            if back:
                total += product(ins + 1, count, outs)
                total += product(count, outs, ins) if layer else 0
        return total

    step = through(support, back=True)
    # the recursion: every product of a step twice, once for each factor's tangent (README.md)
    return steps * (step + 2 * step) + through(queries, back=True) + through(support, back=False)


def estimate(
    chip: Chip,
    resident: int,
    widths: Sequence[int],
    support: int,
    queries: int,
    steps: int,
    precision: str,
) -> Estimate:
    """Microseconds of a task, for ``resident`` programs a multiprocessor.

    Args:
        chip: one of :data:`~lightning_maml.kernels.chips.CHIPS`.
        resident: as the compiler's report says.
        widths: ``[in, hidden ..., out]``.
        support: rows of a support set.
        queries: rows of a query set.
        steps: inner steps m.
        precision: one of the chip's.

    Example:
        >>> from lightning_maml.kernels.chips import CHIPS
        >>> estimate(CHIPS["sm_90"], 4, [1, 40, 40, 1], 10, 10, 5, "tf32x3").bound
        'latency'
    """
    rows, columns, inner = TILE
    count = tiles(widths, support, queries, steps)
    spread = max(support, queries) * sum(widths[1:])
    numbers = (steps + 1) * (2 * spread + size(widths)) + 3 * spread + 3 * size(widths)
    return Estimate(
        compute=1e6 * count * 2 * rows * columns * inner / chip.flops[precision],
        memory=1e6 * 2 * 4 * numbers / chip.bytes_per_second,
        latency=1e6 * count * CYCLES / chip.hertz / (chip.multiprocessors * resident),
    )
