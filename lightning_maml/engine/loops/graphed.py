"""Another engine's whole meta-gradient as one CUDA graph."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.coverage import GRAPHED, refused
from lightning_maml.engine.loops.batched import Batched
from lightning_maml.inner import Parameters
from lightning_maml.tasks import Set, TaskBatch, mean_over_tasks

MOST = 8
"""Recordings kept for one network; the one that was not used for longest goes."""


@dataclass(frozen=True)
class _Recording:
    """A graph with the memory that it reads its tasks from and leaves its results in."""

    tasks: TaskBatch
    replay: Callable[[], Any]
    outputs: list[Tensor]
    """Task losses, predictions, support losses, and the gradients of all leaves in one row."""


_RECORDINGS: WeakKeyDictionary[nn.Module, dict[Any, _Recording]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Graphed(Engine):
    """Runs another engine once under a recorder, and from then on all of its launches as one: a CUDA graph.

    For networks so small that a GPU waits for the CPU to launch the next kernel. The first meta-batch of a shape runs
    four times. The graph holds its memory for as long as the network lives, up to 8 shapes of it. Adaptation and
    evaluation run on the other engine as they are.

    Nothing of this has run on a GPU yet; its bookkeeping is tested on the CPU.

    Raises:
        TypeError: ``engine``, which is recorded, is no engine, or one like this.

    Example:
        >>> Graphed(Batched(checkpoint="step")).engine.checkpoint
        'step'
    """

    engine: Engine = field(default_factory=Batched)
    name = "graphed"

    def __post_init__(self) -> None:
        if not isinstance(self.engine, Engine) or isinstance(self.engine, Graphed):
            raise TypeError(f"Expected `engine` to be another engine, such as Batched(), but got {self.engine!r}.")

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        if (what := refused(problem.needs(*sets), GRAPHED)) is not None:
            return f"a recording repeats the same launches on the same memory, but {what}. Use {self.engine!r}."
        return self.engine.unsupported(problem, *sets)

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        leaves = problem.leaves()
        recordings = _RECORDINGS.setdefault(problem.network, {})
        # all that a recording takes for granted: where numbers lie, their shapes, and what is computed from them
        tensors = [*problem.names.values(), *problem.network.buffers(), *leaves]
        places = tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in tensors)
        shapes = tuple((value.shape, value.dtype) for _, value in tasks.named())
        key = self.engine, problem.algorithm, problem.fingerprint, places, shapes
        recording = recordings.pop(key) if key in recordings else self._record(problem, tasks)
        recordings[key] = recording  # behind all others
        if len(recordings) > MOST:
            del recordings[next(iter(recordings))]
        for (_, static), (_, value) in zip(recording.tasks.named(), tasks.named(), strict=True):
            static.copy_(value)
        recording.replay()
        task_losses, predictions, support_losses, row = (output.clone() for output in recording.outputs)
        parts = row.split([leaf.numel() for leaf in leaves])
        gradients = [part.view(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        loss = mean_over_tasks(task_losses, tasks.shares)
        return MetaOutput(loss, gradients, leaves, task_losses, predictions, support_losses)

    def _record(self, problem: Problem, tasks: TaskBatch) -> _Recording:
        static = tasks.each(Tensor.clone)

        def run() -> list[Tensor]:
            output = self.engine.meta_loss(problem, static)
            row = torch.cat([gradient.flatten() for gradient in output.gradients])
            return [output.task_losses, output.predictions, output.support_losses, row]

        return _Recording(static, *record(run, static.support_targets.device))

    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        return self.engine.trajectory(problem, support)

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        return self.engine.predict(problem, phi, inputs, step)


def record(run: Callable[[], list[Tensor]], device: torch.device) -> tuple[Callable[[], Any], list[Tensor]]:
    """What replays ``run``, and the tensors that it leaves its results in; NotImplementedError where a graph can't."""
    with torch.cuda.device(device):
        # as torch documents it: first on another stream, so that libraries and autograd have set themselves up
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = run()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NotImplementedError(
                "Expected a meta-gradient that the CPU launches without waiting for the GPU, as a CUDA graph needs it, "
                f"but recording it failed: use the engine as it is. ({error})"
            ) from error
    return graph.replay, outputs
