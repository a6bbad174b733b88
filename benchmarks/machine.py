"""What the machine can do at best, and what memory a call takes of it."""

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_maml.kernels.compiler import forget


def sgemm_rate(device: torch.device | str = "cpu", size: int = 1024) -> float:
    """FLOP/s of a matrix product in float32, the best of 5."""
    size = 8 * size if torch.device(device).type == "cuda" else size
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b)


def copy_rate(device: torch.device | str = "cpu", megabytes: int = 256) -> float:
    """Bytes per second, read and written, of copying what no cache holds, the best of 5."""
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


def _best(call: Callable[[], Any]) -> float:
    call()
    return min(seconds(call) for _ in range(5))


def seconds(run: Callable[[], Any], times: int = 1) -> float:
    """Seconds of a call, the mean of so many."""
    if hasattr(run, "seconds"):
        return run.seconds(times) / times
    _synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    _synchronize()
    return (time.perf_counter() - start) / times


def _synchronize() -> None:
    if torch.cuda.is_initialized():  # where a benchmark has put something on a GPU
        torch.cuda.synchronize()


def known_device(name: str) -> str:
    """A type of arguments: names of devices on which torch can make a tensor."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"expected a device that torch can use but got {name!r}: {reason}") from error
    return name


def peak_memory_mb(run: Callable[[], Any], device: torch.device | str = "cpu") -> float | None:
    """Megabytes that a further call takes at most, beyond what is there before it.

    On a GPU those of torch's allocator. On a CPU the process's resident ones, which Linux alone tells: None elsewhere,
    and for a contender in a process of its own.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if hasattr(run, "seconds") or not reset.exists():
        return None
    forget()  # what operators keep from one call to the next is theirs, too
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # memory that is free, but that malloc has not given back, would be used again and not be seen
    try:
        reset.write_text("5")  # the highest value so far is the present one
    except OSError:
        return None
    before = _megabytes(status, "VmRSS")
    run()
    return max(_megabytes(status, "VmHWM") - before, 0.0)


def _megabytes(status: Path, name: str) -> float:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
