"""PTX text, decoded into what ``engine.c`` executes.

What is not known raises :class:`UnsupportedError` with the line; nothing is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_maml.kernels.emulator.operations import CLASSES, CODES, OPS
from lightning_maml.kernels.emulator.order import as_an_assembler, flow

__all__ = ["FIELDS", "Instruction", "Program", "UnsupportedError", "parse"]

FIELDS = [
    "op", "guard", "neg", "nd", "ns", *(f"d{i}" for i in range(4)), *(f"s{i}" for i in range(12)), "width", "vec",
    "wide", "rwide", "target", "reconv", "cls", "trans", *(f"ud{i}" for i in range(4)), *(f"us{i}" for i in range(13)),
    "nus", "imm",
]  # fmt: skip
"""The numbers of an instruction, in the order of ``Ins`` in ``engine.c``."""
_NONE = dict.fromkeys(FIELDS, -1) | {
    "neg": 0, "nd": 0, "ns": 0, "imm": 0, "nus": 0, "trans": 0, "wide": 0, "vec": 1, "width": 4, "rwide": 0
}  # fmt: skip
_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+\s+[\d, ]+\s*)*)\{", re.S)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_PRODUCTS = {("m16n8k8", "tf32"): "mma.tf32", ("m16n8k16", "bf16"): "mma.bf16"}
_MEMORY = {"ld.global": "ldg", "st.global": "stg", "ld.shared": "lds", "st.shared": "sts"}


class UnsupportedError(Exception):
    """The PTX holds what the emulator does not know."""


@dataclass
class Instruction:
    """One instruction, decoded."""

    text: str
    line: int
    """Of the PTX."""
    source: str
    """The line of Python, ``"kernel.py:57"``, with where it was inlined."""
    numbers: dict[str, int] = field(default_factory=_NONE.copy)
    results: list[tuple[str, int]] = field(default_factory=list)
    """Registers, by kind and number."""
    operands: list[tuple[str, int]] = field(default_factory=list)
    kind: str = "other"
    """Its class, one of :data:`~lightning_maml.kernels.emulator.operations.CLASSES`."""
    target: str = ""
    """The label that it branches to."""


@dataclass(frozen=True)
class Program:
    """A kernel, decoded."""

    name: str
    instructions: list[Instruction]
    code: NDArray[np.int32]
    """``[n, len(FIELDS)]``."""
    loops: list[tuple[int, int]]
    """First and last instruction of each innermost loop."""
    count: dict[str, int]
    """Registers of each kind."""
    constants: dict[tuple[str, str | int], int]
    """Registers that hold a number, a symbol or a parameter, by their kind and that."""
    parameters: list[str]
    threads: int


def parse(ptx: str, latency: dict[str, int] | None = None) -> Program:
    """Decode the one entry of a PTX text; with latencies by class, in the order that an assembler could choose.

    Raises:
        UnsupportedError: it holds what the emulator does not know.
    """
    entry = _ENTRY.search(ptx)
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[3]) if entry else None
    if entry is None or threads is None:
        raise UnsupportedError("Expected PTX with an entry and its number of threads but got none.")
    parameters = re.findall(r"\.param\s+\.\w+[^,]*?([\w$]+)\s*(?:,|$)", entry[2].strip() + "\n", re.M)
    files = {number: path.split("/")[-1] for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.M)}
    labels: dict[str, int] = {}
    found = list(_statements(ptx[entry.end() :], ptx[: entry.end()].count("\n") + 1, files, labels))
    decoder = _Decoder(int(threads[1]))
    for instruction in found:
        try:
            decoder.decode(instruction)
        except (UnsupportedError, KeyError, IndexError, StopIteration) as error:
            detail = f": {error}" if isinstance(error, UnsupportedError) else ""
            text = f"PTX line {instruction.line}, {instruction.text}{detail}"
            raise UnsupportedError(f"Expected PTX that the emulator knows but got {text}") from None
    if latency:
        found = as_an_assembler(found, latency, set(labels.values()))
    counts = {kind: len(table) for kind, table in decoder.registers.items()}
    first = {"r": 0, "q": counts["r"], "p": counts["r"] + counts["q"]}
    for instruction in found:
        _number(instruction, first, labels)
    code = [[instruction.numbers[name] for name in FIELDS] for instruction in found]
    loops = flow([instruction.numbers for instruction in found])
    for row, instruction in zip(code, found, strict=True):  # where lanes meet again is known only now
        row[FIELDS.index("reconv")] = instruction.numbers["reconv"]
    return Program(
        entry[1], found, np.array(code, dtype=np.int32), loops, counts, decoder.constants, parameters, int(threads[1])
    )


def _statements(body: str, first: int, files: dict[str, str], labels: dict[str, int]) -> Iterator[Instruction]:
    """The statements of a body, which begins in line ``first``; fills ``labels`` with the instruction behind each."""
    pending, source, count = "", "?", 0
    for number, raw in enumerate(body.split("\n"), first):
        line = raw.split("//")[0].strip()
        if line.startswith(".section") or (line == "}" and not pending and "End function" in raw):
            return
        if where := _LOC.match(line):
            if int(where[2]):
                inlined = f" from {files.get(where[4], '?')}:{where[5]}" if where[5] else ""
                source = f"{files.get(where[1], '?')}:{where[2]}{inlined}"
            continue
        if label := re.match(r"^([\w$]+):", line):
            labels[label[1]] = count
            continue
        if not line or line in ("{", "}") or line.startswith((".file", ".pragma", ".loc", ".reg")):
            continue
        *statements, pending = f"{pending} {line}".split(";")
        for statement in statements:
            if statement.strip():
                yield Instruction(statement.strip(), number, source)
                count += 1
        pending = "" if pending.strip() == "}" else pending.strip()


def _number(instruction: Instruction, first: dict[str, int], labels: dict[str, int]) -> None:
    """Writes down what it uses, with one count for all kinds of registers, and where it branches to."""
    row = instruction.numbers
    if instruction.target:
        row["target"] = labels[instruction.target]
    for name, registers in (("d", instruction.results), ("s", instruction.operands)):
        row[f"n{name}"] = len(registers)
        row.update({f"{name}{i}": index for i, (_, index) in enumerate(registers)})
        row.update({f"u{name}{i}": first[kind] + index for i, (kind, index) in enumerate(registers)})
    row["nus"] = len(instruction.operands)
    if row["guard"] >= 0:
        row[f"us{row['nus']}"] = first["p"] + row["guard"]
        row["nus"] += 1


def _split(text: str) -> list[str]:
    """Operands, which are apart by commas outside of brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()] if current.strip() else parts


