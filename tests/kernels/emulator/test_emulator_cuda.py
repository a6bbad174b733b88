"""The CUDA C++ kernel of mlp_adapt, as NVRTC compiles it: right, without a race or a fault, in any order of warps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import emulated as e
import mutants
from lightning_maml.kernels import nvrtc
from lightning_maml.kernels.chips import CHIPS
from lightning_maml.kernels.emulator import Emulation
from lightning_maml.kernels.mlp_adapt import LOSSES, cuda
from lightning_maml.kernels.mlp_adapt.compared import WORKLOADS
from worker import Worker

if reason := nvrtc.why_unavailable():
    pytest.skip(reason, allow_module_level=True)

ARCHES = (80, 90, 100)
ALL = 1 << 20
"""As much shared memory as the chip has."""
LIMIT = e.LIMITS["ieee"]


def covering(problem: e.Problem, *operands: Any) -> cuda.Compiled | None:
    return cuda.covering(*operands, kind=problem.kind, precision="ieee", frequencies=problem.frequencies)


def complaints(
    problem: e.Problem, arch: int, schedules: Sequence[str | int] = ("forward", "backward", 1), kibibytes: int = ALL,
    scratch: int = cuda.SCRATCH_NUMBERS,
) -> list[str]:  # fmt: skip
    """As those of Triton's kernels, within as many KiB of shared memory, and numbers of scratch in all programs."""
    found, results = [], []
    data = problem.data()
    operands = (*data[:4], *(data[4:] if problem.query else (None, None)))
    for schedule in schedules:
        with Emulation(arch, schedule) as emulation, patch.object(cuda, "SCRATCH_NUMBERS", scratch):
            cuda._compiled.cache_clear()
            limit = min(nvrtc.most_shared(0), kibibytes << 10)
            with patch.object(nvrtc, "most_shared", lambda index, limit=limit: limit):
                kernel = covering(problem, *operands)
                assert kernel is not None
                results.append(cuda.launch(kernel, *operands, kind=problem.kind))
        found += emulation.faults()
        found += [remark for remark in emulation.remarks() if "different values" in remark]
    wanted = problem.reference()
    for name in e.OUTPUTS[:5] if problem.query else ("support_losses", "trajectory"):
        off = e.error(getattr(results[0], name), getattr(wanted, name))
        if not off <= LIMIT:
            found.append(f"{name} is off by {off:.1e}, where {LIMIT:.0e} may be")
    for schedule, result in zip(schedules[1:], results[1:], strict=True):
        if not all(
            torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(results[0], result, strict=True)
        ):
            found.append(f"the order {schedule} of warps gives other bits than {schedules[0]}")
    return found


def problem(activation: str, loss: str, order: int, rates: str, widths: tuple[int, ...], **more: int) -> e.Problem:
    kind = {"order": order, "rates": rates or "shared", "rates_grad": bool(rates)}
    name = f"{activation}, {loss}, order {order}, {rates or 'no'} rates, {widths}"
    return e.Problem(name, widths, activation, loss, **{"rows": 7, "queries": 18, "steps": 2, **more}, rate=0.1, **kind)


KINDS = [(order, rates) for order in (2, 1) for rates in ("", "shared", "own")]
SMALL, DEEP = (3, 5, 4), (2, 7, 3, 6, 2)
SIREN = e.Problem(
    "SIREN", (2, 64, 64, 64, 3), "sine", rows=13, queries=35, steps=2, rates_grad=True, rate=1e-3, frequency=30
)
"""Whose first sines are taken of numbers up to some hundred."""
SIREN_SMALL = replace(SIREN, widths=(2, 17, 9, 3), name="a small SIREN")
QUICK = [
    problem(activation, LOSSES[i % 3], *KINDS[i % 6], SMALL if i % 2 else DEEP)
    for i, activation in enumerate(cuda.ACTIVATIONS, 1)
]
ODD = [
    problem("tanh", "bce", 2, "", (1, 1), rows=1, queries=1, steps=1, tasks=1),
    e.Problem("no steps", (2, 3, 2), rows=3, queries=2, steps=0, rates_grad=True),
    replace(problem("gelu", "mse", 2, "", (3, 5, 2)), name="trajectory", query=False, steps=7),
    problem("sine", "cross_entropy", 2, "own", (1, 5, 9, 6, 2), rows=1, queries=5, steps=3),
    replace(problem("sine", "bce", 1, "", (3, 11, 2)), name="sine, trajectory", query=False, steps=7),
    SIREN_SMALL,
    replace(
        problem("tanh", "cross_entropy", 2, "shared", SMALL, rows=3, queries=5, steps=13), name="13 steps", tasks=3
    ),
]
WIDE = [
    problem("tanh", "mse", 2, "own", (2, *[3, 4] * 4, 2), rows=3, queries=2),
    problem("relu", "cross_entropy", 2, "shared", (2, 256, 3), rows=3, queries=2, steps=1, tasks=1),
    problem("silu", "cross_entropy", 2, "", (3, 5, 4), rows=131, queries=257, steps=1, tasks=1),
]
"""That exceed what Triton's kernel runs."""
FAR = [
    problem("silu", "cross_entropy", 2, "own", (5, 11, 4), rows=13, queries=131, steps=6, tasks=3),
    problem("tanh", "mse", 2, "shared", (5, 11, 2), rows=131, queries=3, steps=11, tasks=2),
    problem("sine", "mse", 2, "own", (5, 11, 4, 2), rows=29, queries=31, steps=11, tasks=2),
]
"""In a few KiB: rows in tiles, what is kept and all sums in scratch, segments with checkpoints between them."""


