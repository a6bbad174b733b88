"""Every metric and figure of a short run, read back from the files of four loggers."""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_maml import MLP, MetaModule, SinusoidTasks, maml
from lightning_maml.report import LogFigures
from lightning_maml.report import figures as module

# what the loggers' packages, or what these import, say of themselves
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning", "ResourceWarning", "PendingDeprecationWarning")
]
WANTED = {"train/loss", "train/meta_gradient_norm", "train/learning_rate", "val/loss", "val/loss_step_0"}
WANTED |= {f"test/loss_step_{step}{part}" for step in range(3) for part in ("", "_ci95")}
FIGURES = {module.LEARNING, module.STEPS}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, where nothing reaches the network."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(logger: Any, folder: Path) -> None:
    seed_everything(0, verbose=False)
    one = MetaModule(MLP(1, [8], 1), maml(0.01, 2), loss="mse")
    tasks = SinusoidTasks(tasks_per_batch=2, batches_per_epoch=4, val_tasks=4, test_tasks=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_steps=8, log_every_n_steps=2, logger=logger, callbacks=[LogFigures()], accelerator="cpu",
        default_root_dir=folder, **quiet,
    )  # fmt: skip
    trainer.fit(one, tasks)
    trainer.test(one, tasks, verbose=False)


def test_csv(alone: Path) -> None:
    run(CSVLogger(alone, name="a"), alone)
    with (alone / "a" / "version_0" / "metrics.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert {name for row in rows for name, value in row.items() if value} >= WANTED
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [2, 4, 6, 8]


def test_tensorboard(alone: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(TensorBoardLogger(alone, name="a"), alone)
    events = accumulator.EventAccumulator(str(alone / "a" / "version_0"), {"images": 0, "scalars": 0}).Reload()
    assert {*events.Tags()["scalars"]} >= WANTED
    assert {*events.Tags()["images"]} == FIGURES
    assert [one.step for one in events.Images(module.LEARNING)] == [4, 8]
    assert all(one.width >= 600 and one.encoded_image_string[:4] == b"\x89PNG" for one in events.Images(module.STEPS))


def test_mlflow(alone: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="needs the extra `loggers`")
    folder = (alone / "mlruns").as_uri()
    logger = MLFlowLogger("sines", tracking_uri=folder)
    run(logger, alone)
    client = tracking.MlflowClient(folder)
    found = client.get_run(logger.run_id)
    assert {*found.data.metrics} >= WANTED
    assert [one.step for one in client.get_metric_history(logger.run_id, "train/loss")] == [2, 4, 6, 8]
    assert {path.stem for path in (alone / "mlruns").rglob("*.png")} == FIGURES


def records(content: bytes) -> Iterator[bytes]:
    """Of W&B's file, a log of LevelDB: blocks of 32 KiB, of parts with a head of checksum, length and kind."""
    assert content[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb(alone: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra `loggers`")
    from wandb.proto import wandb_internal_pb2

    run(WandbLogger(project="sines", save_dir=alone, offline=True), alone)
    wandb.finish()
    (file,) = alone.rglob("*.wandb")
    names = set()
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        names |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    assert names >= WANTED | {f"{figure}/count" for figure in FIGURES}
    assert len([*alone.rglob("media/images/*.png")]) >= 3


def test_other_loggers_are_left_alone_and_each_run_has_its_own_curve(alone: Path) -> None:
    shown = []

    class Own(TensorBoardLogger):
        """A logger derived from one that takes figures takes them, too."""

    callback = LogFigures()
    one = MetaModule(MLP(1, [8], 1), maml(0.01, 2), loss="mse")
    tasks = SinusoidTasks(tasks_per_batch=2, batches_per_epoch=2, val_tasks=2, test_tasks=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.TAKES, TensorBoardLogger, lambda logger, name, figure, step: shown.append((name, step)))
        for _ in range(2):
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
            trainer = Trainer(max_steps=4, logger=[CSVLogger(alone), Own(alone)], callbacks=[callback], **quiet)
            trainer.fit(one, tasks)
            assert [step for step, *_ in callback._validated] == [2, 4]
    assert shown == [(module.LEARNING, 2), (module.LEARNING, 4)] * 2
