"""What one program of a kernel does, by the emulator: cycles, barriers, products, bytes. A model, not a measurement.

A program adapts one task of :data:`WORKLOADS`, alone on its multiprocessor; the clock has an H100's latencies on every
architecture (``emulator/operations.py``). How programs that share a multiprocessor hide each other's waiting is not
modelled, nor what ``ptxas`` makes of the PTX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lightning_maml.kernels.chips import Chip, Nvidia
from lightning_maml.kernels.mlp_adapt.layout import size


@dataclass(frozen=True)
class Workload:
    """A task: widths, rows of the support and of the query set, inner steps."""

    widths: tuple[int, ...]
    support: int = 10
    queries: int = 10
    steps: int = 5


WORKLOADS = {
    (32, 16): Workload((1, 32, 32, 1)),
    (64, 16): Workload((1, 40, 40, 1)),
    (64, 128): Workload((128, 128, 128)),
}
"""By ``BN`` and ``BC``, the sizes of tiles that networks of these widths get; the second is the sinusoid."""
ELEMENTS = 1024  # that sgd_update updates
SECTOR = 32


@dataclass(frozen=True)
class Modelled:
    """Of one program; ``None`` where it is not modelled, for the reason given."""

    cycles: int | None  # until it ends
    barriers: int | None  # that its warps meet at
    useful: float | None  # multiply-adds of products without padding, as a share of those that are issued
    bytes_moved: int | None  # that it loads from the L2 cache, and stores there, in sectors of 32
    not_modelled: str  # why something is None


NOTHING = Modelled(None, None, None, None, "only NVIDIA's PTX is emulated")


def multiply_adds(workload: Workload, constants: dict[str, Any]) -> int:
    """Of the products of a launch for one task, without padding."""
    n, steps, pairs = workload.support, workload.steps, list(pairwise(workload.widths))
    layers = sum((a + 1) * b for a, b in pairs)
    hidden = sum(a * b for a, b in pairs[1:])
    if "QUERY" in constants:
        both_ways = 2 * layers + hidden  # forward, the gradients of activations, those of weights
        return steps * n * both_ways + n * layers + constants["QUERY"] * workload.queries * both_ways
    tangents = 2 * layers + 4 * hidden if constants["ORDER"] == 2 else 0
    return steps * n * (tangents + (layers if constants["RATES_GRAD"] else 0))


def modelled(
    kernel: str, constants: dict[str, Any], chip: Chip, compiled: Callable[[Any, dict[str, Any]], Any]
) -> Modelled:
    """Emulate a variant; ``compiled`` gives the kernel of a Triton function and its compile-time arguments."""
    if not isinstance(chip, Nvidia):
        return NOTHING
    from lightning_maml.kernels.emulator import Emulation, UnsupportedError

    workload = None if kernel == "sgd_update_kernel" else WORKLOADS[constants["BN"], constants["BC"]]
    try:
        with Emulation(int(chip.target[1]), scheduled=True, compiled=compiled) as emulation:
            _mlp_adapt(workload, constants) if workload else _sgd_update(constants)
    except (RuntimeError, UnsupportedError) as error:
        return Modelled(None, None, None, None, str(error))
    launch = next(launch for launch in emulation.launches if launch.kernel == kernel)
    moved = int(launch.missed[launch.of("ldg")].sum() + launch.sectors[launch.of("stg")].sum()) * SECTOR
    if workload is None:
        return Modelled(launch.cycles, launch.barriers, None, moved, "there are no products")
    useful = multiply_adds(workload, constants) / _issued(launch)
    return Modelled(launch.cycles, launch.barriers, float(f"{useful:.3g}"), moved, "")


def _issued(launch: Any) -> int:
    """Multiply-adds of the products that a launch issues, padding included."""
    from lightning_maml.kernels.mlp_adapt import products

    lines = Path(products.__file__).read_text().split("\n")  # the line where numbers of float32 are multiplied
    product = f"products.py:{next(number for number, line in enumerate(lines, 1) if 'tl.dot(b_a, b_b' in line)}"
    total = 0
    for instruction, lanes in zip(launch.program.instructions, launch.lanes.tolist(), strict=True):
        if instruction.kind == "mma":
            total += lanes // 32 * (16 * 8 * 16 if ".bf16" in instruction.text else 16 * 8 * 8)
        elif "fma.rn.f32" in instruction.text and instruction.source.split(" ")[0] == product:
            total += lanes * (2 if "f32x2" in instruction.text else 1)
    return total


def _sgd_update(constants: dict[str, Any]) -> None:
    from lightning_maml.kernels.sgd_update.kernel import launch

    ones = torch.ones(1, ELEMENTS)
    launch(
        ones[0], ones, torch.tensor(0.1), torch.ones(1) if constants["FACTORS"] else None,
        0.01 * constants["DECAY"], ones if constants["BUFFER"] else None, 0.9 * constants["MOMENTUM"],
    )  # fmt: skip


def _mlp_adapt(workload: Workload, constants: dict[str, Any]) -> None:
    from lightning_maml.kernels.mlp_adapt.kernel import launch

    widths, loss, steps = workload.widths, constants["LOSS"], workload.steps
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(size(widths), generator=draw) / 8
    rates_grad = constants.get("RATES_GRAD", 0)
    batch: list[Any] = []
    for rows in (workload.support, workload.queries):
        batch.append(torch.randn(1, rows, widths[0], generator=draw))
        labels, numbers = torch.randint(widths[-1], (1, rows), generator=draw), torch.rand(1, rows, widths[-1])
        batch.append(labels if loss == "cross_entropy" else numbers)
    rates = torch.full((steps, theta.numel() if rates_grad == 2 else 1), 0.01)
    sets = batch if constants.get("QUERY", 1) else [*batch[:2], None, None]
    kind = (widths, constants["ACTIVATION"], loss, constants.get("ORDER", 1), rates_grad > 0)
    launch(theta, rates, *sets, kind=kind, precision=constants["PRECISION"])
