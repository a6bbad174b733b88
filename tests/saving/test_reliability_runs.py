"""Runs that are killed, told to end, or lose a process: what is left, and what a run that goes on from it ends at."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import processes
from benchmarks.endurance import endure
from lightning_maml import MetaModule, maml
from lightning_maml.data import SinusoidTasks
from lightning_maml.saving import BestCheckpoint, whole_file
from processes import until


class Started(Callback):
    """Leaves a file once training has begun."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"started_{os.getpid()}"

    def on_train_batch_end(self, *_: Any) -> None:
        self.path.touch()


class Pace(Callback):
    """Waits a little after each training step, so that a signal finds the run still going."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.002)


def train(folder: Path, updates: int, per_step: int, world_size: int, every: int, timeout: float = 60.0) -> Any:
    """Trains up to ``updates`` meta-updates, from the last checkpoint where there is one; returns the parameters."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    # dropout draws from torch's generator, whose state a checkpoint has to hold
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
    module = MetaModule(
        network,
        maml(0.01, 2, learn_lr="per_parameter"),
        scheduler=halved,
        updates_per_step=per_step,
        engine="batched",
    )
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=DDPStrategy(timeout=timedelta(seconds=timeout)) if world_size > 1 else "auto",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=updates,
        num_sanity_val_steps=1,
        val_check_interval=30 // per_step,
        callbacks=[
            BestCheckpoint(checkpoints, every_n_train_steps=every),
            Started(folder),
            Pace(),
        ],
    )
    data = SinusoidTasks(shots=5, tasks_per_batch=3, batches_per_epoch=60, val_tasks=4, test_queries=5)
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)
    assert trainer.global_step == updates
    return {"parameters": [p.detach() for p in module.parameters()], "optimizer": trainer.optimizers[0].state_dict()}


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.5)


def started(folder: Path, running: list[Any]) -> bool:
    return all((folder / f"started_{process.pid}").exists() for process in running)


