"""Task streams under Lightning: the same tasks on resume, shares of several processes, fixed lists, no warnings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_maml import TaskBatch
from lightning_maml.data import SinusoidTasks, TaskStream

BATCHES_PER_EPOCH = 7


class NumberedTasks(TaskStream):
    """Each task holds its own random number, and nothing else."""

    def draw(self, stage: str, tasks: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (torch.randint(2**31, (tasks, 1, 1), generator=generator).double(),)

    def build(self, stage: str, drawn: tuple[torch.Tensor, ...], device: torch.device) -> TaskBatch:
        numbers = drawn[0].to(device)
        return TaskBatch(numbers, numbers, numbers, numbers)


class Recorder(LightningModule):
    """Writes down the tasks it has seen; with ``updates_per_step`` optimises manually, as MetaModule does."""

    def __init__(self, updates_per_step: int = 1) -> None:
        super().__init__()
        self.updates_per_step = updates_per_step
        self.automatic_optimization = updates_per_step == 1
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[list[float]]] = {"train": [], "val": [], "test": [], "predict": []}
        self.fail_at: int | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def _update(self, tasks: TaskBatch) -> torch.Tensor:
        if len(self.seen["train"]) == self.fail_at:
            raise RuntimeError("stopped in the middle of a training step")
        self.seen["train"].append(tasks.support_inputs.flatten().tolist())
        return (self.weight - 1).square()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if self.automatic_optimization:
            assert isinstance(batch, TaskBatch)
            return self._update(batch)
        left = self.trainer.max_steps - self.trainer.global_step if self.trainer.max_steps >= 0 else len(batch)
        for tasks in batch[:left]:
            loss = self._update(tasks)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return None

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> None:
        self.seen["val"].append(batch.support_inputs.flatten().tolist())

    def test_step(self, batch: TaskBatch, batch_idx: int) -> None:
        self.seen["test"].append(batch.support_inputs.flatten().tolist())

    def predict_step(self, batch: TaskBatch, batch_idx: int) -> torch.Tensor:
        self.seen["predict"].append(batch.support_inputs.flatten().tolist())
        return batch.query_inputs


def numbered(**options: Any) -> NumberedTasks:
    return NumberedTasks(3, **{"batches_per_epoch": BATCHES_PER_EPOCH, "val_tasks": 4, "test_tasks": 5, **options})


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def expected(batches: int, first: int = 0) -> list[list[float]]:
    stream = numbered()
    return [stream.sample("train", first + i).support_inputs.flatten().tolist() for i in range(batches)]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
@pytest.mark.parametrize("val_tasks", [0, 4])
@pytest.mark.parametrize("limit", ["max_steps", "max_epochs"])
@pytest.mark.parametrize("stop", [1, 5, 7, 10, 14])
@pytest.mark.parametrize(("updates_per_step", "accumulate"), [(1, 1), (3, 1), (1, 2)])
def test_resumed_run_sees_the_tasks_of_a_run_never_stopped(
    tmp_path: Path, updates_per_step: int, accumulate: int, stop: int, limit: str, val_tasks: int
) -> None:
    """Stopped after `stop` optimiser steps, within and at the end of epochs, and resumed up to three epochs."""
    straight = Recorder(updates_per_step)
    trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate).fit(straight, numbered(val_tasks=val_tasks))
    assert straight.seen["train"] == expected(3 * BATCHES_PER_EPOCH)

    # accumulation: 4 optimiser steps an epoch; manual: a step of 3 updates or, at an epoch's end, of 1
    def saved() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    steps = min(stop, 12) if accumulate == 2 else stop
    stopped = Recorder(updates_per_step)
    trainer(tmp_path, saved(), max_steps=steps, accumulate_grad_batches=accumulate).fit(
        stopped, numbered(val_tasks=val_tasks)
    )
    done = len(stopped.seen["train"])
    assert done == (steps if accumulate == 1 else 7 * (steps // 4) + 2 * (steps % 4))
    assert stopped.seen["train"] == expected(done)

    resumed = Recorder(updates_per_step)
    total = 12 if accumulate == 2 else 3 * BATCHES_PER_EPOCH
    limits = {"max_steps": total} if limit == "max_steps" else {"max_epochs": 3}
    trainer(tmp_path, saved(), accumulate_grad_batches=accumulate, **limits).fit(
        resumed, numbered(val_tasks=val_tasks), ckpt_path=tmp_path / f"step={steps}.ckpt", weights_only=True
    )
    seen = stopped.seen["train"] + resumed.seen["train"]
    assert seen == straight.seen["train"][: len(seen)]
    # Lightning counts a training step that max_steps cut short (stop = 1 or 5 of 3 + 3 + 1 updates) for a whole one
    cut = updates_per_step == 3 and limit == "max_epochs" and stop in (1, 5)
    assert len(seen) == 3 * BATCHES_PER_EPOCH - ({1: 2, 5: 1}[stop] if cut else 0)


@pytest.mark.parametrize("updates_per_step", [1, 3])
def test_a_run_that_failed_mid_step_resumes_with_the_task_it_failed_at(tmp_path: Path, updates_per_step: int) -> None:
    module = Recorder(updates_per_step)
    module.fail_at = 5
    running = trainer(tmp_path, max_epochs=2)
    with pytest.raises(RuntimeError, match="in the middle"):
        running.fit(module, numbered())
    running.save_checkpoint(tmp_path / "failed.ckpt")

    resumed = Recorder(updates_per_step)
    trainer(tmp_path, max_epochs=2).fit(resumed, numbered(), ckpt_path=tmp_path / "failed.ckpt", weights_only=True)
    assert module.seen["train"] == expected(5)
    assert resumed.seen["train"][:6] == expected(6, first=5)


def test_fits_of_one_stream_by_two_trainers_see_the_same_tasks(tmp_path: Path) -> None:
    stream, first, second = numbered(), Recorder(), Recorder()
    trainer(tmp_path, max_steps=5).fit(first, stream)
    trainer(tmp_path, max_steps=5).fit(second, stream)
    assert first.seen["train"] == second.seen["train"] == expected(5)


def test_epochs_cut_short_continue_where_they_stopped(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=3, limit_train_batches=2).fit(module, numbered())
    assert module.seen["train"] == expected(6)


def test_overfit_batches_sees_the_same_tasks_in_each_epoch(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(module, numbered())
    assert module.seen["train"] == expected(2) * 2


def test_updates_per_step_does_not_change_the_number_of_updates(tmp_path: Path) -> None:
    module = Recorder(updates_per_step=3)
    running = trainer(tmp_path, max_epochs=2)
    running.fit(module, numbered())
    assert running.global_step == len(module.seen["train"]) == 2 * BATCHES_PER_EPOCH
    assert running.num_training_batches == 3


@pytest.mark.filterwarnings("error:The '.*_dataloader' does not have many workers")
def test_evaluation_sees_its_fixed_list_in_every_phase_and_no_phase_warns(tmp_path: Path) -> None:
    """A warning would fail it, as any test here; to a torch DataLoader Lightning would advise more workers."""
    module, stream = Recorder(), numbered()
    running = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    running.fit(module, stream)
    running.validate(module, stream, verbose=False)
    running.test(module, stream, verbose=False)
    predictions = running.predict(module, stream)

    tests = [stream.sample("test", i).support_inputs.flatten().tolist() for i in range(2)]
    assert [len(batch) for batch in tests] == [3, 2]
    assert module.seen["test"] == module.seen["predict"] == tests
    assert torch.cat(predictions).flatten().tolist() == tests[0] + tests[1]
    assert module.seen["val"] == 2 * [stream.sample("val", i).support_inputs.flatten().tolist() for i in range(2)]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_no_validation_tasks_means_no_validation(tmp_path: Path) -> None:
    module = Recorder()
    running, stream = trainer(tmp_path, max_epochs=1), numbered(val_tasks=0)
    running.fit(module, stream)
    with pytest.raises(MisconfigurationException, match="`val_dataloader` must be implemented"):
        running.validate(module, stream)
    assert module.seen["val"] == []
    assert len(module.seen["train"]) == BATCHES_PER_EPOCH


def test_the_fixed_list_does_not_depend_on_the_size_of_batches() -> None:
    few, many = NumberedTasks(2, test_tasks=5), NumberedTasks(4, test_tasks=5)
    lists = [
        torch.cat([stream.sample("test", i).query_inputs for i in range(batches)])
        for stream, batches in ((few, 3), (many, 2))
    ]
    assert torch.equal(*lists)
    assert len(lists[0].unique()) == 5


def test_tasks_depend_on_seed_stage_and_position_alone() -> None:
    def number(seed: int, stage: str, position: int) -> float:
        torch.manual_seed(torch.seed() % 1000)  # the global generator must not matter
        return NumberedTasks(1, seed=seed).sample(stage, position).query_inputs.item()

    assert number(1, "train", 3) == number(1, "train", 3)
    different = {(0, "train", 3), (1, "train", 3), (1, "train", 4), (1, "val", 3), (1, "test", 3)}
    assert len({number(*case) for case in different}) == len(different)


def test_no_generator_comes_twice_in_the_published_number_of_iterations() -> None:
    stream = NumberedTasks(1)
    seeds = {stream._generator("train", position).initial_seed() for position in range(70_000)}
    assert len(seeds) == 70_000
    # torch reads 32 bits of a seed: without this the test above would prove nothing
    assert max(seeds) < 2**32


@pytest.mark.parametrize(("stage", "position"), [("train", 4), ("val", 0), ("test", 0), ("test", 2)])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_of_the_processes_make_up_the_batch(stage: str, position: int, world_size: int) -> None:
    stream = NumberedTasks(6, val_tasks=10, test_tasks=16)
    parts = [
        stream.sample(stage, position, rank=rank, world_size=world_size).query_inputs for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(parts), stream.sample(stage, position).query_inputs)


@pytest.mark.parametrize("test_tasks", [4, 5, 9, 11, 600])
@pytest.mark.parametrize(("size", "world_size"), [(8, 1), (8, 2), (5, 2), (4, 4), (7, 4), (8, 3)])
def test_processes_evaluate_each_task_once_in_as_many_steps(test_tasks: int, size: int, world_size: int) -> None:
    stream = NumberedTasks(size, test_tasks=test_tasks)
    seen, steps, largest = [], set(), 0
    for rank in range(world_size):
        stream.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, precision_plugin=SimpleNamespace(convert_input=lambda value: value)
        )
        batches = [
            stream.transfer_batch_to_device(batch, torch.device("cpu"), 0).query_inputs.flatten().tolist()
            for batch in stream.test_dataloader()
        ]
        seen += [number for batch in batches for number in batch]
        steps.add(len(batches))
        largest = max(largest, *map(len, batches))
    alone = NumberedTasks(test_tasks, test_tasks=test_tasks).sample("test", 0).query_inputs.flatten().tolist()
    assert seen == alone  # in order, and so each once
    assert len(steps) == 1
    assert largest <= max(size // world_size, 2)  # two at once only where there are fewer steps than that takes


def test_processes_share_training_batches_or_are_too_many() -> None:
    stream = NumberedTasks(3)
    stream.trainer = SimpleNamespace(global_rank=0, world_size=4)
    with pytest.raises(ValueError, match=r"`tasks_per_batch` to be at least the number of processes, 4.* but got 3"):
        stream.train_dataloader()


def test_tasks_come_in_the_trainers_precision(tmp_path: Path) -> None:
    dtypes = []

    class Typed(Recorder):
        def _update(self, tasks: TaskBatch) -> torch.Tensor:
            dtypes.append(tasks.support_inputs.dtype)
            return (self.weight - 1).square()

    trainer(tmp_path, max_steps=1, precision="64-true").fit(Typed(), SinusoidTasks(val_tasks=0))
    trainer(tmp_path, max_steps=1, precision="bf16-true").fit(Typed(), SinusoidTasks(val_tasks=0))
    assert dtypes == [torch.float64, torch.bfloat16]