def _vector(token: str) -> list[str]:
    return [part.strip() for part in token.strip("{} ").split(",")]


def _kind_of(token: str) -> str:
    """Of a register, by its name: 32 bits, 64 bits or a predicate."""
    named = re.match(r"%([a-z]+)", token)
    return {"rd": "q", "fd": "q", "p": "p"}.get(named[1] if named else "", "r")


class _Decoder:
    """Decodes instructions one after the other, and numbers the registers that they name."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.registers: dict[str, dict[str | int, int]] = {"r": {}, "q": {}, "p": {}}
        self.constants: dict[tuple[str, str | int], int] = {}

    def decode(self, instruction: Instruction) -> None:
        guard = re.match(r"^@(!?)(%\w+)\s+(.*)$", instruction.text, re.S)
        if guard:
            instruction.numbers |= {"guard": self._register("p", guard[2]), "neg": int(bool(guard[1]))}
        opcode, _, tail = (guard[3] if guard else instruction.text).replace("\t", " ").partition(" ")
        tokens, parts = _split(tail), opcode.split(".")
        if parts[0] in ("ld", "st"):
            name = self._parameter(instruction, parts, tokens) if parts[1] == "param" else None
            name = name or self._access(instruction, parts, tokens)
        elif opcode == "mov.b64" and (tokens[0] + tokens[1]).count("{"):
            name = self._halves(instruction, tokens)
        elif parts[0] in ("ldmatrix", "stmatrix"):
            name = self._matrix(instruction, parts, tokens)
        elif parts[0] == "mma":
            name = self._product(instruction, parts, tokens)
        elif parts[:2] == ["cp", "async"]:
            name = self._copy(instruction, parts, tokens)
        elif parts[0] in ("shfl", "redux"):
            name = self._shuffle(instruction, opcode, tokens)
        elif parts[0] in ("bra", "bar", "barrier", "ret", "exit", "membar", "fence"):
            name = self._control(instruction, parts, tokens)
        else:
            name = opcode if len(OPS[opcode][0]) == len(tokens) else f"{opcode} of {len(tokens) - 1}"
            if name not in OPS:
                raise UnsupportedError(f"{len(tokens)} operands of {opcode}")
            signature, _, instruction.kind = OPS[name]
            registers = [(kind, self._operand(token, kind)) for kind, token in zip(signature, tokens, strict=True)]
            instruction.results, instruction.operands = registers[:1], registers[1:]
        instruction.numbers |= {"op": CODES[name], "cls": CLASSES.index(instruction.kind)}

    def _register(self, kind: str, what: str | int, constant: bool = False) -> int:
        table = self.registers[kind]
        if what not in table:
            table[what] = len(table)
            if constant:
                self.constants[kind, what] = table[what]
        return table[what]

    def _operand(self, token: str, kind: str) -> int:
        if token.startswith("%") and "." not in token and not token.startswith(("%laneid", "%warpid")):
            if _kind_of(token) != kind:
                raise UnsupportedError(f"{token} where {kind} is expected")
            return self._register(kind, token)
        if token == "_":
            return self._register(kind, "%sink")
        if bits := re.match(r"^0(?:[fF]([0-9a-fA-F]{8})|[dD]([0-9a-fA-F]{16}))$", token):
            return self._register(kind, int(bits[1] or bits[2], 16), True)
        if re.match(r"^-?(0x[0-9a-fA-F]+|\d+)U?$", token):
            value = int(token.rstrip("U"), 0)
            return self._register(kind, value & (0xFFFFFFFF if kind == "r" else 0xFFFFFFFFFFFFFFFF), True)
        if re.match(r"^(%|[\w$]+$)", token):  # a special register, or a symbol
            return self._register(kind, token, True)
        raise UnsupportedError(f"operand {token!r}")

    def _listed(self, tokens: list[str], kind: str = "r") -> list[tuple[str, int]]:
        return [(kind, self._operand(token, kind)) for token in tokens]

    def _address(self, instruction: Instruction, token: str) -> None:
        inside = re.match(r"^\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$", token)
        if inside is None:
            raise UnsupportedError(f"address {token}")
        kind = _kind_of(inside[1]) if inside[1].startswith("%") else "r"
        instruction.numbers |= {"imm": int(inside[2], 0) if inside[2] else 0, "wide": int(kind == "q")}
        instruction.operands.append((kind, self._operand(inside[1], kind)))

    def _parameter(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        inside = re.match(r"^\[\s*([\w$]+)\s*\]$", tokens[1])
        if parts[0] == "st" or inside is None:
            raise UnsupportedError(f"parameter {tokens[1]}")
        kind, instruction.kind = _kind_of(tokens[0]), "mov"
        instruction.results = self._listed(tokens[:1], kind)
        instruction.operands = [(kind, self._register(kind, inside[1], True))]
        return "mov.b64" if kind == "q" else "mov.b32"

    def _access(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        name = f"{parts[0]}.{parts[1].split('::')[0]}"
        loads, row = parts[0] == "ld", instruction.numbers
        instruction.kind = "ldg" if "nc" in parts else _MEMORY[name]
        row["width"] = _BYTES[re.sub(r"\D", "", parts[-1])]
        row["trans"] = int(parts[-1] in ("s8", "s16", "s32"))  # sign extension
        values, place = tokens if loads else tokens[::-1]
        self._address(instruction, place)
        listed = _vector(values)
        # a register may be wider than what is loaded or stored
        kinds = {_kind_of(token) for token in listed if token.startswith("%") and "." not in token}
        kind = kinds.pop() if kinds else "q" if row["width"] == 8 else "r"
        row |= {"vec": len(listed), "rwide": int(kind == "q")}
        (instruction.results if loads else instruction.operands).extend(self._listed(listed, kind))
        return name

    def _halves(self, instruction: Instruction, tokens: list[str]) -> str:
        instruction.kind = "mov"
        whole, halves = tokens if tokens[1].startswith("{") else tokens[::-1]
        of_whole, of_halves = self._listed([whole], "q"), self._listed(_vector(halves))
        packs = tokens[1] == halves
        instruction.results, instruction.operands = (of_whole, of_halves) if packs else (of_halves, of_whole)
        return "pack" if packs else "unpack"

    def _matrix(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        loads = parts[0] == "ldmatrix"
        if "m8n8" not in parts or parts[-1] != "b16":
            raise UnsupportedError("another shape than m8n8 of 16 bits")
        instruction.kind = "ldsm" if loads else "sts"
        values, place = tokens if loads else tokens[::-1]
        self._address(instruction, place)
        registers = self._listed(_vector(values))
        instruction.numbers |= {"trans": int("trans" in parts), "vec": len(registers)}
        (instruction.results if loads else instruction.operands).extend(registers)
        return parts[0]

    def _product(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        shape = next(part for part in parts if re.match(r"m\d+n\d+k\d+", part))
        result, operand = parts[parts.index("col") + 1 :][:2]
        name = _PRODUCTS.get((shape, operand))
        if name is None or result != "f32":
            raise UnsupportedError(f"a product of {shape}, {operand}")
        instruction.kind = "mma"
        instruction.results = self._listed(_vector(tokens[0]))
        for token in tokens[1:]:
            instruction.operands += self._listed(_vector(token))
        return name

    def _copy(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        row = instruction.numbers
        if parts[2] == "commit_group":
            return "cp.commit"
        if parts[2] == "wait_group":
            row["imm"] = int(tokens[0], 0)
            return "cp.wait"
        if parts[2] not in ("ca", "cg") or len(tokens) not in (3, 4):
            raise UnsupportedError("a copy of another kind")
        instruction.kind = "ldg"
        self._address(instruction, tokens[1])  # global, then shared
        far, is_wide = row["imm"], row["wide"]
        self._address(instruction, tokens[0])
        if row["imm"] or far or not is_wide:
            raise UnsupportedError("addresses of a copy")
        row |= {"rwide": row["wide"], "wide": 1, "width": int(tokens[2], 0)}
        instruction.operands += self._listed(tokens[3:])  # how many bytes are read; the others are zero
        return "cp"

    def _shuffle(self, instruction: Instruction, opcode: str, tokens: list[str]) -> str:
        instruction.kind = "shfl"
        instruction.results = self._listed([tokens[0].split("|")[0]])
        if opcode.startswith("shfl"):
            instruction.operands = self._listed(tokens[1:5])
            return f"shfl.{opcode.split('.')[2]}"
        if opcode not in ("redux.sync.max.f32", "redux.sync.min.f32"):
            raise UnsupportedError(f"reduction {opcode}")
        instruction.numbers["trans"] = int("max" in opcode)
        instruction.operands = self._listed(tokens[1:2])
        return "redux"

    def _control(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        match parts[0]:
            case "bra":
                instruction.target, instruction.kind = tokens[-1], "bra"
                return "bra"
            case "ret" | "exit":
                return "ret"
            case "membar" | "fence":
                return "fence"
        if parts[1] == "warp":
            return "warpsync"
        whole = len(tokens) < 2 or int(tokens[1]) == self.threads
        if "sync" not in parts or tokens[0] != "0" or not whole:
            raise UnsupportedError("a barrier of a part of the threads")
        instruction.kind = "bar"
        return "bar"
