"""Data modules and metrics on the stand-in device: the CPU's tasks, the CPU's intervals, and nothing waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_learn2learn import Listed
from torch import Tensor, nn

from drawings import small, write_npz
from lightning_maml import (
    CIFARFSTasks,
    Learn2LearnTasks,
    MiniImagenetTasks,
    SinusoidTasks,
    TableTasks,
    TaskBatch,
    UnequalTasks,
    maml,
)
from lightning_maml.data import EpisodeSampler, TaskStream
from lightning_maml.metrics import TaskMean, accuracy, mse
from lightning_maml.rl import EnvironmentTasks, Navigation2D
from lightning_maml.training.meta_update import meta_update
from photographs import shrink, write_binary, write_packed
from same import assert_same
from standin import DEVICE, NAME, host_copies, numbers_of


def omniglot(root: Path, rotations: Any) -> TaskStream:
    write_npz(root)
    return small(root, rotations=rotations, shots=2, val_tasks=3, test_tasks=3)


def learn2learn() -> TaskStream:
    """A Taskset by what it does: ``sample()`` gives rows and their labels."""
    labels = torch.arange(3).repeat_interleave(4)
    listed = Listed(*((torch.randn(12, 5), labels) for _ in range(3)))
    return Learn2LearnTasks(listed, listed, listed, ways=3, shots=1, queries=3, tasks_per_batch=2, val_tasks=3)


STREAMS: dict[str, Any] = {
    "sinusoid": lambda root: SinusoidTasks(tasks_per_batch=3, val_tasks=4, test_tasks=4, test_shots=5),
    "omniglot, classes turned": lambda root: omniglot(root, "classes"),
    "omniglot, turned at random": lambda root: omniglot(root, "random"),
    "omniglot, not turned": lambda root: omniglot(root, "none"),
    "CIFAR-FS, all that augments": lambda root: CIFARFSTasks(write_binary(root), 2, 1, 2, crops=2, jitter=0.4),
    "mini-ImageNet": lambda root: MiniImagenetTasks(write_packed(root), 2, 1, 2),
    "learn2learn": lambda root: learn2learn(),
    "rollouts": lambda root: EnvironmentTasks(Navigation2D(), tasks_per_batch=3, val_tasks=4, test_tasks=4),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_makes_the_same_tasks_there_and_waits_for_nothing(
    tmp_path: Path, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, tmp_path / "cache")
    made = STREAMS[stream](tmp_path)

    def run(device: torch.device) -> list[Any]:
        drawn = [made.sample(stage, 0, device) for stage in ("train", "val", "test")]
        drawn.append(made.sample("train", 5, str(device), rank=1, world_size=2))
        return [tasks if isinstance(tasks, Tensor) else [value for _, value in tasks.named()] for tasks in drawn]

    assert_same(run, host=0)


def test_images_that_lie_there() -> None:
    """They stay there, and rows of them are drawn on the CPU: finite numbers and labels are asked for once."""
    images, labels = torch.rand(24, 1, 6, 6), torch.arange(24) // 6

    def run(device: torch.device) -> list[Any]:
        with host_copies() as copies:
            sampler = EpisodeSampler(images.to(device), labels.to(device), 2, 1, 3, "random")
        assert len(copies) == 2 * (device.type == NAME), copies.of
        tasks = sampler.sample(4, torch.Generator().manual_seed(0))
        return [value for _, value in tasks.named()]

    assert_same(run)
    with host_copies() as copies:
        sampler = EpisodeSampler(images.to(DEVICE), labels, 2, 1, 3, "random")
        made = len(copies)
        for _ in range(3):
            sampler.sample(4, torch.Generator().manual_seed(0))
    assert len(copies) == made, copies.of
    assert next(iter(sampler.sample(2, torch.Generator(), "cpu").named()))[1].device.type == "cpu"


def test_a_task_batch_moves() -> None:
    tasks = SinusoidTasks(tasks_per_batch=3).sample("train", 0)
    there = tasks.to(DEVICE, torch.float32, non_blocking=True)
    assert {(value.device, value.dtype) for _, value in there.named()} == {(DEVICE, torch.float32)}
    assert {value.device.type for _, value in there.to("cpu").named()} == {"cpu"}
    assert {value.is_pinned() for _, value in tasks.pin_memory().named()} == {True}
    with host_copies() as copies:
        part = there[1:3]
        assert isinstance(part, TaskBatch)
        assert len(part) == 2
    assert not copies.of


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_a_tables_rows_are_gathered_there(tmp_path: Path, stage: str) -> None:
    rows = [f"t{i // 7},{i % 5},{'' if i in (0, 9, 10) else i % 3}" for i in range(70)]
    (tmp_path / "table.csv").write_text("\n".join(["task,x,y", *rows]))
    stream = TableTasks(tmp_path / "table.csv", ["x"], ["y"], shots=3, tasks_per_batch=6, split=(1.0, 0.0, 0.0))
    network = nn.Linear(1, 1)

    def run(device: torch.device) -> list[Any]:
        tasks: Any = stream.sample("train", 0, device)
        if stage == "predict":
            (where,) = stream.predict_dataloader()
            tasks = stream._evaluation_batch(where, device)
        assert isinstance(tasks, UnequalTasks)
        moved = [value.float() for group in tasks.groups for _, value in group.named()]
        assert {value.device.type for value in moved} == {device.type}
        there, doubles = network.to(device), UnequalTasks([group.to(torch.float64) for group in tasks.groups])
        return [*moved, meta_update(there, maml(0.1, 2), doubles, loss="mse").gradients[0]]

    assert_same(run)


# Metrics


@pytest.mark.parametrize("metric", [accuracy, mse])
def test_metrics_wait_for_nothing(metric: Any) -> None:
    scores = torch.randn(4, 6, 3)
    targets = scores.argmax(-1).roll(1, 0) if metric is accuracy else scores.flip(0)
    assert_same(lambda device: [metric(scores.to(device), targets.to(device))], host=0)


@pytest.mark.parametrize("tasks", [0, 1, 2, 7])
def test_intervals_in_double_there_too(tasks: int) -> None:
    values = torch.randn(tasks, 3, dtype=torch.float32)
    if tasks > 2:
        values[1, 1], values[2, 2] = 1e6, torch.nan

    def run(device: torch.device) -> list[Any]:
        mean = nn.ModuleDict({"loss": TaskMean(3)}).to(device)["loss"]
        for part in values.to(device).split(2):
            mean.update(part)
        interval = mean.compute()
        assert interval.tasks == tasks
        assert interval.mean.dtype == torch.float64
        return [*interval[:4]]

    assert_same(run, host=0)


def test_a_metric_moves_with_what_it_holds() -> None:
    mean = TaskMean()
    mean.update(torch.tensor([1.0, 2.0]))
    module = nn.ModuleDict({"loss": mean}).to(NAME)
    mean.update(torch.tensor([6.0], device=DEVICE))
    assert mean.compute().mean.device == DEVICE
    assert numbers_of(mean.compute().median).item() == 2
    module.cpu()
    mean.reset()
    mean.update(torch.tensor([4.0]))
    assert mean.compute().mean.item() == 4
