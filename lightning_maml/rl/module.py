"""The LightningModule of reinforcement learning: rollouts in place of batches, otherwise what MetaModule is."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_maml.checkpoints import (
    SafeCheckpointIO,
    check_fits,
    random_state,
    read_checkpoint,
    restore_random_state,
)
from lightning_maml.engine import Engine
from lightning_maml.inner import Parameters
from lightning_maml.learner import Algorithm
from lightning_maml.metrics import TaskMean
from lightning_maml.parsing import parse_as_the_command_line
from lightning_maml.results import results_table, test_results, write_json
from lightning_maml.rl.adaptation import MetaObjective
from lightning_maml.rl.advantages import Advantages
from lightning_maml.rl.environments import Collector, Environment, check_fit
from lightning_maml.rl.estimators import Estimator
from lightning_maml.rl.outer import PPO, TRPO, Outer
from lightning_maml.rl.policies import Policy
from lightning_maml.rl.rollouts import Rollouts
from lightning_maml.rl.trust_region import trust_region_step
from lightning_maml.termination import SaveOnSigterm

__all__ = ["AdaptedPolicies", "MetaRLModule"]


@dataclass(frozen=True, eq=False)
class AdaptedPolicies:
    """The policies of a batch of tasks after adaptation."""

    template: Policy
    parameters: Parameters
    """``{name: [T, *shape]}``, of what adapted."""
    returns: Tensor
    """``[T, steps + 1]``, the mean return before and after each inner step."""

    def policy(self, task: int) -> Policy:
        """A copy of the policy with the parameters of one task: an ordinary module, to save, export or run."""
        policy = copy.deepcopy(self.template)
        named = dict(policy.named_parameters())
        with torch.no_grad():
            for name, value in self.parameters.items():
                named[name].copy_(value[task])
        return policy


class MetaRLModule(LightningModule):
    """Meta-trains ``policy`` by ``algorithm`` in ``environment``, under any :class:`~lightning.pytorch.Trainer`.

    A batch is ``[T, G]``, what tells its tasks apart, as :class:`~lightning_maml.rl.EnvironmentTasks` gives it. A
    training step is a meta-iteration: rollouts of the policy in every task, inner step by inner step, then the outer
    steps on these. Logged are

    - ``train/return_before`` and ``train/return_after`` the inner loop, ``train/loss``, ``train/kl`` (of the adapted
      policies, by the last outer step), ``train/meta_gradient_norm``, ``train/seconds`` of the meta-iteration;
    - ``val/return`` after the last inner step, and ``val/return_step_0``;
    - ``test/return_step_<k>`` after ``k`` inner steps, with ``_ci95``, the half-width of the 95% interval over tasks.
      ``test`` also prints them as a table and writes ``metrics.json``.

    Returns are undiscounted, of the policy as it samples. The trainer's ``max_steps`` counts outer steps; its epochs,
    and the steps of loggers, count meta-iterations. Under ``strategy="ddp"`` each process has its share of the tasks.

    Args:
        policy: what is meta-learned.
        algorithm: how tasks adapt and how the meta-gradient is formed, ``maml(lr=0.1, steps=1)`` or another preset of
            gradient steps; ``pretrained`` is the control, trained on all tasks without adaptation.
        environment: where; on the command line that of the data.
        estimator: the inner loss: ``"lvc"``, ``"loaded_dice"``, ``"maml"``, ``"first_order"``, see
            :mod:`lightning_maml.rl.estimators`, or a function like these.
        outer: ``PPO(...)`` or ``TRPO(...)``.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default. TRPO has none.
        scheduler: makes a learning-rate scheduler from the optimiser; it advances once a meta-iteration.
        trajectories: of each task and inner step in training.
        advantages: discount, baseline and the like.
        kl_penalty: ProMP's, see :class:`~lightning_maml.rl.MetaObjective`.
        exploration: the weight of E-MAML's term, see there.
        engine: ``"auto"``, ``"batched"``, ``"fused"``, ``"eager"`` or an engine object, see there.
        test_steps: inner steps in validation and test; by default the algorithm's.
        test_rates: the rate of each of these, where it is not the algorithm's: ``[0.1, 0.05, 0.05]`` halves it.
        test_trajectories: of each task and inner step in validation and test.
        gradient_clip_val: clips the meta-gradient.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.

    Raises:
        ValueError: an argument is out of range, or policy and environment do not fit.
        TypeError: ``policy`` or ``algorithm`` is something else.
        NotImplementedError: the algorithm or the engine does not exist for rollouts.

    Example:
        >>> from lightning_maml import maml
        >>> from lightning_maml.rl import GaussianPolicy, Navigation2D
        >>> module = MetaRLModule(GaussianPolicy(2, 2, hidden=[8]), maml(lr=0.1, steps=1), Navigation2D(horizon=5))
        >>> adapted = module.adapt(torch.tensor([[0.2, 0.1], [-0.3, 0.4]]))
        >>> adapted.policy(1).act(torch.zeros(2)).shape, adapted.returns.shape
        (torch.Size([2]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        environment: Environment,
        estimator: str | Estimator = "lvc",
        outer: PPO | TRPO | Outer | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        trajectories: int = 20,
        advantages: Advantages | None = None,
        kl_penalty: float = 0.0,
        exploration: float = 0.0,
        engine: str | Engine = "auto",
        test_steps: int | None = None,
        test_rates: Sequence[float] | None = None,
        test_trajectories: int = 40,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
    ) -> None:
        super().__init__()
        if not isinstance(policy, Policy):
            raise TypeError(f"Expected `policy` to be a Policy, as GaussianPolicy, but got {type(policy).__name__}.")
        if not isinstance(algorithm, Algorithm):
            raise TypeError(f"Expected `algorithm` to be one such as maml(lr=0.1, steps=1) but got {algorithm!r}.")
        check_fit(environment, policy)
        outer = PPO() if outer is None else outer
        test_steps = algorithm.inner.steps if test_steps is None else test_steps
        for name, value, least in (
            ("trajectories", trajectories, 1),
            ("test_trajectories", test_trajectories, 1),
            ("test_steps", test_steps, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Expected `{name}` to be a whole number of at least {least} but got {value!r}.")
        if test_rates is not None and len(test_rates) != test_steps:
            raise ValueError(
                f"Expected a rate in `test_rates` for each of {test_steps} test steps but got {test_rates}."
            )
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"Expected `gradient_clip_val` to be positive or None but got {gradient_clip_val!r}.")
        if isinstance(outer, TRPO) and (optimizer or scheduler or gradient_clip_val):
            raise ValueError(
                "Expected neither `optimizer` nor `scheduler` nor `gradient_clip_val` with TRPO, whose steps have the "
                "length that the trust region allows."
            )
        if _given_hyperparameters.get() is not None:  # the command line gives the whole configuration as plain data
            self.save_hyperparameters(ignore=["environment"])  # an object; the command line links it to the data
        self.automatic_optimization = False  # several outer steps with the same rollouts
        self.policy = policy
        self.environment = environment
        self.rates = algorithm.initial_rates(policy)
        self.objective = MetaObjective(
            policy,
            algorithm.with_rates(self.rates),
            estimator,
            outer,
            advantages or Advantages(),
            kl_penalty,
            exploration,
            engine,
        )
        self.optimizer, self.scheduler = optimizer or torch.optim.Adam, scheduler
        self.trajectories, self.test_trajectories = trajectories, test_trajectories
        self.test_steps, self.test_rates = test_steps, test_rates
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.val_returns, self.test_returns = TaskMean(test_steps + 1), TaskMean(test_steps + 1)
        self._random_states: list[Any] | None = None
        self._sigterm = SaveOnSigterm()

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm, with the learned rates if it has any."""
        return self.objective.algorithm

    def forward(self, observations: Tensor) -> Tensor:
        """The policy's outputs before any adaptation: ``[N, O] -> [N, P]``."""
        return self.policy(observations)

    def configure_optimizers(self) -> Any:
        """The outer optimiser over policy and learned rates; for TRPO one that adds its step as it is."""
        leaves = self.objective.leaves
        if isinstance(self.objective.outer, TRPO):
            return torch.optim.SGD(leaves, lr=1.0)
        optimizer = self.optimizer(leaves)
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def configure_callbacks(self) -> list[Any]:
        """What saves at SIGTERM."""
        return [] if self._sigterm in self.trainer.callbacks else [self._sigterm]  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Checkpoints that are written in one piece and read as plain data, where no others were asked for."""
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = SafeCheckpointIO()

    def adapt(self, tasks: Tensor, steps: int | None = None) -> AdaptedPolicies:
        """The policies adapted to ``tasks [T, G]``, by inner steps on ``test_trajectories`` new trajectories each."""
        *_, (parameters, _) = path = self._path(tasks, steps)
        returns = torch.stack([rollouts.returns.mean(1) for _, rollouts in path], 1)
        return AdaptedPolicies(self.policy, parameters, returns)

    def rollouts(self, tasks: Tensor, steps: int | None = None) -> list[Rollouts]:
        """Rollouts in ``tasks [T, G]`` before and after each inner step, as the test collects them."""
        return [rollouts for _, rollouts in self._path(tasks, steps)]

    def _path(self, tasks: Tensor, steps: int | None) -> list[tuple[Parameters, Rollouts]]:
        rates = self.test_rates
        steps = self.test_steps if steps is None else steps
        if rates is not None and steps > len(rates):
            raise ValueError(f"Expected at most {len(rates)} steps, of which there are `test_rates`, but got {steps}.")
        with torch.inference_mode(False):  # which Lightning evaluates in, and no inner step can be taken in
            collect = self._collector(tasks.clone(), self.test_trajectories)
            return list(self.objective.adapt(collect, len(tasks), steps, rates))

    def _collector(self, tasks: Tensor, trajectories: int) -> Collector:
        _, constants = self.objective.split()
        return Collector(self.environment, self.policy, tasks, trajectories, constants)

    # Training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._random_states is not None:  # now, as what Lightning does before a first batch may draw, too
            if len(self._random_states) == self.trainer.world_size:
                restore_random_state(self._random_states[self.trainer.global_rank])
            self._random_states = None

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One meta-iteration: rollouts, then the outer steps."""
        start = time.monotonic()
        objective = self.objective
        optimizer: Any = self.optimizers()
        path = objective.adapt(self._collector(batch, self.trajectories), len(batch), objective.training_steps)
        rollouts = [part for _, part in path]
        share = self._share(len(batch))
        for _ in range(objective.outer.epochs):
            objective = self.objective.at(self.global_step)  # which counts outer steps, and goes on after resuming
            if isinstance(objective.outer, TRPO):
                steps, loss, kl = trust_region_step(objective, rollouts, lambda values: self._sum(values * share))
                gradients = [-step for step in steps]
            else:
                value = objective(rollouts)
                gradients = [self._sum(gradient * share) for gradient in value.gradients]
                loss, kl = self._sum(value.loss * share), self._sum(value.kl * share)
            norm = torch.nn.utils.get_total_norm(gradients)
            if not norm.isfinite():
                raise ValueError(
                    f"Expected a finite meta-gradient but it is {float(norm)} in meta-iteration {self._iteration}: use "
                    "a smaller inner rate, or `gradient_clip_val`, and look at the environment's rewards."
                )
            for leaf, gradient in zip(objective.leaves, gradients, strict=True):
                leaf.grad = gradient
            if self.gradient_clip_val is not None:
                self.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)
            optimizer.step()
        if self.scheduler is not None and (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()  # type: ignore[union-attr]
        before, after = (self._sum(part.returns.mean() * share) for part in (rollouts[0], rollouts[-1]))
        self.log_dict({"train/return_before": before, "train/return_after": after}, prog_bar=True, batch_size=1)
        seconds = time.monotonic() - start
        more = {"loss": loss, "kl": kl, "meta_gradient_norm": norm, "seconds": torch.tensor(seconds)}
        self.log_dict({f"train/{name}": value for name, value in more.items()}, batch_size=1)
        self.log("step", float(self._iteration), batch_size=1)  # the loggers' axis

    @property
    def _iteration(self) -> int:
        """The meta-iteration that runs or has just run, counted from 1."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _share(self, tasks: int) -> float:
        """This process's share of the tasks of all processes."""
        every = self._sum(torch.tensor([float(tasks), float(self._sigterm.received)], device=self.device))
        self._sigterm.agreed = bool(every[1] > 0)
        return tasks / float(every[0])

    def _sum(self, values: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        self.val_returns.reset()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.val_returns.update(self.adapt(batch).returns)

    def on_validation_epoch_end(self) -> None:
        mean = self.val_returns.compute().mean.reshape(-1).float()
        self.log("val/return", mean[-1], prog_bar=True, sync_dist=True, batch_size=1)
        self.log("val/return_step_0", mean[0], sync_dist=True, batch_size=1)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.log("step", float(self._iteration), sync_dist=True, batch_size=1)

    def on_test_epoch_start(self) -> None:
        self.test_returns.reset()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.test_returns.update(self.adapt(batch).returns)

    def on_test_epoch_end(self) -> None:
        interval = self.test_returns.compute()
        for step, (mean, ci95) in enumerate(zip(interval.mean.reshape(-1), interval.ci95.reshape(-1), strict=True)):
            self.log(f"test/return_step_{step}", mean.float(), sync_dist=True, batch_size=1)
            self.log(f"test/return_step_{step}_ci95", ci95.float(), sync_dist=True, batch_size=1)

    def on_test_end(self) -> None:
        """Prints the table and writes ``metrics.json`` into the logger's folder, or the trainer's root folder."""
        values = {"return": self.test_returns.compute()}
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # on every process: Lightning broadcasts it
        if not self.trainer.is_global_zero:
            return
        if self.trainer.test_loop.verbose:
            print(
                results_table(
                    values,
                    f"\nTest of {self.algorithm.name} on {int(values['return'].tasks)} tasks, {self.test_trajectories} "
                    "trajectories each, mean ± 95% interval over tasks:",
                )
            )
            self.trainer.test_loop.verbose = False  # ours stands for Lightning's own list of the same numbers
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        checkpoint, seed = self.trainer.ckpt_path, os.environ.get("PL_GLOBAL_SEED")
        about = {
            "algorithm": self.algorithm.name,
            "estimator": self.objective.estimator if isinstance(self.objective.estimator, str) else "custom",
            "trajectories": self.test_trajectories,
            "rates": None if self.test_rates is None else list(self.test_rates),
            "seed": int(seed) if seed else None,
            "data_seed": getattr(getattr(self.trainer, "datamodule", None), "seed", None),
            "checkpoint": str(checkpoint) if checkpoint else None,
        }
        path = Path(folder) / "metrics.json"
        write_json(path, test_results(values, **about))
        rank_zero_info(f"Written to {path}")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Parameters:
        """The parameters of the policies adapted to ``batch [T, G]``: ``{name: [T, *shape]}``."""
        return self.adapt(batch).parameters

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [random_state()]
        if self.trainer.world_size > 1:  # every process comes here, the first one writes
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path = self._trainer.ckpt_path if self._trainer else None
        if self.strict_loading:
            check_fits(checkpoint["state_dict"], self.state_dict(), path)
        if self._trainer and self.trainer.training:
            self._random_states = checkpoint.get("random_states")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> MetaRLModule:
        """The module of a checkpoint of the command line, given ``environment=...``, which no checkpoint holds.

        Of a module that Python code made, ``policy`` and ``algorithm`` have to be given as well.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds objects other than plain data.
        """
        read_checkpoint(checkpoint_path, "meta", True)  # for its errors; no tensor is read
        parse_as_the_command_line()
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
