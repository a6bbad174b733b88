"""CUDA C++ without nvcc: compiled by NVRTC, which torch brings, for the very GPU; loaded and launched by its driver.

A kernel is compiled in the first call, in a second or two, and kept between runs (``cache.py``) by a name that source,
options, architecture and NVRTC's version decide. A launch packs its arguments, and asks nobody.
"""

import ctypes as C
import hashlib
import re
import struct
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels.cache import kept

OPTIONS = ["-std=c++17", "-default-device", "-lineinfo"]
LAUNCH: list[Any] = [C.c_void_p, *[C.c_uint] * 7, C.c_void_p, C.c_void_p, C.c_void_p]
"""What ``cuLaunchKernel`` takes: a function, programs, threads, shared memory, a stream, where the arguments are."""
MOST_SHARED, DYNAMIC_SHARED = 97, 8
"""The driver's numbers for a device's most shared memory of a program, and for what a kernel may ask of it."""


@cache
def library() -> C.CDLL:
    """NVRTC; RuntimeError where there is none."""
    major = (torch.version.cuda or "").split(".")[0]
    folders = [folder for folder in Path(torch.__file__).parent.parent.glob("nvidia/*/lib") if folder.is_dir()]
    wheels = [str(path) for folder in folders for path in sorted(folder.glob(f"libnvrtc.so.{major}*"))]
    for name in (*wheels, f"libnvrtc.so.{major}", "libnvrtc.so"):
        try:
            found = C.CDLL(name)
        except OSError:
            continue
        found.nvrtcGetErrorString.restype = C.c_char_p
        return found
    raise RuntimeError("Expected NVRTC, which torch for CUDA brings, but found no libnvrtc.so.")


@cache
def why_unavailable() -> str | None:
    """Why nothing can be compiled on this machine, or None."""
    if torch.version.hip is not None:
        return "AMD's GPUs run no CUDA"
    try:
        library()
    except RuntimeError as error:
        return str(error)
    return None


def compiled(source: str, name: str, architecture: str, options: Sequence[str]) -> bytes:
    """PTX where the ``architecture`` is ``"compute_90"``, machine code where it is ``"sm_90"``; RuntimeError with what
    NVRTC says of a source that it does not take.
    """
    nvrtc, program = library(), C.c_void_p()

    def check(status: int) -> None:
        if status:
            size = C.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, C.byref(size))
            log = C.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            said = nvrtc.nvrtcGetErrorString(status).decode()
            raise RuntimeError(
                f"Expected to compile `{name}` for {architecture} but NVRTC says {said}: {log.value.decode()}"
            )

    given = [f"--gpu-architecture={architecture}".encode(), *(option.encode() for option in (*OPTIONS, *options))]
    check(nvrtc.nvrtcCreateProgram(C.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None))
    try:
        check(nvrtc.nvrtcCompileProgram(program, len(given), (C.c_char_p * len(given))(*given)))
        kind, size = "PTX" if architecture.startswith("compute") else "CUBIN", C.c_size_t()
        check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, C.byref(size)))
        code = C.create_string_buffer(size.value)
        check(getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(C.byref(program))


@cache
def driver() -> C.CDLL:
    """The GPU's driver; RuntimeError where there is none."""
    try:
        found = C.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(f"Expected the driver of an NVIDIA GPU but {error}.") from None
    found.cuLaunchKernel.argtypes = LAUNCH
    return found


def _check(status: int, what: str) -> None:
    if status:
        said = C.c_char_p()
        driver().cuGetErrorName(status, C.byref(said))
        raise RuntimeError(f"Expected to {what} but the driver says {(said.value or b'?').decode()}.")


@lru_cache
def most_shared(index: int) -> int:
    """Bytes of shared memory that one program may have on a device."""
    found = C.c_int()
    _check(driver().cuDeviceGetAttribute(C.byref(found), MOST_SHARED, index), f"ask device {index} for its memory")
    return found.value


class Kernel:
    """A kernel of a source, compiled for a device when it is first launched there.

    Args:
        source: its text; the kernel is the function ``name``.
        options: of the compiler, as ``"-DTILE=10"``.
        threads: of a program.
        shared: bytes of a program's shared memory.
    """

    def __init__(self, source: str, name: str, options: Sequence[str], threads: int, shared: int) -> None:
        self.source, self.name, self.options = source, name, tuple(options)
        self.threads, self.shared = threads, shared
        parameters = re.search(rf"\b{name}\((.*?)\) \{{", re.sub(r"//.*", "", source), re.DOTALL)
        if parameters is None:
            raise ValueError(f"Expected a source with the function `{name}` but it has none.")
        self.parameters = [declared.split()[-1].lstrip("*") for declared in parameters[1].split(",")]
        # a slot of 8 bytes for each argument, and where they are: what the driver is given never changes its place
        count = len(self.parameters)
        self._slots, self._pack = C.create_string_buffer(8 * count), struct.Struct(f"{count}q").pack_into
        start = C.addressof(self._slots)
        self._places = (C.c_void_p * count)(*range(start, start + 8 * count, 8))
        self._functions: dict[int, Any] = {}
        self._packing = threading.Lock()  # another thread may not pack before the driver has read

    def ptx(self, architecture: int) -> str:
        return compiled(self.source, self.name, f"compute_{architecture}", self.options).rstrip(b"\0").decode()

    def machine_code(self, architecture: int) -> bytes:
        """For ``sm_{architecture}``, kept between runs."""
        major, minor = C.c_int(), C.c_int()
        library().nvrtcVersion(C.byref(major), C.byref(minor))
        text = "\n".join([self.source, *OPTIONS, *self.options, f"{architecture} {major.value}.{minor.value}"])
        key = f"{self.name}_sm_{architecture}_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        target = f"sm_{architecture}"
        build = lambda path: path.write_bytes(compiled(self.source, self.name, target, self.options))  # noqa: E731
        return kept(key, build, "cubin").read_bytes()

    def __call__(self, programs: int, device: torch.device, tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
        """Launch it on a device, which is the current one; its pointers come first, then its numbers."""
        index = device.index
        function, stream = self._functions.get(index) or self._load(index), torch._C._cuda_getCurrentRawStream(index)
        with self._packing:
            self._pack(self._slots, 0, *map(Tensor.data_ptr, tensors), *numbers)
            status = driver().cuLaunchKernel(
                function, programs, 1, 1, self.threads, 1, 1, self.shared, stream, self._places, None
            )
        if status:
            _check(status, f"launch `{self.name}`")

    def _load(self, index: int) -> C.c_void_p:
        architecture = int("".join(map(str, torch.cuda.get_device_capability(index))))
        module, function = C.c_void_p(), C.c_void_p()
        code, what = self.machine_code(architecture), f"load `{self.name}`"
        _check(driver().cuModuleLoadData(C.byref(module), code), what)
        _check(driver().cuModuleGetFunction(C.byref(function), module, self.name.encode()), what)
        _check(driver().cuFuncSetAttribute(function, DYNAMIC_SHARED, self.shared), what)
        self._functions[index] = function
        return function
