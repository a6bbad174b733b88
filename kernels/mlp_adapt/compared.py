"""The kernels of the inner loop by the emulator's clock, CUDA's beside Triton's; no GPU is needed.

    python -m lightning_maml.kernels.mlp_adapt.compared [--arch sm_90] [--only sinusoid] [--json FILE]

Cycles are of one program alone, with an H100's latencies: a model, not a measurement. Many tasks are modelled as waves
of the programs that shared memory and registers let a multiprocessor hold; a wave takes as long as a program alone, or
as all of them take to issue their instructions. Not in that: a multiprocessor passes through its shared memory once a
cycle (``shared_passes``, of all warps). A launch is what Python does before the driver: the driver is a
stand-in that does nothing. Registers and stack are what ``cuobjdump`` reads in NVRTC's machine code.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from lightning_maml.kernels import nvrtc
from lightning_maml.kernels.chips import CHIPS, Nvidia
from lightning_maml.kernels.mlp_adapt import cuda
from lightning_maml.kernels.mlp_adapt.layout import size

HERTZ, TASKS = 1.7e9, 528
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
WORKLOADS: dict[str, tuple[tuple[int, ...], str, int, int, int]] = {
    "sinusoid": ((1, 40, 40, 1), "mse", 10, 10, 5),
    "sinusoid, 10 steps": ((1, 40, 40, 1), "mse", 10, 10, 10),
    "64-128-64-5, 25 + 75 rows": ((64, 128, 64, 5), "cross_entropy", 25, 75, 5),
}
"""Widths, loss, rows of the support and of the query set, inner steps; ReLU, second order."""


def operands(name: str, tasks: int = 1) -> list[Any]:
    widths, loss, rows, queries, steps = WORKLOADS[name]
    draw = torch.Generator().manual_seed(0)
    batch: list[Any] = []
    for n in (rows, queries):
        labels = torch.randint(widths[-1], (tasks, n), generator=draw)
        numbers = torch.randn(tasks, n, widths[-1], generator=draw)
        batch += [torch.randn(tasks, n, widths[0], generator=draw), labels if loss == "cross_entropy" else numbers]
    return [torch.randn(size(widths), generator=draw) / 8, torch.full((steps, 1), 0.01), *batch]


def microseconds(chip: Nvidia, cycles: int, slots: int, resident: int, tasks: int = TASKS) -> float:
    """Of so many tasks on all multiprocessors of a chip."""
    each = -(-tasks // chip.multiprocessors)  # of a multiprocessor
    waves = -(-each // resident)
    return round(waves * max(cycles, -(-each // waves) * slots) / HERTZ * 1e6, 1)


def by_cuda(name: str, architecture: str) -> dict[str, Any]:
    from lightning_maml.kernels.emulator import Emulation

    widths, loss, *_ = WORKLOADS[name]
    given, kind = operands(name), (widths, "relu", loss, 2, False)
    chip = CHIPS[architecture]
    assert isinstance(chip, Nvidia)
    with Emulation(int(chip.target[1]), scheduled=True) as emulation:
        kernel = cuda.covering(*given, kind=kind, precision="ieee")
        if kernel is None:
            return {"kernel": "Triton's"}
        cuda.launch(kernel, *given, kind=kind)
    launch, start = emulation.launches[0], time.process_time()
    code = nvrtc.compiled(kernel.kernel.source, "mlp_adapt", architecture, kernel.kernel.options)
    seconds = time.process_time() - start
    registers, stack, _ = chip.usage(SimpleNamespace(asm={"cubin": code}))
    resident = chip.resident(registers, launch.compiled.metadata.shared, cuda.THREADS // 32)
    return {
        "kernel": "CUDA", "cycles": launch.cycles, "barriers": launch.barriers, "issue_slots": launch.slots,
        "shared_passes": int(launch.wavefronts.sum()),
        "shared_bytes": launch.compiled.metadata.shared, "scratch_bytes": 4 * kernel.numbers[2],
        "tile": kernel.plan.tile,
        "registers": registers, "stack_bytes": stack, "resident": resident, "compile_seconds": round(seconds, 1),
        "microseconds_of_528_tasks": microseconds(chip, launch.cycles, launch.slots, resident),
        "faults": emulation.faults(),
    }  # fmt: skip


def by_triton(name: str, architecture: str) -> dict[str, Any]:
    from lightning_maml.kernels.emulator import Emulation
    from lightning_maml.kernels.mlp_adapt.kernel import launch

    widths, loss, *sizes = WORKLOADS[name]
    chip = CHIPS[architecture]
    assert isinstance(chip, Nvidia)
    with Emulation(int(chip.target[1]), scheduled=True) as emulation:
        launch(*operands(name), kind=(widths, "relu", loss, 2, False), precision="ieee")
    cycles, slots = (sum(getattr(each, of) for each in emulation.launches) for of in ("cycles", "slots"))
    scratch = (sizes[2] + 1) * (2 * max(sizes[:2]) * sum(widths[1:]) + size(widths))
    return {
        "kernel": "Triton", "cycles": cycles, "barriers": sum(each.barriers for each in emulation.launches),
        "issue_slots": slots, "scratch_bytes": 4 * scratch, "resident": 4,
        "microseconds_of_528_tasks": microseconds(chip, cycles, slots, 4),
    }  # fmt: skip


def of_a_launch(run: Callable[[], Any], calls: int = 2000) -> float:
    """Microseconds, the median."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(sorted(times)[calls // 2] * 1e6, 1)


def launches() -> float:
    """Microseconds of Python until the driver has all of an update of 25 sinusoid tasks."""
    widths, loss, *_ = WORKLOADS["sinusoid"]
    kind, given = (widths, "relu", loss, 2, False), operands("sinusoid", 25)
    driver = SimpleNamespace(cuLaunchKernel=lambda *arguments: 0)
    with (
        patch.object(nvrtc, "most_shared", lambda index: 227 * 1024),
        patch.object(nvrtc, "driver", lambda: driver),
        patch.object(nvrtc.Kernel, "_load", lambda kernel, index: kernel._functions.setdefault(index, 1)),
        patch.object(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, create=True),
    ):

        def run() -> None:
            kernel = cuda.covering(*given, kind=kind, precision="ieee")
            assert kernel is not None
            cuda.launch(kernel, *given, kind=kind)

        return of_a_launch(run)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 where the emulator finds a fault, or more than 64 bytes of stack are used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="all by default")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=[*WORKLOADS], help="all by default")
    chosen = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for name in chosen.only:
        for architecture in chosen.arch:
            rows.append({"workload": name, "architecture": architecture, **by_cuda(name, architecture)})
            print(rows[-1], flush=True)
        rows.append({"workload": name, "architecture": "sm_90", **by_triton(name, "sm_90")})
        print(rows[-1], flush=True)
    of_python = launches()
    print(f"a launch: {of_python} us")
    if chosen.json:
        model = "cycles, slots and microseconds of 528 tasks are the emulator's: a model, not a measurement"
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        chosen.json.write_text(f'{{"model": "{model}",\n"launch_microseconds": {of_python},\n"rows": [\n{lines}\n]}}\n')
    return int(any(row.get("faults") or row.get("stack_bytes", 0) > 64 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
