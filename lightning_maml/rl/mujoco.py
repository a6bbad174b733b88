"""HalfCheetah and Ant with a goal: the locomotion tasks of Finn et al. (2017, section 5.3) on gymnasium's simulator.

Importing this registers ``lightning_maml/HalfCheetahGoalVel-v0``, ``HalfCheetahGoalDir-v0``, ``AntGoalVel-v0`` and
``AntGoalDir-v0``. Rewards follow the original's, but simulator, bodies, observations and time step are gymnasium's
(MuJoCo, version 5 of the environments), so that returns cannot be compared with published ones.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

QUIET = "'settotalmass' is deprecated"  # said of gymnasium's own model of the cheetah, for every copy of it


def _warn(message: str) -> None:
    if QUIET not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


if mujoco.get_mju_user_warning() is None:  # by itself MuJoCo prints, and writes a file where the process runs
    mujoco.set_mju_user_warning(_warn)

HORIZON = 200
CONTROL = 0.05  # the weight of the squared actions


class Goal:
    """What both kinds of goal have in common, before the environment among the bases."""

    goal_size = 1

    def __init__(self, **options: Any) -> None:
        self.goal = np.ones(1)
        super().__init__(**{"ctrl_cost_weight": CONTROL, **options})


class Velocity(Goal):
    """The goal is a velocity forwards, uniform in [0, :attr:`fastest`]; the reward falls with the distance from it."""

    fastest: float

    @classmethod
    def sample_goals(cls, uniform: Any) -> Any:
        """Of numbers uniform in [0, 1), ``[T, 1]``."""
        return cls.fastest * uniform

    @staticmethod
    def forward(velocity: float, goal: float) -> float:
        """What the velocity is worth."""
        return -abs(velocity - goal)


class Direction(Goal):
    """The goal is a direction, 1 for forwards and -1 for backwards; the reward is the velocity that way."""

    @staticmethod
    def sample_goals(uniform: Any) -> Any:
        """Of numbers uniform in [0, 1), ``[T, 1]``."""
        return np.where(uniform < 0.5, -1.0, 1.0)

    @staticmethod
    def forward(velocity: float, goal: float) -> float:
        """What the velocity is worth."""
        return velocity * goal


class _HalfCheetah(HalfCheetahEnv):
    forward: Any
    goal: Any

    def _get_rew(self, x_velocity: float, action: Any) -> Any:
        forward, control = self.forward(x_velocity, float(self.goal[0])), self.control_cost(action)
        return forward - control, {"reward_forward": forward, "reward_ctrl": -control}


class _Ant(AntEnv):
    forward: Any
    goal: Any

    def _get_rew(self, x_velocity: float, action: Any) -> Any:
        forward = self.forward(x_velocity, float(self.goal[0]))
        costs, alive = self.control_cost(action) + self.contact_cost, self.healthy_reward
        return forward + alive - costs, {"reward_forward": forward, "reward_survive": alive, "reward_cost": -costs}


class HalfCheetahGoalVel(Velocity, _HalfCheetah):
    """HalfCheetah that is to run at a velocity in [0, 2], without ever falling."""

    fastest = 2.0


class HalfCheetahGoalDir(Direction, _HalfCheetah):
    """HalfCheetah that is to run forwards or backwards."""


class AntGoalVel(Velocity, _Ant):
    """Ant that is to walk at a velocity in [0, 3]; a step upright is worth 1, and falling ends the trajectory."""

    fastest = 3.0


class AntGoalDir(Direction, _Ant):
    """Ant that is to walk forwards or backwards; a step upright is worth 1, and falling ends the trajectory."""


for _environment in (HalfCheetahGoalVel, HalfCheetahGoalDir, AntGoalVel, AntGoalDir):
    gymnasium.register(
        f"lightning_maml/{_environment.__name__}-v0",
        entry_point=f"lightning_maml.rl.mujoco:{_environment.__name__}",
        max_episode_steps=HORIZON,
    )
