"""The best checkpoint: of the parameters that earned the score."""

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

    The best is written at the end of a validation and at no other time, so that it holds the parameters that earned the
    score. The last, ``last.ckpt``, is written by number of updates, by time, at the end, on an exception, on Ctrl-C and
    SIGTERM. The one before is kept beside each until the next is written, as ``previous_best.ckpt`` and
    ``previous_last.ckpt``. A run that goes on from a checkpoint takes the best of its folder along.

    Args:
        dirpath: the folder; ``checkpoints`` beside the logs by default. It belongs to one run at a time.
        filename: of the best.
        monitor: the score, as it is logged.
        verbose: says what is saved.
        save_last: keep the last, too.
        save_top_k: how many of the best; -1 for all.
        save_on_exception: write the last where an error ends the run.
        save_weights_only: the best without what a run needs to go on.
        mode: whether the best score is the lowest, ``"min"``, or the highest, ``"max"``.
        auto_insert_metric_name: put names into ``filename`` where it has a score in braces.
        every_n_train_steps: write the last after so many meta-updates, from the first so many on.
        train_time_interval: write the last after so long, ``"00:05:00"`` by default; None for no such limit.
        every_n_epochs: look for the best in every so many epochs' validations.
        save_on_train_epoch_end: look for the best at the end of an epoch instead, for a score of training.
        enable_version_counter: give a file that is there already another name.

    Raises:
        ValueError: ``filename`` leads out of the folder.

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
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = True,
        save_top_k: int = 1,
        save_on_exception: bool = True,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = timedelta(minutes=5),
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = False,
        enable_version_counter: bool = True,
    ) -> None:
        if filename is not None and (".." in Path(filename).parts or Path(filename).is_absolute()):
            raise ValueError(f"Expected `filename` to be a name within the folder of checkpoints but got {filename!r}.")
        super().__init__(
            dirpath,
            filename,
            monitor,
            verbose,
            save_top_k=save_top_k,
            save_weights_only=save_weights_only,
            mode=mode,
            auto_insert_metric_name=auto_insert_metric_name,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=bool(save_on_train_epoch_end),
            enable_version_counter=enable_version_counter,
        )
        interval = None if train_time_interval is None else train_time_interval.total_seconds()
        self.last = LastCheckpoint(self, every_n_train_steps, interval, save_on_exception) if save_last else None

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero and "://" not in filepath:
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
        scores = self._taken_along(Path(trainer.ckpt_path)) if trainer.is_global_zero else {}
        scores = trainer.strategy.broadcast(scores)
        if not scores:
            return
        self.best_k_models = {path: torch.tensor(score) for path, score in scores.items()}
        best, *_ = paths = [*scores]
        self.best_model_path, self.best_model_score = best, self.best_k_models[best]
        if len(paths) == self.save_top_k:
            self.kth_best_model_path, self.kth_value = paths[-1], self.best_k_models[paths[-1]]

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
            if (score := self._score(content, name)) is not None:
                scores[path] = score
        sign = 1 if self.mode == "min" else -1
        chosen = sorted(scores, key=lambda path: sign * scores[path])
        placed: dict[str, float] = {}
        for path in chosen if self.save_top_k < 0 else chosen[: self.save_top_k]:
            place = Path(self.dirpath or "") / path.name.removeprefix(PREVIOUS)
            if path.absolute() != place.absolute():
                with whole_file(place) as copy:
                    copy.write(path.read_bytes())
            placed[str(place)] = scores[path]
        return placed

    def _score(self, content: dict[str, Any], name: str) -> float | None:
        """What a checkpoint scored that was kept as one of the best, under ``name``."""
        for state in (content.get("callbacks") or {}).values():
            if isinstance(state, dict) and state.get("monitor") == self.monitor and name in state.get("names", ()):
                return state["score"] if isinstance(state.get("score"), float) else None
        return None
