"""PTX text, decoded into what ``engine.c`` executes: what is not known raises an error with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning_maml.kernels.emulator.engine import Ins
from lightning_maml.kernels.emulator.operations import CLASSES, CODES, OPS, TOGETHER
from lightning_maml.kernels.emulator.order import as_an_assembler, write_reconvergence

_DEFAULTS = {"guard": -1, "target": -1, "reconv": -1, "width": 4, "vec": 1, "wide": 0, "rwide": 0, "trans": 0, "imm": 0}
_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+\s+[\d, ]+\s*)*)\{", re.DOTALL)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?(\S+)\s*(.*)", re.DOTALL)
_PRODUCTS = {("m16n8k8", "tf32"): "mma.tf32", ("m16n8k16", "bf16"): "mma.bf16"}
_MEMORY = {"ld.global": "ldg", "st.global": "stg", "ld.shared": "lds", "st.shared": "sts"}


class UnsupportedError(Exception):
    """The PTX holds what the emulator does not know."""


@dataclass
class Instruction:
    """One instruction, decoded.

    Args:
        text, line: its PTX, and the line that it stands in.
        source: the line of Python, ``"kernel.py:57"``, with where it was inlined.
        numbers: what ``engine.c`` is told of it, but for its registers.
        results, operands: registers, by the first of their rows.
        kind: its class, one of :data:`~lightning_maml.kernels.emulator.operations.CLASSES`.
        target: the label that it branches to.
    """

    text: str
    line: int
    source: str
    numbers: dict[str, int] = field(default_factory=_DEFAULTS.copy)
    results: list[int] = field(default_factory=list)
    operands: list[int] = field(default_factory=list)
    kind: str = "other"
    target: str = ""

    def in_c(self) -> Any:
        latency, cost = CLASSES[self.kind]
        registers = {"nd": len(self.results), "d": tuple(self.results), "ns": len(self.operands)}
        return Ins(**self.numbers, **registers, s=tuple(self.operands), latency=latency, cost=cost)


@dataclass(frozen=True)
class Program:
    """A kernel, decoded: its instructions, and the same as an array of ``Ins``.

    A register of 64 bits takes two ``rows``. ``constants`` are those that hold a number, a symbol or a parameter.
    """

    name: str
    instructions: list[Instruction]
    code: Any
    rows: int
    constants: dict[tuple[str, str | int], int]
    parameters: list[str]
    threads: int


def parse(ptx: str, scheduled: bool = False) -> Program:
    """The one entry of a PTX text, or UnsupportedError; ``scheduled``, in an order that an assembler could choose."""
    entry = _ENTRY.search(ptx)
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[3]) if entry else None
    if entry is None or threads is None:
        raise UnsupportedError("Expected PTX with an entry and its number of threads but got none.")
    parameters = re.findall(r"\.param\s+\.\w+[^,]*?([\w$]+)\s*(?:,|$)", entry[2].strip() + "\n", re.MULTILINE)
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', ptx, re.MULTILINE))
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
    if scheduled:
        found = as_an_assembler(found, set(labels.values()))
    for instruction in found:
        if instruction.target:
            instruction.numbers["target"] = labels[instruction.target]
    write_reconvergence([instruction.numbers for instruction in found])
    code = (Ins * len(found))(*(instruction.in_c() for instruction in found))
    return Program(entry[1], found, code, decoder.rows, decoder.constants, parameters, int(threads[1]))


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
        elif label := re.match(r"([\w$]+):", line):
            labels[label[1]] = count
        elif line and line not in ("{", "}") and not line.startswith((".file", ".pragma", ".loc", ".reg")):
            *statements, pending = f"{pending} {line}".split(";")
            for statement in filter(None, map(str.strip, statements)):
                yield Instruction(statement, number, source)
                count += 1
            pending = "" if pending.strip() == "}" else pending.strip()


def _vector(token: str) -> list[str]:
    return re.findall(r"[^\s,{}]+", token)


def _kind_of(token: str) -> str:
    """Of a register, by its name: 32 bits, 64 bits or a predicate."""
    named = re.match(r"%([a-z]+)", token)
    return {"rd": "q", "fd": "q", "p": "p"}.get(named[1] if named else "", "r")


class _Decoder:
    """Decodes instructions one after the other, and numbers the rows of the registers that they name."""

    def __init__(self, threads: int) -> None:
        self.threads, self.rows = threads, 0
        self.registers: dict[tuple[str, str | int], int] = {}
        self.constants: dict[tuple[str, str | int], int] = {}

    def decode(self, instruction: Instruction) -> None:
        negated, guard, opcode, tail = _INSTRUCTION.fullmatch(instruction.text).groups()  # type: ignore[union-attr]
        if guard:
            instruction.numbers |= {"guard": self._register("p", guard), "neg": int(bool(negated))}
        tokens = [token.strip() for token in re.split(r",(?![^{\[]*[}\]])", tail) if token.strip()]
        parts = opcode.split(".")
        match parts[0]:
            case "ld" if parts[1] == "param":
                name = self._parameter(instruction, tokens)
            case "ld" | "st" | "ldmatrix" | "stmatrix":
                name = self._access(instruction, parts, tokens)
            case "mov" if opcode in ("mov.b64", "mov.b32") and "{" in tail:
                name = self._halves(instruction, tokens, opcode == "mov.b64")
            case "mma":
                name = self._product(instruction, parts, tokens)
            case "cp":
                name = self._copy(instruction, parts, tokens)
            case "shfl" | "redux":
                name = self._shuffle(instruction, opcode, tokens)
            case "bra" | "bar" | "barrier" | "ret" | "exit" | "membar" | "fence":
                name = self._control(instruction, parts, tokens)
            case _:
                name = opcode if len(OPS[opcode][0]) == len(tokens) else f"{opcode} of {len(tokens) - 1}"
                if name not in OPS:
                    raise UnsupportedError(f"{len(tokens)} operands of {opcode}")
                signature, _, instruction.kind = OPS[name]
                registers = [self._operand(token, kind) for kind, token in zip(signature, tokens, strict=True)]
                instruction.results, instruction.operands = registers[:1], registers[1:]
        instruction.numbers |= {"op": CODES[name], "together": int(name in TOGETHER)}

    def _register(self, kind: str, what: str | int, constant: bool = False) -> int:
        if (kind, what) not in self.registers:
            self.registers[kind, what] = self.rows
            self.rows += 2 if kind == "q" else 1
        if constant:
            self.constants[kind, what] = self.registers[kind, what]
        return self.registers[kind, what]

    def _operand(self, token: str, kind: str = "r") -> int:
        if token.startswith("%") and "." not in token and token not in ("%laneid", "%warpid"):
            if _kind_of(token) != kind:
                raise UnsupportedError(f"{token} where {kind} is expected")
            return self._register(kind, token)
        if token == "_":
            return self._register(kind, "%sink")
        if bits := re.fullmatch(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", token):
            return self._register(kind, int(bits[1], 16), True)
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", token):
            return self._register(kind, int(token.rstrip("U"), 0), True)
        if re.fullmatch(r"%.*|[\w$]+", token):  # a special register, or a symbol
            return self._register(kind, token, True)
        raise UnsupportedError(f"operand {token!r}")

    def _operands(self, tokens: list[str], kind: str = "r") -> list[int]:
        return [self._operand(token, kind) for token in tokens]

    def _address(self, instruction: Instruction, token: str) -> None:
        inside = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", token)
        if inside is None:
            raise UnsupportedError(f"address {token}")
        kind = _kind_of(inside[1])
        instruction.numbers |= {"imm": int(inside[2] or "0", 0), "wide": int(kind == "q")}
        instruction.operands.append(self._operand(inside[1], kind))

    def _parameter(self, instruction: Instruction, tokens: list[str]) -> str:
        inside = re.fullmatch(r"\[\s*([\w$]+)\s*\]", tokens[1])
        if inside is None:
            raise UnsupportedError(f"parameter {tokens[1]}")
        kind, instruction.kind = _kind_of(tokens[0]), "mov"
        instruction.results = [self._operand(tokens[0], kind)]
        instruction.operands = [self._register(kind, inside[1], True)]
        return "mov.b64" if kind == "q" else "mov.b32"

    def _access(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        name, row, loads = parts[0], instruction.numbers, parts[0].startswith("ld")
        values, place = tokens if loads else tokens[::-1]
        self._address(instruction, place)
        listed, kind = _vector(values), "r"
        if name.endswith("matrix"):
            if "m8n8" not in parts or parts[-1] != "b16":
                raise UnsupportedError("another shape than m8n8 of 16 bits")
            instruction.kind = "ldsm" if loads else "sts"
            row["trans"] = int("trans" in parts)
        else:
            name = f"{name}.{parts[1].split('::')[0]}"
            instruction.kind = "ldg" if "nc" in parts else _MEMORY[name]
            row["width"] = _BYTES[re.sub(r"\D", "", parts[-1])]
            row["trans"] = int(parts[-1] in ("s8", "s16", "s32"))  # sign extension
            # a register may be wider than what is loaded or stored
            kinds = {_kind_of(token) for token in listed if token.startswith("%") and "." not in token}
            kind = kinds.pop() if kinds else "q" if row["width"] == 8 else "r"
        row |= {"vec": len(listed), "rwide": int(kind == "q")}
        (instruction.results if loads else instruction.operands).extend(self._operands(listed, kind))
        return name

    def _halves(self, instruction: Instruction, tokens: list[str], wide: bool) -> str:
        packs, instruction.kind = tokens[1].startswith("{"), "mov"
        whole = "q" if wide else "r"
        kinds = (whole, "r") if packs else ("r", whole)
        registers = (self._operands(_vector(token), kind) for token, kind in zip(tokens, kinds, strict=True))
        instruction.results, instruction.operands = registers
        return ("pack" if packs else "unpack") + ("" if wide else ".b32")

    def _product(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        shape = next(part for part in parts if re.match(r"m\d+n\d+k\d+", part))
        result, operand = parts[parts.index("col") + 1 :][:2]
        name = _PRODUCTS.get((shape, operand))
        if name is None or result != "f32":
            raise UnsupportedError(f"a product of {shape}, {operand}")
        instruction.kind = "mma"
        instruction.results = self._operands(_vector(tokens[0]))
        instruction.operands = self._operands(_vector(" ".join(tokens[1:])))
        return name

    def _copy(self, instruction: Instruction, parts: list[str], tokens: list[str]) -> str:
        row = instruction.numbers
        if parts[1:3] == ["async", "commit_group"]:
            return "cp.commit"
        if parts[1:3] == ["async", "wait_group"]:
            row["imm"] = int(tokens[0], 0)
            return "cp.wait"
        if parts[1] != "async" or parts[2] not in ("ca", "cg") or len(tokens) not in (3, 4):
            raise UnsupportedError("a copy of another kind")
        instruction.kind = "ldg"
        self._address(instruction, tokens[1])  # global, then shared
        far, is_wide = row["imm"], row["wide"]
        self._address(instruction, tokens[0])
        if row["imm"] or far or not is_wide:
            raise UnsupportedError("addresses of a copy")
        row |= {"rwide": row["wide"], "wide": 1, "width": int(tokens[2], 0)}
        instruction.operands += self._operands(tokens[3:])  # how many bytes are read; the others are zero
        return "cp"

    def _shuffle(self, instruction: Instruction, opcode: str, tokens: list[str]) -> str:
        instruction.kind = "shfl"
        instruction.results = [self._operand(tokens[0].split("|")[0])]
        if opcode.startswith("shfl"):
            instruction.operands = self._operands(tokens[1:5])
            return f"shfl.{opcode.split('.')[2]}"
        if opcode not in ("redux.sync.max.f32", "redux.sync.min.f32"):
            raise UnsupportedError(f"reduction {opcode}")
        instruction.numbers["trans"] = int("max" in opcode)
        instruction.operands = [self._operand(tokens[1])]
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
