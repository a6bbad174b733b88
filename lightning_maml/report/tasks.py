"""Test tasks before and after each inner step, adapted anew from a run's checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_maml import data, saving
from lightning_maml.adaptation import Evaluation, evaluate
from lightning_maml.data import TaskStream
from lightning_maml.metrics import judged
from lightning_maml.report.run import Run
from lightning_maml.tasks import TaskBatch
from lightning_maml.training.module import MetaModule

TASKS = 32
NUMBERS = 4_000_000
"""Of fewer tasks are the inputs and the layers of a large network made: images of 84 x 84 would take a minute."""


@dataclass(frozen=True)
class Tried:
    """Some test tasks and what became of them: ``values [T, steps + 1]`` of the run's loss or metric."""

    module: MetaModule
    stream: TaskStream
    tasks: TaskBatch
    evaluation: Evaluation
    value: str
    values: Tensor

    def again(self, tasks: TaskBatch) -> Evaluation:
        """The same for other tasks, as a test evaluates them."""
        return _evaluated(self.module, tasks)


def try_tasks(run: Run, module: MetaModule | None = None, stream: Any = None) -> Tried:
    """Adapts to up to 32 test tasks, on the CPU, from the run's checkpoint, or by what is given in its place.

    Raises:
        ValueError: there is no checkpoint or no test task, or the data's class is not one of this library.
        FileNotFoundError: the data set is not where the run had it.
    """
    module = (_module(run) if module is None else module).cpu().eval()
    stream = _stream(run) if stream is None else stream
    if not isinstance(stream, TaskStream):
        raise ValueError(f"Expected the tasks of a TaskStream but the run's are of {type(stream).__name__}.")
    tasks = _first(stream)
    evaluation = _evaluated(module, tasks)
    if module._metric is None:
        return Tried(module, stream, tasks, evaluation, "loss", evaluation.query_losses)
    each = [judged(module._metric, one, tasks.query_targets) for one in evaluation.predictions.unbind(1)]
    return Tried(module, stream, tasks, evaluation, module._metric[0], torch.stack(each, 1))


def _module(run: Run) -> MetaModule:
    if run.checkpoint is None:
        raise ValueError("Expected a checkpoint in the run's folder but found none.")
    with torch.random.fork_rng(devices=[]):  # building a network draws its first weights
        return MetaModule.load_from_checkpoint(run.checkpoint, map_location="cpu")


def _evaluated(module: MetaModule, tasks: TaskBatch) -> Evaluation:
    options: dict[str, Any] = {"loss": module.loss, "query_loss": module.query_loss, "safeguard": module.safeguard}
    return evaluate(module.network, module.algorithm, tasks, engine=module.engine, steps=module.test_steps, **options)


def _stream(run: Run) -> TaskStream:
    content = run.section("data")
    kind = getattr(data, run.named("data"), None) if run.named("data") in data.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, TaskStream)):
        raise ValueError(
            f"Expected the tasks of a class of lightning_maml.data but the run's are of {content.get('class_path')}."
        )
    stream = saving.build(kind, {**content.get("init_args", {}), "download": False}, {})
    content = saving.read_checkpoint(run.checkpoint, "cpu") if run.checkpoint is not None else {}
    if state := content.get(kind.__qualname__):
        stream.load_state_dict(state)
    return stream


def _first(stream: TaskStream) -> TaskBatch:
    """The first test tasks, together."""
    if stream.test_tasks == 0:
        raise ValueError("Expected test tasks but the run's data has none.")
    found: list[TaskBatch] = []
    for batch in _batches(stream):
        if not isinstance(batch, TaskBatch):
            raise ValueError(f"Expected tasks of one size but got {type(batch).__name__}.")
        found.append(batch)
    size = max(1, NUMBERS // max(1, sum(value[0].numel() for value in _tensors(found[0]))))
    most, parts = min(TASKS, size * 8), [[*values] for values in zip(*map(_tensors, found), strict=True)]
    return TaskBatch(*(torch.cat(values)[:most] for values in parts))


def _batches(stream: TaskStream) -> Iterator[Any]:
    count = 0
    for position in range(-(-stream.test_tasks // stream.tasks_per_batch)):
        if count >= TASKS:
            return
        yield (batch := stream.sample("test", position))
        count += len(batch)


def _tensors(tasks: TaskBatch) -> list[Tensor]:
    values = [tasks.support_inputs, tasks.support_targets, tasks.query_inputs, tasks.query_targets]
    if not all(isinstance(value, Tensor) for value in values):
        raise ValueError("Expected inputs of one tensor but the run's tasks have several.")
    return values
