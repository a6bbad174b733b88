"""One contender a file: ``prepare(problem) -> run``; ``run()`` is the meta-gradient, in the network's order.

``prepare`` or the first ``run`` raises where the contender is not installed or cannot run the problem. A contender in
a process of its own returns a :class:`Remote`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.problem import Problem
from lightning_maml import maml, meta_loss

NAMES = (
    "learn2learn",
    "higher",
    "torchopt",
    "vmap",
    "vmap_compile",
    "jax",
    "eager",
    "batched",
    "batched_compile",
    "batched_checkpoint",
    "fused",
    "fused_compile",
)
OURS = ("eager", "batched", "batched_compile", "batched_checkpoint", "fused", "fused_compile")


class Remote(Protocol):
    """A contender that times itself."""

    def __call__(self) -> list[Tensor]:
        """The meta-gradient."""

    def seconds(self, times: int) -> float:
        """Seconds that ``times`` meta-gradients take."""


def seconds(run: Callable[[], list[Tensor]], times: int) -> float:
    """Seconds that ``times`` meta-gradients take."""
    if hasattr(run, "seconds"):
        return run.seconds(times)
    start = time.perf_counter()
    for _ in range(times):
        run()
    if torch.cuda.is_initialized():  # where a benchmark on a GPU has put its tensors there
        torch.cuda.synchronize()
    return time.perf_counter() - start


def of_engine(problem: Problem, engine: Any) -> Callable[[], list[Tensor]]:
    """One of this library's engines."""
    algorithm = maml(problem.lr, problem.steps)

    def run() -> list[Tensor]:
        problem.network.zero_grad()
        meta_loss(problem.network, algorithm, problem.tasks, loss=problem.loss, engine=engine).surrogate.backward()
        return [parameter.grad for parameter in problem.network.parameters() if parameter.grad is not None]

    return run
