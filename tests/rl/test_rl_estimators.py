"""Inner estimators and advantages against exact enumeration of small random decision processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lightning_maml import fomaml, maml
from lightning_maml.rl import Advantages, CategoricalPolicy, MetaObjective, Rollouts
from lightning_maml.rl.advantages import discounted_returns, gae, linear_feature_baseline
from lightning_maml.rl.estimators import ESTIMATORS

STATES, ACTIONS = 3, 2


class Process:
    """A random decision process of 3 states, with all its trajectories and a softmax policy, linear in the state."""

    def __init__(self, horizon: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        start = (draw(STATES) + 0.1).softmax(0)
        moves = (2 * draw(STATES, ACTIONS, STATES)).softmax(-1)
        rewards = draw(horizon, STATES, ACTIONS) * 2 - 1
        self.horizon = horizon
        paths = list(itertools.product(*[range(STATES), range(ACTIONS)] * horizon))
        table = torch.tensor(paths)
        self.states, self.actions = table[:, 0::2], table[:, 1::2]  # [M, H], M trajectories
        self.dynamics = start[self.states[:, 0]]
        for t in range(horizon - 1):
            self.dynamics = self.dynamics * moves[self.states[:, t], self.actions[:, t], self.states[:, t + 1]]
        self.rewards = rewards[torch.arange(horizon), self.states, self.actions]
        self.policy = CategoricalPolicy(STATES, ACTIONS, hidden=[]).double()
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.copy_(draw(*parameter.shape) * 2 - 1)
        self.value = draw(horizon, STATES)  # any function of time and state may be a baseline
        self.theta = torch.cat([parameter.detach().flatten() for parameter in self.policy.parameters()])

    def log_probs(self, theta: Tensor) -> Tensor:
        """Of the actions of all trajectories, ``[M, H]``."""
        parameters, start = {}, 0
        for name, parameter in self.policy.named_parameters():
            parameters[name] = theta[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        observations = torch.eye(STATES, dtype=torch.float64)[self.states]
        return self.policy.log_probs(functional_call(self.policy, parameters, (observations,)), self.actions)

    def expected_return(self, theta: Tensor) -> Tensor:
        return (self.dynamics * self.log_probs(theta).sum(1).exp() * self.rewards.sum(1)).sum()

    def expected_surrogate(self, theta: Tensor, estimator: Callable[..., Tensor], baseline: bool) -> Tensor:
        """The expectation of ``-H`` times an inner loss over trajectories sampled at ``self.theta``."""
        old = self.log_probs(self.theta)
        probabilities = self.dynamics * old.sum(1).exp()
        advantages = discounted_returns(self.rewards.unsqueeze(1), 1.0)  # each trajectory as a task of its own
        if baseline:
            advantages = advantages - self.value[torch.arange(self.horizon), self.states].unsqueeze(1)
        losses = estimator(
            self.log_probs(theta).unsqueeze(1), old.unsqueeze(1), advantages, torch.ones_like(advantages)
        )
        return -self.horizon * (probabilities * losses).sum()


def _derivatives(function: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.grad(function)(theta), torch.autograd.functional.hessian(function, theta)


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_probabilities_of_all_trajectories_add_up(horizon: int) -> None:
    process = Process(horizon, seed=0)
    total = (process.dynamics * process.log_probs(process.theta).sum(1).exp()).sum()
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_expected_gradient_is_exact(name: str, horizon: int, seed: int, baseline: bool) -> None:
    process = Process(horizon, seed)
    exact = torch.func.grad(process.expected_return)(process.theta)
    expected = torch.func.grad(lambda theta: process.expected_surrogate(theta, ESTIMATORS[name], baseline))
    torch.testing.assert_close(expected(process.theta), exact)


def _hessian_error(name: str, horizon: int, seed: int, baseline: bool) -> float:
    """Of the expected Hessian, relative to the exact one's norm."""
    process = Process(horizon, seed)
    _, exact = _derivatives(process.expected_return, process.theta)
    _, got = _derivatives(lambda theta: process.expected_surrogate(theta, ESTIMATORS[name], baseline), process.theta)
    return float((got - exact).norm() / exact.norm())


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_expected_hessian_is_what_is_documented(horizon: int, seed: int, baseline: bool) -> None:
    assert _hessian_error("loaded_dice", horizon, seed, baseline) < 1e-12
    lvc = _hessian_error("lvc", horizon, seed, baseline)
    assert lvc < 1e-12 if horizon == 1 else lvc > 0.01
    assert _hessian_error("maml", horizon, seed, baseline) > max(lvc, 0.1)


