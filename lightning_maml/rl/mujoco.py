"""HalfCheetah and Ant with a goal: the locomotion tasks of Finn et al. (2017, section 5.3) on gymnasium's simulator.

Importing this registers ``lightning_maml/HalfCheetahGoalVel-v0``, ``HalfCheetahGoalDir-v0``, ``AntGoalVel-v0`` and
``AntGoalDir-v0``. Rewards follow the original's, but simulator, bodies, observations and time step are gymnasium's
(MuJoCo, version 5 of the environments), so that returns cannot be compared with published ones.
"""

import warnings
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv


def _warn(message: str) -> None:
    if "'settotalmass' is deprecated" not in message:  # said of gymnasium's own model of the cheetah, for every copy
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


if mujoco.get_mju_user_warning() is None:  # by itself MuJoCo prints, and writes a file where the process runs
    mujoco.set_mju_user_warning(_warn)


class _Goal:
    """What stands before gymnasium's environment among the bases."""

    fastest: float | None = None
    """The goal is a velocity forwards, uniform in [0, fastest], and the reward falls with the distance from it. None:
    it is a direction, 1 for forwards and -1 for backwards, and the reward is the velocity that way."""
    goal_size = 1

    def __init__(self, **options: Any) -> None:
        self.goal = np.ones(1)
        super().__init__(**{"ctrl_cost_weight": 0.05, **options})

    @classmethod
    def sample_goals(cls, uniform: Any) -> Any:
        """Of numbers uniform in [0, 1), ``[T, 1]``."""
        return np.where(uniform < 0.5, -1.0, 1.0) if cls.fastest is None else cls.fastest * uniform

    def _get_rew(self, x_velocity: float, action: Any) -> Any:
        goal = float(self.goal[0])
        forward = x_velocity * goal if self.fastest is None else -abs(x_velocity - goal)
        return super()._get_rew(forward, action)  # type: ignore[misc]  # of the environment, whose term it stands for


class HalfCheetahGoalVel(_Goal, HalfCheetahEnv):
    """HalfCheetah that is to run at a velocity in [0, 2], without ever falling."""

    fastest = 2.0


class HalfCheetahGoalDir(_Goal, HalfCheetahEnv):
    """HalfCheetah that is to run forwards or backwards."""


class AntGoalVel(_Goal, AntEnv):
    """Ant that is to walk at a velocity in [0, 3]; a step upright is worth 1, and falling ends the trajectory."""

    fastest = 3.0


class AntGoalDir(_Goal, AntEnv):
    """Ant that is to walk forwards or backwards; a step upright is worth 1, and falling ends the trajectory."""


for _environment in (HalfCheetahGoalVel, HalfCheetahGoalDir, AntGoalVel, AntGoalDir):
    gymnasium.register(
        f"lightning_maml/{_environment.__name__}-v0",
        entry_point=f"lightning_maml.rl.mujoco:{_environment.__name__}",
        max_episode_steps=200,
    )
