"""The project's own launch code, on the CPU: Triton and NVRTC compile as for a GPU, and the PTX is emulated."""

from __future__ import annotations

import ctypes as C
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from lightning_maml.kernels import nvrtc
from lightning_maml.kernels.chips import CHIPS
from lightning_maml.kernels.emulator.engine import KINDS, READABLE, WRITABLE, WRITTEN, Cell, Emulator, engine
from lightning_maml.kernels.emulator.ptx import Program, UnsupportedError, parse

GLOBAL, SHARED = 0x7F0000000000, 1024  # where global and shared memory begin
GUARD = 4096
"""Bytes around each tensor's storage that belong to nobody."""
ALL = 0xFFFFFFFFFFFFFFFF
POISON = 0x7FC0DEAD7FC0DEAD
"""What registers hold until a kernel writes them."""
COUNTED = ("count", "lanes", "sectors", "wavefronts", "missed", "stall")
_decoded = lru_cache(None)(parse)


@lru_cache(None)
def _of_nvrtc(kernel: nvrtc.Kernel, architecture: int) -> Any:
    """As much of Triton's ``CompiledKernel`` as is asked for here."""
    ptx = kernel.ptx(architecture)
    kinds = dict(zip(kernel.parameters, re.findall(r"\.param \.(\w+)", ptx), strict=True))
    return SimpleNamespace(
        asm={"ptx": ptx}, src=SimpleNamespace(signature=kinds), metadata=SimpleNamespace(shared=kernel.shared)
    )


@dataclass(frozen=True)
class Found:
    """Something that the emulator saw in a launch: a fault, or a remark."""

    kernel: str
    what: str
    fault: bool
    where: str
    count: int

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what} ({self.count} times): {self.where}"


@dataclass(frozen=True)
class Launch:
    """What one launch of a kernel did; arrays are ``[instructions]``, summed over warps and programs.

    Args:
        compiled: Triton's ``CompiledKernel``.
        count, lanes: how often a warp issued an instruction, and how many lanes took part.
        sectors, missed: sectors of 32 bytes of global memory that it touched; and those of them that the program had
            not loaded since they were last written.
        wavefronts: how often shared memory was passed through.
        stall: cycles that warps waited for what it makes.
        barriers: of a program.
        cycles, slots: of the last program, alone on its multiprocessor, and issue slots of its busiest warp: a model,
            not a measurement.
    """

    kernel: str
    program: Program
    compiled: Any
    programs: int
    count: NDArray[np.int64]
    lanes: NDArray[np.int64]
    sectors: NDArray[np.int64]
    wavefronts: NDArray[np.int64]
    missed: NDArray[np.int64]
    stall: NDArray[np.int64]
    barriers: int
    cycles: int
    slots: int
    findings: list[Found]

    def of(self, *kinds: str) -> NDArray[np.bool_]:
        """Which instructions are of these classes."""
        return np.array([instruction.kind in kinds for instruction in self.program.instructions])


