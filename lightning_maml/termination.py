"""SIGTERM, by which a scheduler takes a machine away: save, and go."""

import os
import signal
import threading
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_info


class SaveOnSigterm(Callback):
    """Ends training at the next end of a training step after SIGTERM, with a checkpoint ``last.ckpt``.

    The checkpoint lies where the trainer's ``ModelCheckpoint`` puts its own. The exit status is 143, that of a process
    ended by the signal: a scheduler sees that the work is not done. Under several processes a signal to any of them
    ends all, at the same step; :class:`MetaModule` carries the word from one to another.

    Lightning's own handler would send messages to the other processes from within the signal, between whatever else
    they are sending.
    """

    def __init__(self) -> None:
        self.received = False  # whether this process was told to end
        self.agreed = False  # whether any process was, as all of them know
        self._previous: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.received = self.agreed = False
        environment = getattr(trainer.strategy, "cluster_environment", None)
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if threading.current_thread() is threading.main_thread() and not requeues:
            self._previous = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        self.received = True  # nothing else here: this runs in the middle of anything

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not (self.agreed or (self.received and trainer.world_size == 1)):
            return
        what = "nothing saved: the trainer has no ModelCheckpoint"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                path = os.path.join(callback.dirpath, f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}")  # noqa: PTH118  # may be remote
                trainer.save_checkpoint(path, weights_only=False)
                what = f"saved to {path}"
                break
        rank_zero_info(f"Stopped by SIGTERM after {trainer.global_step} meta-updates; {what}")
        # Shells report 128 + 15 of a process that SIGTERM ended. Of several processes one has to; the others' status
        # would make Lightning kill that one meanwhile.
        raise SIGTERMException(128 + signal.SIGTERM if trainer.is_global_zero else 0)

    def on_train_end(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        self._previous = None

    on_exception = on_train_end  # type: ignore[assignment]
