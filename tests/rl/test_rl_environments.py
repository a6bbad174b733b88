"""2D navigation by the original code's rules, and how trajectories are collected."""

from __future__ import annotations

import pytest
import torch

from lightning_maml.rl import CategoricalPolicy, Collector, EnvironmentTasks, GaussianPolicy, Navigation2D


def test_navigation_by_hand() -> None:
    environment = Navigation2D()
    goals = torch.tensor([[0.3, 0.4], [-0.1, 0.0]])
    state, seen = environment.reset(goals, trajectories=3)
    assert torch.equal(seen, torch.zeros(2, 3, 2))
    actions = torch.tensor([[[1.0, 1.0], [7.0, -7.0], [0.5, 0.0]], [[-1.0, 0.0], [-0.95, 0.05], [-0.85, 0.0]]])
    state, seen, rewards, done = environment.step(goals, state, actions)
    places = [[[0.1, 0.1], [0.1, -0.1], [0.05, 0.0]], [[-0.1, 0.0], [-0.095, 0.005], [-0.085, 0.0]]]
    torch.testing.assert_close(seen, torch.tensor(places))
    expected = [[-(0.13**0.5), -(0.29**0.5), -(0.2225**0.5)], [0.0, -(0.00005**0.5), -0.015]]
    torch.testing.assert_close(rewards, torch.tensor(expected))
    assert done.tolist() == [[False] * 3, [True, True, False]]
    _, seen, _, _ = environment.step(goals, state, torch.full((2, 3, 2), 0.5))
    torch.testing.assert_close(seen, torch.tensor(places) + 0.05)


def test_goals_fill_their_square() -> None:
    goals = Navigation2D().sample_tasks(5000, torch.Generator().manual_seed(0))
    assert goals.shape == (5000, 2)
    assert goals.abs().max() <= 0.5
    torch.testing.assert_close(goals.mean(0), torch.zeros(2), rtol=0, atol=0.02)
    torch.testing.assert_close(goals.var(0), torch.full((2,), 1 / 12), rtol=0.05, atol=0)


def _walking(actions: list[list[float]]) -> tuple[GaussianPolicy, dict[str, torch.Tensor]]:
    """A policy that always goes the same way, another one in each task, and hardly trembles."""
    policy = GaussianPolicy(2, 2, hidden=[], init_std=1e-6)
    zeros = torch.zeros(len(actions), 2, 2)
    log_std = policy.deviation.log_std.detach().expand(len(actions), 2)
    return policy, {"head.weight": zeros, "head.bias": torch.tensor(actions), "deviation.log_std": log_std}


def test_each_task_has_its_own_policy_and_ends_when_it_is_there() -> None:
    policy, phi = _walking([[1.0, 0.0], [0.0, -1.0]])
    goals = torch.tensor([[0.2, 0.0], [0.0, 0.3]])
    rollouts = Collector(Navigation2D(horizon=4), policy, goals, trajectories=3)(phi, 0)
    assert rollouts.mask[0].tolist() == [[1, 1, 0, 0]] * 3
    assert rollouts.mask[1].tolist() == [[1, 1, 1, 1]] * 3
    torch.testing.assert_close(rollouts.returns[0], torch.full((3,), -0.1), rtol=0, atol=1e-5)
    torch.testing.assert_close(rollouts.returns[1], torch.full((3,), -0.4 - 0.5 - 0.6 - 0.7), rtol=0, atol=1e-5)
    assert (rollouts.rewards[0, :, 2:] == 0).all()
    torch.testing.assert_close(rollouts.observations[1, 0, :, 1], torch.tensor([0.0, -0.1, -0.2, -0.3]))


def test_log_probabilities_are_those_at_sampling() -> None:
    policy = GaussianPolicy(2, 2, hidden=[5])
    phi = {name: p.detach() + torch.randn(3, *p.shape) / 3 for name, p in policy.named_parameters()}
    goals = Navigation2D().sample_tasks(3, torch.Generator())
    rollouts = Collector(Navigation2D(horizon=6), policy, goals, trajectories=2)(phi, 0)
    again = policy.outputs(phi, {}, rollouts.observations)
    torch.testing.assert_close(rollouts.log_probs, policy.log_probs(again, rollouts.actions))
    torch.testing.assert_close(rollouts.outputs, again)
    assert not rollouts.log_probs.requires_grad


def test_a_policy_of_another_size_or_kind_is_refused() -> None:
    goals = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="Expected a policy of `observation_size` 2, for Navigation2D but got 3"):
        Collector(Navigation2D(), GaussianPolicy(3, 2), goals, 1)
    with pytest.raises(ValueError, match="actions are vectors, as of GaussianPolicy, for .* but got CategoricalPolicy"):
        Collector(Navigation2D(), CategoricalPolicy(2, 2), goals, 1)


@pytest.mark.parametrize("name, value", [("horizon", 0), ("horizon", 2.5), ("spread", 0.0)])
def test_a_bad_environment_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be"):
        Navigation2D(**{name: value})


def test_stream_of_tasks_is_a_function_of_its_seed() -> None:
    tasks, again, other = (EnvironmentTasks(Navigation2D(), 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(tasks.sample("train", 3), again.sample("train", 3))
    assert not torch.equal(tasks.sample("train", 3), other.sample("train", 3))
    assert not torch.equal(tasks.sample("train", 3), tasks.sample("train", 4))
    shares = [tasks.sample("train", 3, rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(torch.cat(shares), tasks.sample("train", 3))
