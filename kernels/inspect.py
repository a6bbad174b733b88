"""What the compiler makes of the kernels, on any machine: no GPU is needed.

    python -m lightning_maml.kernels.inspect [--arch sm_90] [--json FILE]

Every variant is compiled for every architecture that has products of its precision; registers and stack are what
``cuobjdump`` reads in the result, or what stands at the end of AMD's assembly. Estimates of the time of a task follow.
The exit code is 1 where a variant has more than 512 bytes of stack, exceeds the shared memory of a program, or takes
more than 60 s to compile. AMD's architecture is reported, and fails nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_maml.kernels.chips import CHIPS, Amd
from lightning_maml.kernels.estimate import estimate

__all__ = ["Report", "Variant", "estimates", "inspect", "ships", "variants"]

MOST_STACK = 512
MOST_SECONDS = 60.0
WORKLOADS: dict[str, tuple[list[int], int, int, int]] = {
    "sinusoid": ([1, 40, 40, 1], 10, 10, 5),
    "policy of two times 100": ([2, 100, 100, 2], 20, 20, 1),
}
"""What times are estimated for: widths, rows of the support and of the query set, inner steps."""


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments."""

    kernel: str
    constants: dict[str, Any]
    compiler: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kernel} " + " ".join(f"{name}={value}" for name, value in self.constants.items())


@dataclass(frozen=True)
class Report:
    """What the compiler made of a variant."""

    kernel: str
    constants: dict[str, Any]
    architecture: str
    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    resident_programs: int
    instructions: int
    compile_seconds: float
    faults: list[str]


def variants() -> list[Variant]:
    """What ships: every activation with every loss, every precision, every size of tiles, with and without rates."""
    from lightning_maml.kernels.mlp_adapt import ACTIVATIONS, LOSSES, PRECISIONS
    from lightning_maml.kernels.mlp_adapt.kernel import COMPILER, options
    from lightning_maml.kernels.sgd_update import kernel as sgd

    found = [
        Variant("sgd_update_kernel", {**dict.fromkeys(sgd.OPTIONS, chosen), "BLOCK": sgd.BLOCK}, sgd.COMPILER)
        for chosen in (False, True)
    ]

    def add(activation: str, loss: str, precision: str, widths: list[int]) -> None:
        constants = {"ACTIVATION": activation, "LOSS": loss, **options(widths, precision)}
        found.extend(Variant("mlp_forward", {**constants, "QUERY": query}, COMPILER) for query in (1, 0))
        found.append(Variant("mlp_backward", {**constants, "ORDER": 2, "RATES_GRAD": 0}, COMPILER))

    default, *others = PRECISIONS
    for activation in ACTIVATIONS:
        for loss in LOSSES:
            add(activation, loss, default, [1, 40, 1])
    for precision in others:
        add("relu", "mse", precision, [1, 40, 1])
        add("gelu", "cross_entropy", precision, [1, 40, 1])
    add("relu", "mse", default, [1, 32, 1])
    add("gelu", "cross_entropy", default, [128, 128, 128])
    rest = {"ACTIVATION": "gelu", "LOSS": "mse", **options([1, 40, 1], default)}
    for order, rates_grad in ((2, 1), (2, 2), (1, 1), (1, 2)):
        found.append(Variant("mlp_backward", {**rest, "ORDER": order, "RATES_GRAD": rates_grad}, COMPILER))
    return found


def ships() -> list[tuple[Variant, str]]:
    """Every variant with every architecture that has products of its precision."""
    return [
        (variant, architecture)
        for variant in variants()
        for architecture, chip in CHIPS.items()
        if variant.constants.get("PRECISION", "ieee") in chip.precisions()
    ]


