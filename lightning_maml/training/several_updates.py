"""Several meta-updates in one training step, past what Lightning does around each where nothing of it is in use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_maml.adaptation import in_a_row_of, recorded_updates_of
from lightning_maml.engine import Engine, Graphed, MetaOutput, Problem
from lightning_maml.engine.base import LossAndGradient, in_layout
from lightning_maml.tasks import TaskBatch, UnequalTasks
from lightning_maml.training.coming_rates import coming_rates
from lightning_maml.training.fused_step import StepInOneCall

_OF_CALLBACKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
_OF_MODULES = ("manual_backward", "backward", "on_before_backward", "on_after_backward")


class Steps:
    """The optimiser's steps of one training step, by meta-gradients that are known already.

    Lightning's calls around a backward and a step take longer than a small meta-update. They may be left out where
    there is one device, full precision and no profiler, and no callback, override or hook that would see them; anywhere
    else :meth:`take` does nothing and says so.
    """

    def __init__(self, module: LightningModule, optimizer: Any, scheduler: Any) -> None:
        """Of a Lightning optimiser; its scheduler, which may be None, steps with it."""
        self.module, self.optimizer, self.own = module, optimizer, optimizer.optimizer
        self.scheduler = scheduler
        self.alone = _nothing_listens(module, self.own)
        self.in_one_call = StepInOneCall.of(self.own) if self.alone else None

    def take(self, found: LossAndGradient, weight: float) -> bool:
        """Whether it took a step by ``weight`` times the meta-gradient."""
        if not self.alone or _have_hooks(found.leaves):
            return False
        gradients: Sequence[Tensor] = in_layout(found.gradients, found.leaves)
        if weight != 1:
            gradients = torch._foreach_mul([*gradients], weight)
        for group in self.own.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for leaf, gradient in zip(found.leaves, gradients, strict=True):
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        before = partial(self.module.on_before_optimizer_step, self.own)
        with self._counted():
            if self.in_one_call is None:
                self.own.step(closure=before)
                return True
            before()
            parameters = self.in_one_call.parameters
            trained = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if len(trained) == len(parameters):
                self.in_one_call.take(parameters, trained)
            else:
                self.own.step()
        return True

    def take_in_a_row(
        self, problem: Problem, batches: Sequence[TaskBatch | UnequalTasks], engine: str | Engine
    ) -> Iterator[tuple[TaskBatch, MetaOutput]]:
        """Steps from one meta-batch to the next until one's numbers are not finite; ends there, before its step.

        The parameters have what came of it once the iterator has ended.
        """
        call, plain = self.in_one_call, [tasks for tasks in batches if isinstance(tasks, TaskBatch)]
        if call is None or len(plain) < len(batches):
            return
        if isinstance(engine, Graphed):
            yield from self._recorded(call, problem, plain, engine)
            return
        if (row := in_a_row_of(problem, plain, engine)) is None:
            return
        if not _are_all_of(row.leaves, call):
            return
        gradients: Sequence[Tensor] = ()
        try:
            for tasks in plain:
                if (output := row.meta_loss(tasks)) is None:
                    return
                gradients = output.gradients
                with self._counted():
                    call.take(row.parameters, gradients)
                yield tasks, output
        finally:
            with torch.no_grad():
                torch._foreach_copy_(row.leaves, [*row.parameters])
            for leaf, gradient in zip(row.leaves, gradients, strict=False):
                leaf.grad = gradient

    def _recorded(
        self, call: StepInOneCall, problem: Problem, batches: Sequence[TaskBatch], engine: Graphed
    ) -> Iterator[tuple[TaskBatch, MetaOutput]]:
        """The same as one launch, after which all of it is done."""
        rates = coming_rates(self.own, self.scheduler, len(batches))
        leaves = problem.leaves()
        if rates is None or not _are_all_of(leaves, call):
            return
        try:
            outputs = recorded_updates_of(problem, batches, engine, call, rates)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"Expected {len(batches)} meta-updates as one CUDA graph to fit into the device's memory but they did "
                f"not: use fewer `updates_per_step`, or {engine.engine!r} as it is. ({error})"
            ) from error
        for leaf, gradient in zip(leaves, outputs[-1].gradients if outputs else (), strict=False):
            leaf.grad = gradient
        for _ in outputs:  # whoever looks at them may fail, and what is done is done
            with self._counted():
                pass
        yield from zip(batches, outputs, strict=False)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Around a step, by which Lightning counts; the scheduler's follows."""
        self.optimizer._on_before_step()
        yield
        self.optimizer._on_after_step()
        if self.scheduler is not None:
            self.scheduler.step()


def _have_hooks(leaves: Sequence[Any]) -> bool:
    return any(leaf._backward_hooks or leaf._post_accumulate_grad_hooks for leaf in leaves)


def _are_all_of(leaves: Sequence[Any], call: StepInOneCall) -> bool:
    """Whether these, without hooks, are what a step is taken of, in its order."""
    return [*map(id, call.parameters)] == [*map(id, leaves)] and not _have_hooks(leaves)


def _nothing_listens(module: LightningModule, optimizer: Optimizer) -> bool:
    trainer: Any = module.trainer
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and type(trainer.profiler) is PassThroughProfiler
        and type(optimizer).zero_grad is Optimizer.zero_grad
        and all(_inherits(module, LightningModule, name) for name in _OF_MODULES)
        and all(_inherits(callback, Callback, name) for callback in trainer.callbacks for name in _OF_CALLBACKS)
    )


def _inherits(one: Any, base: type, name: str) -> bool:
    return getattr(getattr(one, name), "__func__", None) is getattr(base, name)
