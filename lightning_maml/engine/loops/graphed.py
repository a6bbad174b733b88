"""Another engine's whole meta-gradient as one CUDA graph, or several meta-updates with the optimiser's steps."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_maml.engine.base import Engine, MetaOutput, Problem, in_layout
from lightning_maml.engine.coverage import GRAPHED, refused
from lightning_maml.engine.generators import way_back
from lightning_maml.engine.loops.batched import Batched
from lightning_maml.inner import Parameters, tensors_of
from lightning_maml.tasks import Set, TaskBatch, mean_over_tasks

MOST = 8
"""Recordings kept for one network; the one that was not used for longest goes."""


class OuterStep(Protocol):
    """An outer optimiser's step, as launches that may be recorded."""

    @property
    def places(self) -> Hashable:
        """What a recording takes for granted: where parameters and state lie, and the numbers it computes with."""

    def rates(self) -> list[float]:
        """Those of each group of parameters."""

    def take_unless(self, skipped: Tensor, gradients: Sequence[Tensor], rates: Sequence[Tensor]) -> None:
        """Steps by the gradients; where the scalar ``skipped`` is 1, it leaves parameters and state as they are."""


@dataclass(frozen=True)
class _Recording:
    """A graph with the memory that it reads its tasks from and leaves its results in."""

    tasks: list[TaskBatch]
    rates: Tensor
    """Of each meta-update and group of parameters; empty where no steps are recorded."""
    known: list[list[float]]
    """The rates that are there."""
    idle: Tensor
    """1 for a run that leaves parameters and the optimiser's state as they are."""
    replay: Callable[[], Any]
    outputs: list[Tensor]
    """Of each meta-update, stacked: task losses, predictions, support losses, the gradients of all leaves in one row,
    and whether it was taken."""


OuterRates = Sequence[list[float]]
_RECORDINGS: WeakKeyDictionary[nn.Module, dict[Any, _Recording]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Graphed(Engine):
    """Runs another engine once under a recorder, and from then on all of its launches as one: a CUDA graph.

    For networks so small that a GPU waits for the CPU to launch the next kernel. The first meta-batch of a shape runs
    four times. The graph holds its memory for as long as the network lives, up to 8 shapes of it. Adaptation and
    evaluation run on the other engine as they are.

    Under ``MetaModule(updates_per_step=n)`` all ``n`` meta-updates of a training step are one graph, the steps of an
    Adam included, where nobody asks for one between them; the CPU waits for the GPU once in ``n`` meta-updates.

    Nothing of this has run on a GPU yet; it is tested on a device that is not the CPU and records as CUDA does.

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
        return self._replayed(problem, [tasks], None)[0]

    def updates(
        self, problem: Problem, batches: Sequence[TaskBatch], step: OuterStep, rates: OuterRates
    ) -> list[MetaOutput]:
        """Meta-updates by meta-batches of one shape in turn, each with its step, as one launch.

        ``rates`` are those of each meta-update, ``[n][groups]``. It ends before the first meta-update whose loss or
        meta-gradient is not finite: that one and all behind it are not taken, and are not among what is returned.
        """
        return self._replayed(problem, batches, step, rates)

    def _replayed(
        self, problem: Problem, batches: Sequence[TaskBatch], step: OuterStep | None, rates: OuterRates = ()
    ) -> list[MetaOutput]:
        leaves = problem.leaves()
        recordings = _RECORDINGS.setdefault(problem.network, {})
        # all that a recording takes for granted: where numbers lie, their shapes, and what is computed from them
        held = (*problem.held_by_losses, *tensors_of(problem.algorithm.holders))
        tensors = [*problem.names.values(), *problem.network.buffers(), *held, *leaves]
        places = tuple((one.data_ptr(), one.shape, one.stride(), one.dtype, one.requires_grad) for one in tensors)
        shapes = tuple((value.shape, value.dtype) for _, value in batches[0].named())
        key = self.engine, problem.algorithm, problem.fingerprint, places, shapes, len(batches), step and step.places
        recording = recordings.pop(key) if key in recordings else self._record(problem, batches, step)
        recordings[key] = recording  # behind all others
        if len(recordings) > MOST:
            del recordings[next(iter(recordings))]
        torch._foreach_copy_(_values(recording.tasks), _values(batches))
        if step is not None and rates != recording.known:  # a copy from the host waits for the device
            recording.rates.copy_(torch.tensor(rates, dtype=torch.float32))
            recording.known[:] = rates
        recording.replay()
        losses, predictions, support_losses, rows, taken = (output.clone() for output in recording.outputs)
        found = []
        # the one look at the device: an update that was not taken has none behind it that was
        for place in range(len(batches) if step is None else round(taken.sum().item())):
            parts = rows[place].split([leaf.numel() for leaf in leaves])
            gradients = [part.view(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
            loss = mean_over_tasks(losses[place], batches[place].shares)
            found.append(MetaOutput(loss, gradients, leaves, losses[place], predictions[place], support_losses[place]))
        return found

    def _record(self, problem: Problem, batches: Sequence[TaskBatch], step: OuterStep | None) -> _Recording:
        static = [tasks.each(Tensor.clone) for tasks in batches]
        like = static[0].support_targets
        # in float32, as torch's fused steps read them
        numbers: dict[str, Any] = {"dtype": torch.float32, "device": like.device}
        rates = torch.zeros(len(batches), 0 if step is None else len(step.rates()), **numbers)
        # nothing of what runs before a recording may stay
        idle = torch.ones((), **numbers)

        def run() -> list[Tensor]:
            skipped, each = idle, []
            for place, tasks in enumerate(static):
                output = self.engine.meta_loss(problem, tasks)
                row = torch.cat([gradient.flatten() for gradient in output.gradients])
                if step is not None:
                    skipped = torch.maximum(skipped, 1 - (row.sum() + output.loss).isfinite().to(skipped.dtype))
                    gradients = in_layout(output.gradients, output.leaves)  # which a fused step asks for
                    step.take_unless(skipped, gradients, rates[place].unbind())
                each.append((output.task_losses, output.predictions, output.support_losses, row, 1 - skipped))
            return [torch.stack(parts) for parts in zip(*each, strict=True)]

        replay, outputs = record(run, like.device)
        idle.zero_()
        return _Recording(static, rates, [], idle, replay, outputs)

    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        return self.engine.trajectory(problem, support)

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        return self.engine.predict(problem, phi, inputs, step)


def _values(batches: Sequence[TaskBatch]) -> list[Tensor]:
    return [value for tasks in batches for _, value in tasks.named()]


def record(run: Callable[[], list[Tensor]], device: torch.device) -> tuple[Callable[[], Any], list[Tensor]]:
    """What replays ``run``, and the tensors that it leaves its results in; NotImplementedError where a graph can't."""
    with torch.cuda.device(device):
        # as torch documents it: first on another stream, so that libraries and autograd have set themselves up
        current, side = torch.cuda.current_stream(), _side(device)
        back = way_back(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        current.wait_stream(side)
        back()  # what was drawn meanwhile was for nothing
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, such as a loader's that pins memory, do what they do
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as error:
            torch.cuda.set_stream(
                current
            )  # where a recording fails at its end, torch leaves its stream the current one
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NotImplementedError(
                "Expected a meta-gradient that the CPU launches without waiting for the GPU, as a CUDA graph needs it, "
                f"but recording it failed: use the engine as it is. ({error})"
            ) from error
    return graph.replay, outputs


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """The stream that a device's recordings are made on: torch's own is of the device that was the first to record."""
    return torch.cuda.Stream(device)
