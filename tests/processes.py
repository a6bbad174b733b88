"""Several processes of one run, each forked from a server that has imported torch and Lightning once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "lightning.pytorch", "lightning_maml"])


def start(function: Callable[..., Any], folder: Path, world_size: int, *arguments: Any) -> list[Any]:
    """Starts ``function(*arguments)`` in ``world_size`` processes, as torchrun would; results go to ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world_size):
        process = SERVER.Process(target=_enter, args=(function, folder, rank, world_size, port, arguments))
        process.start()
        started.append(process)
    return started


def wait(processes: list[Any], seconds: float = 600) -> list[int]:
    """The processes' exit statuses; those that still run after so long are killed, and that is an error."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(until - time.monotonic(), 0))
    hanging = [rank for rank, process in enumerate(processes) if process.exitcode is None]
    for process in processes:
        process.kill()
        process.join()
    assert not hanging, f"processes {hanging} were still running after {seconds} seconds"
    return [process.exitcode for process in processes]


def until(condition: Callable[[], bool], running: Sequence[Any] = (), seconds: float = 60) -> None:
    """Waits for a condition, or for one of the processes to end."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing within {seconds} seconds"
        if any(process.exitcode is not None for process in running):
            return
        time.sleep(0.002)


def run(function: Callable[..., Any], folder: Path, world_size: int, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns in each of ``world_size`` processes."""
    statuses = wait(start(function, folder, world_size, *arguments))
    said = "".join(path.read_text() for path in sorted(folder.glob("error_*.txt")))
    assert statuses == [0] * world_size, f"exit statuses {statuses}\n{said}"
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(world_size)]


def _enter(
    function: Callable[..., Any], folder: Path, rank: int, world_size: int, port: int, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size),
            GROUP_RANK="0",
            TORCHELASTIC_RUN_ID="tests",
        )
    try:
        result = function(*arguments)
    except BaseException:
        (folder / f"error_{rank}.txt").write_text(f"process {rank}:\n{traceback.format_exc()}")
        raise
    torch.save(result, folder / f"result_{rank}.pt")
