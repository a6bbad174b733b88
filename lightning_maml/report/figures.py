"""The main pictures of a run, written to its loggers while it goes on."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

LEARNING, STEPS = "learning_curve", "inner_steps"
"""What the figures are called."""


def _to_tensorboard(logger: Any, name: str, figure: Any, step: int) -> None:
    logger.experiment.add_figure(name, figure, step)


def _to_wandb(logger: Any, name: str, figure: Any, step: int) -> None:
    import numpy as np
    from PIL import Image

    figure.canvas.draw()
    logger.log_image(name, [Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")])


def _to_mlflow(logger: Any, name: str, figure: Any, step: int) -> None:
    logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


TAKES: dict[type, Callable[[Any, str, Any, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    MLFlowLogger: _to_mlflow,
}
"""Loggers that take figures, and how; others are left alone."""


class LogFigures(Callback):
    """Writes a run's figures to every logger of the trainer that takes figures: TensorBoard, W&B and MLflow.

    ``learning_curve`` is the loss or metric of validation before and after adaptation, by meta-update, at the end of
    each validation; ``inner_steps`` that of the test by inner step, with its 95% interval. Accuracy is shown where it
    is logged, else the loss. On the command line: ``--trainer.callbacks+=lightning_maml.report.LogFigures``.

    ImportError where matplotlib, of the extra ``report``, is not installed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LogFigures()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        if find_spec("matplotlib") is None:
            raise ImportError("Expected matplotlib for figures: pip install 'lightning-maml[report]'.")
        self._validated: list[tuple[int, float, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = _value(trainer, "val/")
        if trainer.sanity_checking or value is None:
            return
        before = trainer.callback_metrics.get(f"{value}_step_0")
        if before is None:
            return
        self._validated.append((trainer.global_step, float(before), float(trainer.callback_metrics[value])))
        steps, first, last = zip(*self._validated, strict=True)
        figure, axes = _figure("meta-update", value)
        axes.plot(steps, first, "o:", color="0.6", label="before adaptation")
        axes.plot(steps, last, "o-", color="tab:blue", label="after")
        axes.legend()
        _write(trainer, LEARNING, figure)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = _value(trainer, "test/")
        if value is None:
            return
        found = trainer.callback_metrics
        steps = sorted(int(match[1]) for name in found if (match := re.fullmatch(rf"{value}_step_(\d+)", name)))
        mean = [float(found[f"{value}_step_{step}"]) for step in steps]
        half = [float(found[f"{value}_step_{step}_ci95"]) for step in steps]
        figure, axes = _figure("inner step", value)
        low, high = ([one + sign * by for one, by in zip(mean, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color="tab:blue", alpha=0.2, label="95 % interval")
        axes.plot(steps, mean, "o-", color="tab:blue", label="mean over tasks")
        axes.legend()
        _write(trainer, STEPS, figure)


def _value(trainer: Trainer, stage: str) -> str | None:
    """``"val/accuracy"`` where it is logged, else the loss; None where neither is."""
    names = {re.sub(r"_step_\d+$", "", name) for name in trainer.callback_metrics}
    return next((f"{stage}{value}" for value in ("accuracy", "loss") if f"{stage}{value}" in names), None)


def _figure(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")  # without pyplot, which would keep it
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _write(trainer: Trainer, name: str, figure: Any) -> None:
    for logger in trainer.loggers if trainer.is_global_zero else ():
        takes = next((write for kind, write in TAKES.items() if isinstance(logger, kind)), None)
        if takes is not None:
            takes(logger, name, figure, trainer.global_step)
