"""Instructions in an order that an assembler could choose, and where lanes that diverged meet again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lightning_maml.kernels.emulator.operations import CLASSES, CODES

if TYPE_CHECKING:
    from lightning_maml.kernels.emulator.ptx import Instruction

PINNED = {CODES[name] for name in ("bra", "ret", "bar", "warpsync", "fence", "cp", "cp.commit", "cp.wait")}
"""What no instruction passes."""
_SPACES = {"ldg": "global", "stg": "global", "lds": "shared", "sts": "shared", "ldsm": "shared"}
_Edges = list[dict[int, int]]


def as_an_assembler(instructions: Sequence[Instruction], starts: set[int]) -> list[Instruction]:
    """Within each basic block, what others wait for longest comes first.

    Registers are without limit; accesses to one memory keep their order but for loads among themselves, and none passes
    a barrier. ``starts``: instructions that a label stands before.
    """
    order: list[Instruction] = []
    block: list[Instruction] = []
    for i, instruction in enumerate(instructions):
        pinned = instruction.numbers["op"] in PINNED
        if pinned or i in starts:
            order += _longest_first(block)
            block = []
        (order if pinned else block).append(instruction)
    return order + _longest_first(block)


def _waits(block: Sequence[Instruction]) -> _Edges:
    """Of each instruction, which later ones have to follow it, and by how many cycles."""
    after: _Edges = [{} for _ in block]
    writer: dict[int | str, int] = {}  # of a register, or of memory
    readers: dict[int | str, list[int]] = {}
    for i, instruction in enumerate(block):
        reads: list[int | str] = [*instruction.operands]
        writes: list[int | str] = [*instruction.results]
        if instruction.numbers["guard"] >= 0:
            reads += [instruction.numbers["guard"], *instruction.results]
        if space := _SPACES.get(instruction.kind):
            (writes if instruction.kind in ("stg", "sts") else reads).append(space)
        for key in reads:
            if (maker := writer.get(key)) is not None:
                wait = 1 if isinstance(key, str) else CLASSES[block[maker].kind][0]
                after[maker][i] = max(after[maker].get(i, 0), wait)
        for key in writes:
            for reader in readers.get(key, []):
                after[reader].setdefault(i, 0)
            if (maker := writer.get(key)) is not None:
                after[maker][i] = max(after[maker].get(i, 0), 1)
            writer[key], readers[key] = i, []
        for key in reads:
            readers.setdefault(key, []).append(i)
    return after


def _longest_first(block: Sequence[Instruction]) -> list[Instruction]:
    after = _waits(block)
    height, missing, ready_at = ([0] * len(block) for _ in range(3))
    for i in reversed(range(len(block))):
        ends = (wait + height[j] for j, wait in after[i].items())
        height[i] = max(ends, default=CLASSES[block[i].kind][0])
        for j in after[i]:
            missing[j] += 1
    ready = [i for i in range(len(block)) if not missing[i]]
    order: list[Instruction] = []
    now = 0
    while ready:
        _, _, chosen = min((max(ready_at[i], now), -height[i], i) for i in ready)
        ready.remove(chosen)
        now = max(now, ready_at[chosen])
        order.append(block[chosen])
        for j, wait in after[chosen].items():
            ready_at[j] = max(ready_at[j], now + wait)
            missing[j] -= 1
            if not missing[j]:
                ready.append(j)
        now += 1
    return order


def write_reconvergence(rows: Sequence[dict[str, int]]) -> None:
    """Writes into every branch, as ``reconv``, where its lanes meet again: its block's immediate post-dominator."""
    bra, ret = CODES["bra"], CODES["ret"]
    starts = {0} | {row["target"] for row in rows if row["op"] == bra}
    starts |= {i + 1 for i, row in enumerate(rows) if row["op"] in (bra, ret) and i + 1 < len(rows)}
    blocks = [(start, end - 1) for start, end in pairwise([*sorted(starts), len(rows)])]
    number = {start: i for i, (start, _) in enumerate(blocks)}
    leave = len(blocks)
    following: list[set[int]] = []
    for _, last in blocks:
        row = rows[last]
        after = {number[row["target"]]} if row["op"] == bra else {leave} if row["op"] == ret else set()
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
