"""The best checkpoint: it holds the parameters that earned the score."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_maml.saving.files import PREVIOUS, keep_previous, whole_file, whole_or_previous
from lightning_maml.saving.last import NAME, LastCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by a validation's score, ``best.ckpt``; and, by :class:`LastCheckpoint`, the last one.

    The best is written at the end of a validation alone, so that it holds the parameters that earned the score; the
    last, ``last.ckpt``, by number of updates, by time, at the end, on an exception, on Ctrl-C and SIGTERM. Beside each
    is the one before, ``previous_best.ckpt`` and ``previous_last.ckpt``. A run that goes on takes its best along.

    Args:
        dirpath: the folder; ``checkpoints`` beside the logs by default. It belongs to one run at a time.
        filename: of the best, within the folder; ValueError where it leads out of it.
        monitor: the score, as it is logged.
        save_last: keep the last, too.
        save_on_exception: write the last where an error ends the run.
        every_n_train_steps: write the last after so many meta-updates, from the first so many on.
        train_time_interval: write the last after so long, ``"00:05:00"`` by default; None for no such limit.
        every_n_epochs: look for the best in every so many epochs' validations.
        save_on_train_epoch_end: look for the best at the end of an epoch instead, for a score of training.
        of_lightning: further arguments of Lightning's ``ModelCheckpoint``, such as ``mode`` and ``save_top_k``.

    Example:
        >>> best = BestCheckpoint(monitor="val/accuracy", mode="max", every_n_train_steps=1000)
        >>> best.filename, best.last.every_n_train_steps
        ('best', 1000)
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = "best",
        monitor: str | None = "val/loss",
        *,
        save_last: bool | Literal["link"] | None = True,
        save_on_exception: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = timedelta(minutes=5),
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = False,
        **of_lightning: Any,
    ) -> None:
        if filename is not None and (".." in Path(filename).parts or Path(filename).is_absolute()):
            raise ValueError(f"Expected `filename` to be a name within the folder of checkpoints but got {filename!r}.")
        of_lightning |= {"every_n_epochs": every_n_epochs, "save_on_train_epoch_end": bool(save_on_train_epoch_end)}
        super().__init__(dirpath, filename, monitor, **of_lightning)
        interval = None if train_time_interval is None else train_time_interval.total_seconds()
        self.last = LastCheckpoint(self, every_n_train_steps, interval, save_on_exception) if save_last else None

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            keep_previous(Path(filepath))
        super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        """The score and the names of the best: no paths, as none that a file names is ever removed."""
        score = None if self.current_score is None else float(self.current_score)
        return {"monitor": self.monitor, "score": score, "names": [Path(path).name for path in self.best_k_models]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing: :meth:`on_train_start` looks at the files that are there."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the best of the run that is gone on with into this one's folder."""
        super().on_train_start(trainer, pl_module)
        if not trainer.ckpt_path or "://" in f"{trainer.ckpt_path}{self.dirpath}":
            return
        found = self._taken_along(Path(trainer.ckpt_path)) if trainer.is_global_zero else {}
        scores = {path: torch.tensor(score) for path, score in trainer.strategy.broadcast(found).items()}
        if not scores:
            return
        paths, self.best_k_models = [*scores], scores
        self.best_model_path, self.best_model_score = paths[0], scores[paths[0]]
        if len(paths) == self.save_top_k:
            self.kth_best_model_path, self.kth_value = paths[-1], scores[paths[-1]]

    def _taken_along(self, resumed: Path) -> dict[str, float]:
        """The best of the folder that ``resumed`` lies in, in this run's folder: ``{path: score}``, the best first."""
        scores: dict[Path, float] = {}
        names = {path.name.removeprefix(PREVIOUS) for path in resumed.parent.glob(f"*{self.FILE_EXTENSION}")}
        for name in names - {NAME}:
            try:
                path, content = whole_or_previous(resumed.with_name(name))
            except ValueError as error:
                rank_zero_warn(f"{error} The run goes on without it.")
                continue
            for state in (content.get("callbacks") or {}).values():  # one of them kept it, if any, by this score
                kept = state.get("monitor") == self.monitor and name in state.get("names", ())
                if kept and isinstance(state.get("score"), float):
                    scores[path] = state["score"]
        chosen = sorted(scores, key=lambda path: scores[path], reverse=self.mode == "max")
        placed: dict[str, float] = {}
        for path in chosen if self.save_top_k < 0 else chosen[: self.save_top_k]:
            place = Path(self.dirpath or "") / path.name.removeprefix(PREVIOUS)
            if path.absolute() != place.absolute():
                with whole_file(place) as copy:
                    copy.write(path.read_bytes())
            placed[str(place)] = scores[path]
        return placed
