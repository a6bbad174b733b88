"""A long training, logging, validating and saving on the way: does memory or the time of a step grow?

python -m benchmarks.endurance [--updates 200000] [--json FILE]
"""

import gc
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from benchmarks.result_file import ResultFile, command_line
from benchmarks.trainer import Clock, quiet_trainer
from lightning_maml import MLP, MetaModule, maml
from lightning_maml.data import SinusoidTasks

PER_STEP = 50


class Watch(Clock):
    """Resident memory, live objects, and milliseconds an update, twenty times in the run."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.every = updates // PER_STEP // 20
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_batch_end()
        if len(self.seconds) == self.every:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            row = {"update": trainer.global_step, "resident_mb": pages * 4096 / 2**20}
            row |= {"objects": len(gc.get_objects()), "ms_per_update": 1e3 * statistics.median(self.seconds) / PER_STEP}
            self.rows.append(row)
            self.seconds.clear()


def endure(updates: int, folder: Path) -> list[dict[str, float]]:
    """Trains ``updates`` meta-updates on sinusoids; what :class:`Watch` saw."""
    torch.manual_seed(0)
    watch = Watch(updates)
    optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)
    module = MetaModule(MLP(1, [40, 40], 1), maml(lr=0.001, steps=1), optimizer=optimizer, updates_per_step=PER_STEP)
    with quiet_trainer(
        max_steps=updates,
        logger=CSVLogger(folder, flush_logs_every_n_steps=10),
        log_every_n_steps=20,
        val_check_interval=updates // PER_STEP // 20,
        enable_checkpointing=True,
        callbacks=[watch, ModelCheckpoint(folder, filename="best", monitor="val/loss", save_last=True)],
    ) as trainer:
        trainer.fit(module, SinusoidTasks(tasks_per_batch=5, batches_per_epoch=updates // 4, val_tasks=20))
    return watch.rows


def main() -> None:
    options = command_line(__doc__, updates=200_000).parse_args()
    results = ResultFile(options.json, "endurance")
    with tempfile.TemporaryDirectory() as folder:
        for row in endure(options.updates, Path(folder)):
            results.add(**row)


if __name__ == "__main__":
    main()
