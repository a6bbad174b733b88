"""The CUDA C++ kernel (``kernel.cu``): a task there and back in one launch, with its state in shared memory.

Every network, with its numbers of rows, gets a variant of its own: sizes are constants of the compiler, so that
products need no padding. A plan says what has its place in shared memory, and what lies in scratch, in the L2 cache.
"""

from collections.abc import Sequence
from ctypes import c_float
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels import nvrtc
from lightning_maml.kernels.adaptation import Adaptation, room
from lightning_maml.kernels.mlp_adapt.layout import FROM_SUMS, LOSSES, Kind

ACTIVATIONS = ("identity", "relu", "tanh", "gelu", "silu", "sine")
PRECISIONS = ("ieee",)
THREADS = 128
SEGMENT = 5
"""Of so many steps at a time are weights and activations kept; longer adaptations are computed again from there."""
MOST_SUMS = 72
"""That a thread has in registers."""
UNROLLED = 128
"""Instructions of a product's loop, about."""
SCRATCH_NUMBERS = 1 << 29
"""Programs are as many as have at most 2 GiB of scratch; each adapts one task after the other."""
MOST_SIZES = 16
"""Numbers of rows that a network gets variants for in a process: where they always change, the others are Triton's, or
refused."""
FAR = {"V": 1.5, "U": 1.3, "SUMS": 1.2, "ARCHIVE": 1.1}
"""By how much a task takes longer, about, for what lies in the L2 cache."""


@dataclass(frozen=True)
class Plan:
    """Of a variant: rows of a tile, which of :data:`FAR` is in shared memory, bytes of that, numbers of scratch."""

    tile: int
    near: frozenset[str]
    shared: int
    scratch: int
    cost: float


