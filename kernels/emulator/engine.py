"""``engine.c`` in Python: its structures, and the library, built once for its text."""

import ctypes as C
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_maml.kernels.compiler import build
from lightning_maml.kernels.emulator.operations import BARRIER, CODES, FAR, SPECIAL, cases

TEXT = Path(__file__).with_name("engine.c").read_text()
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fwrapv"]
FLAGS += ["-shared", "-fPIC"]
KINDS = {
    "RACE_WW": ("race: write after write", True),
    "RACE_RW": ("race: read after write", True),
    "RACE_WR": ("race: write after read", True),
    "SAME_WW": ("two warps write the same value", False),
    "UNINIT": ("read of memory never written", True),
    "OUTSIDE": ("outside of memory", True),
    "MISALIGNED": ("misaligned", True),
    "READONLY": ("write to an input", True),
    "DIVERGED": ("not all lanes take part", True),
    "MISMATCH": ("warps at different barriers", True),
    "INTRA": ("lanes of a warp without bar.warp.sync", False),
    "PROGRAMS": ("two programs meet in memory", True),
    "CONFLICT": ("lanes write different values to one place", False),
    "ENDLESS": ("endless", True),
}
"""What is found, by its name in C: in words, and whether it is a fault; what is not is a remark."""
READABLE, WRITABLE, WRITTEN = 1, 2, 4  # the state of a cell of memory, one bit each
NUMBERS = {
    "READABLE": READABLE, "WRITABLE": WRITABLE, "WRITTEN": WRITTEN, "FAR": FAR, "BARRIER": BARRIER,
    "MOST_FINDINGS": 256, "MOST_WARPS": 32,
    "MOST_INSTRUCTIONS": 200_000_000,  # of a program: more is an endless loop
    **{name: number for number, name in enumerate(KINDS)},
    **{f"OP_{name.upper().replace('.', '_')}": CODES[name] for name in SPECIAL},
}  # fmt: skip
"""Names that C has for numbers of Python's."""


def _structures() -> dict[str, Any]:
    """The classes of the structures that ``engine.c`` declares up to ``Emulator``."""
    kinds: dict[str, Any] = {f"{kind}_t": getattr(C, f"c_{kind}") for kind in ("int32", "uint32", "int64", "uint64")}
    kinds["uint8_t"] = C.c_uint8
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", re.sub(r"/\*.*?\*/", "", TEXT), re.DOTALL):
        fields = []
        for kind, declared in re.findall(r"(\w+) ([^;]+);", body):
            for star, field, length in re.findall(r"(\*?)(\w+)(?:\[(\w+)\])?", declared):
                of = C.c_void_p if star else kinds[kind]
                fields.append((field, of * int(NUMBERS.get(length, length)) if length else of))
        kinds[name] = type(name, (C.Structure,), {"_fields_": fields})
        if name == "Emulator":
            break
    return kinds


_KINDS = _structures()
Ins, Cell, Emulator = _KINDS["Ins"], _KINDS["Cell"], _KINDS["Emulator"]


@lru_cache
def engine() -> C.CDLL:
    """The library; RuntimeError where there is no C compiler."""
    numbers = "\n".join(f"#define {name} {number}" for name, number in NUMBERS.items())
    try:
        library = build("emulator", TEXT.replace("/*@DEFINES@*/", numbers).replace("/*@CASES@*/", cases()), FLAGS)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"Expected to compile the emulator but {error}") from None
    library.run_program.argtypes = [C.POINTER(Emulator), C.c_int, C.c_int, C.c_uint64]
    return library