def inspect(variant: Variant, architecture: str) -> Report:
    """Compile a variant for an architecture of :data:`~lightning_maml.kernels.chips.CHIPS`, and read what came out."""
    import triton
    from triton.compiler import ASTSource

    from lightning_maml.kernels.mlp_adapt import kernel as mlp
    from lightning_maml.kernels.sgd_update import kernel as sgd

    function = getattr(sgd if variant.kernel == "sgd_update_kernel" else mlp, variant.kernel)
    signature = {name: "constexpr" if name in variant.constants else _kind(name) for name in function.arg_names}
    source = ASTSource(function, signature, constexprs={(n,): v for n, v in _positions(function, variant).items()})
    start = time.perf_counter()
    chip, warps = CHIPS[architecture], variant.compiler["num_warps"]
    options = dict(variant.compiler)
    if isinstance(chip, Amd):
        options.pop("maxnreg", None)  # it has no such limit
    faults = []
    registers = stack = instructions = shared = 0
    try:
        compiled = triton.compile(source, target=chip.target(), options=options)
        seconds = time.perf_counter() - start
        registers, stack, instructions = chip.usage(compiled)
        shared = compiled.metadata.shared
    except RuntimeError as error:  # the compiler's own failures
        seconds = time.perf_counter() - start
        faults.append(f"does not compile: {error}")
    if stack > MOST_STACK:
        faults.append(f"{stack} bytes of stack")
    if shared > chip.shared_per_program:
        faults.append(f"{shared} bytes of shared memory")
    if seconds > MOST_SECONDS:
        faults.append(f"{seconds:.0f} s to compile")
    return Report(
        variant.kernel,
        variant.constants,
        architecture,
        warps,
        registers,
        stack,
        shared,
        chip.resident(registers, shared, warps),
        instructions,
        round(seconds, 2),
        faults,
    )


def _positions(function: Any, variant: Variant) -> dict[int, Any]:
    return {function.arg_names.index(name): value for name, value in variant.constants.items()}


def _kind(name: str) -> str:
    if name == "p_table":
        return "*i32"
    return "*fp32" if name.startswith("p_") else "i32"


def estimates(reports: list[Report]) -> list[dict[str, Any]]:
    """What a task takes on paper, by the default kernels among ``reports``: :mod:`~lightning_maml.kernels.estimate`."""
    rows = []
    for architecture, chip in CHIPS.items():
        precision = chip.precisions()[0]
        wanted = {"ACTIVATION": "relu", "LOSS": "mse", "PRECISION": precision, "BN": 64}
        resident = [
            report.resident_programs
            for report in reports
            if report.architecture == architecture and wanted.items() <= report.constants.items()
        ]
        if not resident:
            continue
        for workload, problem in WORKLOADS.items():
            found = estimate(chip, min(resident), *problem, precision)
            times = {f"{name}_us": float(f"{value:.3g}") for name, value in asdict(found).items()}
            rows.append(
                {"workload": workload, "chip": chip.name, "precision": precision, **times, "bound": found.bound}
            )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=list(CHIPS), action="append", help="all of them where it is not given")
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--only", action="append", help="variants whose description holds this text")
    chosen = parser.parse_args(arguments)
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a cached result has no compile time
    import triton

    reports = []
    for variant, architecture in ships():
        if architecture not in (chosen.arch or CHIPS) or not any(text in str(variant) for text in chosen.only or [""]):
            continue
        report = inspect(variant, architecture)
        reports.append(report)
        print(
            f"{report.architecture:6} {variant!s:108} registers {report.registers:3}  "
            f"stack {report.stack_bytes:4}  shared {report.shared_bytes:6}  resident {report.resident_programs:2}  "
            f"instructions {report.instructions:5}  {report.compile_seconds:5.1f} s  {', '.join(report.faults)}",
            flush=True,
        )
    on_paper = estimates(reports)
    if on_paper:
        print("\nMicroseconds of a task on a chip full of tasks, on paper and not measured:\n")
        print(f"{'':26}{'chip':16}{'products':10}{'compute':>9}{'memory':>9}{'latency':>9}  bound")
    for row in on_paper:
        times = "".join(f"{row[f'{name}_us']:9.3g}" for name in ("compute", "memory", "latency"))
        print(f"{row['workload']:26}{row['chip']:16}{row['precision']:10}{times}  {row['bound']}")
    faulty = [report for report in reports if report.faults and not isinstance(CHIPS[report.architecture], Amd)]
    print(f"\n{len(reports)} compiled, {len(faulty)} outside of the limits")
    if chosen.json:
        versions = {
            "triton": triton.__version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        }
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [",\n".join(f"  {json.dumps(row)}" for row in part) for part in (map(asdict, reports), on_paper)]
        chosen.json.write_text(
            f'{{"versions": {json.dumps(versions)},\n"variants": [\n{rows[0]}\n],\n"estimates": [\n{rows[1]}\n]}}\n'
        )
    return 1 if faulty or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
