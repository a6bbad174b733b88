"""C for the CPU at hand: builds a source with the machine's C compiler, keeps the library, loads it.

A library is built for this very processor in some seconds, once for each dtype, and kept between runs (``cache.py``) by
a name that source, compiler and processor decide. Limits, and the order of names that are numbers in C, stand in
Python alone: a source is compiled with them.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lightning_maml.kernels.cache import kept

FLAGS = ["-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
FLAGS += ["-Werror=switch"]  # what Python has a name for and C no case
# what not every compiler knows, the best first; without OpenMP all tasks run in one thread
CHOICES: tuple[list[str], ...] = (
    ["-march=native", "-fopenmp"],
    ["-mcpu=native", "-fopenmp"],
    ["-march=native"],
    ["-mcpu=native"],
    [],
)
PATIENCE = 120
"""Seconds that a call of the compiler may take: a large one takes ten."""
RETURNS = ("done", "out_of_range", "no_memory", "unknown")
"""What ``adapt`` says, in the order of its numbers."""
_LOADED: list[ctypes.CDLL] = []
_REALS = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}


class Problem(ctypes.Structure):
    """What ``adapt`` is given; a source's own has the fields of its ``Problem``."""

    constants: ClassVar[dict[str, int | Sequence[str]]] = {}
    """What the source is compiled with: limits, and names whose order makes their numbers."""


def _compiler() -> list[str]:
    """The command of the C compiler, ``$CC`` or one of three; raises RuntimeError where there is none, and says why."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise RuntimeError(f"$CC is no command: {error}") from None
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    if named:
        raise RuntimeError(f"{named[0]!r} of $CC is not found")
    raise RuntimeError("there is no C compiler: neither cc nor gcc nor clang")


def _run(call: list[str]) -> subprocess.CompletedProcess[str]:
    """What a call of the compiler says; raises RuntimeError where it takes too long."""
    try:
        return subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{shlex.join(call)} did not end within {PATIENCE} s") from None


def build(name: str, source: str, flags: Sequence[str]) -> ctypes.CDLL:
    """The library of a source's text, kept between runs under a key that begins with ``name``.
    OSError where the folder of libraries is not the user's own, or cannot be written; RuntimeError where there is no
    compiler, or it fails.
    """
    command, headers = _compiler(), Path(__file__).parent
    text = [source, *(header.read_text() for header in sorted(headers.glob("*.h")))]
    text += [str((flags, CHOICES, command)), _run([*command, "--version"]).stdout, _processor()]

    def into(library: Path) -> None:
        path = library.with_name(f"{name}.c")
        path.write_text(source)
        for choice in CHOICES:
            call = [*command, *flags, f"-I{headers}", str(path), *choice, "-o", str(library), "-lm"]
            done = _run(call)
            if done.returncode == 0:
                return
        raise RuntimeError(f"{shlex.join(call)} failed:\n{done.stderr}")

    return ctypes.CDLL(str(kept(f"{name}_{hashlib.sha256(''.join(text).encode()).hexdigest()[:24]}", into)))


def definitions(dtype: torch.dtype, problem: type[Problem]) -> list[str]:
    """The compiler's options that tell a source its number types, limits and names."""
    real, integer = _REALS[dtype]
    constants = {"REAL": real, "INTEGER": integer, "RETURNS": RETURNS, **problem.constants}
    return [
        f"-D{name}={value if isinstance(value, int | str) else ','.join(value).upper()}"
        for name, value in constants.items()
    ]


@lru_cache
def load(source: Path, dtype: torch.dtype, problem: type[Problem]) -> ctypes.CDLL | str:
    """The library of a source, where REAL is ``dtype`` and INTEGER is as wide; or why there is none.

    Its functions ``adapt`` and ``predict`` take a pointer to a ``problem``, and return a number of :data:`RETURNS`.
    """
    flags = [*FLAGS, *definitions(dtype, problem)]
    try:
        library = build(f"{source.parent.name}_{_REALS[dtype][0]}", source.read_text(), flags)
    except (OSError, RuntimeError) as error:
        return str(error)
    library.size_of_problem.restype = ctypes.c_int64
    if (size := library.size_of_problem()) != ctypes.sizeof(problem):
        return f"the problem of {source.name} has {size} bytes where Python's has {ctypes.sizeof(problem)}"
    for function in filter(None, (library.adapt, getattr(library, "predict", None))):
        function.argtypes, function.restype = [ctypes.POINTER(problem)], ctypes.c_int
    library.forget.restype = None
    _LOADED.append(library)
    return library


def forget() -> None:
    """Free what the compiled operators keep for their next call: a thread's memory for the tasks that it runs.

    Up to 64 MiB a thread stay its own; more stays until the system is short of memory, where it can be told so.
    """
    for library in _LOADED:
        library.forget()


def library_of(source: Path, dtype: torch.dtype, problem: type[Problem]) -> ctypes.CDLL:
    """As :func:`load`; RuntimeError where there is no library."""
    library = load(source, dtype, problem)
    if isinstance(library, str):
        raise RuntimeError(f"Expected to compile `{source.parent.name}` but {library}.")
    return library


def why_unavailable(source: Path, dtype: torch.dtype, problem: type[Problem]) -> str | None:
    """Why :func:`load` gives no library on this machine, or None; compiles it where that was not done before."""
    library = load(source, dtype, problem)
    return library if isinstance(library, str) else None


def addresses(values: Iterable[Tensor | None]) -> list[int | None]:
    """Where the numbers of tensors are, for the pointers of a :class:`Problem`."""
    return [None if value is None else value.data_ptr() for value in values]


def failure(code: int, out_of_range: str, no_memory: str) -> Exception:
    """What to raise for what ``adapt`` returned, with the words for two of its reasons."""
    match RETURNS[code]:
        case "out_of_range":
            return RuntimeError(out_of_range)
        case "no_memory":
            return MemoryError(no_memory)
    return RuntimeError("Expected names and sizes that the C source was compiled for but got others.")


def _processor() -> str:
    """What the code is built for: with another processor's instructions a program would be killed."""
    text, info = platform.platform() + platform.processor(), Path("/proc/cpuinfo")
    if info.exists():
        lines = {line for line in info.read_text().splitlines() if line.startswith(("flags", "Features", "model name"))}
        text += "".join(sorted(lines))
    return text
