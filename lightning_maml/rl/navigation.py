"""A point that is to find a place it cannot see."""

import torch
from torch import Tensor

from lightning_maml.checks import check_positive, check_whole
from lightning_maml.rl.environments import Environment


class Navigation2D(Environment):
    """2D navigation: a point starts at (0, 0) and moves to a goal of its task, by rewards alone.
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017, 5.3.

    Observations are its place (x, y), and never the goal; actions are clipped to [-1, 1] and scaled to [-0.1, 0.1];
    the reward is minus the distance to the goal, after the move; a trajectory ends within 0.01 of it in both
    coordinates, or after ``horizon`` steps. Goals are uniform in the square [-spread, spread]². ValueError where an
    argument is out of range.

    This is what the original code does: the paper's text says squared distance, its stored trajectories say distance.

    Args:
        horizon: H.
        spread: half the side of the goals' square.

    Example:
        >>> environment = Navigation2D()
        >>> goals = torch.tensor([[0.0, 0.1]])
        >>> state, _ = environment.reset(goals, trajectories=1)
        >>> environment.step(goals, state, torch.tensor([[[5.0, 0.0]]]))[2]  # 5 is clipped to 1, a move of 0.1
        tensor([[-0.1414]])
    """

    observation_size = 2
    action_size = 2
    discrete = False

    def __init__(self, horizon: int = 100, spread: float = 0.5) -> None:
        check_whole(1, horizon=horizon)
        check_positive(spread=spread)
        self.horizon, self.spread = horizon, spread

    def sample_tasks(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Goals, ``[tasks, 2]``."""
        return self.spread * (2 * torch.rand(tasks, 2, generator=generator) - 1)

    def reset(self, tasks: Tensor, trajectories: int) -> tuple[Tensor, Tensor]:
        """Every trajectory at (0, 0); state and observation are the place, ``[T, N, 2]``."""
        place = tasks.new_zeros(len(tasks), trajectories, 2)
        return place, place

    def step(self, tasks: Tensor, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place = state + 0.1 * actions.clamp(-1, 1)
        offset = place - tasks.unsqueeze(1)
        return place, place, -offset.norm(dim=-1), (offset.abs() < 0.01).all(-1)
