"""A meta-batch a few tasks at a time: losses put together, gradients added up, each chunk's graph freed at once."""

from collections.abc import Callable, Iterator, Sequence
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
            yield {name: _joined([phi[name] for phi in phis]) for name in phis[0]}, _joined(losses)

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        _, networks = networks_of(problem, self.one)
        return networks(phi, inputs, None if step is None else max(step - 1, 0))


def meta_loss_in_chunks(
    problem: Problem, tasks: TaskBatch, size: int, loop_of: Callable[[Set, Set], TaskLoop]
) -> MetaOutput:
    """The meta-gradient of all tasks, ``size`` at a time, each chunk run by the loop made of its sets."""
    leaves = problem.leaves(*(value for _, value in tasks.named()))
    gradients: Sequence[Tensor] = ()
    outputs: list[tuple[Tensor, Tensor, Tensor]] = []
    count = len(tasks)
    for start in range(0, count, size):
        chunk = tasks if size >= count else tasks[start : start + size]
        loop = loop_of(*chunk.sets)
        query = problem.algorithm.meta_gradient(loop)
        share = loop.gradients(query, min(size, count - start) / count, leaves)
        gradients = [a + b for a, b in zip(gradients, share, strict=True)] if outputs else share
        outputs.append((query.task_losses, query.predictions, loop.support_history()))
        # a loss without a graph is the mean already
        mean = None if size < count or query.loss.requires_grad else query.loss
        del loop, query
    task_losses, predictions, support_losses = map(_joined, zip(*outputs, strict=True))
    loss = task_losses.mean() if mean is None else mean
    return MetaOutput(loss, attach(loss, gradients, leaves), task_losses, predictions, support_losses)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
