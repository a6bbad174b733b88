"""One task after another, in autograd's own graph: the oracle, and the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.chunks import meta_loss_in_chunks
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.inner import Parameters
from lightning_maml.tasks import TaskBatch

__all__ = ["Eager"]


@dataclass(frozen=True)
class Eager(Engine):
    """A Python loop over the tasks that calls the network as it is written. Slow, and right for any network."""

    name = "eager"

    def unsupported(self, problem: Problem, device: torch.device) -> str | None:
        return None

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        return meta_loss_in_chunks(problem, tasks, 1, lambda task: TaskLoop(problem, task, one=True))

    def trajectory(self, problem: Problem, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Parameters, Tensor]]:
        tasks = TaskBatch(inputs, targets, inputs, targets)
        loops = [TaskLoop(problem, tasks[t : t + 1], one=True).trajectory() for t in range(len(tasks))]
        for step in zip(*loops, strict=True):
            names = step[0][0]
            yield (
                {name: torch.stack([phi[name] for phi, _ in step]) for name in names},
                torch.cat([loss for _, loss in step]),
            )

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        targets = inputs.new_zeros(inputs.shape[:2])
        loop = TaskLoop(problem, TaskBatch(inputs, targets, inputs, targets), one=True)
        each = [{name: value[t] for name, value in phi.items()} for t in range(len(inputs))]
        return torch.cat([loop.predict_after(own, inputs[t : t + 1], step) for t, own in enumerate(each)])