def assert_same(first: Any, second: Any) -> None:
    for one, other in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("kills", "updates", "per_step", "world_size"),
    [
        pytest.param(2, 90, 1, 1, id="2"),
        pytest.param(2, 150, 3, 1, id="2-several-updates"),
        pytest.param(1, 42, 1, 2, id="1-two-processes"),
        pytest.param(20, 1000, 1, 1, id="20", marks=pytest.mark.slow),
        pytest.param(20, 1500, 3, 1, id="20-several-updates", marks=pytest.mark.slow),
        pytest.param(20, 1000, 1, 2, id="20-two-processes", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_moments_ends_where_it_would_have_ended(
    tmp_path: Path, kills: int, updates: int, per_step: int, world_size: int
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    arguments = (updates, per_step, world_size, 6)
    expected = processes.run(train, straight, world_size, straight, *arguments)
    moments = random.Random(0)
    done = 0
    for _ in range(5 * kills):
        running = processes.start(train, killed, world_size, killed, *arguments)
        until(lambda running=running: started(killed, running), running)
        time.sleep(moments.uniform(0, 0.15))
        died = [process.exitcode is None for process in running]
        for process in running:
            process.kill()
        statuses = processes.wait(running)
        done += all(died) and statuses == [-signal.SIGKILL] * world_size
        assert not list(killed.glob("error_*"))
        if done == kills:
            break
    assert done == kills, f"the run ended after {done} kills"
    results = processes.run(train, killed, world_size, killed, *arguments)
    for result, wanted in zip(results, expected, strict=True):
        assert_same(result, wanted)


def test_what_a_run_ends_at_depends_on_the_random_numbers(tmp_path: Path) -> None:
    """Without their state in the checkpoint the test above would have to fail."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    (expected,) = processes.run(train, whole, 1, whole, 24, 1, 1, 6)
    processes.run(train, parts, 1, parts, 12, 1, 1, 6)
    last = parts / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert len(checkpoint["random_states"]) == 1
    (resumed,) = processes.run(train, parts, 1, parts, 24, 1, 1, 6)
    assert_same(resumed, expected)
    del checkpoint["random_states"]
    torch.save(checkpoint, last)
    (other,) = processes.run(train, parts, 1, parts, 24, 1, 1, 6)
    assert not torch.equal(other["parameters"][0], expected["parameters"][0])


@pytest.mark.parametrize("world_size", [1, 2])
def test_sigterm_saves_and_ends(tmp_path: Path, world_size: int) -> None:
    straight, told = tmp_path / "straight", tmp_path / "told"
    straight.mkdir()
    told.mkdir()
    arguments = (60, 1, world_size, 60)  # no checkpoint but at the end
    expected = processes.run(train, straight, world_size, straight, *arguments)
    running = processes.start(train, told, world_size, told, *arguments)
    until(lambda: started(told, running), running)
    os.kill(running[-1].pid, signal.SIGTERM)  # of two processes, the one that does not write
    assert processes.wait(running) == [143, 0][:world_size]
    step = torch.load(told / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 60
    results = processes.run(train, told, world_size, told, *arguments)
    for result, wanted in zip(results, expected, strict=True):
        assert_same(result, wanted)


@pytest.mark.parametrize(("sent", "to"), [("SIGKILL", 1), ("SIGKILL", 0), ("SIGSTOP", 1)])
def test_a_process_that_is_gone_ends_the_others(tmp_path: Path, sent: str, to: int) -> None:
    running = processes.start(train, tmp_path, 2, tmp_path, 10**6, 1, 2, 100, 3.0)
    until(lambda: started(tmp_path, running), running)
    os.kill(running[to].pid, getattr(signal, sent))
    other = running[1 - to]
    other.join(60)  # a hang would last for ever
    status = other.exitcode
    processes.wait([other], 0.1) if status is None else None
    running[to].kill()
    running[to].join()
    assert status is not None
    assert status > 0
    assert "RuntimeError" in (tmp_path / f"error_{1 - to}.txt").read_text()  # gloo's, which names the peer


@pytest.mark.slow
def test_a_long_training_takes_no_more_memory(tmp_path: Path) -> None:
    assert processes.wait(processes.start(endure, tmp_path, 1, 200_000, tmp_path), 7200) == [0]
    rows = torch.load(tmp_path / "result_0.pt")
    assert len(rows) == 20
    early, late = rows[4], rows[-1]
    assert late["resident_mb"] < early["resident_mb"] + 20
    assert late["objects"] < early["objects"] + 2000


def write_slowly(path: Path) -> None:
    def never(_: int) -> None:
        (path.parent / "writing").touch()
        time.sleep(60)

    os.fsync = never
    with whole_file(path) as file:
        file.write(b"new" * 100_000)


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    running = processes.start(write_slowly, tmp_path, 1, path)
    until(lambda: (tmp_path / "writing").exists(), running)
    running[0].kill()
    processes.wait(running)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3  # what was half written; the next to write there removes it
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "writing"]


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    """100 kills, stops, full disks and second processes in one training: it ends as the undisturbed one, to the bit."""
    options = [
        "fit",
        "--config",
        str(Path(__file__).parents[2] / "configs" / "sinusoid.yaml"),
        "--trainer.max_steps=40000",
    ]
    options += ["--data.batches_per_epoch=2000", "--data.val_tasks=30", "--model.updates_per_step=10"]
    options += ["--trainer.val_check_interval=100", "--checkpoint.every_n_train_steps=150", "--ckpt_path=last"]
    options += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    paced = [*options, "--trainer.callbacks+=soak.Pace"]

    def command(folder: Path, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "soak.py"), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    whole = command(straight, options)
    assert (whole.communicate()[1], whole.returncode)[1] == 0

    chance = random.Random(0)
    ended: Counter[str] = Counter()
    while sum(ended.values()) < 100:
        kind = chance.choice(["SIGKILL"] * 4 + ["SIGTERM"] * 2 + ["SIGINT"] * 2 + ["disk"] + ["second"])
        size = {"DISK": str(chance.randrange(1, 40_000))} if kind == "disk" else {}
        first = command(disturbed, paced, **size)
        second = command(disturbed, paced) if kind == "second" else None
        begun, late = disturbed / f"started_{first.pid}", time.monotonic() + chance.choice([4, 120, 120, 120])
        while first.poll() is None and not begun.exists() and time.monotonic() < late:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            first.wait(chance.uniform(0, 4))
        if first.returncode is None:
            first.send_signal(getattr(signal, kind if kind.startswith("SIG") else "SIGKILL"))
        said = first.communicate()[1]
        if not (said.endswith("KeyboardInterrupt\n") and not begun.exists()):  # while Python itself loads torch
            assert "Traceback" not in said, said
        assert first.returncode in (1, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT), said
        if second is not None:
            time.sleep(0.5)
            second.send_signal(signal.SIGKILL)
            said = second.communicate()[1]
            assert "Traceback" not in said, said
        ended[kind] += 1
    rest = command(disturbed, options)
    said = rest.communicate()[1]
    assert rest.returncode == 0, said

    def newest(folder: Path, name: str) -> dict[str, Any]:
        paths = folder.glob(f"runs/sinusoid/*/checkpoints/{name}")
        return torch.load(max(paths, key=lambda path: path.stat().st_mtime), weights_only=True)

    for name in ("last.ckpt", "best.ckpt"):
        one, other = newest(straight, name), newest(disturbed, name)
        assert one["global_step"] == other["global_step"], (name, ended)
        for key, value in one["state_dict"].items():
            assert torch.equal(value, other["state_dict"][key]), (name, key, ended)
    scores = [newest(folder, "best.ckpt")["callbacks"].values() for folder in (straight, disturbed)]
    assert [state["score"] for state in scores[0]] == [state["score"] for state in scores[1]]
    assert len(ended) == 5
