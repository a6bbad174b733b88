"""The LightningModule: logging, optimisers, phases, and no numerics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_maml.adaptation import adapt, evaluate, meta_loss
from lightning_maml.diagnosis import explain_divergence
from lightning_maml.engine import Engine
from lightning_maml.learner import Algorithm
from lightning_maml.losses import task_loss
from lightning_maml.metrics import Interval, TaskMean, resolve_metric
from lightning_maml.results import results_table, test_results, write_json
from lightning_maml.tasks import TaskBatch

__all__ = ["MetaModule"]

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]

PROGRESS_SECONDS = 0.5  # how often the progress bar gets new numbers between two logged steps


class MetaModule(LightningModule):
    """Meta-trains ``network`` by ``algorithm`` under any :class:`~lightning.pytorch.Trainer`.

    A batch is a :class:`TaskBatch`, or its four tensors in a tuple. ``fit``, ``validate``, ``test`` and ``predict`` run
    with the trainer's defaults. Logged are

    - ``train/loss`` and ``train/<metric>`` after adaptation, ``train/support_loss_before`` and ``_after`` the inner
      loop, each the mean over all meta-updates since the last logged step; ``train/meta_gradient_norm`` before
      clipping, ``train/rate/<name>`` (learned inner rates), ``train/learning_rate``, ``train/tasks_per_second``
      (of all processes);
    - ``val/loss`` and ``val/<metric>`` after the last inner step, and the same with ``_step_0`` before the first;
    - ``test/loss_step_<k>`` and ``test/<metric>_step_<k>`` after ``k`` inner steps, each with ``_ci95``, the half-width
      of the 95% confidence interval over tasks. ``test`` also prints them as a table and writes ``metrics.json``.

    Loggers count meta-updates, whatever ``updates_per_step`` is. Callbacks can monitor ``train/loss`` and
    ``train/<metric>`` and everything of validation and test.

    Args:
        network: any module; its parameters are what is meta-learned.
        algorithm: how tasks adapt and how the meta-gradient is formed: ``maml(lr=0.01, steps=5)`` or another preset. On
            the command line ``lightning_maml.maml`` or another preset's name, then for instance
            ``--model.algorithm.steps 5``.
        loss: ``"mse"``, ``"cross_entropy"`` or a function ``(predictions [N, ...], targets [N, ...]) -> scalar``, the
            mean over the rows of one task.
        optimizer: makes the outer optimiser from the parameters. Adam with rate 1e-3 by default, as in the paper.
        scheduler: makes a learning-rate scheduler from the optimiser; it advances once a meta-update.
        engine: ``"auto"``, ``"eager"``, ``"batched"`` or an engine object.
        metric: ``"accuracy"``, ``"mse"`` or a function ``(predictions [T, N, ...], targets [T, N, ...]) -> [T]``. By
            default accuracy with cross-entropy, and none with other losses.
        test_steps: inner steps in validation, test and prediction; by default the algorithm's.
        updates_per_step: meta-updates run in one training step, to spread the cost of Lightning's own loop, which
            exceeds that of a small meta-update. The parameters are those of as many ordinary steps. A batch is then a
            tuple of up to this many task batches, as this package's data modules give. The trainer's ``max_steps``
            still counts meta-updates; its epochs and intervals count training steps.
        gradient_clip_val: clips the meta-gradient. Lightning refuses ``Trainer(gradient_clip_val=...)`` where
            ``updates_per_step`` is above 1; this one works everywhere.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.

    Raises:
        ValueError: an argument is out of range.
        TypeError: ``network`` or ``algorithm`` is something else.

    Example:
        >>> from lightning_maml import MLP, maml
        >>> module = MetaModule(MLP(1, [40, 40], 1), maml(lr=0.01, steps=5), loss="mse", updates_per_step=20)
        >>> module.automatic_optimization
        False
    """

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm,
        loss: Callable[..., Any] | str = "mse",
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        engine: Engine | str = "auto",
        metric: Callable[..., Any] | str | None = None,
        test_steps: int | None = None,
        updates_per_step: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"Expected `network` to be an nn.Module but got {type(network).__name__}.")
        if not isinstance(algorithm, Algorithm):
            raise TypeError(f"Expected `algorithm` to be one such as maml(lr=0.01, steps=5) but got {algorithm!r}.")
        if not callable(optimizer):
            raise TypeError(
                "Expected `optimizer` to be a function from parameters to an optimizer, such as "
                f"`lambda parameters: torch.optim.Adam(parameters, lr=1e-3)`, but got {type(optimizer).__name__}."
            )
        for name, value, least in (("test_steps", test_steps, 0), ("updates_per_step", updates_per_step, 1)):
            if value is None and name == "test_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Expected `{name}` to be a whole number of at least {least} but got {value!r}.")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"Expected `gradient_clip_val` to be positive or None but got {gradient_clip_val!r}.")
        if gradient_clip_algorithm not in ("norm", "value"):
            raise ValueError(
                f"Expected `gradient_clip_algorithm` to be 'norm' or 'value' but got {gradient_clip_algorithm!r}."
            )
        task_loss(loss)
        self._metric = resolve_metric(metric, loss)
        self._save_plain_hyperparameters(
            loss=loss,
            engine=engine,
            metric=metric,
            test_steps=test_steps,
            updates_per_step=updates_per_step,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )

        self.network = network
        self.loss = loss
        self.engine = engine
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.updates_per_step = updates_per_step
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.automatic_optimization = updates_per_step == 1

        self.rates = algorithm.initial_rates(network)
        self.algorithm = algorithm.with_rates(self.rates)
        self.test_steps = algorithm.inner.steps if test_steps is None else test_steps
        self._values = ["loss"] + ([self._metric[0]] if self._metric else [])
        self.task_means = nn.ModuleDict(
            {
                stage: nn.ModuleDict({name: TaskMean(self.test_steps + 1) for name in self._values})
                for stage in ("val", "test")
            }
        )
        self._meter = _Meter()

    def _save_plain_hyperparameters(self, **plain: Any) -> None:
        # A checkpoint must load with weights_only=True, so it holds plain data alone: the whole configuration where the
        # command line gives it (load_from_checkpoint then needs no arguments), otherwise what is plain already.
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
        else:
            self.save_hyperparameters(
                {name: value for name, value in plain.items() if isinstance(value, str | int | float | None)}
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """The network before any adaptation: ``[N, ...] -> [N, ...]``."""
        return self.network(inputs)

    def configure_optimizers(self) -> Any:
        """The outer optimiser over network and learned rates; the scheduler advances once a meta-update."""
        optimizer = self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "Expected a `scheduler` that advances by meta-update but got ReduceLROnPlateau, which waits for a "
                "validation value; use CosineAnnealingLR, MultiStepLR or another one."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Any]:
        """None; but here Lightning's checks have not been made yet, and ours say what to do."""
        if not self.automatic_optimization and self.trainer.training:
            for name, none, instead in (
                ("gradient_clip_val", (None, 0), "MetaModule(gradient_clip_val=...)"),
                ("accumulate_grad_batches", (1,), "more tasks in a batch"),
            ):
                value = getattr(self.trainer, name)
                if value not in none:
                    raise ValueError(
                        f"Expected no Trainer({name}={value}) with MetaModule(updates_per_step="
                        f"{self.updates_per_step}), which optimises by itself: use {instead}, or updates_per_step=1."
                    )
        return []

    # Training

    def on_fit_start(self) -> None:
        self._meter = _Meter()

    def on_validation_end(self) -> None:
        self._meter.restart_clock()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One meta-update (returns the surrogate loss), or ``updates_per_step`` of them."""
        self._meter.training_steps += 1
        if self.automatic_optimization:
            surrogate, *update = self._meta_loss(as_task_batch(batch))
            self._raise_if_not_finite([update])
            return surrogate
        updates = []
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        for tasks in self._task_batches(batch):
            surrogate, *update = self._meta_loss(tasks)
            updates.append(update)
            optimizer.zero_grad()
            self.manual_backward(surrogate)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        self._raise_if_not_finite(updates)
        return None

    def _meta_loss(self, tasks: TaskBatch) -> tuple[Tensor, TaskBatch, Tensor, Tensor]:
        algorithm = self.algorithm.at(self.global_step)  # which counts meta-updates, and goes on after resuming
        output = meta_loss(self.network, algorithm, tasks, loss=self.loss, engine=self.engine)
        metric = self._metric[1](output.predictions, tasks.query_targets).mean() if self._metric else None
        self._meter.add(len(tasks), output.loss, output.support_losses, metric)
        return output.surrogate, tasks, output.loss, output.support_losses

    def _task_batches(self, batch: Any) -> Sequence[TaskBatch]:
        several = isinstance(batch, list | tuple) and not any(isinstance(part, Tensor) for part in batch)
        if not several or not 1 <= len(batch) <= self.updates_per_step:
            got = f"{len(batch)} of them" if several else "one task batch"
            raise ValueError(
                f"Expected a tuple of up to updates_per_step={self.updates_per_step} task batches in a training step "
                f"but got {got}: this package's data modules make such tuples; with another data loader make them "
                "in its collate function, or set updates_per_step=1."
            )
        left = self.trainer.max_steps - self.trainer.global_step if self.trainer.max_steps >= 0 else len(batch)
        return [as_task_batch(tasks) for tasks in batch[:left]]

    def _raise_if_not_finite(self, updates: Sequence[Any]) -> None:
        # One wait for the device in a training step, however many updates it runs.
        losses = torch.stack([loss for _, loss, _ in updates])
        if not bool(losses.isfinite().all()):
            tasks, _, support_losses = updates[int((~losses.isfinite()).nonzero()[0])]
            raise ValueError(explain_divergence(tasks, support_losses, self.algorithm))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Both kinds of optimisation come here, with gradients unscaled and not yet clipped by the trainer.
        if self._logs_now():
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self._meter.gradient_norms.append(nn.utils.get_total_norm(gradients))
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # self.log costs as much as a small meta-update: the progress bar gets its numbers twice a second, the loggers
        # theirs at the steps they ask for, all in one row.
        if self._logs_now():
            values = self._meter.collect(self._values)
            values["tasks_per_second"] *= self.trainer.world_size
            values["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            if self.rates is not None:
                for name, rate in self.rates.named_parameters():
                    values[f"rate/{name}"] = rate.detach().mean()
            row = {f"train/{name}": float(value) for name, value in values.items()}
            row["epoch"] = self.trainer.current_epoch
            for logger in self.trainer.loggers:
                logger.log_metrics(row, step=self.trainer.global_step)
                logger.save()
            self._show(values)
            self._meter.restart()
        elif self._meter.show_due():
            self._show(self._meter.collect(self._values))
            if self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._meter.restart()  # never logged, but it must not grow for ever

    def _logs_now(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self._meter.training_steps % every == 0

    def _show(self, values: dict[str, Any]) -> None:
        shown = {f"train/{name}": values[name] for name in self._values}
        self.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False, batch_size=1)
        self._meter.shown_at = time.monotonic()

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        values = {}
        for name, interval in self._intervals("val").items():
            mean = interval.mean.reshape(-1)
            values[f"val/{name}"] = mean[-1]
            values[f"val/{name}_step_0"] = mean[0]
        self._log_evaluation(values, shown=[f"val/{name}" for name in self._values])

    def on_test_epoch_start(self) -> None:
        self._reset("test")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        values = {}
        for name, interval in self._intervals("test").items():
            for step, (mean, ci95) in enumerate(zip(interval.mean.reshape(-1), interval.ci95.reshape(-1), strict=True)):
                values[f"test/{name}_step_{step}"] = mean
                values[f"test/{name}_step_{step}_ci95"] = ci95
        self._log_evaluation(values)

    def on_test_end(self) -> None:
        """Prints the table and writes ``metrics.json`` into the logger's folder, or the trainer's root folder."""
        intervals = self._intervals("test")
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # on every process: Lightning broadcasts it
        tasks = int(intervals["loss"].tasks)
        if not self.trainer.is_global_zero or tasks == 0:
            return
        if self.trainer.test_loop.verbose:
            names = {name: f"{'query ' if name == 'loss' else ''}{name}" for name in intervals}
            title = f"\nTest of {self.algorithm.name} on {tasks} tasks, mean ± 95% interval:"
            print(results_table({names[name]: value for name, value in intervals.items()}, title))
            self.trainer.test_loop.verbose = False  # ours stands for Lightning's own list of the same numbers
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(folder) / "metrics.json"
        checkpoint, seed = self.trainer.ckpt_path, os.environ.get("PL_GLOBAL_SEED")
        about = {
            "algorithm": self.algorithm.name,
            "seed": int(seed) if seed else None,
            "data_seed": getattr(getattr(self.trainer, "datamodule", None), "seed", None),
            "checkpoint": str(checkpoint) if checkpoint else None,
        }
        write_json(path, test_results(intervals, **about))
        rank_zero_info(f"Written to {path}")

    def _reset(self, stage: str) -> None:
        for mean in self._means(stage).values():
            mean.reset()

    def _means(self, stage: str) -> dict[str, TaskMean]:
        return dict(self.task_means[stage].items())  # type: ignore[operator]

    def _intervals(self, stage: str) -> dict[str, Interval]:
        return {name: mean.compute() for name, mean in self._means(stage).items()}

    def _evaluate(self, stage: str, batch: Any) -> None:
        tasks = as_task_batch(batch)
        evaluation = evaluate(
            self.network, self.algorithm, tasks, loss=self.loss, engine=self.engine, steps=self.test_steps
        )
        means = self._means(stage)
        means["loss"].update(evaluation.query_losses)
        if self._metric is not None:
            name, function = self._metric
            predictions = evaluation.predictions.unbind(1)
            means[name].update(torch.stack([function(value, tasks.query_targets) for value in predictions], 1))

    def _log_evaluation(self, values: dict[str, Tensor], shown: Sequence[str] = ()) -> None:
        for name, value in values.items():
            # Equal on all processes; sync_dist only keeps Lightning from warning that it might not be.
            self.log(name, value.float(), prog_bar=name in shown, sync_dist=True, batch_size=1)
        if self.trainer.state.fn == TrainerFn.FITTING:
            # By itself Lightning would count training steps here, and then names no epoch where it is given a step.
            place = {"step": float(self.trainer.global_step), "epoch": float(self.trainer.current_epoch)}
            self.log_dict(place, sync_dist=True, batch_size=1)

    # Prediction

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Adapts to each task's support set and predicts its query rows: ``[T, Nq, ...]``.

        ``batch`` is a :class:`TaskBatch`, whose query targets are not used, or a tuple ``(support_inputs,
        support_targets, query_inputs)``. The module's own weights stay as they are.
        """
        if isinstance(batch, list | tuple) and len(batch) == 3 and all(isinstance(part, Tensor) for part in batch):
            support_inputs, support_targets, query_inputs = batch
        else:
            tasks = as_task_batch(batch)
            support_inputs, support_targets, query_inputs = (
                tasks.support_inputs,
                tasks.support_targets,
                tasks.query_inputs,
            )
        algorithm = self.algorithm.with_steps(self.test_steps)
        adapted = adapt(self.network, algorithm, support_inputs, support_targets, loss=self.loss, engine=self.engine)
        return adapted.predict(query_inputs)


