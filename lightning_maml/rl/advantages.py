"""How much better an action was than what was expected of its time step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maml.rl.environments import Rollouts


@dataclass(frozen=True)
class Advantages:
    """Turns rewards into advantages: a baseline fitted to each task's rollouts, then generalised advantages.

    Args:
        discount: gamma, of rewards one step later.
        gae_lambda: 1 for returns minus the baseline, without bias; less for less variance, with the baseline's bias.
        baseline: subtract :func:`linear_feature_baseline`; without it the values are 0.
        normalize: to mean 0 and deviation 1 over the time steps of each task that happened.

    ValueError where an argument is out of range.
    """

    discount: float = 0.99
    gae_lambda: float = 1.0
    baseline: bool = True
    normalize: bool = True

    def __post_init__(self) -> None:
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected `{name}` to lie in [0, 1] but got {getattr(self, name)!r}.")

    def __call__(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with their advantages ``[T, N, H]``."""
        values, mask = torch.zeros_like(rollouts.rewards), rollouts.mask
        if self.baseline:
            values = linear_feature_baseline(rollouts, discounted_returns(rollouts.rewards, self.discount))
        advantages = gae(rollouts.rewards, values, mask, self.discount, self.gae_lambda)
        if self.normalize:
            count = mask.sum((1, 2), keepdim=True)
            centred = (advantages - (advantages * mask).sum((1, 2), keepdim=True) / count) * mask
            advantages = centred / ((centred.square().sum((1, 2), keepdim=True) / count).sqrt() + 1e-8)
        return rollouts.with_advantages(advantages)


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    r"""What follows each time step, ``[T, N, H] -> [T, N, H]``: :math:`R_t = \sum_{k \ge 0} \gamma^k r_{t+k}`.

    Example:
        >>> discounted_returns(torch.tensor([[[1.0, 2.0, 4.0]]]), 0.5)
        tensor([[[3., 4., 4.]]])
    """
    total, returns = torch.zeros_like(rewards[..., 0]), []
    for reward in reversed(rewards.unbind(-1)):
        total = reward + discount * total
        returns.append(total)
    return torch.stack(returns[::-1], -1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, gae_lambda: float) -> Tensor:
    r"""Generalised advantages, all ``[T, N, H]``; after the last time step nothing more is expected.
    Schulman, Moritz, Levine, Jordan, Abbeel, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", ICLR 2016.

    .. math:: A_t = \sum_{k \ge 0} (\gamma \lambda)^k \delta_{t+k}, \quad \delta_t = r_t + \gamma V_{t+1} - V_t
    """
    values = values * mask
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    return discounted_returns((rewards + discount * following - values) * mask, discount * gae_lambda)


def linear_feature_baseline(rollouts: Rollouts, returns: Tensor) -> Tensor:
    """The values ``[T, N, H]`` of a least-squares fit to ``returns [T, N, H]``, one fit for each task.
    Duan, Chen, Houthooft, Schulman, Abbeel, "Benchmarking Deep Reinforcement Learning for Continuous
    Control", ICML 2016.

    Features are the observation, clipped to 10 as in rllab, its square, the time ``t = step / 100``, its square and
    cube, and 1, with a ridge of 1e-5, solved in float64.
    """
    tasks, trajectories, horizon = returns.shape
    seen = rollouts.observations.double().clamp(-10, 10)
    time = (torch.arange(horizon).to(seen) / 100).unsqueeze(1).expand(tasks, trajectories, -1, -1)
    features = torch.cat([seen, seen.square(), time, time.square(), time**3, torch.ones_like(time)], -1)
    features = (features * rollouts.mask.unsqueeze(-1)).flatten(1, 2)  # [T, N H, F]
    ridge = 1e-5 * torch.eye(features.shape[-1]).to(seen)
    targets = (returns.double() * rollouts.mask).flatten(1).unsqueeze(-1)
    # not `solve`, which waits for the device to say whether a matrix was singular: with the ridge none is
    weights, _ = torch.linalg.solve_ex(features.mT @ features + ridge, features.mT @ targets)
    return (features @ weights).view(returns.shape).to(returns)
