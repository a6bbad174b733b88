"""Gymnasium's environments as tasks: one of them for each trajectory, stepped one after another on the CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maml.rl.environments import Environment


class GymnasiumTasks(Environment):
    """Tasks of a registered gymnasium environment whose attribute ``goal`` tells them apart.

    The environment also has ``sample_goals(uniform [T, G]) -> [T, G]``, which makes goals of numbers uniform in [0, 1),
    and ``goal_size``, G. Those of :mod:`lightning_maml.rl.mujoco` are registered here. A ``SyncVectorEnv`` of ``T * N``
    copies is kept from one call to the next; actions are clipped to the action space. A trajectory ends where the
    environment terminates it, or its time limit does.

    It needs the extra ``rl``.

    Args:
        name: of the environment, as ``"lightning_maml/HalfCheetahGoalVel-v0"``.
        horizon: H, the most time steps; None for the environment's own limit.

    ImportError where gymnasium or what the environment needs is not installed, ValueError where the environment has no
    goals, or no limit, or spaces of another kind.
    """

    def __init__(self, name: str, horizon: int | None = None) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError(
                "Expected gymnasium to be installed for GymnasiumTasks: pip install 'lightning-maml[rl]'."
            ) from error
        if name.startswith("lightning_maml/"):
            import lightning_maml.rl.mujoco  # noqa: F401  # registers them
        self.name = name
        self._make = lambda: gymnasium.make(name, max_episode_steps=horizon)
        self._vector: Any = None
        one: Any = self._make()
        self._one: Any = one.unwrapped
        if not hasattr(self._one, "goal") or not hasattr(self._one, "sample_goals"):
            got = type(self._one).__name__
            raise ValueError(f"Expected {name} to have `goal`, `goal_size` and `sample_goals` but got {got} without.")
        self.horizon = one.spec.max_episode_steps
        if self.horizon is None:
            raise ValueError(f"Expected a time limit for {name} but it has none: give a `horizon`.")
        seen, actions = one.observation_space, one.action_space
        self.discrete = isinstance(actions, gymnasium.spaces.Discrete)
        vectors = [isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 for space in (seen, actions)]
        if not vectors[0] or not (self.discrete or vectors[1]):
            wanted = "observations that are vectors, and actions that are vectors or numbers,"
            raise ValueError(f"Expected {name} to have {wanted} but got {seen} and {actions}.")
        self.observation_size = seen.shape[0]
        self.action_size = int(actions.n) if self.discrete else actions.shape[0]
        self._actions = actions

    def sample_tasks(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Goals, ``[tasks, G]``."""
        uniform = torch.rand(tasks, self._one.goal_size, generator=generator)
        return torch.as_tensor(np.asarray(self._one.sample_goals(uniform.numpy())), dtype=torch.float32)

    def reset(self, tasks: Tensor, trajectories: int) -> tuple[None, Tensor]:
        """See :class:`~lightning_maml.rl.Environment`; seeded by torch's generator."""
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        count = len(tasks) * trajectories
        if self._vector is None or self._vector.num_envs != count:
            if self._vector is not None:
                self._vector.close()
            self._vector = SyncVectorEnv([self._make] * count, autoreset_mode=AutoresetMode.DISABLED)
        self._vector.set_attr("goal", list(tasks.cpu().double().numpy().repeat(trajectories, 0)))
        seen, _ = self._vector.reset(seed=int(torch.randint(2**31 - count, ())))
        return None, self._tensor(seen, tasks, trajectories)

    def step(self, tasks: Tensor, state: None, actions: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        flat = actions.flatten(0, 1).cpu().numpy()
        if not self.discrete:
            flat = np.clip(flat, self._actions.low, self._actions.high).astype(self._actions.dtype)
        seen, rewards, terminated, truncated, _ = self._vector.step(flat)
        done = terminated | truncated
        if done.any():  # nobody looks at these from here on, but they refuse to be stepped without a reset
            seen, _ = self._vector.reset(options={"reset_mask": done})
        seen, rewards, done = (self._tensor(part, tasks, actions.shape[1]) for part in (seen, rewards, done))
        return None, seen, rewards, done.bool()

    @staticmethod
    def _tensor(values: Any, like: Tensor, trajectories: int) -> Tensor:
        tensor = torch.as_tensor(np.asarray(values)).to(like)
        return tensor.view(len(like), trajectories, *tensor.shape[1:]).clone()  # gymnasium writes into its own again

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("GymnasiumTasks holds running simulators, which cannot be copied: build another one.")
