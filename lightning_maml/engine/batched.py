"""All tasks at once, in pure torch, on any network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.checkpointed import CheckpointedLoop
from lightning_maml.engine.chunks import meta_loss_in_chunks
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.inner import SGD, Adam, Parameters
from lightning_maml.meta_gradient import Reptile
from lightning_maml.tasks import TaskBatch

__all__ = ["Batched"]


@dataclass(frozen=True)
class Batched(Engine):
    """The forward of all tasks is one batched call; the summed loss is differentiated outside of it.

    Args:
        compile: run an inner step, its pull-back and the query set as graphs compiled by TorchInductor. The first
            call takes seconds, whatever the number of steps; needs a C++ compiler on a CPU.
        chunk_size: how many tasks at once; None for all. Less memory, same gradient.
        checkpoint: ``"step"`` keeps only the parameters before an inner step and runs the step again in the
            backward: nearly flat memory in the number of steps, the same gradient to rounding. Of more than 8 steps
            every square-root-th is kept, and those between are run twice.

    Raises:
        ValueError: an argument is out of range.
    """

    compile: bool = False
    chunk_size: int | None = None
    checkpoint: Literal["step"] | None = None
    name = "batched"

    def __post_init__(self) -> None:
        if self.chunk_size is not None and (not isinstance(self.chunk_size, int) or self.chunk_size < 1):
            raise ValueError(
                f"Expected `chunk_size` to be a positive number of tasks or None but got {self.chunk_size!r}."
            )
        if self.checkpoint not in (None, "step"):
            raise ValueError(f"Expected `checkpoint` to be 'step' or None but got {self.checkpoint!r}.")

    def unsupported(self, problem: Problem, device: torch.device) -> str | None:
        rule = problem.algorithm.meta_gradient
        remembers = isinstance(problem.inner, Adam) or (isinstance(problem.inner, SGD) and problem.inner.momentum)
        if self.checkpoint and remembers and not isinstance(rule, Reptile):
            return (
                "checkpoint='step' runs inner steps again in the backward, one by one, where Adam's moments, or "
                "momentum, are not known. Use checkpoint=None."
            )
        if self.compile and (what := problem.beyond_plain_steps):
            return f"compile=True has compiled graphs of plain SGD steps alone, and not for {what}. Use compile=False."
        return None

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        asking = [name for name, value in tasks.named() if value.requires_grad]
        if self.compile and asking:
            raise NotImplementedError(
                f"Expected inputs and targets without `requires_grad` for `compile=True` but {asking} ask for a "
                "gradient. Use compile=False."
            )
        return meta_loss_in_chunks(
            problem, tasks, self.chunk_size or len(tasks), lambda chunk: self._loop(problem, chunk)
        )

    def _loop(self, problem: Problem, tasks: TaskBatch) -> TaskLoop:
        if self.compile:
            from lightning_maml.engine.compiled import CompiledLoop  # torch's compiler takes a second to import

            return CompiledLoop(problem, tasks, keep=self.checkpoint is None)
        return CheckpointedLoop(problem, tasks) if self.checkpoint else TaskLoop(problem, tasks)

    def trajectory(self, problem: Problem, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Parameters, Tensor]]:
        size = self.chunk_size or len(inputs)
        parts = [slice(start, start + size) for start in range(0, len(inputs), size)]
        batches = [TaskBatch(inputs[part], targets[part], inputs[part], targets[part]) for part in parts]
        for step in zip(*(TaskLoop(problem, batch).trajectory() for batch in batches), strict=True):
            names = step[0][0]
            yield (
                {name: torch.cat([phi[name] for phi, _ in step]) for name in names},
                torch.cat([loss for _, loss in step]),
            )

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        targets = inputs.new_zeros(inputs.shape[:2])
        return TaskLoop(problem, TaskBatch(inputs, targets, inputs, targets)).predict_after(phi, inputs, step)