def test_expected_hessian_of_the_original_is_zero_once_the_baseline_is_right() -> None:
    process = Process(1, seed=0)
    probabilities = process.dynamics * process.log_probs(process.theta).sum(1).exp()
    for state in range(STATES):
        own = process.states[:, 0] == state
        process.value[0, state] = (probabilities * process.rewards[:, 0])[own].sum() / probabilities[own].sum()
    _, hessian = _derivatives(
        lambda theta: process.expected_surrogate(theta, ESTIMATORS["maml"], baseline=True), process.theta
    )
    torch.testing.assert_close(hessian, torch.zeros_like(hessian))


def _rollouts(process: Process) -> Rollouts:
    """Every trajectory of the process once: one task."""
    observations = torch.eye(STATES, dtype=torch.float64)[process.states].unsqueeze(0)
    outputs = process.policy(observations).detach()
    actions, rewards = process.actions.unsqueeze(0), process.rewards.unsqueeze(0)
    mask = torch.ones_like(rewards)
    advantages = torch.randn(rewards.shape, dtype=torch.float64)
    log_probs = process.policy.log_probs(outputs, actions)
    return Rollouts(observations, actions, outputs, log_probs, rewards, mask, advantages)


def test_first_order_is_the_rule_of_that_name() -> None:
    process = Process(2, seed=0)
    rollouts = [_rollouts(process), _rollouts(process)]
    first = MetaObjective(process.policy, maml(0.5, 1), "first_order")(rollouts).gradients
    rule = MetaObjective(process.policy, fomaml(0.5, 1), "maml")(rollouts).gradients
    second = MetaObjective(process.policy, maml(0.5, 1), "maml")(rollouts).gradients
    for one, other, unlike in zip(first, rule, second, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, unlike)


# Advantages


def test_discounted_returns_by_hand() -> None:
    rewards = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    expected = torch.tensor([[[1 + 0.9 * (2 + 0.9 * 3), 2 + 0.9 * 3, 3.0], [0.81, 0.9, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(discounted_returns(rewards, 0.9), expected)


def test_gae_is_the_sum_of_its_formula_and_stops_where_a_trajectory_ends() -> None:
    discount, factor = 0.9, 0.7
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.ones_like(rewards)
    mask[1, 2, 3:] = 0
    rewards = rewards * mask
    got = gae(rewards, values, mask, discount, factor)
    for t, n in itertools.product(range(2), range(3)):
        length = int(mask[t, n].sum())
        for i in range(5):
            expected = 0.0
            for k in range(i, length):
                following = float(values[t, n, k + 1]) if k + 1 < length else 0.0
                delta = float(rewards[t, n, k]) + discount * following - float(values[t, n, k])
                expected += (discount * factor) ** (k - i) * delta
            assert float(got[t, n, i]) == pytest.approx(expected)


def test_baseline_fits_what_is_linear_in_its_features_and_each_task_by_itself() -> None:
    observations = torch.randn(2, 7, 5, 3, dtype=torch.float64)
    zeros = torch.zeros(2, 7, 5, dtype=torch.float64)
    weights = torch.randn(2, 1, 1, 3, dtype=torch.float64)
    time = torch.arange(5, dtype=torch.float64)
    returns = (observations.square() * weights).sum(-1) + 3 - time / 100
    rollouts = Rollouts(observations, zeros, observations, zeros, zeros, torch.ones_like(zeros), zeros)
    torch.testing.assert_close(linear_feature_baseline(rollouts, returns), returns, rtol=1e-3, atol=1e-3)
    alone = linear_feature_baseline(rollouts[1:], returns[1:])
    torch.testing.assert_close(alone, linear_feature_baseline(rollouts, returns)[1:])


def test_advantages_are_normalised_over_the_steps_that_happened() -> None:
    process = Process(3, seed=0)
    rollouts = _rollouts(process)
    rollouts.mask[:, ::2, 2:] = 0
    rollouts.rewards[:, ::2, 2:] = 0
    advantages = Advantages()(rollouts).advantages
    happened = advantages[rollouts.mask.bool()]
    assert (advantages[~rollouts.mask.bool()] == 0).all()
    torch.testing.assert_close(happened.mean(), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(happened.std(correction=0), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("name, value", [("discount", 1.5), ("gae_lambda", -0.1)])
def test_bad_advantages_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to lie in"):
        Advantages(**{name: value})