def as_task_batch(batch: Any) -> TaskBatch:
    """A :class:`TaskBatch` as it is, or one built from a tuple or list of its four tensors.

    Raises:
        ValueError: ``batch`` is anything else.
    """
    if isinstance(batch, TaskBatch):
        return batch
    if isinstance(batch, list | tuple) and len(batch) == 4 and all(isinstance(part, Tensor) for part in batch):
        return TaskBatch(*batch)
    got = type(batch).__name__
    if isinstance(batch, list | tuple | dict):
        got += f" of {len(batch)}: " + ", ".join(
            f"{list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            for part in (batch.values() if isinstance(batch, dict) else batch)
        )
    raise ValueError(
        "Expected a batch of tasks, TaskBatch(support_inputs, support_targets, query_inputs, query_targets) with "
        f"tensors [tasks, rows, ...], or those four tensors in a tuple, but got {got}."
    )


class _Meter:
    """What the training steps since the last logged one have to say; sums nothing until it is asked."""

    def __init__(self) -> None:
        self.training_steps = 0
        self.shown_at = 0.0
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.support_losses: list[Tensor] = []
        self.metrics: list[Tensor] = []
        self.gradient_norms: list[Tensor] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        self.tasks, self.since = 0, time.monotonic()

    def add(self, tasks: int, loss: Tensor, support_losses: Tensor, metric: Tensor | None) -> None:
        self.tasks += tasks
        self.losses.append(loss)
        self.support_losses.append(support_losses)
        if metric is not None:
            self.metrics.append(metric)

    def show_due(self) -> bool:
        return time.monotonic() - self.shown_at > PROGRESS_SECONDS

    def collect(self, names: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = {"loss": torch.stack(self.losses).mean()}
        if self.metrics:
            values[names[1]] = torch.stack(self.metrics).mean()
        before, after = torch.stack([losses[:, [0, -1]].mean(0) for losses in self.support_losses]).mean(0)
        values |= {"support_loss_before": before, "support_loss_after": after}
        if self.gradient_norms:
            values["meta_gradient_norm"] = torch.stack(self.gradient_norms).mean()
        values["tasks_per_second"] = self.tasks / max(time.monotonic() - self.since, 1e-9)
        return values
