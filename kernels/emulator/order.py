"""Instructions in an order that an assembler could choose, and where lanes that diverged meet again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lightning_maml.kernels.emulator.operations import CODES

if TYPE_CHECKING:
    from lightning_maml.kernels.emulator.ptx import Instruction

__all__ = ["as_an_assembler", "flow"]

PINNED = {CODES[name] for name in ("bra", "ret", "bar", "warpsync", "fence", "cp", "cp.commit", "cp.wait")}
"""What no instruction passes."""
_SPACES = {"ldg": "global", "stg": "global", "lds": "shared", "sts": "shared", "ldsm": "shared"}
_Edges = dict[int, dict[int, int]]


def as_an_assembler(
    instructions: Sequence[Instruction], latency: dict[str, int], starts: set[int]
) -> list[Instruction]:
    """Within each basic block, what others wait for longest comes first.

    Registers are without limit; accesses to one memory keep their order but for loads among themselves, and none passes
    a barrier. ``starts``: instructions that a label stands before.
    """
    order: list[int] = []
    begin = 0
    while begin < len(instructions):
        end = begin
        while end < len(instructions) and not _ends(instructions, begin, end, starts):
            end += 1
        block = range(begin, end)
        order += _longest_first(block, _waits(instructions, block, latency), instructions, latency)
        if (
            end < len(instructions)
            and instructions[end].numbers["op"] in PINNED
            and (end == begin or end not in starts)
        ):
            order.append(end)
            end += 1
        begin = end
    return [instructions[i] for i in order]


def _ends(instructions: Sequence[Instruction], begin: int, end: int, starts: set[int]) -> bool:
    return instructions[end].numbers["op"] in PINNED or (end > begin and end in starts)


def _waits(instructions: Sequence[Instruction], block: range, latency: dict[str, int]) -> _Edges:
    """Of each instruction, which later ones have to follow it, and by how many cycles."""
    after: _Edges = {i: {} for i in block}
    writer: dict[tuple[str, str | int], int] = {}
    readers: dict[tuple[str, str | int], list[int]] = {}
    for i in block:
        instruction = instructions[i]
        reads: list[tuple[str, str | int]] = [*instruction.operands]
        writes: list[tuple[str, str | int]] = [*instruction.results]
        if instruction.numbers["guard"] >= 0:
            reads += [("p", instruction.numbers["guard"]), *instruction.results]
        if space := _SPACES.get(instruction.kind):
            (writes if instruction.kind in ("stg", "sts") else reads).append((space, "memory"))
        for key in reads:
            if (maker := writer.get(key)) is not None:
                wait = 1 if key[1] == "memory" else latency[instructions[maker].kind]
                after[maker][i] = max(after[maker].get(i, 0), wait)
        for key in writes:
            for reader in readers.get(key, []):
                if reader != i:
                    after[reader].setdefault(i, 0)
            if (maker := writer.get(key)) is not None:
                after[maker][i] = max(after[maker].get(i, 0), 1)
            writer[key], readers[key] = i, []
        for key in reads:
            readers.setdefault(key, []).append(i)
    return after


def _longest_first(
    block: range, after: _Edges, instructions: Sequence[Instruction], latency: dict[str, int]
) -> list[int]:
    height, missing = dict.fromkeys(block, 0), dict.fromkeys(block, 0)
    for i in reversed(block):
        ends = (wait + height[j] for j, wait in after[i].items())
        height[i] = max(ends, default=latency[instructions[i].kind])
        for j in after[i]:
            missing[j] += 1
    ready_at, ready = dict.fromkeys(block, 0), [i for i in block if not missing[i]]
    order: list[int] = []
    now = 0
    while ready:
        _, _, chosen = min((max(ready_at[i], now), -height[i], i) for i in ready)
        ready.remove(chosen)
        now = max(now, ready_at[chosen])
        order.append(chosen)
        for j, wait in after[chosen].items():
            ready_at[j] = max(ready_at[j], now + wait)
            missing[j] -= 1
            if not missing[j]:
                ready.append(j)
        now += 1
    return order


def flow(rows: Sequence[dict[str, int]]) -> list[tuple[int, int]]:
    """The innermost loops: blocks that branch to their own start, as LLVM writes them.

    Writes into every branch, as ``reconv``, where its lanes meet again: its block's immediate post-dominator.
    """
    bra, ret = CODES["bra"], CODES["ret"]
    starts = {0} | {row["target"] for row in rows if row["op"] == bra}
    starts |= {i + 1 for i, row in enumerate(rows) if row["op"] in (bra, ret) and i + 1 < len(rows)}
    order = [*sorted(starts), len(rows)]
    blocks = [(start, end - 1) for start, end in pairwise(order)]
    number = {start: i for i, (start, _) in enumerate(blocks)}
    leave = len(blocks)
    following: list[set[int]] = []
    for _, last in blocks:
        row, after = rows[last], set()
        if row["op"] == bra:
            after.add(number[row["target"]])
        if row["op"] == ret:
            after.add(leave)
        if row["op"] not in (bra, ret) or row["guard"] >= 0:
            after.add(number.get(last + 1, leave))
        following.append(after)
    post = [set(range(leave + 1)) for _ in blocks] + [{leave}]
    changed = True
    while changed:
        changed = False
        for i in reversed(range(leave)):
            found = {i} | set.intersection(*(post[j] for j in following[i]))
            if found != post[i]:
                post[i], changed = found, True
    for i, (_, last) in enumerate(blocks):
        if rows[last]["op"] == bra and rows[last]["guard"] >= 0:
            nearest = max(post[i] - {i}, key=lambda j: len(post[j]))
            rows[last]["reconv"] = len(rows) if nearest == leave else blocks[nearest][0]
    return [(start, last) for i, (start, last) in enumerate(blocks) if i in following[i]]
