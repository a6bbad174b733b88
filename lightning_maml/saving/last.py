"""The last checkpoint: it holds where training is, whatever ends it."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_maml.saving.files import keep_previous
from lightning_maml.saving.lock import ELSEWHERE, FolderInUseError, FolderLock

NAME = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, of the last meta-update at most some updates or some time ago, and of the end.

    On SIGTERM and Ctrl-C training ends with the training step that runs, or with the validation batch, and is saved;
    the exit status is 143 or 130, so that a scheduler sees that the work is not done. A second Ctrl-C ends it at once.
    Of several processes a signal to any ends all, at the same step: the module carries the word from one to another,
    where Lightning's own handler would send messages from within the signal.

    A :class:`~lightning_maml.saving.BestCheckpoint` makes one for its folder, which then belongs to this run
    (:class:`FolderLock`). Where the trainer has other checkpoint callbacks, the module adds one that saves on signals
    alone.

    Args:
        best: whose folder it is; None for that of the trainer's ``ModelCheckpoint``, without a lock.
        every_n_train_steps, seconds: save after so many meta-updates, and after so much time.
        on_exception: save where an error ends the run; of several processes the others would not come along.

    FolderInUseError where another run has the folder, or, where this one begins, left its last checkpoint there.
    """

    def __init__(
        self,
        best: ModelCheckpoint | None = None,
        every_n_train_steps: int | None = None,
        seconds: float | None = None,
        on_exception: bool = False,
    ) -> None:
        self.best, self.every_n_train_steps, self.seconds = best, every_n_train_steps, seconds
        self.save_on_exception = on_exception
        self.received: signal.Signals | None = None  # how this process was told to end
        # whether any process was, and whether time was up in the first one, as all of them know
        self.agreed, self.due_for_all = False, False
        self._previous: dict[signal.Signals, Any] = {}
        self._lock: FolderLock | None = None
        self._saved_step, self._saved_at = -1, 0.0
        self._pending, self._training, self._saving = False, False, False

    def _folder(self, trainer: Trainer) -> str | None:
        if self.best is not None:
            return str(self.best.dirpath)
        callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        return str(callbacks[0].dirpath) if callbacks and callbacks[0].dirpath else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the folder for this run."""
        folder = self._folder(trainer)
        if stage != TrainerFn.FITTING or self.best is None or trainer.fast_dev_run or "://" in str(folder):  # type: ignore[attr-defined]
            return
        refused = None
        if trainer.is_global_zero:
            try:
                (lock := FolderLock(Path(str(folder)))).acquire()
                self._lock = lock
            except FolderInUseError as error:
                refused = str(error)
        if refused := trainer.strategy.broadcast(refused):
            raise FolderInUseError(refused)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the folder back, and the signals to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous, self._training = {}, False
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count, and to listen to signals; raises where it would write over what another run has left."""
        begins = not trainer.ckpt_path and self._saved_step < 0
        left = begins and self._lock is not None and self._lock.path.with_name(NAME).exists()
        if begins and trainer.strategy.broadcast(left):
            raise FolderInUseError(
                f"Expected {self._folder(trainer)} to hold no run for one that begins but found {NAME}. Go on with "
                f"that run by --ckpt_path last, remove it, or {ELSEWHERE}."
            )
        self.received, self.agreed, self.due_for_all, self._pending, self._training = None, False, False, False, True
        self._saved_step, self._saved_at, self._saving = trainer.global_step, time.monotonic(), False
        environment = getattr(trainer.strategy, "cluster_environment", None)
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if requeues else (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)  # nothing else here: this runs in the middle of anything

    @property
    def time_is_up(self) -> bool:
        """Whether this process has not saved for ``seconds``."""
        return self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds

    def _ends(self, trainer: Trainer) -> bool:
        return self.agreed or (self.received is not None and trainer.world_size == 1)

    def _due(self, trainer: Trainer) -> bool:
        step, every = trainer.global_step, self.every_n_train_steps
        by_time = self.due_for_all if trainer.world_size > 1 else self.time_is_up
        by_steps = bool(every) and step // every > self._saved_step // every  # type: ignore[operator]
        return self.best is not None and (by_time or by_steps or _is_over(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves where it is time to, or ends; where a validation follows, as it begins: it is then made once more."""
        if self._ends(trainer) or self._due(trainer):
            loop = trainer.fit_loop
            if loop._data_fetcher and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
                self._pending = True
            else:
                self._save_or_end(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            self._pending = False
            self._save_or_end(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends where this process was told to; of several ones all validate to the end."""
        if self._training and not trainer.sanity_checking and self.received and trainer.world_size == 1:
            self._save_or_end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what training ended with, where no training step did: it may be stopped by a validation."""
        if self.best is not None and trainer.global_step > self._saved_step:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves what was reached, unless it is saving that failed."""
        reached = trainer.global_step > self._saved_step and trainer.world_size == 1 and not self._saving
        if self._training and reached and self.save_on_exception and not isinstance(exception, SystemExit):
            try:
                path = self._save(trainer)
                rank_zero_info(f"Saved after {trainer.global_step} meta-updates to {path}")
            except Exception as error:  # the first one is what ends the run
                rank_zero_warn(f"After {type(exception).__name__} nothing could be saved: {error}")
        self.teardown(trainer, pl_module, "fit")

    def _save_or_end(self, trainer: Trainer) -> None:
        path = self._save(trainer)
        if not self._ends(trainer):
            return
        what = "nothing saved: the trainer has no ModelCheckpoint" if path is None else f"saved to {path}"
        number = self.received or signal.SIGTERM
        rank_zero_info(f"Stopped by {number.name} after {trainer.global_step} meta-updates; {what}")
        # As shells report it. Of several processes one has to: at the others' status Lightning would kill that one.
        raise SIGTERMException(128 + number if trainer.is_global_zero else 0)

    def _save(self, trainer: Trainer) -> str | None:
        """Where it has saved; None where there is no folder."""
        if (folder := self._folder(trainer)) is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        path = os.path.join(folder, NAME)  # noqa: PTH118  # may be remote
        if self._lock is not None and not self._lock.is_held():
            raise FolderInUseError(f"Expected {self._lock.path.parent} to be this run's but another one has taken it.")
        if trainer.is_global_zero and self.best is not None:
            keep_previous(Path(path))
        self._saving = True
        trainer.save_checkpoint(path, weights_only=False)
        self._saving = False
        self._saved_step, self._saved_at, self.due_for_all = trainer.global_step, time.monotonic(), False
        return path

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the counters to where a run can go on, from within a validation or a training step that failed."""
        if not self._saving:
            return
        loops = checkpoint["loops"]["fit_loop"]
        if trainer.validating:  # it is made once more, from its first batch: what it has seen is not in a checkpoint
            progress = loops["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["is_last_batch"] = False
        elif trainer.training:
            progress = loops["epoch_loop.batch_progress"]
            for part in (progress["total"], progress["current"]):
                if part["processed"] == part["completed"]:  # and not at the end of a training step
                    part |= {"ready": part["completed"], "started": part["completed"]}


def _is_over(trainer: Trainer) -> bool:
    """Whether this was the last training step, as far as it is known."""
    loop, most = trainer.fit_loop, trainer.max_epochs
    last_epoch = most is not None and most >= 0 and trainer.current_epoch + 1 >= most
    by_epochs = last_epoch and loop.epoch_loop._num_ready_batches_reached()
    return trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step or by_epochs
