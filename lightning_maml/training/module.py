"""The LightningModule of meta-learning: training steps, evaluation and their logs, and no numerics."""

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_maml.adaptation import adapt, evaluate
from lightning_maml.checks import check_one_of, check_whole
from lightning_maml.engine import Engine, MetaOutput, Problem, named_engine
from lightning_maml.learner import Algorithm, check_parts
from lightning_maml.losses import query_task_loss, task_loss
from lightning_maml.metrics import Interval, judged, resolve_metric
from lightning_maml.tasks import Inputs, TaskBatch, UnequalTasks
from lightning_maml.training.base import ClipAlgorithm, LRSchedulerCallable, MetaTraining, OptimizerCallable
from lightning_maml.training.batches import are_sets, as_sets, as_task_batch
from lightning_maml.training.class_orders import ClassOrders, check_class_orders, in_class_orders, mean_over_orders
from lightning_maml.training.meta_update import MetaUpdate, OnDivergence, meta_update_of
from lightning_maml.training.meter import Meter
from lightning_maml.training.several_updates import Steps


class MetaModule(MetaTraining):
    """Meta-trains ``network`` by ``algorithm`` under any :class:`~lightning.pytorch.Trainer`.

    A batch is a :class:`TaskBatch`, or its inputs and targets in a tuple. Logged are

    - ``train/loss`` and ``train/<metric>`` after adaptation, ``train/support_loss_before`` and ``_after`` the inner
      loop, each the mean over all tasks since the last logged step, of all processes; ``train/diverged_tasks``, how
      many of these were left out of it; ``train/meta_gradient_norm`` before clipping, ``train/rate/<name>`` (learned
      inner rates), ``train/learning_rate``, ``train/tasks_per_second``;
    - ``val/loss`` and ``val/<metric>`` after the last inner step, and the same with ``_step_0`` before the first;
    - ``test/loss_step_<k>`` and ``test/<metric>_step_<k>`` after ``k`` inner steps, each with ``_ci95``, the half-width
      of the 95% confidence interval over tasks. ``test`` also prints them as a table and writes ``metrics.json``.

    Loggers count meta-updates, whatever ``updates_per_step`` is. Callbacks can monitor ``train/loss`` and
    ``train/<metric>`` and everything of validation and test. Under ``Trainer(strategy="ddp")`` each process has its
    share of every meta-batch, and the meta-gradient is that of one process with all the tasks. Checkpoints are written
    in one piece and read as plain data, and a run that was killed goes on from one to the very parameters it would have
    ended at. SIGTERM saves and ends.

    Args:
        network: any module; its parameters are what is meta-learned.
        algorithm: how tasks adapt and how the meta-gradient is formed: ``maml(lr=0.01, steps=5)`` or another preset; on
            the command line ``lightning_maml.maml``, then for instance ``--model.algorithm.steps 5``.
        loss: ``"mse"``, ``"cross_entropy"`` or a function ``(predictions [N, ...], targets [N, ...]) -> scalar``, the
            mean over the rows of one task. The parameters of one that is a module are meta-learned, too.
        query_loss: what adapted networks are judged by on the query sets, of the same kinds, where ``loss`` is what
            tasks adapt by alone; None for the same. Reptile only logs it.
        optimizer: makes the outer optimiser from the parameters. Adam with rate 1e-3 by default, as in the paper.
        scheduler: makes a learning-rate scheduler from the optimiser; it advances once a meta-update.
        engine: ``"auto"``, ``"eager"``, ``"batched"`` or an engine object.
        metric: ``"accuracy"``, ``"mse"`` or a function ``(predictions [T, N, ...], targets [T, N, ...]) -> [T]``. By
            default accuracy where queries are judged by cross-entropy, and none with other losses.
        test_steps: inner steps in validation, test and prediction; by default the algorithm's.
        updates_per_step: meta-updates run in one training step, to spread the cost of Lightning's own loop, which
            exceeds that of a small meta-update. The parameters are those of as many ordinary steps. A batch is then a
            tuple of up to this many task batches, as this package's data modules give. The trainer's ``max_steps``
            still counts meta-updates; its epochs and intervals count training steps.
        gradient_clip_val: clips the meta-gradient, with any ``updates_per_step``, where the trainer's needs 1.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        accumulate_tasks: how many tasks of a meta-batch run at once, where memory does not hold all; None for all. The
            meta-gradient is the same.
        safeguard: in validation, test and prediction, and never in training, halve a task's inner step where it does
            not lower the task's support loss, see :func:`~lightning_maml.adapt`.
        test_class_orders: in how many orders of its classes each test task is tested, ``"all"`` for all of them; the
            mean over these is reported (Ye and Chao 2022, section 4). 1 is the order in which a task comes.
        on_divergence: what becomes of a task whose loss or meta-gradient is not finite: ``"skip"`` leaves it out of the
            mean, ``"zero"`` counts its gradient as zero, ``"raise"`` is an error. Where more than half of a meta-batch
            diverges, any of them raises, with the cause.

    ValueError where an argument is out of range, TypeError where it is something else.

    Example:
        >>> from lightning_maml import MLP, maml
        >>> module = MetaModule(MLP(1, [40, 40], 1), maml(lr=0.01, steps=5), loss="mse", updates_per_step=20)
        >>> module.automatic_optimization
        False
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm,
        loss: Literal["mse", "cross_entropy"] | Callable[..., Any] | str = "mse",
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        engine: Engine | str = "auto",
        metric: Literal["accuracy", "mse"] | Callable[..., Any] | str | None = None,
        test_steps: int | None = None,
        updates_per_step: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        accumulate_tasks: int | None = None,
        on_divergence: OnDivergence = "skip",
        safeguard: bool = False,
        query_loss: Literal["mse", "cross_entropy"] | Callable[..., Any] | str | None = None,
        test_class_orders: ClassOrders = 1,
    ) -> None:
        given = {**locals()}
        check_parts(network, algorithm)
        check_whole(1, updates_per_step=updates_per_step)
        if accumulate_tasks is not None:
            check_whole(1, accumulate_tasks=accumulate_tasks)
        check_one_of(get_args(OnDivergence), on_divergence=on_divergence)
        check_class_orders(test_class_orders)
        task_loss(loss)
        named_engine(engine)
        query_task_loss(query_loss)
        chosen = resolve_metric(metric, loss if query_loss is None else query_loss)
        super().__init__(
            "network",
            network,
            algorithm,
            values=["loss", *([chosen[0]] if chosen else [])],
            may_diverge=True,
            optimizer=optimizer,
            scheduler=scheduler,
            test_steps=test_steps,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )
        # A checkpoint must load with weights_only=True, so it holds plain data alone: the whole configuration where the
        # command line gives it (load_from_checkpoint then needs no arguments), otherwise what is plain already.
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
        else:
            del given["scheduler"]
            plain = {name: value for name, value in given.items() if isinstance(value, str | int | float | None)}
            self.save_hyperparameters(plain)
        self.loss, self.query_loss, self.engine, self.safeguard = loss, query_loss, engine, safeguard
        self.updates_per_step, self.automatic_optimization = updates_per_step, updates_per_step == 1
        self.accumulate_tasks, self.on_divergence = accumulate_tasks, on_divergence
        self.test_class_orders, self.class_orders = test_class_orders, 1  # the latter is how many the last test had
        self._metric, self._meter = chosen, Meter()
        self._problem: Problem | None = None

    def forward(self, inputs: Inputs) -> Tensor:
        """The network before any adaptation: inputs of one task, ``[N, ...]`` each, to predictions ``[N, ...]``."""
        return self.network(inputs)

    def configure_callbacks(self) -> list[Any]:
        """What saves the last checkpoint; here Lightning's checks have not been made yet, and ours say what to do."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise NotImplementedError(
                f"Expected whole parameters in each process but {type(strategy).__name__} splits them over processes, "
                "and an inner loop needs all of them for every task: use strategy='ddp', and for less memory "
                "MetaModule(accumulate_tasks=...) and Batched(checkpoint='step')."
            )
        if not self.automatic_optimization and self.trainer.training:
            self._check_manual_optimization()
        return super().configure_callbacks()

    def _check_manual_optimization(self) -> None:
        """Raise ValueError where the trainer has what Lightning does not do for a module that optimises by itself."""
        trainer: Any = self.trainer
        clip, accumulate, updates = trainer.gradient_clip_val, trainer.accumulate_grad_batches, self.updates_per_step
        saves = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        by_time = any(callback._train_time_interval is not None for callback in saves)
        more_tasks = "use more tasks in a batch, with MetaModule(accumulate_tasks=...)"
        by_number = "Lightning never saves by time there; use every_n_train_steps"
        for given, what, instead in (
            (clip, f"Trainer(gradient_clip_val={clip})", "use MetaModule(gradient_clip_val=...)"),
            (accumulate != 1, f"Trainer(accumulate_grad_batches={accumulate})", more_tasks),
            (by_time, "ModelCheckpoint(train_time_interval=...)", by_number),
        ):
            if given:
                module = f"MetaModule(updates_per_step={updates}), which optimises by itself"
                raise ValueError(f"Expected no {what} with {module}: {instead}, or updates_per_step=1.")
        batches = getattr(getattr(trainer, "datamodule", None), "batches_per_epoch", 0)
        for every in filter(None, (callback._every_n_train_steps for callback in saves)):
            if every % updates or batches % updates:
                raise ValueError(
                    f"Expected ModelCheckpoint(every_n_train_steps={every}) and the batches of an epoch, {batches}, to "
                    f"be multiples of the {updates} updates_per_step: Lightning saves where the number of updates at "
                    "the end of a training step is a multiple of every_n_train_steps."
                )

    def on_fit_start(self) -> None:
        self._meter = Meter()
        if torch.backends.cuda.is_built() and not torch.cuda.is_available():
            # Lightning has torch look for devices through the driver's library: without one, every step of an
            # optimizer would look for it on the disk again, where CUDA's own answer is at hand.
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        if not self.automatic_optimization:
            # of a checkpoint at the end of a training step it says that it was not taken in the middle of one
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")

    def on_validation_end(self) -> None:
        self._meter.restart_clock()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One meta-update (returns the surrogate loss), or ``updates_per_step`` of them."""
        self._meter.training_steps += 1
        try:
            if self.automatic_optimization:
                return _surrogate(*self._weighted(as_task_batch(batch)))
            self._several_updates(self._task_batches(batch))
            return None
        finally:
            self._problem = None  # between training steps anything may change

    def _several_updates(self, batches: Sequence[TaskBatch | UnequalTasks]) -> None:
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        steps = Steps(self, optimizer, scheduler)
        done = 0
        with closing(self._in_a_row(steps, batches)) as outputs:  # whatever happens, parameters have what was done
            for own, output in outputs:
                done += 1
                metric = judged(self._metric, output.predictions, own.query_targets) if self._metric else None
                self._meter.add(len(own), output.task_losses, output.support_losses, metric)
        for tasks in batches[done:]:
            update, weight = self._weighted(tasks)
            if not steps.take(update, weight):
                optimizer.zero_grad()
                self.manual_backward(_surrogate(update, weight))
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()

    def _in_a_row(
        self, steps: Steps, batches: Sequence[TaskBatch | UnequalTasks]
    ) -> Generator[tuple[TaskBatch, MetaOutput]]:
        """The first of these meta-updates, as many as are finite, where nothing is to be done between them."""
        if type(self).on_before_optimizer_step is not MetaModule.on_before_optimizer_step or self._logs_now():
            return
        algorithm, at = self.algorithm.at(self.global_step), self.global_step
        changes = any(self.algorithm.at(at + update) is not algorithm for update in range(len(batches)))
        if changes or self.gradient_clip_val is not None or self.accumulate_tasks is not None:
            return
        yield from steps.take_in_a_row(self._problem_of(algorithm), batches, self.engine)

    def _problem_of(self, algorithm: Algorithm) -> Problem:
        """One problem for as long as a training step goes on."""
        if self._problem is None or self._problem.algorithm is not algorithm:
            self._problem = Problem(self.network, algorithm, task_loss(self.loss), query_task_loss(self.query_loss))
        return self._problem

    def _weighted(self, tasks: TaskBatch | UnequalTasks) -> tuple[MetaUpdate, float]:
        """A meta-update, and by what its gradient counts so that processes' average is the mean over finite tasks."""
        update = self._meta_update(tasks)
        kept, own = len(update.task_losses), update.total_weight
        counts = self._counts(kept, len(tasks), own, tasks.total_weight)
        (all_kept, everything), (of_kept, of_all) = map(int, counts[:2]), counts[2:]
        if all_kept < everything:
            self._left_out(update, all_kept, everything)
        weight = own * self.trainer.world_size / ((of_all if self.on_divergence == "zero" else of_kept) or 1.0)
        metric = None
        if self._metric and kept:
            metric = torch.cat([judged(self._metric, found, tasks.query_targets) for tasks, found in update.parts])
        self._meter.add(len(tasks), update.task_losses, update.support_losses, metric)
        return update, weight

    def _meta_update(self, tasks: TaskBatch | UnequalTasks) -> MetaUpdate:
        algorithm = self.algorithm.at(self.global_step)  # which counts meta-updates, and goes on after resuming
        at_once = min(len(tasks), self.accumulate_tasks or len(tasks))
        try:
            return meta_update_of(self._problem_of(algorithm), tasks, self.engine, at_once)
        except torch.OutOfMemoryError as error:
            how = f"run fewer at once by MetaModule(accumulate_tasks={at_once // 2}) or" if at_once > 1 else "use"
            raise torch.OutOfMemoryError(
                f"Expected {at_once} tasks of {algorithm.inner.steps} inner steps to fit into the device's memory but "
                f"they did not: {how} engine=Batched(checkpoint='step'), whose memory hardly grows with the number of "
                f"steps; both leave the meta-gradient what it is. ({error})"
            ) from error

    def _left_out(self, update: MetaUpdate, kept: int, everything: int) -> None:
        """Counts, warns and, where too many tasks diverge, raises: on all processes alike."""
        own = update.explanation or "the tasks are those of another process, which says more."
        if self.on_divergence == "raise":
            raise ValueError(own)
        if 2 * kept < everything:
            raise ValueError(f"{own} {everything - kept} of {everything} tasks diverge.")
        if not self._meter.warned:
            rank_zero_warn(
                f"{everything - kept} of the {everything} tasks of meta-update {self.global_step} diverged and "
                f"{'count as zero' if self.on_divergence == 'zero' else 'are left out'}. {own} "
                "train/diverged_tasks counts them; this is said once. on_divergence='raise' stops instead."
            )
            self._meter.warned = True

    def _task_batches(self, batch: Any) -> Sequence[TaskBatch | UnequalTasks]:
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

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._logs_now():
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self._meter.gradient_norms.append(nn.utils.get_total_norm(gradients))
        super().on_before_optimizer_step(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # self.log costs as much as a small meta-update: the progress bar gets its numbers twice a second, the loggers
        # theirs at the steps they ask for, all in one row.
        logged = self._logs_now()
        if not logged and not self._meter.show_due():
            return
        # between logged steps this process's own: each has a clock of its own
        values = self._meter.collect(self.task_means, self._sum if logged else None)
        shown = {f"train/{name}": values[name] for name in self.task_means}
        if logged:
            values["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            if self.rates is not None:
                values |= {f"rate/{name}": rate.detach().mean() for name, rate in self.rates.named_parameters()}
            row = {f"train/{name}": value for name, value in _on_host(values).items()}
            row["epoch"] = self.trainer.current_epoch
            for logger in self.trainer.loggers:
                logger.log_metrics(row, step=self.trainer.global_step)
                logger.save()
        self.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False, batch_size=1)
        if logged or self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # never logged, it would grow
            self._meter.restart()

    def _logs_now(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self._meter.training_steps % every == 0

    def _evaluated(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        tasks = as_task_batch(batch)
        found: list[dict[str, Tensor]] = []
        for part in tasks.parts(len(tasks)):
            orders = in_class_orders(part, self.test_class_orders if self.trainer.testing else 1)
            self.class_orders = len(orders)
            found.append(mean_over_orders([self._judged(ordered) for ordered in orders]))
        values = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        return values, values.pop("diverged") > 0  # in any order

    def _judged(self, tasks: TaskBatch) -> dict[str, Tensor]:
        """Values before and after each inner step, ``[T, test_steps + 1]``, NaN where nothing is predicted."""
        # validation shows what is before and after all steps, a test what each of them does
        at = [*range(self.test_steps + 1)] if self.trainer.testing else [*{0, self.test_steps}]
        options: dict[str, Any] = {"loss": self.loss, "query_loss": self.query_loss, "safeguard": self.safeguard}
        options |= {"engine": self.engine, "at": at, "steps": self.test_steps}
        evaluation = evaluate(self.network, self.algorithm, tasks, **options)
        found = {"loss": evaluation.query_losses}
        if self._metric is not None:
            each = [judged(self._metric, one, tasks.query_targets) for one in evaluation.predictions.unbind(1)]
            found[self._metric[0]] = torch.stack(each, 1)
        values = {"diverged": evaluation.diverged.to(found["loss"].dtype)}
        for name, value in found.items():
            values[name] = value.new_full(evaluation.support_losses.shape, torch.nan)
            values[name][:, at] = value
        return values

    def _about_test(self) -> dict[str, Any]:
        return {"safeguard": self.safeguard, "class_orders": self.class_orders}

    def _place(self) -> dict[str, float]:
        # By itself Lightning would count training steps here, and then names no epoch where it is given a step.
        return {"step": float(self.trainer.global_step), "epoch": float(self.trainer.current_epoch)}

    def _tested(self, intervals: dict[str, Interval]) -> str:
        orders = f", each in {self.class_orders} orders of its classes" if self.class_orders > 1 else ""
        return super()._tested(intervals) + orders + (", with safeguard" if self.safeguard else "")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor | list[Any]:
        """Adapts to each task's support set and predicts its query rows: ``[T, Nq, ...]``.

        ``batch`` is a :class:`TaskBatch`, whose query targets are not used, or a tuple ``(support_inputs,
        support_targets, query_inputs)``, ``[T, N, ...]`` each. Of :class:`~lightning_maml.UnequalTasks` come the
        predictions of each group, in a list. The module's own weights stay as they are.
        """
        if isinstance(batch, UnequalTasks):
            return [self.predict_step(group, batch_idx) for group in batch.groups]
        if are_sets(batch, 3):
            inputs, targets, query_inputs = as_sets(batch)
        else:
            (inputs, targets), (query_inputs, _) = as_task_batch(batch).sets
        algorithm = self.algorithm.with_steps(self.test_steps)
        adapted = adapt(
            self.network, algorithm, inputs, targets, loss=self.loss, engine=self.engine, safeguard=self.safeguard
        )
        return adapted.predict(query_inputs)


def _surrogate(update: MetaUpdate, weight: float) -> Tensor:
    return update.surrogate if weight == 1 else update.surrogate * weight


def _on_host(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of scalars, those of a device by one copy."""
    there = {name: value for name, value in values.items() if isinstance(value, Tensor) and not value.is_cpu}
    numbers = dict(zip(there, torch.stack([*there.values()]).tolist(), strict=True)) if there else {}
    return {name: numbers[name] if name in numbers else float(value) for name, value in values.items()}