class Emulation:
    """Inside, launches of Triton kernels with tensors on the CPU are emulated.

    Memory that ``new_empty`` and ``empty_like`` give inside is filled with NaN, is the only memory that kernels may
    write, and counts as never written until they do. Every tensor has guards around its storage that belong to nobody.
    One emulation at a time: it takes the place of Triton's driver, of ``new_empty`` and of ``empty_like``.

    Args:
        arch: the compute capability, 80, 90 or 100.
        schedule: in which order warps run between two barriers: ``"forward"``, ``"backward"``, or the seed of a random
            interleaving.
        operands: of a tf32 product ``"cut"`` off after 10 bits, as tensor cores do, ``"rounded"``, or ``"exact"``.
        change: of the PTX's text, before it runs: what a fault in a kernel would look like.
        scheduled: instructions in an order that an assembler could choose within basic blocks, for the clock.
        compiled: gives the compiled kernel of a Triton function and its compile-time arguments, in place of the JIT.
        megabytes: of global memory.

    RuntimeError where there is no C compiler, or the process runs Triton's interpreter, which compiles nothing.
    """

    def __init__(
        self,
        arch: int = 90,
        schedule: str | int = "forward",
        *,
        operands: str = "cut",
        change: Callable[[str], str] | None = None,
        scheduled: bool = False,
        compiled: Callable[[Any, dict[str, Any]], Any] | None = None,
        megabytes: int = 96,
    ) -> None:
        self.arch, self.schedule = arch, schedule
        self.operands = ("cut", "rounded", "exact").index(operands)
        self.change, self.scheduled, self.compiled, self.size = change, scheduled, compiled, megabytes << 20
        self.launches: list[Launch] = []

    def faults(self) -> list[str]:
        """What no launch may do: races; uses of memory that is not there, not written, or not its own."""
        return [str(found) for launch in self.launches for found in launch.findings if found.fault]

    def remarks(self) -> list[str]:
        """What a GPU forgives, and what is worth a look."""
        return [str(found) for launch in self.launches for found in launch.findings if not found.fault]

    def __enter__(self) -> Emulation:
        if triton.knobs.runtime.interpret:
            unset = "unset it before kernels are imported"
            raise RuntimeError(f"Expected Triton to compile but TRITON_INTERPRET is set: {unset}.")
        engine()
        self._memory = np.zeros(self.size, np.uint8)  # pages that nobody touches cost nothing
        self._cells = np.zeros(self.size // 4, Cell)
        self._l1 = np.zeros(self.size // 32, np.uint32)
        self._epoch, self._top = 0, GUARD
        self._storages: dict[int, tuple[int, int, bool, Tensor]] = {}  # place, bytes, whether kernels may write it
        self._fresh: dict[int, Tensor] = {}
        run = JITFunction.run

        def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def made(*args: Any, **kwargs: Any) -> Tensor:
                tensor = make(*args, **kwargs)
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
                self._fresh[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            return made

        def emulated(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            named = {name: value for name, value in kwargs.items() if name in function.arg_names}
            arguments = dict(function.signature.bind(*args, **named).arguments)
            if self.compiled:
                constants = {part.name: arguments[part.name] for part in function.params if part.is_constexpr}
                compiled = self.compiled(function, constants)
            else:
                compiled = run(function, *args, grid=grid, warmup=True, **kwargs)
            self._launch(compiled, arguments, grid[0] if isinstance(grid, tuple) else grid)
            return compiled

        def of_cuda(kernel: nvrtc.Kernel, programs: int, _: torch.device, tensors: Any, numbers: Any) -> None:
            arguments = dict(zip(kernel.parameters, (*tensors, *numbers), strict=True))
            self._launch(_of_nvrtc(kernel, self.arch), arguments, programs)

        limit = CHIPS[f"sm_{self.arch}"].shared_per_program
        driver = SimpleNamespace(  # as much of one as Triton asks for before it launches
            get_current_device=lambda: self.arch,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", self.arch, 32),
        )
        self._patches = ExitStack()
        for owner, name, value in (
            (triton.runtime.driver, "_active", driver),
            (JITFunction, "run", emulated),
            (nvrtc.Kernel, "__call__", of_cuda),
            (nvrtc, "most_shared", lambda device: limit),
            (Tensor, "new_empty", poisoned(Tensor.new_empty)),
            (torch, "empty_like", poisoned(torch.empty_like)),
        ):
            self._patches.enter_context(patch.object(owner, name, value))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()
        del self._memory, self._cells, self._l1, self._storages, self._fresh

    def _address(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._storages or self._storages[key][1] < size:
            place = -(-self._top // 512) * 512
            self._top = place + size + GUARD
            if self._top > self.size:
                most = self.size >> 20
                raise MemoryError(f"Expected tensors of less than {most} MB but got more: raise `megabytes`.")
            fresh = key in self._fresh
            self._cells["state"][place // 4 : (place + size + 3) // 4] = READABLE | (WRITABLE if fresh else WRITTEN)
            self._storages[key] = (place, size, fresh, tensor)
        return GLOBAL + self._storages[key][0] + tensor.data_ptr() - key

    def _copy(self, into: bool) -> None:
        """Tensors into the emulator's memory, or what kernels may have written of it back."""
        for place, size, writable, tensor in self._storages.values():
            if size and (into or writable):
                here, there = self._memory[place:].ctypes.data, tensor.untyped_storage().data_ptr()
                C.memmove(*((here, there) if into else (there, here)), size)

    def _parameters(self, program: Program, compiled: Any, arguments: dict[str, Any]) -> dict[str, int]:
        kinds = {name: kind for name, kind in compiled.src.signature.items() if kind != "constexpr"}
        if len(program.parameters) not in (len(kinds), len(kinds) + 2):  # Triton's own scratch, of no bytes here
            wanted = f"a parameter for each of {len(kinds)} arguments"
            raise UnsupportedError(f"Expected {wanted} but got {program.parameters}.")
        known = dict.fromkeys(program.parameters, 0)
        for label, (name, kind) in zip(program.parameters, kinds.items(), strict=False):
            value = arguments[name]
            if isinstance(value, Tensor):
                known[label] = self._address(value)
            else:
                known[label] = int(np.float32(value).view(np.uint32)) if kind.startswith("fp") else int(value)
        return known

    def _launch(self, compiled: Any, arguments: dict[str, Any], programs: int) -> None:
        text = compiled.asm["ptx"]
        program = _decoded(self.change(text) if self.change else text, self.scheduled)
        known = self._parameters(program, compiled, arguments)
        self._copy(into=True)
        shared = compiled.metadata.shared
        totals = {name: np.zeros(len(program.code), np.int64) for name in COUNTED}
        memory, cells = np.zeros(shared + 1, np.uint8), np.zeros(shared // 2 + 1, Cell)
        initial = np.full(program.rows + 1, POISON, np.uint64)
        for name in ("wcta", "rcta"):
            self._cells[name][: self._top // 4 + 1] = -1
        state = Emulator(
            code=C.addressof(program.code), n=len(program.code), rows=program.rows, warps=program.threads // 32,
            tid_x=program.constants.get(("r", "%tid.x"), -1), laneid=program.constants.get(("r", "%laneid"), -1),
            initial=initial.ctypes.data, l1=self._l1.ctypes.data, operands=self.operands,
            epoch=self._epoch, **{name: array.ctypes.data for name, array in totals.items()},
            **{"global": (self._memory.ctypes.data, self._cells.ctypes.data, GLOBAL, self.size, 2)},
            shared=(memory.ctypes.data, cells.ctypes.data, SHARED, shared, 1),
        )  # fmt: skip
        mode = {"forward": 0, "backward": 1}.get(str(self.schedule), 2)
        seed = int(self.schedule) * 7919 if mode == 2 else 0
        for cta in range(programs):
            special = {
                "%tid.x": 0, "%laneid": 0, "%ctaid.x": cta, "%nctaid.x": programs, "%ntid.x": program.threads,
                "global_smem": SHARED, **known,
            }  # fmt: skip
            special |= {
                f"%{name}.{axis}": int(name[0] == "n") for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "yz"
            }
            for (kind, what), row in program.constants.items():
                number = what if isinstance(what, int) else special.get(what)
                if number is None:
                    raise UnsupportedError(f"Expected symbols that the emulator knows but got {what}.")
                if kind == "r":  # of two lanes
                    initial[row] = (number & 0xFFFFFFFF) * 0x100000001
                else:
                    initial[row : row + 1 + (kind == "q")] = number & ALL if kind == "q" else ALL * bool(number)
            if engine().run_program(C.byref(state), cta, mode, seed + cta + 1):
                break
        self._epoch = state.epoch
        self._copy(into=False)
        self.launches.append(
            Launch(
                program.name, program, compiled, programs, **totals, barriers=state.barriers // max(programs, 1),
                cycles=state.cycles, slots=state.slots,
                findings=[_found(program, item) for item in state.findings[: state.nfindings]],
            )
        )  # fmt: skip


def _found(program: Program, item: Any) -> Found:
    places = [program.instructions[pc] for pc in (item.pc, item.pc2) if pc >= 0]
    where = "  <->  ".join(f"PTX line {place.line} ({place.source}): {place.text}" for place in places)
    where += f"  [program {item.cta}, warps {item.warp} and {item.warp2}, lane {item.lane}, address {item.address:#x}]"
    what, fault = list(KINDS.values())[item.kind]
    return Found(program.name, what, fault, where, item.count)
