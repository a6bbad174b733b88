"""The LightningModule of reinforcement learning: rollouts in place of batches, otherwise what MetaModule is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor

from lightning_maml.adaptation import with_parameters_of
from lightning_maml.checks import check_positive, check_whole
from lightning_maml.engine import Engine
from lightning_maml.inner import Parameters
from lightning_maml.learner import Algorithm
from lightning_maml.metrics import Interval
from lightning_maml.rl.adaptation import MetaObjective
from lightning_maml.rl.advantages import Advantages
from lightning_maml.rl.environments import Collector, Environment, Rollouts, check_fit
from lightning_maml.rl.estimators import Estimator
from lightning_maml.rl.outer import PPO, TRPO, Outer
from lightning_maml.rl.policies import Policy
from lightning_maml.rl.trust_region import trust_region_step
from lightning_maml.training.base import ClipAlgorithm, LRSchedulerCallable, MetaTraining, OptimizerCallable


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
        return with_parameters_of(self.template, self.parameters, task)


class MetaRLModule(MetaTraining):
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
    ``load_from_checkpoint`` has to be given the environment; and policy and algorithm, unless the command line made the
    checkpoint.

    Args:
        policy: what is meta-learned.
        algorithm: an inner loop of plain gradient steps, and a rule: as of ``maml(lr=0.1, steps=1)``, ``fomaml``,
            ``anil``, ``meta_sgd`` or ``pretrained``, the control, trained on all tasks without adaptation.
        environment: where; on the command line that of the data.
        estimator: the inner loss: ``"lvc"``, ``"loaded_dice"``, ``"maml"``, ``"first_order"``, see
            :mod:`lightning_maml.rl.estimators`, or a function like these.
        outer: ``PPO(...)`` or ``TRPO(...)``.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default. TRPO has none.
        scheduler: makes a learning-rate scheduler from the optimiser; it advances once a meta-iteration.
        trajectories: of each task and inner step in training.
        advantages: discount, baseline and the like.
        kl_penalty: eta, ProMP's penalty ``eta KL(old || new)`` of the policies before each inner step, their mean.
        exploration: the weight of E-MAML's term, which credits the inner rollouts with what came of them: minus
            ``weight / H sum_i sum_t log pi(a_it|s_it) R`` of each task, ``R`` its mean return after adaptation,
            normalised over the tasks.
        engine: ``"batched"`` runs all tasks at once, on a CPU a few, or ``Batched(chunk_size=...)``. ``"fused"`` does
            so with inner gradients, and the way back through them, by the operator ``policy_gradient``, in C on a CPU:
            for perceptrons, without TRPO and ``loaded_dice``. ``"eager"`` runs one task after another. ``"auto"`` is
            ``"fused"`` where it runs and there are tasks for its vectors, else ``"batched"``.
        test_steps: inner steps in validation and test; by default the algorithm's.
        test_rates: the rate of each of these, where it is not the algorithm's: ``[0.1, 0.05, 0.05]`` halves it.
        test_trajectories: of each task and inner step in validation and test.
        gradient_clip_val, gradient_clip_algorithm: clip the meta-gradient, by ``"norm"`` or ``"value"``.

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

    policy: Policy

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        environment: Environment,
        estimator: str | Estimator = "lvc",
        outer: PPO | TRPO | Outer | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        trajectories: int = 20,
        advantages: Advantages | None = None,
        kl_penalty: float = 0.0,
        exploration: float = 0.0,
        engine: str | Engine = "auto",
        test_steps: int | None = None,
        test_rates: Sequence[float] | None = None,
        test_trajectories: int = 40,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
    ) -> None:
        if not isinstance(policy, Policy):
            raise TypeError(f"Expected `policy` to be a Policy, as GaussianPolicy, but got {type(policy).__name__}.")
        if not isinstance(algorithm, Algorithm):
            raise TypeError(f"Expected `algorithm` to be one such as maml(lr=0.1, steps=1) but got {algorithm!r}.")
        check_fit(environment, policy)
        check_whole(1, trajectories=trajectories, test_trajectories=test_trajectories)
        super().__init__(
            "policy",
            policy,
            algorithm,
            values=["return"],
            may_diverge=False,  # rollouts are noise
            optimizer=optimizer or (partial(torch.optim.SGD, lr=1.0) if isinstance(outer, TRPO) else torch.optim.Adam),
            scheduler=scheduler,
            test_steps=test_steps,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )
        if test_rates is not None and len(test_rates) != (steps := self.test_steps):
            raise ValueError(f"Expected a rate in `test_rates` for each of {steps} test steps but got {test_rates}.")
        check_positive(**{f"test_rates[{place}]": rate for place, rate in enumerate(test_rates or ())})
        if isinstance(outer, TRPO) and (optimizer or scheduler or gradient_clip_val):
            raise ValueError(
                "Expected neither `optimizer` nor `scheduler` nor `gradient_clip_val` with TRPO, whose steps have the "
                "length that the trust region allows."
            )
        if _given_hyperparameters.get() is not None:  # the command line gives the whole configuration as plain data
            self.save_hyperparameters(ignore=["environment"])  # an object; the command line links it to the data
        self.automatic_optimization = False  # several outer steps with the same rollouts
        self.environment = environment
        outer, advantages = outer or PPO(), advantages or Advantages()
        self.objective = MetaObjective(
            policy, self.algorithm, estimator, outer, advantages, kl_penalty, exploration, engine
        )
        self.trajectories, self.test_trajectories, self.test_rates = trajectories, test_trajectories, test_rates

    def forward(self, observations: Tensor) -> Tensor:
        """The policy's outputs before any adaptation: ``[N, O] -> [N, P]``."""
        return self.policy(observations)

    def _trained(self) -> list[Tensor]:
        return self.objective.leaves

    def adapt(self, tasks: Tensor, steps: int | None = None) -> AdaptedPolicies:
        """The policies adapted to ``tasks [T, G]``, by inner steps on ``test_trajectories`` new trajectories each."""
        *_, (parameters, _) = path = self._path(tasks, steps)
        returns = torch.stack([rollouts.returns.mean(1) for _, rollouts in path], 1)
        return AdaptedPolicies(self.policy, parameters, returns)

    def rollouts(self, tasks: Tensor, steps: int | None = None) -> list[Rollouts]:
        """Rollouts in ``tasks [T, G]`` before and after each inner step, as the test collects them."""
        return [rollouts for _, rollouts in self._path(tasks, steps)]

    def _path(self, tasks: Tensor, steps: int | None) -> list[tuple[Parameters, Rollouts]]:
        rates, steps = self.test_rates, self.test_steps if steps is None else steps
        if rates is not None and steps > len(rates):
            raise ValueError(f"Expected at most {len(rates)} steps, of which there are `test_rates`, but got {steps}.")
        with torch.inference_mode(False):  # which Lightning evaluates in, and no inner step can be taken in
            collect = self._collector(tasks.clone(), self.test_trajectories)
            return list(self.objective.adapt(collect, len(tasks), steps, rates))

    def _collector(self, tasks: Tensor, trajectories: int) -> Collector:
        return Collector(self.environment, self.policy, tasks, trajectories, self.objective.split()[1])

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One meta-iteration: rollouts, then the outer steps."""
        start, objective = time.monotonic(), self.objective
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        collect = self._collector(batch, self.trajectories)
        rollouts = [part for _, part in objective.adapt(collect, len(batch), objective.training_steps)]
        share = len(batch) / self._counts(len(batch))[0]  # this process's, of the tasks of all processes
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
            # TRPO's step is finite: so is the loss after it, or it would not have been taken
            if not isinstance(objective.outer, TRPO) and not norm.isfinite():
                raise ValueError(
                    f"Expected a finite meta-gradient but it is {float(norm)} in meta-iteration "
                    f"{self._place()['step']:.0f}: use a smaller inner rate, or `gradient_clip_val`, and look at the "
                    "environment's rewards."
                )
            for leaf, gradient in zip(objective.leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
        before, after = (self._sum(part.returns.mean() * share) for part in (rollouts[0], rollouts[-1]))
        self.log_dict({"train/return_before": before, "train/return_after": after}, prog_bar=True, batch_size=1)
        more: dict[str, Any] = {"loss": loss, "kl": kl, "meta_gradient_norm": norm, "seconds": time.monotonic() - start}
        self.log_dict({f"train/{name}": value for name, value in more.items()} | self._place(), batch_size=1)

    def _place(self) -> dict[str, float]:
        """The meta-iteration that runs or has just run, counted from 1."""
        return {"step": float(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)}

    def _evaluated(self, batch: Tensor) -> tuple[dict[str, Tensor], None]:
        return {"return": self.adapt(batch).returns}, None

    def _tested(self, intervals: dict[str, Interval]) -> str:
        return f"{super()._tested(intervals)}, {self.test_trajectories} trajectories each"

    def _about_test(self) -> dict[str, Any]:
        estimator = self.objective.estimator
        return {
            "estimator": estimator if isinstance(estimator, str) else "custom",
            "trajectories": self.test_trajectories,
            "rates": None if self.test_rates is None else list(self.test_rates),
        }

    def _hyper_parameters(self) -> dict[str, Any]:
        data = (self.configuration or {}).get("data") or {}
        environment = (data.get("init_args") or {}).get("environment")  # which the command line links to the data
        return super()._hyper_parameters() | ({"environment": environment} if environment else {})

    def predict_step(self, batch: Tensor, batch_idx: int) -> Parameters:
        """The parameters of the policies adapted to ``batch [T, G]``: ``{name: [T, *shape]}``."""
        return self.adapt(batch).parameters
