"""The clock's constants: cycles of an H100, from published microbenchmarks. A model, not a measurement.

Warps issue in order, and those of one program sit on schedulers of their own. An instruction starts when its operands
are there. A load of global memory takes :data:`FAR` cycles where this program did not load its sector since it was last
written, else those of the L1 cache; shared memory is passed once for each of the different words that one bank gives.
"""

from __future__ import annotations

__all__ = ["BARRIER", "COST", "FAR", "LATENCY"]

LATENCY = {
    "int": 5, "intdiv": 60, "mov": 2, "cvt": 6, "fp": 4, "fdiv": 30, "mufu": 18, "mma": 18, "ldg": 33, "stg": 1,
    "lds": 23, "sts": 1, "ldsm": 29, "shfl": 23, "bar": 1, "bra": 8, "other": 1,
}  # fmt: skip
"""Of each class, until a result can be used."""
COST = {
    "int": 1, "intdiv": 25, "mov": 1, "cvt": 2, "fp": 1, "fdiv": 8, "mufu": 4, "mma": 2, "ldg": 1, "stg": 1,
    "lds": 1, "sts": 1, "ldsm": 1, "shfl": 1, "bar": 1, "bra": 1, "other": 1,
}  # fmt: skip
"""Issue slots that an instruction takes of its scheduler."""
FAR = 260
"""Of a load that comes from the L2 cache."""
BARRIER = 25
"""From the last warp's arrival until all go on."""
