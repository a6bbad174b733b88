"""Environments of many tasks at once: what they promise, and what a policy does when it is run in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_maml.inner import Parameters
from lightning_maml.rl.policies import Policy


class Environment(ABC):
    """A family of tasks that differ by a few numbers, such as a goal; all tasks and trajectories step at once.

    It lives on the device of ``tasks``. A state is whatever :meth:`step` needs; it is handed back as it was given.
    """

    observation_size: int
    """O, the numbers of an observation."""
    action_size: int
    """A, the numbers of an action; or how many actions there are, where ``discrete``."""
    discrete: bool
    """Whether actions are numbers from 0, ``[T, N]``, instead of vectors ``[T, N, A]``."""
    horizon: int
    """H, the most time steps of a trajectory."""

    @abstractmethod
    def sample_tasks(self, tasks: int, generator: torch.Generator) -> Tensor:
        """What tells the tasks apart, ``[tasks, G]``, drawn on the CPU."""

    @abstractmethod
    def reset(self, tasks: Tensor, trajectories: int) -> tuple[Any, Tensor]:
        """State and observations ``[T, N, O]`` at the start of ``N`` trajectories of each of ``tasks [T, G]``."""

    @abstractmethod
    def step(self, tasks: Tensor, state: Any, actions: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        """The next state, observations ``[T, N, O]``, rewards ``[T, N]`` and which trajectories are done ``[T, N]``.

        What it returns for trajectories that were done before is not looked at.
        """


@dataclass(frozen=True, eq=False)
class Rollouts:
    """``N`` trajectories of up to ``H`` time steps in each of ``T`` tasks, and what the policy held of them then.

    A trajectory that ends early is padded: ``mask`` is 0 there, and so are rewards and advantages. ValueError where the
    tensors do not fit each other.
    """

    observations: Tensor
    """``[T, N, H, O]``, what the policy saw before each action."""
    actions: Tensor
    """``[T, N, H, A]``, or ``[T, N, H]`` where actions are numbers from 0."""
    outputs: Tensor
    """``[T, N, H, P]``, the policy's outputs at sampling: what its distribution over actions is made of."""
    log_probs: Tensor
    """``[T, N, H]``, of the actions, at sampling."""
    rewards: Tensor
    """``[T, N, H]``."""
    mask: Tensor
    """``[T, N, H]``, 1 for time steps that happened and 0 for padding."""
    advantages: Tensor
    """``[T, N, H]``, see :class:`~lightning_maml.rl.Advantages`."""

    def __post_init__(self) -> None:
        shape = list(self.rewards.shape)
        for field in fields(self):
            if (got := list(getattr(self, field.name).shape))[:3] != shape or len(shape) != 3:
                raise ValueError(
                    f"Expected `{field.name}` to begin with [tasks, trajectories, steps], as of rewards {shape}, "
                    f"but got {got}."
                )

    def __len__(self) -> int:
        return len(self.rewards)

    def __getitem__(self, tasks: slice) -> Rollouts:
        return Rollouts(*(getattr(self, field.name)[tasks] for field in fields(self)))

    @property
    def returns(self) -> Tensor:
        """The undiscounted return of each trajectory, ``[T, N]``."""
        return self.rewards.sum(2)

    def with_advantages(self, advantages: Tensor) -> Rollouts:
        """The same rollouts with these advantages ``[T, N, H]``."""
        return replace(self, advantages=advantages)


Collect = Callable[[Parameters, int], Rollouts]
"""Where an inner loop's data come from: new rollouts of the tasks under the parameters ``{name: [T, *shape]}`` that it
has reached, and after how many inner steps, in place of fixed tensors."""


@dataclass(frozen=True, eq=False)
class Collector:
    """A :data:`Collect` that runs a policy in an environment; ValueError where these do not fit each other.

    Args:
        environment: where.
        policy: whose architecture acts.
        tasks: what tells the tasks apart, ``[T, G]``.
        trajectories: ``N``, of each task and inner step.
        constants: the policy's parameters and buffers that do not adapt, ``{name: [*shape]}``.
    """

    environment: Environment
    policy: Policy
    tasks: Tensor
    trajectories: int
    constants: Parameters | None = None

    def __post_init__(self) -> None:
        check_fit(self.environment, self.policy)

    @torch.no_grad()
    def __call__(self, parameters: Parameters, step: int) -> Rollouts:
        """See :data:`Collect`; advantages are zeros."""
        environment, policy, steps = self.environment, self.policy, []
        state, seen = environment.reset(self.tasks, self.trajectories)
        running = torch.ones_like(seen[..., 0])
        for _ in range(environment.horizon):
            output = policy.outputs(parameters, self.constants or {}, seen)
            action, before = policy.sample(output), seen
            state, seen, reward, done = environment.step(self.tasks, state, action)
            steps.append((before, action, output, reward * running, running))
            running = running * ~done
        observations, actions, outputs, rewards, mask = (torch.stack(parts, 2) for parts in zip(*steps, strict=True))
        log_probs = policy.log_probs(outputs, actions)
        return Rollouts(observations, actions, outputs, log_probs, rewards, mask, torch.zeros_like(mask))


def check_fit(environment: Environment, policy: Policy) -> None:
    """Raise ValueError where a policy's observations or actions are not those of the environment."""
    where = type(environment).__name__
    if policy.discrete != environment.discrete:
        words = {True: "numbers (discrete), as of CategoricalPolicy", False: "vectors, as of GaussianPolicy"}
        wanted, got = words[environment.discrete], type(policy).__name__
        raise ValueError(f"Expected a policy whose actions are {wanted}, for {where} but got {got}.")
    for name in ("observation_size", "action_size"):
        if (got := getattr(policy, name)) != (wanted := getattr(environment, name)):
            raise ValueError(f"Expected a policy of `{name}` {wanted}, for {where} but got {got}.")
