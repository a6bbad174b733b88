"""A meta-batch a few tasks at a time, and the engine that takes one task after another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_maml.engine.base import Engine, MetaOutput, Problem, attach
from lightning_maml.engine.loops.loop import TaskLoop, networks_of
from lightning_maml.inner import Parameters
from lightning_maml.tasks import Set, TaskBatch


class LoopEngine(Engine):
    """An engine that runs a :class:`TaskLoop` on ``chunk_size`` tasks at once; None for all."""

    chunk_size: int | None
    one = False
    """Whether the network is called as it is written, for one task after another."""

    def loop(self, problem: Problem, support: Set, query: Set) -> TaskLoop:
        """What trains on some of the tasks."""
        return TaskLoop(problem, support, query, self.one)

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        return meta_loss_in_chunks(problem, tasks, self.chunk_size or len(tasks), partial(self.loop, problem))

    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        chunks = zip(*(values.split(self.chunk_size or len(values)) for values in support), strict=True)
        loops = [TaskLoop(problem, chunk, one=self.one).trajectory() for chunk in chunks]
        for step in zip(*loops, strict=True):
            phis, losses = zip(*step, strict=True)
            every = {name: torch.cat([phi[name] for phi in phis]) for name in phis[0]} if len(phis) > 1 else phis[0]
            yield every, torch.cat(losses) if len(phis) > 1 else losses[0]

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        _, networks = networks_of(problem, self.one)
        return networks(phi, inputs, None if step is None else max(step - 1, 0))


@dataclass(frozen=True)
class Eager(LoopEngine):
    """A Python loop over the tasks that calls the network as it is written. Slow, and right for any network."""

    name = "eager"
    chunk_size = 1
    one = True

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        return None


def meta_loss_in_chunks(
    problem: Problem, tasks: TaskBatch, size: int, loop_of: Callable[[Set, Set], TaskLoop]
) -> MetaOutput:
    """The meta-gradient of all tasks, ``size`` at a time, each chunk run by the loop made of its sets."""
    leaves, count = problem.leaves(*tasks.sets), len(tasks)
    gradients: Sequence[Tensor] = ()
    outputs: list[tuple[Tensor, ...]] = []
    for start in range(0, count, size):
        chunk = tasks if size >= count else tasks[start : start + size]
        loop = loop_of(*chunk.sets)
        query = problem.algorithm.meta_gradient(loop)
        share = loop.gradients(query, min(size, count - start) / count, leaves)
        gradients = [a + b for a, b in zip(gradients, share, strict=True)] if outputs else share
        outputs.append((query.task_losses, query.predictions, loop.support_history()))
        # a loss without a graph is the mean already
        mean = None if size < count or query.loss.requires_grad else query.loss
        del loop, query  # its graph is freed before the next one's is made
    several = len(outputs) > 1
    task_losses, predictions, support_losses = map(torch.cat, zip(*outputs, strict=True)) if several else outputs[0]
    loss = task_losses.mean() if mean is None else mean
    return MetaOutput(loss, attach(loss, gradients, leaves), task_losses, predictions, support_losses)
