"""The engines that run a :class:`TaskLoop`: on one task after another, on all at once, or on some."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_maml.checks import check_one_of, check_whole
from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.coverage import BATCHED, COMPILED, refused
from lightning_maml.engine.loops.checkpointed import CheckpointedLoop
from lightning_maml.engine.loops.loop import TaskLoop, networks_of
from lightning_maml.inner import Parameters
from lightning_maml.tasks import Inputs, Set, TaskBatch, map_inputs, mean_over_tasks

LARGE = 2**17
"""Where a task brings a convolution more numbers than these, one task after another takes a CPU no longer than all."""


class LoopEngine(Engine):
    """An engine that runs a :class:`TaskLoop` on ``chunk_size`` tasks at once; None for all."""

    chunk_size: int | None = None

    def one_by_one(self, problem: Problem, *inputs: Inputs) -> bool:
        """Whether the network is called as it is written, for one task after another."""
        return False

    def loop(self, problem: Problem, support: Set, query: Set) -> Any:
        """What trains on some of the tasks."""
        return TaskLoop(problem, support, query, self.one_by_one(problem, support[0], query[0]))

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        leaves, count, shares = problem.leaves(*tasks.sets), len(tasks), tasks.shares
        size = 1 if self.one_by_one(problem, tasks.support_inputs, tasks.query_inputs) else self.chunk_size or count
        gradients: Sequence[Tensor] = ()
        outputs: list[tuple[Tensor, ...]] = []
        for start in range(0, count, size):
            chunk = tasks if size >= count else tasks[start : start + size]
            loop = self.loop(problem, *chunk.sets)
            weight = min(size, count - start) / count
            if shares is not None:
                loop.shares, weight = shares[start : start + size], 1.0  # whose sum is the chunk's weight
            query = problem.algorithm.meta_gradient(loop)
            part = loop.gradients(query, weight, leaves)
            gradients = [a + b for a, b in zip(gradients, part, strict=True)] if outputs else part
            outputs.append((query.task_losses, query.predictions, loop.support_history()))
            # a loss without a graph is the mean already
            mean = None if size < count or query.loss.requires_grad else query.loss
            del loop, query  # its graph is freed before the next one's is made
        each = zip(*outputs, strict=True)
        task_losses, predictions, support_losses = map(torch.cat, each) if len(outputs) > 1 else outputs[0]
        loss = mean_over_tasks(task_losses, shares) if mean is None else mean
        return MetaOutput(loss, gradients, leaves, task_losses, predictions, support_losses)

    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        inputs, targets = support
        one = self.one_by_one(problem, inputs)
        size = 1 if one else self.chunk_size or len(targets)
        chunks = [slice(start, start + size) for start in range(0, len(targets), size)]
        parts = [(map_inputs(itemgetter(chunk), inputs), targets[chunk]) for chunk in chunks]
        loops = [TaskLoop(problem, part, one=one).trajectory() for part in parts]
        for step in zip(*loops, strict=True):
            phis, losses = zip(*step, strict=True)
            every = {name: torch.cat([phi[name] for phi in phis]) for name in phis[0]} if len(phis) > 1 else phis[0]
            yield every, torch.cat(losses) if len(phis) > 1 else losses[0]

    def predict(self, problem: Problem, phi: Parameters, inputs: Inputs, step: int | None = None) -> Tensor:
        _, networks = networks_of(problem, self.one_by_one(problem, inputs))
        return networks(phi, inputs, None if step is None else max(step - 1, 0))


@dataclass(frozen=True)
class Eager(LoopEngine):
    """A Python loop over the tasks that calls the network as it is written. Slow, and right for any network."""

    name = "eager"

    def one_by_one(self, problem: Problem, *inputs: Inputs) -> bool:
        return True

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        return None


@dataclass(frozen=True)
class Batched(LoopEngine):
    """The forward of all tasks is one batched call; the summed loss is differentiated outside of it.

    On a CPU, tasks that bring a convolutional network more than 131,072 (2**17) numbers run one after another instead,
    as on :class:`Eager`: a call then takes long beside what batching saves, and all activations at once fill no cache.

    Args:
        compile: run an inner step, its pull-back and the query set as graphs compiled by TorchInductor. The first
            call takes seconds, whatever the number of steps; needs a C++ compiler on a CPU.
        chunk_size: how many tasks at once, large ones too; None for all but those. Less memory, same gradient.
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
        if self.chunk_size is not None:
            check_whole(1, chunk_size=self.chunk_size)
        check_one_of((None, "step"), checkpoint=self.checkpoint)

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        needs = problem.needs(*sets)
        if self.compile and (what := refused(needs, COMPILED)):
            return f"compile=True has graphs of the steps that it knows, but {what}. Use compile=False."
        if what := refused(needs, BATCHED):
            return f"all tasks run in one call of the network, but {what}. Use engine='eager'."
        return None

    def one_by_one(self, problem: Problem, *inputs: Inputs) -> bool:
        if problem.plain or self.chunk_size is not None or self.compile or not tree_leaves(inputs)[0].is_cpu:
            return False
        numbers = sum(value[0].numel() for value in tree_leaves(inputs))
        return numbers > LARGE and any(isinstance(module, nn.modules.conv._ConvNd) for module in problem.modules)

    def loop(self, problem: Problem, support: Set, query: Set) -> Any:
        if self.compile:
            from lightning_maml.engine.loops.compiled import CompiledLoop  # torch's compiler takes a second to import

            return CompiledLoop(problem, support, query, keep=self.checkpoint is None)
        kind = CheckpointedLoop if self.checkpoint else TaskLoop
        return kind(problem, support, query, self.one_by_one(problem, support[0], query[0]))
