"""A process in which Triton compiles: the tests' own runs kernels in Triton's interpreter."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def compiles() -> None:
    """What the process does first, before anything imports a kernel."""
    os.environ.pop("TRITON_INTERPRET", None)
    import torch

    torch.set_num_threads(1)


class Worker:
    """Runs functions in the one process, one after the other; what they raise is raised here."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=compiles)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._pool.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        self._pool.shutdown()
