"""Several processes of one run, each forked from a server that has imported torch and Lightning once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_maml import cli

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "lightning.pytorch", "lightning_maml", "lightning_maml.cli.meta_cli"])


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


def command(words: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``lightning-maml`` says in a folder and how it ends, as ``subprocess.run`` tells it, without the imports."""
    return _heard(_command, ["lightning-maml", *words], folder, environment)


def script(path: Path) -> subprocess.CompletedProcess[str]:
    """The same of a script, in its folder."""
    return _heard(_script, [str(path)], path.parent, {})


def _heard(
    function: Callable[[], None], words: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as heard:
        paths = [Path(heard, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_speak, args=(function, words, folder, environment, paths))
        process.start()
        (status,) = wait([process])
        return subprocess.CompletedProcess(words, status, *(path.read_text() for path in paths))


def _speak(
    function: Callable[[], None], words: list[str], folder: Path, environment: dict[str, str], paths: list[Path]
) -> None:
    torch.set_num_threads(1)
    for descriptor, path in enumerate(paths, start=1):  # those of this process, which what it starts has, too
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = words
    sys.path.insert(0, str(folder))
    function()


def _command() -> None:
    sys.exit(cli.main())


def _script() -> None:
    runpy.run_path(sys.argv[0], run_name="__main__")


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
