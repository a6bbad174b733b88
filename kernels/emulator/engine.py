"""``engine.c`` in Python: built once for its text, and the structures that it is given."""

from __future__ import annotations

import ctypes as C
from functools import lru_cache
from pathlib import Path

import numpy as np

from lightning_maml.kernels.compiler import build
from lightning_maml.kernels.emulator.operations import cases, defines

__all__ = ["KINDS", "SHADOW", "Finding", "State", "engine"]

SOURCE = Path(__file__).with_name("engine.c")
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-shared", "-fPIC"]
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
SHADOW = np.dtype(
    [
        ("wepoch", "u4"), ("repoch", "u4"), ("wwarp", "u1"), ("rmask", "u1"), ("wlane", "u1"), ("init", "u1"),
        ("wsync", "u4"), ("wtick", "u4"), ("wpc", "i4"), ("rpc", "i4"), ("wcta", "i4"), ("rcta", "i4"),
    ]
)  # fmt: skip
"""What is known about four bytes of global or two bytes of shared memory."""


class Finding(C.Structure):
    """Something found, and how often."""

    _fields_ = (
        *((name, C.c_int32) for name in ("kind", "pc", "pc2", "warp", "warp2", "lane", "cta")),
        ("address", C.c_int64),
        ("count", C.c_int64),
    )


class State(C.Structure):
    """``Emulator`` in C: a decoded kernel, its memory, what is counted; from one program of a launch to the next."""

    _fields_ = (
        ("code", C.c_void_p),
        *((name, C.c_int32) for name in ("n", "warps", "nr", "nq", "np", "nu")),
        *((name, C.c_void_p) for name in ("init_r", "init_q", "init_p")),
        *((name, C.c_int32) for name in ("tid_x", "laneid")),
        ("global_", C.c_void_p), ("gbase", C.c_uint64), ("gsize", C.c_int64), ("region", C.c_void_p),
        ("gshadow", C.c_void_p), ("shared", C.c_void_p), ("sbase", C.c_uint32), ("ssize", C.c_int32),
        ("sshadow", C.c_void_p),
        *((name, C.c_void_p) for name in ("count", "lanes", "sectors", "wavefronts", "missed")),
        *((name, C.c_void_p) for name in ("l1", "stall", "latency", "cost")),
        *((name, C.c_int32) for name in ("far_latency", "bar_latency", "rz", "operands")),
        ("epoch", C.c_uint32), ("l1_stamp", C.c_uint32),
        ("findings", C.c_void_p), ("nfindings", C.c_int32),
        *((name, C.c_int64) for name in ("barriers", "cycles", "slots", "instructions", "most")),
    )  # fmt: skip


@lru_cache
def engine() -> C.CDLL:
    """The library.

    Raises:
        RuntimeError: there is no C compiler.
    """
    numbers = "\n".join(f"#define {name} {number}" for number, name in enumerate(KINDS))
    text = SOURCE.read_text().replace("/*@DEFINES@*/", f"{defines()}\n{numbers}").replace("/*@CASES@*/", cases())
    try:
        library = build("emulator", text, FLAGS)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"Expected to compile the emulator but {error}") from None
    library.size_of_state.restype = C.c_int64
    if (size := library.size_of_state()) != C.sizeof(State):
        raise RuntimeError(f"Expected the emulator's state to have {C.sizeof(State)} bytes but in C it has {size}.")
    library.run_program.argtypes = [C.POINTER(State), C.c_int, C.c_int, C.c_uint64]
    return library
