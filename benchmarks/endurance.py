"""A long training, logging, validating and saving on the way: does memory or the time of a step grow?

python -m benchmarks.endurance [--updates 200000] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from benchmarks.about import about
from lightning_maml import MLP, MetaModule, maml
from lightning_maml.data import SinusoidTasks

PER_STEP = 50


class Watch(Callback):
    """Resident memory, live objects, and milliseconds an update, twenty times in the run."""

    def __init__(self, updates: int) -> None:
        self.every = updates // PER_STEP // 20
        self.rows: list[dict[str, float]] = []
        self.times: list[float] = []
        self.since = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.times.append((time.perf_counter() - self.since) / PER_STEP)
        if len(self.times) == self.every:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.rows.append(
                {
                    "update": trainer.global_step,
                    "resident_mb": pages * 4096 / 2**20,
                    "objects": len(gc.get_objects()),
                    "ms_per_update": 1e3 * statistics.median(self.times),
                }
            )
            self.times = []


def endure(updates: int, folder: Path) -> list[dict[str, float]]:
    """Trains ``updates`` meta-updates on sinusoids; what :class:`Watch` saw."""
    torch.manual_seed(0)
    watch = Watch(updates)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=updates,
        logger=CSVLogger(folder, flush_logs_every_n_steps=10),
        log_every_n_steps=20,
        val_check_interval=updates // PER_STEP // 20,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, ModelCheckpoint(folder, filename="best", monitor="val/loss", save_last=True)],
    )
    module = MetaModule(MLP(1, [40, 40], 1), maml(lr=0.001, steps=1), optimizer=adam, updates_per_step=PER_STEP)
    trainer.fit(module, SinusoidTasks(tasks_per_batch=5, batches_per_epoch=updates // 4, val_tasks=20))
    return watch.rows


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        rows = endure(options.updates, Path(folder))
    print(f"{'update':>8} {'resident MB':>12} {'objects':>9} {'ms/update':>10}")
    for row in rows:
        print(f"{row['update']:8} {row['resident_mb']:12.1f} {row['objects']:9} {row['ms_per_update']:10.3f}")
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "endurance", **about(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