@pytest.mark.parametrize("problem", [*QUICK, *ODD, *WIDE], ids=str)
def test_right_and_without_a_race(problem: e.Problem, emulated: Worker):
    assert emulated(complaints, problem, ARCHES[len(problem.name) % 3]) == []


@pytest.mark.parametrize("kibibytes", [4, 9])
@pytest.mark.parametrize("problem", FAR, ids=str)
def test_what_exceeds_shared_memory_lies_in_scratch(problem: e.Problem, kibibytes: int, emulated: Worker):
    """One program adapts all tasks there, with the same scratch."""
    assert emulated(complaints, problem, 90, ("forward", "backward"), kibibytes, 1) == []


WRONG = {
    "bend": ("bend = -w * w * h;", "bend = -w * h;"),
    "its sign": ("bend = -w * w * h;", "bend = w * w * h;"),
    "slope": ("slope *= w,", "slope *= 1.f,"),
    "cosine": ("cosine = (quarter + 1) & 2", "cosine = quarter & 2"),
    "whose frequency": ("w = FREQUENCY<NODE>;", "w = FREQUENCY<1>;"),
}
SINES = problem("sine", "mse", 2, "shared", (2, 5, 3, 1))


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_sine_is_noticed(what: str, emulated: Worker):
    assert emulated(of_changed_source, *WRONG[what], complaints, SINES, 90, ("forward",)) != []


def of_changed_source(text: str, by: str, check: Callable[..., list[str]], *arguments: Any) -> list[str]:
    source = cuda._source("kernel")
    assert source.count(text) == 1, text
    changed = {"kernel": source.replace(text, by), "mean": cuda._source("mean")}
    caches = cuda._kernel, cuda._compiled
    try:
        for cache in caches:
            cache.cache_clear()
        with patch.object(cuda, "_source", changed.__getitem__):
            return check(*arguments)
    finally:
        for cache in caches:
            cache.cache_clear()


def test_sines_of_large_numbers(emulated: Worker):
    assert emulated(far_off) == []
    assert len(emulated(of_changed_source, "-4.837512969970703125e-4f", "-4.8375e-4f", far_off)) == 4


def far_off() -> list[str]:
    """A task for each number, whose network is the sine: its sine and cosine are what a step adds to the biases."""
    near = torch.cat([torch.linspace(-most, most, 300) for most in (4.0, 500.0, 8e3, 6e6)])
    far = torch.tensor([7e6, -1e7, 3e9, -1e30, float("inf"), float("-inf"), float("nan")])
    x = torch.cat([near, far])[:, None, None] / 2
    kind = [1, 1, 1], "sine", "mse", 1, False
    batch = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.full((1, 1), -0.5), x, torch.full_like(x, -2.0), None, None
    with Emulation(90) as emulation:
        kernel = cuda.covering(*batch, kind=kind, precision="ieee", frequencies=[2.0])
        assert kernel is not None
        added = cuda.launch(kernel, *batch, kind=kind).trajectory[:, 0, [3, 1]].double()
    sine = added[:, 0] - 2.0
    cosine = added[:, 1] / added[:, 0] / 2
    found = emulation.faults()
    for name, value, wanted in (("sine", sine, (2 * x).double().sin()), ("cosine", cosine, (2 * x).double().cos())):
        off = (value - wanted.flatten()).abs()
        for most, limit in ((8e3, 3e-7), (6e6, 1e-6)):
            if not (worst := off[(2 * x).flatten().abs() <= most].max()) <= limit:
                found.append(f"{name} is off by {worst:.1e} up to {most:.0e}")
        if value[-3:].isfinite().any():
            found.append(f"{name} of what is no number is one")
    if not (sine**2 + cosine**2 - 1)[len(near) : -3].abs().max() <= 1e-6:
        found.append("behind 6e6 they are of different angles")
    return found


