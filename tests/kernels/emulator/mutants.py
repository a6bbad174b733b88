"""Kernels with a fault put into their PTX."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import emulated as e
from lightning_maml.kernels.emulator import Emulation, Launch
from lightning_maml.kernels.emulator.operations import CODES
from lightning_maml.kernels.mlp_adapt import kernel

BARRIERS = [
    e.Problem("tiles of rows", (6, 70, 11, 4), "gelu", "cross_entropy", 20, 9, 2, rates_grad=True, tasks=1),
    e.Problem("one tile", (8, 24, 20, 40), "relu", "cross_entropy", 9, 9, 2, tasks=1),
]
"""In the second what was stored last is what is read first, by other threads: the first has barriers between them."""


def changed(entry: str, line: int, pattern: str, by: str) -> Callable[[str], str]:
    """Of the PTX with this entry, one line in which a pattern is replaced."""

    def change(text: str) -> str:
        if f".entry {entry}(" not in text:
            return text
        rows = text.split("\n")
        rows[line - 1], count = re.subn(pattern, by, rows[line - 1], count=1)
        assert count == 1, f"no {pattern} in {rows[line - 1]}"
        return "\n".join(rows)

    return change


class Barrier(NamedTuple):
    """One taken out."""

    kernel: str
    source: str
    asked_for: bool
    """By the kernel, with ``tl.debug_barrier()``; others are Triton's own."""
    noticed: bool
    around: tuple[frozenset[str], frozenset[str]]
    """The classes of accesses that run between it and the barriers before it, and behind it."""


def without_each_barrier(problem: e.Problem, arch: int) -> list[Barrier]:
    """Every barrier of a problem's kernels, taken out one at a time."""
    lines = Path(kernel.__file__).read_text().split("\n")
    with Emulation(arch) as emulation:
        problem.launch("ieee")
    assert emulation.faults() == []
    found = []
    for launch in emulation.launches:
        for index, instruction in enumerate(launch.program.instructions):
            if instruction.kind != "bar" or not launch.count[index]:
                continue
            change = changed(launch.kernel, instruction.line, r"bar(rier)?\.sync\s+0;", "")
            with Emulation(arch, change=change) as mutant:
                problem.launch("ieee")
            own = re.fullmatch(r"kernel\.py:(\d+)", instruction.source)
            asked_for = own is not None and "tl.debug_barrier()" in lines[int(own[1]) - 1]
            noticed = any("race" in fault for fault in mutant.faults())
            around = _accesses(launch, index)
            found.append(Barrier(launch.kernel, instruction.source, asked_for, noticed, around))
    return found


def _accesses(launch: Launch, barrier: int) -> tuple[frozenset[str], frozenset[str]]:
    instructions = launch.program.instructions
    after: list[list[int]] = []
    for i, instruction in enumerate(instructions):
        jumps = instruction.numbers["op"] == CODES["bra"]
        passes = instruction.numbers["op"] not in (CODES["bra"], CODES["ret"]) or instruction.numbers["guard"] >= 0
        after.append([instruction.numbers["target"]] * jumps + [i + 1] * (passes and i + 1 < len(instructions)))
    before: list[list[int]] = [[] for _ in instructions]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)

    def reached(graph: list[list[int]]) -> frozenset[str]:
        seen: set[int] = set()
        ways = list(graph[barrier])
        while ways:
            i = ways.pop()
            if i not in seen and instructions[i].kind != "bar":
                seen.add(i)
                ways += graph[i]
        return frozenset(instructions[i].kind for i in seen if launch.count[i])

    return reached(before), reached(after)


def unnoticed(problem: e.Problem, precision: str, entry: str, pattern: str, by: str) -> set[str]:
    """Lines of Python of whose instructions with a pattern no mutant is noticed; some make what nothing depends on."""
    with Emulation(90) as emulation:
        problem.launch(precision)
    launch = next(launch for launch in emulation.launches if launch.kernel == entry)
    found: dict[str, list[int]] = {}
    for instruction, lanes in zip(launch.program.instructions, launch.lanes, strict=True):
        if lanes and re.search(pattern, instruction.text):
            found.setdefault(instruction.source, []).append(instruction.line)
    assert found, f"no {pattern} runs in {entry}"

    def noticed(line: int) -> bool:
        change = changed(entry, line, pattern, by)
        return bool(e.complaints(problem, precision, 90, ("forward",), change=change))

    return {source for source, lines in found.items() if not any(map(noticed, lines))}
