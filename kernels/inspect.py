"""What the compiler makes of the kernels, on any machine: no GPU is needed.

    python -m lightning_maml.kernels.inspect [--arch sm_90] [--json FILE]

Every variant is compiled for every architecture; registers and stack are what ``cuobjdump`` reads in the result. The
exit code is 1 where a variant has more than 512 bytes of stack, exceeds the shared memory of a program, or takes more
than 60 s to compile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ARCHITECTURES", "Chip", "Report", "Variant", "inspect", "variants"]

MOST_STACK = 512
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor of an architecture holds (CUDA C++ Programming Guide, "Compute Capabilities")."""

    shared: int
    """Bytes of shared memory that all resident programs divide."""
    shared_per_program: int
    programs: int = 32
    threads: int = 2048
    registers: int = 65536

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """How many programs of ``warps`` warps are resident at once."""
        per_warp = -(-registers * 32 // 256) * 256  # registers are given to a warp in units of 256
        by_registers = self.registers // max(per_warp, 256) // warps
        by_shared = self.shared // (shared + 1024)  # the system takes 1 KiB of each program
        return min(by_registers, by_shared, self.programs, self.threads // 32 // warps)


ARCHITECTURES = {
    80: Chip(shared=164 * 1024, shared_per_program=163 * 1024),
    90: Chip(shared=228 * 1024, shared_per_program=227 * 1024),
    100: Chip(shared=228 * 1024, shared_per_program=227 * 1024),
}


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

    found = [Variant("sgd_update_kernel", {"BLOCK": sgd.BLOCK}, sgd.COMPILER)]

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


def inspect(variant: Variant, architecture: int) -> Report:
    """Compile a variant for ``sm_<architecture>`` and read what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_maml.kernels.mlp_adapt import kernel as mlp
    from lightning_maml.kernels.sgd_update import kernel as sgd

    function = getattr(sgd if variant.kernel == "sgd_update_kernel" else mlp, variant.kernel)
    signature = {name: "constexpr" if name in variant.constants else _kind(name) for name in function.arg_names}
    source = ASTSource(function, signature, constexprs={(n,): v for n, v in _positions(function, variant).items()})
    start = time.perf_counter()
    chip, warps = ARCHITECTURES[architecture], variant.compiler["num_warps"]
    faults = []
    registers = stack = instructions = shared = 0
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=variant.compiler)
        seconds = time.perf_counter() - start
        registers, stack, instructions = _usage(compiled.asm["cubin"])
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
        f"sm_{architecture}",
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


def _usage(binary: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack and the number of instructions of a compiled kernel."""
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        used = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True)
        listing = subprocess.run([tool, "-sass", str(path)], capture_output=True, text=True, check=False)
    text = used.stdout + used.stderr
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"Expected registers and stack from {tool} but got: {text}")
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+\S", listing.stdout, re.MULTILINE))
    return int(found[1]), int(found[2]), instructions


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"sm_{architecture}" for architecture in ARCHITECTURES]
    parser.add_argument("--arch", choices=names, action="append", help="all of them where it is not given")
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--only", action="append", help="variants whose description holds this text")
    chosen = parser.parse_args(arguments)
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a cached result has no compile time
    import triton

    reports = []
    for variant in variants():
        if not any(text in str(variant) for text in chosen.only or [""]):
            continue
        for name in chosen.arch or names:
            report = inspect(variant, int(name.removeprefix("sm_")))
            reports.append(report)
            print(
                f"{report.architecture:6} {variant!s:108} registers {report.registers:3}  "
                f"stack {report.stack_bytes:4}  shared {report.shared_bytes:6}  resident {report.resident_programs:2}  "
                f"instructions {report.instructions:5}  {report.compile_seconds:5.1f} s  {', '.join(report.faults)}",
                flush=True,
            )
    faulty = [report for report in reports if report.faults]
    print(f"{len(reports)} compiled, {len(faulty)} outside of the limits")
    if chosen.json:
        versions = {
            "triton": triton.__version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        }
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(asdict(report))}" for report in reports)
        chosen.json.write_text(f'{{"versions": {json.dumps(versions)},\n"variants": [\n{lines}\n]}}\n')
    return 1 if faulty or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