@dataclass(frozen=True)
class Variant:
    """What the kernel is compiled for."""

    widths: tuple[int, ...]
    activation: str
    frequencies: tuple[float, ...]
    loss: str
    order: int
    rates_grad: bool
    own_rates: bool
    rows: int
    queries: int
    """0 for a trajectory."""
    segment: int

    @property
    def goes_back(self) -> bool:
        return self.queries > 0 and (self.order == 2 or self.rates_grad)

    def plan(self, limit: int) -> Plan | None:
        """The best one within ``limit`` bytes of shared memory, or None where the weights alone are too many."""
        plans = (self._with_tile(tile, limit) for tile in range(1, max(self.rows, self.queries) + 1))
        return min(filter(None, plans), key=lambda plan: plan.cost, default=None)

    def _with_tile(self, tile: int, limit: int) -> Plan | None:
        widths, tiles = self.widths, -(-self.rows // tile)
        weights = _weights(widths)
        lengths = [tile * _row(width) for width in widths]
        sections = 4 if self.activation in FROM_SUMS else 2
        tape = sections * sum(lengths[1:-1]) + lengths[-1]
        targets = tile * (1 if self.loss == "cross_entropy" else widths[-1])
        floats = THREADS + lengths[0] + _to_four(targets) + weights + tape
        wanted = {"V": weights if self.queries else 0, "SUMS": weights if tiles > 1 else 0}
        wanted["U"] = weights if self.goes_back and self.own_rates and self.order == 2 else 0
        kept = self.segment * (weights + tiles * tape) if self.goes_back else 0
        near, scratch, cost = set(), 0, float(45 * tiles + 3 * -(-self.queries // tile)) * (tile + 8)
        for what, numbers in (*wanted.items(), ("ARCHIVE", kept)):
            far = tape if what == "ARCHIVE" and kept else 0  # a step is fetched to where it can be worked on
            if 4 * (floats + numbers) <= limit:
                near.add(what)
                floats += numbers
            else:
                floats, scratch, cost = floats + far, scratch + numbers, cost * FAR[what]
        return Plan(tile, frozenset(near), 4 * floats, scratch, cost) if 4 * floats <= limit else None

    def kernel(self, plan: Plan) -> nvrtc.Kernel:
        constants: dict[str, Any] = {
            "LAYERS": len(self.widths) - 1, "WIDTHS": ",".join(map(str, self.widths)),
            "ACTIVATIONS": ",".join(ACTIVATIONS).upper(), "LOSSES": ",".join(LOSSES).upper(),
            "ACTIVATION": self.activation.upper(), "LOSS": self.loss.upper(), "ORDER": self.order,
            "FREQUENCIES": ",".join(f"{c_float(each).value!r}f" for each in self.frequencies),
            "RATES_GRAD": int(self.rates_grad), "OWN_RATES": int(self.own_rates), "QUERY": int(self.queries > 0),
            "ROWS": self.rows, "QUERIES": max(self.queries, 1), "SEGMENT": self.segment, "TILE": plan.tile,
            "ARCHIVE": 0 if not self.goes_back else 1 if "ARCHIVE" in plan.near else 2,
            **{f"{what}_SHARED": int(what in plan.near) for what in ("V", "SUMS", "U")},
            "THREADS": THREADS, "MOST_SUMS": MOST_SUMS, "UNROLLED": UNROLLED,
        }  # fmt: skip
        options = [f"-D{name}={value}" for name, value in constants.items()]
        return nvrtc.Kernel(_source("kernel"), "mlp_adapt", options, THREADS, plan.shared)

    def scratch(self, plan: Plan, steps: int) -> int:
        """Numbers that a program has in the L2 cache: checkpoints are of all segments but the first and the last."""
        checkpoints = max(0, -(-steps // SEGMENT) - 2) if self.goes_back else 0
        return plan.scratch + checkpoints * _weights(self.widths)


@dataclass(frozen=True)
class Compiled:
    """A variant's kernel, and how it is launched for a number of tasks and steps."""

    kernel: nvrtc.Kernel
    plan: Plan
    programs: int
    numbers: tuple[int, int, int]
    """Tasks, steps, numbers of a program's scratch."""


def _weights(widths: Sequence[int]) -> int:
    return _to_four(sum((a + 1) * (b | 1) for a, b in pairwise(widths)))


def _row(width: int) -> int:
    """Numbers from a row of activations to the next: one more than there are, an odd number of 16 bytes."""
    return 4 * ((width + 4) // 4 | 1)


def _to_four(numbers: int) -> int:
    return -(-numbers // 4) * 4


def _source(name: str) -> str:
    return Path(__file__).with_name(f"{name}.cu").read_text()


_Network = tuple[tuple[int, ...], str, tuple[float, ...], str]
"""Widths, activation, frequencies, loss."""
_SIZES: dict[_Network, set[tuple[int, int]]] = {}
"""The numbers of rows that a network has variants for."""


@lru_cache(256)
def _kernel(variant: Variant, plan: Plan) -> nvrtc.Kernel:
    return variant.kernel(plan)


@lru_cache(256)
def _compiled(
    limit: int, precision: str, loss: str, activation: str, frequencies: tuple[float, ...], order: int,
    rates_grad: bool, widths: tuple[int, ...], rates: tuple[int, ...], support: tuple[int, ...],
    query: tuple[int, ...] | None,
) -> Compiled | None:  # fmt: skip
    if precision not in PRECISIONS or activation not in ACTIVATIONS or nvrtc.why_unavailable():
        return None
    tasks, steps, queries = support[0], rates[0], query[1] if query else 0
    segment = max(1, min(steps, SEGMENT))
    network, rows = (widths, activation, frequencies, loss), (support[1], queries)
    variant = Variant(*network, order, rates_grad, rates[1] > 1, *rows, segment)
    plan = variant.plan(limit)
    if plan is None:
        return None
    if not _has_room(network, rows):
        return None
    _SIZES[network].add(rows)
    numbers = variant.scratch(plan, steps)
    programs = min(tasks, max(1, SCRATCH_NUMBERS // numbers)) if numbers else tasks
    return Compiled(_kernel(variant, plan), plan, programs, (tasks, steps, numbers))


def _has_room(network: _Network, rows: tuple[int, int]) -> bool:
    sizes = _SIZES.setdefault(network, set())
    return len(sizes | {rows}) <= MOST_SIZES


@lru_cache
def _mean() -> nvrtc.Kernel:
    return nvrtc.Kernel(_source("mean"), "mean_over_tasks", (), 256, 1024)


def runs(
    device: torch.device, precision: str, widths: Sequence[int], activation: str, frequencies: Sequence[float],
    loss: str, rows: int, queries: int,
) -> bool:  # fmt: skip
    """Whether a perceptron has a variant on a device, of whatever order and rates; 0 ``queries`` for a trajectory."""
    if precision not in PRECISIONS or activation not in ACTIVATIONS or device.index is None or nvrtc.why_unavailable():
        return False
    network = tuple(widths), activation, tuple(frequencies), loss
    largest = Variant(*network, 2, True, True, rows, queries, SEGMENT)
    try:
        plan = largest.plan(nvrtc.most_shared(device.index))
    except RuntimeError:  # there is no driver, and no GPU
        return False
    return plan is not None and _has_room(network, (rows, queries))


def covering(
    theta: Tensor, rates: Tensor, *sets: Any, kind: Kind, precision: str, frequencies: Sequence[float] = ()
) -> Compiled | None:
    """The kernel of this problem, or None for what is Triton's: AMD's GPUs, a machine without NVRTC, rounded products,
    an activation that is none of :data:`ACTIVATIONS`, weights that exceed a program's shared memory, and what comes
    after the :data:`MOST_SIZES` numbers of rows of a network that were met first.
    """
    widths, activation, loss, order, rates_grad = kind
    return _compiled(
        nvrtc.most_shared(theta.device.index), precision, loss, activation, tuple(frequencies), order, rates_grad,
        tuple(widths), rates.shape, sets[0].shape, None if sets[2] is None else sets[2].shape,
    )  # fmt: skip


def launch(compiled: Compiled, theta: Tensor, rates: Tensor, *sets: Any, kind: Kind) -> Adaptation:
    """As the operator (``op.py``), by the kernel :func:`covering` it; without a query set, the trajectory ``[T, m, P]``
    and the support losses alone.
    """
    device, new, rates_grad, asks = theta.device, theta.new_empty, kind[4], sets[2] is not None
    tasks, steps, numbers = compiled.numbers
    result = room(theta, rates, sets[0], sets[2], kind[0][-1], rates_grad)
    # a pointer that a variant does not follow is another's
    each = new(tasks, theta.shape[0]) if asks else theta
    each_rates = new(tasks, rates.numel()) if rates_grad else theta
    scratch = new(compiled.programs * numbers) if numbers else theta
    outputs = result.task_losses, result.predictions, result.support_losses, each, each_rates, result.trajectory
    given = map(Tensor.contiguous, (theta, rates, *(sets if asks else sets[:2] * 2)))
    compiled.kernel(compiled.programs, device, (*given, *outputs, scratch), compiled.numbers)
    if asks:
        _mean_over_tasks(each, result.of_theta, device)
    if rates_grad and steps:
        _mean_over_tasks(each_rates, result.of_rates, device)
    return result


def _mean_over_tasks(each: Tensor, mean: Tensor, device: torch.device) -> None:
    tasks, count = each.shape
    _mean()(-(-count // 32), device, (each, mean), (tasks, count))
