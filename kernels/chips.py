"""The chips that the kernels are compiled for: what a multiprocessor holds, and how many there are."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chip:
    """One chip of an architecture."""

    name: str
    multiprocessors: int
    hertz: float
    precisions: tuple[str, ...]  # that it has products of
    shared: int  # bytes of shared memory that all programs resident on a multiprocessor divide
    shared_per_program: int
    target: tuple[str, int | str, int]  # what Triton makes a GPUTarget of: backend, architecture, lanes of a warp


class Nvidia(Chip):
    """Limits as in the CUDA C++ Programming Guide, "Compute Capabilities"."""

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """How many programs of ``warps`` warps a multiprocessor holds at once."""
        per_warp = -(-registers * 32 // 256) * 256  # registers are given to a warp in units of 256, of 65,536
        by_shared = self.shared // (shared + 1024)  # the system takes 1 KiB of each program
        return min(65536 // max(per_warp, 256) // warps, by_shared, 32, 64 // warps)

    def usage(self, compiled: Any) -> tuple[int, int, int]:
        """Registers, bytes of stack and the number of instructions of a compiled kernel."""
        from triton import knobs

        tool = knobs.nvidia.cuobjdump.path
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(compiled.asm["cubin"])
            used = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True)
            listing = subprocess.run([tool, "-sass", str(path)], capture_output=True, text=True, check=False)
        text = used.stdout + used.stderr
        found = re.search(r"REG:(\d+) STACK:(\d+)", text)
        if found is None:
            raise RuntimeError(f"Expected registers and stack from {tool} but got: {text}")
        instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+\S", listing.stdout, re.MULTILINE))
        return int(found[1]), int(found[2]), instructions


class Amd(Chip):
    """Limits as in AMD's "CDNA 3 Instruction Set Architecture" guide."""

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """As of :class:`Nvidia`: each of the four SIMD units of a compute unit has 512 registers and holds 8 waves."""
        per_wave = max(-(-registers // 8) * 8, 8)  # registers are given to a wave in units of 8
        waves = 4 * min(512 // per_wave, 8)
        return min(waves // warps, self.shared // shared if shared else waves)

    def usage(self, compiled: Any) -> tuple[int, int, int]:
        """As of :class:`Nvidia`."""
        text = compiled.asm["amdgcn"]
        registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
        stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
        if registers is None or stack is None:
            raise RuntimeError("Expected the numbers of registers and of bytes of stack at the end of the assembly.")
        return int(registers[1]), int(stack[1]), len(re.findall(r"^\t(?:[vs]|ds|global|buffer)_", text, re.MULTILINE))


KIB = 1024
_PRECISIONS = ("ieee", "tf32", "bf16")
CHIPS: dict[str, Nvidia | Amd] = {
    "sm_80": Nvidia("A100 SXM 80 GB", 108, 1.41e9, _PRECISIONS, 164 * KIB, 163 * KIB, ("cuda", 80, 32)),
    "sm_90": Nvidia("H100 SXM", 132, 1.98e9, _PRECISIONS, 228 * KIB, 227 * KIB, ("cuda", 90, 32)),
    "sm_100": Nvidia("B200", 148, 1.97e9, _PRECISIONS, 228 * KIB, 227 * KIB, ("cuda", 100, 32)),
    "gfx942": Amd("MI300X", 304, 2.1e9, ("ieee", "bf16"), 64 * KIB, 64 * KIB, ("hip", "gfx942", 64)),
}
