"""One task after another, in autograd's own graph: the oracle, and the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.chunks import meta_loss_in_chunks, trajectory_in_chunks
from lightning_maml.engine.loop import TaskLoop, networks_of, prediction
from lightning_maml.inner import Parameters
from lightning_maml.tasks import Set, TaskBatch


@dataclass(frozen=True)
class Eager(Engine):
    """A Python loop over the tasks that calls the network as it is written. Slow, and right for any network."""

    name = "eager"

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        return None

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        return meta_loss_in_chunks(
            problem, tasks, 1, lambda support, query: TaskLoop(problem, support, query, one=True)
        )

    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        return trajectory_in_chunks(support, 1, lambda part: TaskLoop(problem, part, one=True))

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        networks = networks_of(problem, one=True)[1]
        return prediction(problem, networks, phi, inputs, None if step is None else step - 1)
