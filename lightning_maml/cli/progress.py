"""How far a training is: a bar in a terminal, and elsewhere a line a minute."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

EVERY = 60.0  # seconds between two lines


def is_interactive() -> bool:
    """Whether somebody looks on: in a file a bar would be thousands of lines."""
    return sys.stdout is not None and sys.stdout.isatty()


class ProgressLines(Callback):
    """Prints a line a minute: updates, what was logged last, and about how long it will take still."""

    def __init__(self, name: str = "") -> None:
        self.name = f"{name}: " if name else ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first, self._start = trainer.global_step, time.monotonic()
        self._next = self._start + EVERY

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        now = time.monotonic()
        if now < self._next or not trainer.is_global_zero:
            return
        self._next = now + EVERY
        of, done = trainer.max_steps, trainer.global_step
        line = f"{self.name}update {done:,}" + (f" of {of:,}" if of > 0 else "")
        for name in ("train/loss", "train/return", "val/loss", "val/accuracy", "val/return"):
            if name in trainer.callback_metrics:
                line += f", {name} {float(trainer.callback_metrics[name]):.4g}"
        if of > 0 and done > self._first:
            line += f", about {(now - self._start) / (done - self._first) * (of - done) / 60:.0f} min left"
        print(line, flush=True)
