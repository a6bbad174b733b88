"""The inner loop on rollouts, and the meta-gradient of what follows: for the same rules, and the same inner loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from lightning_maml.checks import check_not_negative, check_one_of
from lightning_maml.engine import Batched, Eager, Engine, Fused
from lightning_maml.engine.coverage import ROLLOUTS, refused
from lightning_maml.inner import Parameters, tensors_of
from lightning_maml.learner import Algorithm
from lightning_maml.meta_gradient import Query, training_steps
from lightning_maml.rl.advantages import Advantages
from lightning_maml.rl.environments import Collect, Rollouts
from lightning_maml.rl.estimators import ESTIMATORS, Estimator
from lightning_maml.rl.fused import PolicyGradient, find
from lightning_maml.rl.outer import PPO, TRPO, Outer
from lightning_maml.rl.policies import Policy

CACHED_ROWS = 16384  # of the tasks run at once on a CPU: fewer calls against less cache; measured for 2x100 units


@dataclass(frozen=True, eq=False)
class MetaValue:
    """The outer objective on a meta-batch of rollouts."""

    loss: Tensor
    """Scalar, detached: the mean over the tasks, penalties included."""
    kl: Tensor
    """Scalar, detached: the mean divergence of the adapted policies from those that were sampled."""
    gradients: tuple[Tensor, ...]
    """One for each of :attr:`MetaObjective.leaves`."""


@dataclass(frozen=True, eq=False)
class MetaObjective:
    r"""A policy, an algorithm, and the losses of inner and outer loop.
    Rothfuss et al., "ProMP", ICLR 2019; Stadie et al., "Some Considerations on Learning to Explore via
    Meta-Reinforcement Learning", NeurIPS 2018.

    The expected return after adaptation, of trajectories sampled after adaptation:

    .. math:: \max_\theta \; \mathbb E_t \, \mathbb E_{\tau' \sim \pi_{\phi_m}} R(\tau'), \quad
              \phi_{k+1} = \phi_k - \alpha \nabla L_{inner}(\phi_k; \tau_k), \; \tau_k \sim \pi_{\phi_k}

    Args:
        policy, algorithm, estimator, outer, advantages, kl_penalty, exploration, engine: as of
            :class:`~lightning_maml.rl.MetaRLModule`.

    ValueError where an argument is out of range, NotImplementedError, which says why, where the algorithm or the engine
    does not exist for rollouts.
    """

    policy: Policy
    algorithm: Algorithm
    estimator: str | Estimator = "lvc"
    outer: Outer = field(default_factory=PPO)
    advantages: Advantages = field(default_factory=Advantages)
    kl_penalty: float = 0.0
    exploration: float = 0.0
    engine: str | Engine = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.estimator, str):
            check_one_of(sorted(ESTIMATORS), estimator=self.estimator)
        check_not_negative(kl_penalty=self.kl_penalty, exploration=self.exploration)
        if self.exploration and self.training_steps == 0:
            name = self.algorithm.name
            raise ValueError(f"Expected inner steps in training for `exploration` to credit but {name!r} has none.")
        if reason := refused(self.algorithm.needs, ROLLOUTS):
            raise NotImplementedError(f"Expected an inner loop of plain gradient steps, and its rule, but {reason}.")
        if self.algorithm.batch_norm == "support":
            raise NotImplementedError("Expected batch_norm='batch' or 'running': rollouts are no support sets.")
        names, chunks = ("auto", "batched", "fused", "eager"), getattr(self.engine, "chunk_size", None)
        if self.engine not in (*names, Batched(chunk_size=chunks), Eager(), Fused(compile=True)):
            raise NotImplementedError(
                f"Expected the engine for rollouts to be one of {names}, Batched(chunk_size=...), Eager() or "
                f"Fused(compile=True), of which the operator is, in C, but got {self.engine!r}."
            )
        if self.engine_name == "fused" and isinstance(self._fused, str):
            raise NotImplementedError(f"Engine 'fused' cannot run this: {self._fused}")

    @property
    def engine_name(self) -> str:
        """That of the engine, which may be given by its name."""
        return self.engine if isinstance(self.engine, str) else self.engine.name

    def at(self, update: int) -> MetaObjective:
        """The same objective at meta-update number ``update``, see :meth:`~lightning_maml.Algorithm.at`."""
        algorithm = self.algorithm.at(update)
        return self if algorithm is self.algorithm else replace(self, algorithm=algorithm)

    @property
    def training_steps(self) -> int:
        """The inner steps of training: none where the rule is Joint."""
        return training_steps(self.algorithm.meta_gradient, self.algorithm.inner.steps)

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a meta-gradient: the policy's parameters, and learned inner rates."""
        every = (*self.policy.parameters(), *tensors_of(self.algorithm.holders))
        return [leaf for leaf in every if leaf.requires_grad]

    def split(self) -> tuple[Parameters, Parameters]:
        """The parameters that adapt, and the other parameters and buffers."""
        others: Parameters = dict(self.policy.named_parameters())
        theta = {name: others.pop(name) for name in self.algorithm.inner.adapted(others)}
        return theta, others | dict(self.policy.named_buffers())

    def initial(self, tasks: int) -> Parameters:
        """The meta-parameters as every task's own, ``{name: [T, *shape]}``."""
        return {name: value.expand(tasks, *value.shape) for name, value in self.split()[0].items()}

    def adapt(
        self, collect: Collect, tasks: int, steps: int, rates: Sequence[float] | None = None
    ) -> Iterator[tuple[Parameters, Rollouts]]:
        """The parameters ``{name: [T, *shape]}`` and their rollouts, before and after each of ``steps`` inner steps.

        Yields ``steps + 1`` pairs, detached. ``rates`` are those of the inner steps, in place of the algorithm's own.
        """
        phi = {name: value.detach() for name, value in self.initial(tasks).items()}
        for step in range(steps + 1):
            rollouts = self.advantages(collect(phi, step))
            yield phi, rollouts
            if step == steps:
                return
            parts = []
            for chunk in self._chunks(rollouts):
                own = {name: value[chunk].detach().requires_grad_() for name, value in phi.items()}
                loop = RolloutLoop(self, [rollouts[chunk]])
                parts.append(loop.step(own, rollouts[chunk], step, order=1, rate=rates[step] if rates else None))
            phi = {name: torch.cat([part[name].detach() for part in parts]) for name in phi}

    def __call__(self, rollouts: Sequence[Rollouts]) -> MetaValue:
        """The outer loss of a meta-batch, and its gradient.

        Args:
            rollouts: of the parameters before each inner step of training, and after the last: as of :meth:`adapt`.

        ValueError where there is another number of them, or ``exploration`` has a single task to compare.
        """
        if len(rollouts) != self.training_steps + 1:
            raise ValueError(
                f"Expected rollouts before and after each of {self.training_steps} inner steps, "
                f"{self.training_steps + 1} of them, but got {len(rollouts)}."
            )
        leaves, credit = self.leaves, self._credit(rollouts[-1])
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        loss, kl = rollouts[0].rewards.new_zeros(2)
        for chunk in self._chunks(rollouts[0]):
            some = [part[chunk] for part in rollouts]
            total, divergence = RolloutLoop(self, some, None if credit is None else credit[chunk]).loss()
            weight = len(some[0]) / len(rollouts[0])
            torch._foreach_add_(gradients, torch.autograd.grad(total * weight, leaves, materialize_grads=True))
            loss += total.detach() * weight
            kl += divergence.detach() * weight
        return MetaValue(loss, kl, tuple(gradients))

    def loss_and_kl(self, rollouts: Sequence[Rollouts]) -> tuple[Tensor, Tensor]:
        """Outer loss and mean divergence of the adapted policies, differentiable: all tasks in one graph."""
        return RolloutLoop(self, rollouts, self._credit(rollouts[-1])).loss()

    def _credit(self, rollouts: Rollouts) -> Tensor | None:
        """What E-MAML's term credits the inner rollouts of each task with, ``[T]``; None for no such term."""
        if not self.exploration:
            return None
        returns = rollouts.returns.mean(1)
        if len(returns) < 2:
            raise ValueError(f"Expected at least 2 tasks to compare for `exploration` but got {len(returns)}.")
        return (returns - returns.mean()) / (returns.std() + 1e-8)

    def inner_loss(self, log_probs: Tensor, rollouts: Rollouts) -> Tensor:
        """The losses ``[T]`` of the estimator."""
        estimator = ESTIMATORS[self.estimator] if isinstance(self.estimator, str) else self.estimator
        return estimator(log_probs, rollouts.log_probs, rollouts.advantages, rollouts.mask)

    @cached_property
    def _fused(self) -> PolicyGradient | str:
        return find(self.policy, self.estimator, self.outer, self.split()[0])

    def fused(self, rollouts: Rollouts, few: bool = False) -> PolicyGradient | None:
        """What computes the inner gradients of these tasks on the engine ``"fused"``, or None on another one.

        ``few`` says so however few tasks there are, which ``"auto"`` runs on ``"batched"``. NotImplementedError, which
        says why, where the engine was asked for and cannot run this.
        """
        operator, asked = self._fused, self.engine_name == "fused"
        if isinstance(operator, str) or not (asked or self.engine_name == "auto"):
            return None
        reason = operator.unsupported(self.split()[0], rollouts.rewards)
        if reason is not None and asked:
            raise NotImplementedError(f"Engine 'fused' cannot run this: {reason}")
        return operator if reason is None and (asked or few or operator.fills(rollouts)) else None

    def _chunks(self, rollouts: Rollouts) -> list[slice]:
        tasks = len(rollouts)
        size = self.engine.chunk_size if isinstance(self.engine, Batched) else None
        if size is None:
            size = CACHED_ROWS // rollouts.rewards[0].numel() if rollouts.rewards.is_cpu else tasks
        # the operator's tasks come in groups; those left over are a chunk of their own
        operator = self.fused(rollouts, few=True)
        group = operator.lanes(rollouts) if operator else 1
        size, whole = max(size // group, 1) * group, tasks // group * group
        return [slice(*ends) for ends in pairwise(sorted({*range(0, whole, size), whole, tasks}))]


class RolloutLoop:
    """A :class:`~lightning_maml.meta_gradient.Loop` on rollouts that were sampled before.

    Args:
        objective: what is adapted, and by what losses.
        rollouts: before each inner step, and after the last.
        credit: of the tasks, ``[T]``, for E-MAML's term; None for none.
    """

    def __init__(self, objective: MetaObjective, rollouts: Sequence[Rollouts], credit: Tensor | None = None) -> None:
        self.objective, self.rollouts, self.credit = objective, rollouts, credit
        self.inner, (_, self.constants) = objective.algorithm.inner, objective.split()
        self.penalties: list[Tensor] = []  # of the policies that inner steps were taken at, scalars
        self.kl: Tensor

    @torch.enable_grad()  # the way to the adapted policies is one of gradients, whatever is made of the loss
    def loss(self) -> tuple[Tensor, Tensor]:
        """Outer loss with penalties, and mean divergence of the adapted policies: scalars, differentiable."""
        query = self.objective.algorithm.meta_gradient(self)
        return query.loss + sum(self.penalties), self.kl

    def initial(self) -> Parameters:
        return self.objective.initial(len(self.rollouts[0]))

    def path(self, order: int) -> list[Parameters]:
        phi = [self.initial()]
        for step in range(self.objective.training_steps):
            phi.append(self.step(phi[-1], self.rollouts[step], step, order))
        return phi

    def unroll(self, order: int) -> Parameters:
        return self.path(order)[-1]

    @torch.enable_grad()
    def step(self, phi: Parameters, rollouts: Rollouts, step: int, order: int, rate: float | None = None) -> Parameters:
        """Inner step ``step`` from ``phi``, at which ``rollouts`` were sampled."""
        objective = self.objective
        order = 1 if objective.estimator == "first_order" else order
        penalised = bool(objective.kl_penalty) or self.credit is not None
        operator = objective.fused(rollouts)
        if operator is None or penalised:
            outputs, log_probs = self._evaluate(phi, rollouts)

        def slope(where: Parameters) -> Parameters:
            if operator is not None:
                with torch.set_grad_enabled(order == 2):
                    return operator(where, self.constants, rollouts)
            gradients = torch.autograd.grad(
                objective.inner_loss(log_probs, rollouts).sum(),
                list(where.values()),
                create_graph=order == 2,
                retain_graph=order == 2 or penalised,
                materialize_grads=True,
            )
            return dict(zip(where, gradients, strict=True))

        rates = None if rate is None else dict.fromkeys(phi, rate)
        following, _ = self.inner.step(phi, slope, self.inner.no_state, step, {}, order, rates)
        if objective.kl_penalty:  # the mean over the inner steps, as in the authors' code
            share = objective.kl_penalty / max(objective.training_steps, 1)  # a control adapts at test alone
            self.penalties.append(share * self._divergence(outputs, rollouts))
        if self.credit is not None:
            sums = (log_probs * rollouts.mask).sum((1, 2)) / rollouts.rewards.shape[2]
            self.penalties.append(-objective.exploration * (sums * self.credit).mean())
        return following

    def support(self, phi: Parameters) -> Tensor:
        return self.objective.inner_loss(self._evaluate(phi, self.rollouts[0])[1], self.rollouts[0])

    def mean(self, values: Tensor) -> Tensor:
        return values.mean()

    def elsewhere(self, theta: Mapping[str, Tensor]) -> RolloutLoop:
        raise NotImplementedError("Expected a rule that stays at the meta-parameters: others have no rollouts yet.")

    def query(self, phi: Parameters) -> Query:
        return self.query_after(phi, self.objective.training_steps)

    def query_after(self, phi: Parameters, steps: int) -> Query:
        rollouts = self.rollouts[steps]
        outputs, log_probs = self._evaluate(phi, rollouts)
        losses = self.objective.outer.loss(log_probs, rollouts.log_probs, rollouts.advantages, rollouts.mask)
        self.kl = self._divergence(outputs if isinstance(self.objective.outer, TRPO) else outputs.detach(), rollouts)
        return Query(losses.mean(), losses.detach(), outputs.detach())

    def _evaluate(self, phi: Parameters, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """The outputs ``[T, N, H, P]`` of the policies, and the log-probabilities of what was done ``[T, N, H]``."""
        policy, eager = self.objective.policy, self.objective.engine_name == "eager"
        outputs = policy.outputs(phi, self.constants, rollouts.observations, eager)
        return outputs, policy.log_probs(outputs, rollouts.actions)

    def _divergence(self, outputs: Tensor, rollouts: Rollouts) -> Tensor:
        """The mean over the tasks of each one's mean over its time steps: the same in chunks, and in processes."""
        kl = self.objective.policy.kl(rollouts.outputs, outputs) * rollouts.mask
        return (kl.sum((1, 2)) / rollouts.mask.sum((1, 2))).mean()
