"""What the compiler makes of the kernels, on any machine: no GPU is needed.

    python -m lightning_maml.kernels.inspect [--family conv_adapt] [--arch sm_90] [--json FILE]

Every variant is compiled for every architecture that has products of its precision; registers and stack are what
``cuobjdump`` reads in the result, or what stands at the end of AMD's assembly. Cycles, barriers, the share of useful
multiply-adds and the bytes moved are of one program in the emulator: a model, not a measurement (``modelled.py``). Only
NVIDIA's PTX is emulated. The family ``conv_adapt`` has its own table, and its bytes in ``conv_adapt/traffic.py``.

The exit code is 1 where a variant has more than 272 bytes of stack, exceeds the shared memory of a program, or takes
more than 60 s to compile. AMD's architecture is reported, and fails nothing.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from lightning_maml.kernels.chips import CHIPS, Amd
from lightning_maml.kernels.modelled import NOTHING, Modelled, modelled

MOST_STACK = 272
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments."""

    kernel: str
    constants: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kernel} " + " ".join(f"{name}={value}" for name, value in self.constants.items())


@dataclass(frozen=True)
class Report(Modelled, Variant):
    """What the compiler made of a variant, and what the emulator says of it."""

    architecture: str
    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    resident_programs: int
    instructions: int
    compile_seconds: float
    faults: list[str]


def variants(family: str = "mlp_adapt") -> list[Variant]:
    """What ships of a family of :data:`FAMILIES`."""
    return FAMILIES[family]()


def _perceptrons() -> list[Variant]:
    """Of ``mlp_adapt`` and ``sgd_update``: every activation with every loss, every precision, every size of tiles, with
    and without rates.
    """
    from lightning_maml.kernels.mlp_adapt import ACTIVATIONS, LOSSES, PRECISIONS
    from lightning_maml.kernels.mlp_adapt.kernel import options
    from lightning_maml.kernels.sgd_update.kernel import BLOCK, OPTIONS

    found = [
        Variant("sgd_update_kernel", {**dict.fromkeys(OPTIONS, chosen), "BLOCK": BLOCK}) for chosen in (False, True)
    ]
    default, *others = PRECISIONS
    sinusoid = [1, 40, 1]
    kinds = [(activation, loss, default, sinusoid) for activation in ACTIVATIONS for loss in LOSSES]
    for precision in others:
        kinds += [("relu", "mse", precision, sinusoid), ("gelu", "cross_entropy", precision, sinusoid)]
    kinds += [("relu", "mse", default, [1, 32, 1]), ("gelu", "cross_entropy", default, [128, 128, 128])]
    for activation, loss, precision, widths in kinds:
        constants = {"ACTIVATION": activation, "LOSS": loss, **options(widths, precision)}
        found += [Variant("mlp_forward", {**constants, "QUERY": query}) for query in (1, 0)]
        found.append(Variant("mlp_backward", {**constants, "ORDER": 2, "RATES_GRAD": 0}))
    rest = {"ACTIVATION": "gelu", "LOSS": "mse", **options(sinusoid, default)}
    for order, rates_grad in ((2, 1), (2, 2), (1, 1), (1, 2)):
        found.append(Variant("mlp_backward", {**rest, "ORDER": order, "RATES_GRAD": rates_grad}))
    return found


def _convolutional() -> list[Variant]:
    """Of ``conv_adapt`` the largest kernels that adapt Conv4 to 5-way 1-shot tasks. A network compiles its own.

    All with tangents on color images, the products without; where the other form differs, or the precision is another.
    """
    from lightning_maml.kernels.conv_adapt.launch import BLOCK, constants_of
    from lightning_maml.kernels.conv_adapt.traffic import CONV4

    strided, pooled = CONV4.values()

    def second(network: Any, precision: str, tangent: bool, *kernels: str) -> list[tuple[str, dict[str, Any]]]:
        every = constants_of(network, 5, 8, precision, tangent)
        return [(name, of) for name, of in every if not of.get("FIRST") and name in kernels]

    found = [
        *constants_of(pooled, 5, 8, "ieee", True),
        *second(pooled, "ieee", False, "conv_forward", "conv_gradient", "conv_back"),
        *second(strided, "ieee", True, "conv_back"),
        *second(pooled, "tf32", True, "conv_forward"),
        *second(pooled, "bf16", True, "conv_forward"),
        ("conv_update", {"WAY": "back", "KEEP": False, "RATED": True, "BLOCK": BLOCK}),
    ]
    return [Variant(*each) for each in found]


FAMILIES: dict[str, Callable[[], list[Variant]]] = {"mlp_adapt": _perceptrons, "conv_adapt": _convolutional}


def ships(family: str = "mlp_adapt") -> list[tuple[Variant, str]]:
    """Every variant with every architecture that has products of its precision."""
    return [
        (variant, architecture)
        for variant in variants(family)
        for architecture, chip in CHIPS.items()
        if variant.constants.get("PRECISION", "ieee") in chip.precisions
    ]


