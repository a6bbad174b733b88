"""Trainers that measurements run in, and their clock."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch
from lightning.pytorch import Callback, Trainer

from lightning_maml.cli import demo


class Clock(Callback):
    """Seconds of each training step, all processes done with the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        trainer.strategy.barrier()
        self.since = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.since)


@contextmanager
def quiet_trainer(library: Any = lightning.pytorch, **options: Any) -> Iterator[Any]:
    """A ``Trainer`` on the CPU that says, logs and saves only what ``options`` ask for, in a folder of its own."""
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    loggers = ("lightning.pytorch", "pytorch_lightning")
    with tempfile.TemporaryDirectory() as folder, demo.quiet(*loggers, level=logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        defaults = {"accelerator": "cpu", "default_root_dir": folder, **dict.fromkeys(silent, False)}
        yield library.Trainer(**defaults | options)