@pytest.mark.parametrize("arch", ARCHES[:2])
def test_the_sine_has_no_local_memory(arch: int, emulated: Worker):
    assert emulated(with_local_memory, SINES, arch) == {"kernel.cu": False, "libdevice": True}


def with_local_memory(problem: e.Problem, arch: int) -> dict[str, bool]:
    """By our sine, and by CUDA's."""
    found = {}
    with Emulation(arch):
        cuda._compiled.cache_clear()
        compiled = covering(problem, *problem.data())
        assert compiled is not None
    kernel, source = compiled.kernel, compiled.kernel.source
    ours = "h = sine_of(w * s, slope)"
    assert source.count(ours) == 1
    for name, text in (
        ("kernel.cu", source),
        ("libdevice", source.replace(ours, "h = sinf(w * s), slope = cosf(w * s)")),
    ):
        changed = nvrtc.Kernel(text, kernel.name, kernel.options, kernel.threads, kernel.shared)
        found[name] = ".local" in changed.ptx(arch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("problem", [replace(e.SINUSOID, activation="sine"), SIREN], ids=str)
def test_the_sine_takes_no_more_stack_than_gelu(problem: e.Problem, arch: str, emulated: Worker):
    (registers, stack), (_, of_gelu) = emulated(usage, [problem, replace(problem, activation="gelu")], arch)
    assert registers <= 255
    assert stack <= max(of_gelu, 16)


def usage(problems: list[e.Problem], arch: str) -> list[tuple[int, int]]:
    """Registers and bytes of stack by ptxas."""
    chip, found = CHIPS[arch], []
    for problem in problems:
        with Emulation(int(chip.target[1])):
            cuda._compiled.cache_clear()
            compiled = covering(problem, *problem.data())
            assert compiled is not None
        kernel = compiled.kernel
        code = nvrtc.compiled(kernel.source, kernel.name, arch, kernel.options)
        found.append(chip.usage(SimpleNamespace(asm={"cubin": code}))[:2])
    return found


SINUSOID = replace(e.SINUSOID, rows=10)
LARGE = [
    SIREN,
    replace(SIREN, name="SIREN, sinusoid", widths=(1, 40, 40, 1), rates="own", steps=7, frequency=3),
    replace(SIREN, name="SIREN, wide", widths=(2, 128, 128, 128, 3), rows=50, queries=300, steps=1, tasks=1),
    SINUSOID,
    replace(SINUSOID, name="10 steps", steps=10),
    *e.SIZES[1:17],
    e.Problem("64-128-64-5", (64, 128, 64, 5), "relu", "cross_entropy", 25, 75, 5, rate=0.1, tasks=1),
    e.Problem("128 classes", (3, 128), "relu", "cross_entropy", 20, 20, 1, rate=0.1),
    e.Problem("1000 rows", (2, 9, 3), "tanh", "cross_entropy", 1000, 257, 2, rate=0.1, tasks=1),
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_large_and_odd_sizes(problem: e.Problem, arch: int, emulated: Worker):
    assert emulated(complaints, problem, arch, ("forward", "backward", 1, 2)) == []


@pytest.mark.slow
@pytest.mark.parametrize("activation", cuda.ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind(activation: str, loss: str, kind: tuple[int, str], emulated: Worker):
    assert emulated(complaints, problem(activation, loss, *kind, DEEP), 90) == []


BARRIERS = [
    e.Problem("a tile", (3, 9, 10, 4), "tanh", "cross_entropy", 40, 40, 2, rates_grad=True, rate=0.1, tasks=2),
    e.Problem("own rates", (3, 5, 4), "relu", "mse", 40, 40, 2, rates="own", rate=0.1, tasks=2),
    e.Problem("first order", (3, 5, 4), "relu", "mse", 40, 40, 3, order=1, rates_grad=True, rate=0.1, tasks=2),
    e.Problem("a tile that is fetched", (3, 9, 10, 4), "relu", "mse", 6, 6, 5, rate=0.1, tasks=2),
    e.Problem("tiles", (3, 9, 10, 4), "gelu", "mse", 40, 40, 7, rates="own", rates_grad=True, rate=0.1, tasks=1),
]


def without_each_barrier(problem: e.Problem, kibibytes: int) -> dict[str, bool]:
    """Of each barrier, by its line, whether it is noticed where it is taken out; the compiler makes several of one."""

    def run(change: Any = None) -> Emulation:
        data = problem.data()
        with Emulation(90, change=change) as emulation, patch.object(cuda, "SCRATCH_NUMBERS", 1):
            cuda._compiled.cache_clear()
            limit = min(nvrtc.most_shared(0), kibibytes << 10)
            with patch.object(nvrtc, "most_shared", lambda index: limit):
                kernel = covering(problem, *data)
                assert kernel is not None
                cuda.launch(kernel, *data, kind=problem.kind)
        return emulation

    launch = run().launches[0]
    noticed: dict[str, bool] = {}
    for instruction, count in zip(launch.program.instructions, launch.count.tolist(), strict=True):
        if instruction.kind == "bar" and count:
            faults = run(mutants.changed(launch.kernel, instruction.line, r"bar\.sync\s+0;", "")).faults()
            line = instruction.source.split(" ")[0]
            noticed[line] = noticed.get(line, False) or any("race" in fault for fault in faults)
    return noticed


@pytest.mark.slow
def test_each_barrier_is_missed(emulated: Worker):
    noticed: dict[str, bool] = {}
    for case, kibibytes in zip(BARRIERS, (ALL, ALL, ALL, 6, 12), strict=True):
        for line, seen in emulated(without_each_barrier, case, kibibytes).items():
            noticed[line] = noticed.get(line, False) or seen
    assert [line for line, seen in noticed.items() if not seen] == []
    assert len(noticed) > 10


def test_a_label_that_no_class_has_makes_its_task_nan(emulated: Worker):
    assert emulated(label_of_no_class) == [False, True]


def label_of_no_class() -> list[bool]:
    case = problem("relu", "cross_entropy", 2, "", SMALL)
    data = case.data()
    data[3][1, 2] = 4
    with Emulation(90):
        kernel = cuda.covering(*data, kind=case.kind, precision="ieee")
        assert kernel is not None
        return cuda.launch(kernel, *data, kind=case.kind).task_losses.isnan().tolist()


def test_the_committed_table_is_within_the_limits(repository: Path):
    table = json.loads((repository / "benchmarks/results/kernels_mlp_adapt.json").read_text())
    rows = {(row["workload"], row["architecture"], row["kernel"]): row for row in table["rows"]}
    assert {name for name, _, _ in rows} == set(WORKLOADS)
    five, ten, wide = (rows[name, "sm_90", "CUDA"] for name in WORKLOADS)
    assert five["cycles"] <= 60_000
    assert five["microseconds_of_528_tasks"] <= 80
    assert ten["cycles"] <= 2.2 * five["cycles"]
    assert ten["shared_bytes"] + ten["scratch_bytes"] <= 1.1 * (five["shared_bytes"] + five["scratch_bytes"])
    assert wide["cycles"] <= 400_000
    assert table["launch_microseconds"] <= 15
    for row in table["rows"]:
        assert row.get("stack_bytes", 0) <= 64
        assert not row.get("faults")


def test_sizes_that_always_change_are_tritons(emulated: Worker):
    assert emulated(sizes_that_change) == cuda.MOST_SIZES


def sizes_that_change() -> int:
    """How many of twenty numbers of rows get a variant; those that have one keep it."""
    cases = [problem("relu", "mse", 2, "", (2, 4, 2), rows=rows, queries=3) for rows in range(1, 21)]
    with Emulation(90):
        for _ in range(2):
            cuda._compiled.cache_clear()
            found = [cuda.covering(*each.data(), kind=each.kind, precision="ieee") is not None for each in cases]
            assert sorted(found, reverse=True) == found
    return sum(found)


def test_what_it_does_not_cover_is_tritons(emulated: Worker):
    assert emulated(not_covered) == [True, True, True, False]


def not_covered() -> list[bool]:
    case = problem("relu", "mse", 2, "", SMALL)
    wide = problem("relu", "mse", 2, "", (128, 128, 128, 128))
    found = []
    with Emulation(80):
        for each, activation, precision in (
            (case, "relu", "tf32"), (case, "another", "ieee"), (wide, "relu", "ieee"), (case, "relu", "ieee"),
        ):  # fmt: skip
            kind = (each.kind[0], activation, *each.kind[2:])
            found.append(cuda.covering(*each.data(), kind=kind, precision=precision) is None)
    return found