def inspect(variant: Variant, architecture: str) -> Report:
    """Compile a variant for an architecture of :data:`~lightning_maml.kernels.chips.CHIPS`, and read what came out."""
    chip, warps = CHIPS[architecture], _options(variant)["num_warps"]
    faults = []
    registers = stack = instructions = shared = 0
    start = time.perf_counter()
    try:
        compiled, seconds = _compiled(variant, architecture)
        registers, stack, instructions = chip.usage(compiled)
        shared = compiled.metadata.shared
        model = replace(NOTHING, not_modelled="conv_adapt/traffic.py counts its bytes")
        if not variant.kernel.startswith("conv_"):
            model = modelled(
                variant.kernel,
                variant.constants,
                chip,
                lambda function, constants: _compiled(Variant(function.__name__, constants), architecture)[0],
            )
    except RuntimeError as error:  # the compiler's own failures
        seconds = time.perf_counter() - start
        faults.append(f"does not compile: {error}")
        model = replace(NOTHING, not_modelled="it does not compile")
    faults += [f"{stack} bytes of stack"] * (stack > MOST_STACK)
    faults += [f"{shared} bytes of shared memory"] * (shared > chip.shared_per_program)
    faults += [f"{seconds:.0f} s to compile"] * (seconds > MOST_SECONDS)
    return Report(
        **vars(variant), **vars(model), architecture=architecture, warps=warps, registers=registers,
        stack_bytes=stack, shared_bytes=shared, resident_programs=chip.resident(registers, shared, warps),
        instructions=instructions, compile_seconds=round(seconds, 2), faults=faults,
    )  # fmt: skip


def _module(kernel: str) -> Any:
    if kernel.startswith("conv_"):
        from lightning_maml.kernels.conv_adapt import kernel as conv

        return conv
    from lightning_maml.kernels.mlp_adapt import kernel as mlp
    from lightning_maml.kernels.sgd_update import kernel as sgd

    return sgd if kernel == "sgd_update_kernel" else mlp


def _options(variant: Variant) -> dict[str, Any]:
    """Of the compiler."""
    if variant.kernel.startswith("conv_"):
        from lightning_maml.kernels.conv_adapt.launch import compiler

        return compiler(variant.constants)
    return dict(_module(variant.kernel).COMPILER)


_KEPT: dict[str, tuple[Any, float]] = {}
"""What was compiled, by name: what goes back wants what goes there to have run."""


def _compiled(variant: Variant, architecture: str) -> tuple[Any, float]:
    """A kernel, and how many seconds its compiling took."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name = f"{architecture} {variant}"
    if name not in _KEPT:
        chip, module = CHIPS[architecture], _module(variant.kernel)
        function, options = getattr(module, variant.kernel), _options(variant)
        if isinstance(chip, Amd):
            options.pop("maxnreg", None)  # it has no such limit
        signature = {part: "constexpr" if part in variant.constants else _kind(part) for part in function.arg_names}
        places = {(function.arg_names.index(part),): value for part, value in variant.constants.items()}
        source = ASTSource(function, signature, constexprs=places)
        start = time.perf_counter()
        compiled = triton.compile(source, target=GPUTarget(*chip.target), options=options)
        _KEPT[name] = compiled, time.perf_counter() - start
    return _KEPT[name]


def _kind(name: str) -> str:
    if name.startswith("p_"):
        return "*i32" if name == "p_table" else "*fp32"
    return "fp32" if name in ("weight_decay", "momentum", "eps") else "i32"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), default="mlp_adapt", help="of the operator's kernels")
    parser.add_argument("--arch", choices=list(CHIPS), action="append", help="all of them where it is not given")
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--only", action="append", help="variants whose description holds this text")
    chosen = parser.parse_args(arguments)
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a cached result has no compile time
    import triton

    reports = []
    for variant, architecture in ships(chosen.family):
        if architecture not in (chosen.arch or CHIPS) or not any(text in str(variant) for text in chosen.only or [""]):
            continue
        report = inspect(variant, architecture)
        reports.append(report)
        numbers = (report.cycles, report.barriers, report.useful, report.bytes_moved)
        cycles, barriers, useful, moved = ("-" if number is None else str(number) for number in numbers)
        print(
            f"{architecture:6} {variant!s:108} registers {report.registers:3}  stack {report.stack_bytes:4}  "
            f"shared {report.shared_bytes:6}  resident {report.resident_programs:2}  "
            f"instructions {report.instructions:5}  {report.compile_seconds:5.1f} s  cycles {cycles:>7}  "
            f"barriers {barriers:>4}  useful {useful:>6}  bytes {moved:>7}  {', '.join(report.faults)}",
            flush=True,
        )
    print()
    for reason in sorted({report.not_modelled for report in reports if report.not_modelled}):
        print(f"-: {reason}")
    print("Cycles, barriers, useful multiply-adds and bytes are of one program: a model, not a measurement.")
    faulty = [report for report in reports if report.faults and not isinstance(CHIPS[report.architecture], Amd)]
    print(f"\n{len(reports)} compiled, {len(faulty)} outside of the limits")
    if chosen.json:
        versions = {"triton": triton.__version__, "python": platform.python_version(), "date": f"{date.today()}"}
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(f"  {json.dumps(asdict(report))}" for report in reports)
        model = "cycles, barriers, useful and bytes_moved are of one program: a model, not a measurement"
        chosen.json.write_text(
            f'{{"versions": {json.dumps(versions)},\n"model": {json.dumps(model)},\n"variants": [\n{rows}\n]}}\n'
        )
    return 1 if faulty or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
