"""Gymnasium's environments as tasks, and the locomotion tasks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lightning_maml.cli.command_line import main
from lightning_maml.rl import CategoricalPolicy, Collector, EnvironmentTasks, GaussianPolicy, GymnasiumTasks


class Line(gymnasium.Env):  # type: ignore[misc]
    """A point on a line: the reward is minus its distance to the goal; it ends beyond 1."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-0.5, 0.5, (1,), np.float32)
    goal_size = 1

    def __init__(self) -> None:
        self.goal = np.zeros(1)

    @staticmethod
    def sample_goals(uniform: Any) -> Any:
        return 2 * uniform - 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 0.0
        return np.array([self.place]), {}

    def step(self, action: Any) -> Any:
        assert abs(action[0]) <= 0.5
        self.place += float(action[0])
        return np.array([self.place]), -abs(self.place - self.goal[0]), abs(self.place) > 1, False, {}


class Switch(Line):
    """The same with two actions, to the left and to the right."""

    action_space = gymnasium.spaces.Discrete(2)

    def step(self, action: Any) -> Any:
        return super().step([action - 0.5])


gymnasium.register("tests/Line-v0", entry_point=Line, max_episode_steps=5)
gymnasium.register("tests/Switch-v0", entry_point=Switch, max_episode_steps=3)
gymnasium.register("tests/Endless-v0", entry_point=Line)


def test_each_trajectory_has_the_goal_of_its_task_and_ends_where_it_ends() -> None:
    environment = GymnasiumTasks("tests/Line-v0")
    assert (environment.observation_size, environment.action_size, environment.horizon) == (1, 1, 5)
    policy = GaussianPolicy(1, 1, hidden=[], init_std=1e-6)
    phi = {
        "head.weight": torch.zeros(2, 1, 1),
        "head.bias": torch.tensor([[0.1], [9.0]]),  # the second is clipped to 0.5
        "deviation.log_std": policy.deviation.log_std.detach().expand(2, 1),
    }
    goals = torch.tensor([[0.25], [-1.0]])
    collect = Collector(environment, policy, goals, trajectories=3)
    for _ in range(2):  # the second time with environments that have run before
        rollouts = collect(phi, 0)
        expected = torch.tensor([[-0.15, -0.05, -0.05, -0.15, -0.25], [-1.5, -2.0, -2.5, 0.0, 0.0]])
        torch.testing.assert_close(rollouts.rewards, expected.unsqueeze(1).expand(2, 3, 5), rtol=0, atol=1e-4)
        assert rollouts.mask[1, 0].tolist() == [1, 1, 1, 0, 0]
        seen = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
        torch.testing.assert_close(rollouts.observations[0, 2, :, 0], seen, rtol=0, atol=1e-4)


def test_discrete_actions() -> None:
    environment = GymnasiumTasks("tests/Switch-v0")
    assert (environment.discrete, environment.action_size) == (True, 2)
    policy = CategoricalPolicy(1, 2, hidden=[4])
    phi = {name: value.detach().expand(2, *value.shape) for name, value in policy.named_parameters()}
    rollouts = Collector(environment, policy, torch.zeros(2, 1), trajectories=4)(phi, 0)
    assert set(rollouts.actions.unique().tolist()) == {0, 1}
    moves = rollouts.actions[..., :-1] - 0.5
    torch.testing.assert_close(rollouts.observations[..., 1:, 0], moves.cumsum(-1))


def test_goals_come_from_the_stream() -> None:
    tasks = EnvironmentTasks(GymnasiumTasks("tests/Line-v0"), 5)
    goals = tasks.sample("train", 0)
    assert goals.shape == (5, 1)
    assert goals.abs().max() <= 1
    assert torch.equal(goals, tasks.sample("train", 0))


def test_a_shorter_horizon() -> None:
    assert GymnasiumTasks("tests/Line-v0", horizon=2).horizon == 2


def test_what_cannot_be_a_family_of_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected CartPole-v1 to have `goal`, `goal_size` and `sample_goals`"):
        GymnasiumTasks("CartPole-v1")
    with pytest.raises(ValueError, match="Expected a time limit for tests/Endless-v0"):
        GymnasiumTasks("tests/Endless-v0")
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(GymnasiumTasks("tests/Line-v0"))


# Locomotion


@pytest.mark.filterwarnings("ignore")  # gymnasium's and MuJoCo's own, of their versions
@pytest.mark.parametrize("name", ["HalfCheetahGoalVel", "HalfCheetahGoalDir", "AntGoalVel", "AntGoalDir"])
def test_locomotion_rewards_what_the_goal_asks_for(name: str) -> None:
    tasks = GymnasiumTasks(f"lightning_maml/{name}-v0", horizon=3)
    environment = gymnasium.make(f"lightning_maml/{name}-v0")
    goals = tasks.sample_tasks(200, torch.Generator().manual_seed(0))
    fastest = 2.0 if "Cheetah" in name else 3.0
    assert set(goals.unique().tolist()) == {-1.0, 1.0} if "Dir" in name else 0 <= goals.min() < goals.max() <= fastest
    for goal in (-1.0, 1.0):
        environment.reset(seed=0)
        environment.unwrapped.goal = np.array([goal])
        _, reward, _, _, info = environment.step(np.full(tasks.action_size, 0.3, np.float32))
        velocity = info["x_velocity"]
        others = sum(value for key, value in info.items() if key.startswith("reward_") and key != "reward_forward")
        expected = velocity * goal if "Dir" in name else -abs(velocity - goal)
        assert reward - others == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_half_cheetah_runs_nearer_to_its_velocity_after_adaptation(repository: Path, tmp_path: Path) -> None:
    def returns(name: str, *options: str) -> list[float]:
        run = ["--config", str(repository / "configs/rl_half_cheetah.yaml"), "--trainer.max_epochs", "12", *options]
        run += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.enable_progress_bar", "false"]
        run += ["--trainer.logger.save_dir", str(tmp_path), "--trainer.logger.name", name]
        assert main(["fit", *run]) == 0
        assert main(["test", *run, "--ckpt_path", "last"]) == 0
        return list(json.loads((tmp_path / name / "version_1/metrics.json").read_text())["return"]["mean"])

    adapted, control = returns("maml"), returns("control", "--model.algorithm", "lightning_maml.pretrained")
    print(f"HalfCheetahGoalVel, returns after 0 to 3 steps: maml {adapted}, control {control}")
    assert adapted[1] > adapted[0] + 2
    assert adapted[1] - adapted[0] > control[1] - control[0] + 1
    assert adapted[1] > max(control)
