"""What a policy did in its tasks: trajectories of all tasks, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rollouts:
    """``N`` trajectories of up to ``H`` time steps in each of ``T`` tasks, and what the policy held of them then.

    A trajectory that ends early is padded: ``mask`` is 0 there, and so are rewards and advantages.

    Raises:
        ValueError: the tensors do not fit each other.
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
        shape = self.rewards.shape
        for field in fields(self):
            got: Tensor = getattr(self, field.name)
            if got.shape[:3] != shape or self.rewards.ndim != 3:
                raise ValueError(
                    f"Expected `{field.name}` to begin with [tasks, trajectories, steps], as of rewards {list(shape)}, "
                    f"but got {list(got.shape)}."
                )

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.rewards)

    def __getitem__(self, tasks: slice) -> Rollouts:
        """The rollouts of some of the tasks."""
        return Rollouts(*(getattr(self, field.name)[tasks] for field in fields(self)))

    @property
    def returns(self) -> Tensor:
        """The undiscounted return of each trajectory, ``[T, N]``."""
        return self.rewards.sum(2)

    def with_advantages(self, advantages: Tensor) -> Rollouts:
        """The same rollouts with these advantages ``[T, N, H]``."""
        return replace(self, advantages=advantages)
