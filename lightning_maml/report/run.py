"""What the folder of a run has: configuration, learning curves, results and checkpoints."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from lightning_maml.saving import read_checkpoint
from lightning_maml.saving.configuration import read_configuration

Series = tuple[list[int], list[float]]
"""Meta-updates, and a value at each; NaN and infinities are kept."""
ORIGIN = "origin.json"
"""Where a run's folder says on which machine and by which commit it began."""


@dataclass(frozen=True)
class Run:
    """A run as its files tell of it; what is missing is empty or None.

    ``series`` are the columns of ``metrics.csv`` by name, ``results`` is ``metrics.json``.
    """

    folder: Path
    checkpoint: Path | None
    configuration: Mapping[str, Any]
    series: Mapping[str, Series]
    results: Mapping[str, Any] | None
    origin: Mapping[str, Any] | None
    saved_updates: int
    """Of the last checkpoint, which may be later than the last line of the log."""
    seconds: float
    """Of training, as the last checkpoint's timer has them: 0 where there was no limit of time."""

    @property
    def updates(self) -> int:
        """How many meta-updates are known to have been done; of a policy, outer steps."""
        logged = () if self.learns_policy else self.series.values()  # the log counts a policy's meta-iterations
        return max([self.saved_updates, *(steps[-1] for steps, _ in logged if steps)])

    @property
    def learns_policy(self) -> bool:
        """Whether it is one of reinforcement learning."""
        return "policy" in self.section("model")

    @property
    def of_updates(self) -> int | None:
        """How many meta-updates were asked for, if a number was."""
        number = self.section("trainer").get("max_steps")
        return number if isinstance(number, int) and number > 0 else None

    @property
    def time_was_up(self) -> bool:
        """Whether training ended as ``trainer.max_time`` was reached."""
        limit = self.section("trainer").get("max_time")
        if not isinstance(limit, str | dict):
            return False
        try:
            seconds = Timer(limit).time_remaining()
        except (MisconfigurationException, TypeError, ValueError):  # no run had such a limit
            return False
        return seconds is not None and self.seconds >= seconds

    @property
    def value(self) -> str:
        """What tasks are judged by: a metric such as ``"accuracy"``, a policy's ``"return"``, or ``"loss"``."""
        if self.learns_policy:
            return "return"
        known = {name.removeprefix("val/") for name in self.series if name.startswith("val/")} | {*(self.results or ())}
        metric = self.section("model").get("metric")
        return next((name for name in ("accuracy", metric) if name in known), "loss")

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the configuration, such as ``"model"``."""
        found = self.configuration.get(name)
        return found if isinstance(found, dict) else {}

    def named(self, section: str, part: str | None = None) -> str:
        """The short name of a class or function in the configuration, such as ``"SinusoidTasks"`` of ``"data"``."""
        found: Any = self.section(section) if part is None else self.section(section).get(part)
        found = found.get("class_path") if isinstance(found, dict) else found
        return found.rpartition(".")[2] if isinstance(found, str) else ""


def read_run(path: str | Path) -> Run:
    """Reads the folder of a run, or the one that a checkpoint of it lies in.

    Raises:
        FileNotFoundError: there is no such folder, or it has neither ``config.yaml`` nor ``metrics.csv``.
        ValueError: a file of it is damaged.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    files = {name: folder / name for name in ("config.yaml", "metrics.csv", "metrics.json", ORIGIN)}
    if not path.exists() or not (files["config.yaml"].is_file() or files["metrics.csv"].is_file()):
        raise FileNotFoundError(
            "Expected the folder of a run, such as runs/sinusoid/version_0, with its config.yaml or metrics.csv, or a "
            f"checkpoint in it, but got {path}."
        )
    results = _json(files["metrics.json"])
    return Run(
        folder,
        path if path.is_file() else _checkpoint(folder, results),
        read_configuration(files["config.yaml"]) if files["config.yaml"].is_file() else {},
        _series(files["metrics.csv"]) if files["metrics.csv"].is_file() else {},
        results,
        _json(files[ORIGIN]),
        *_saved(folder),
    )


def _checkpoint(folder: Path, results: Mapping[str, Any] | None) -> Path | None:
    """The best checkpoint, or else the last one, or else the one that was tested."""
    found = (folder / "checkpoints").glob("*.ckpt")
    order = sorted(found, key=lambda path: (path.name.startswith("best"), path.stat().st_mtime))
    tested = Path(str((results or {}).get("checkpoint")))
    return order[-1] if order else tested if tested.is_file() else None


def _saved(folder: Path) -> tuple[int, float]:
    """Updates and seconds of training of the last checkpoint."""
    path = folder / "checkpoints" / "last.ckpt"
    try:
        content = read_checkpoint(path, "cpu") if path.is_file() else {}
    except ValueError:  # a damaged one says nothing
        return 0, 0.0
    timer = (content.get("callbacks") or {}).get("Timer")
    elapsed = timer.get("time_elapsed") if isinstance(timer, Mapping) else None
    seconds = elapsed.get("train") if isinstance(elapsed, Mapping) else None
    return int(content.get("global_step", 0)), float(seconds) if isinstance(seconds, int | float) else 0.0


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"Expected {path} to be JSON but {error}: remove it, or write it anew.") from None
    if not isinstance(content, dict):
        raise ValueError(f"Expected {path} to be a JSON object but got {type(content).__name__}.")
    return content


def _series(path: Path) -> dict[str, Series]:
    series: dict[str, Series] = {}
    with path.open(newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text)
                # of a run that was killed the last line may be half of one
                if value is None or step is None or not math.isfinite(step) or name in ("step", "epoch", None):
                    continue
                steps, values = series.setdefault(name, ([], []))
                steps.append(int(step))
                values.append(value)
    return series


def _number(text: Any) -> float | None:
    try:
        return float(text) if text else None
    except (TypeError, ValueError):
        return None
