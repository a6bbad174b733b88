"""A stream of reinforcement-learning tasks: of each only what tells it from the others; rollouts are made of it."""

from typing import Any

import torch
from torch import Tensor

from lightning_maml.data.stream import Stage, TaskStream
from lightning_maml.rl.environments import Environment


class EnvironmentTasks(TaskStream):
    """Tasks of an environment for any :class:`~lightning.pytorch.Trainer`: batches ``[T, G]`` of goals or the like.

    All but ``environment``, whose tasks these are, is as of :class:`~lightning_maml.data.TaskStream`: the other
    arguments, seeds, processes, resuming, and the fixed lists of validation and test. ValueError where a number is out
    of range.

    Example:
        >>> from lightning_maml.rl import Navigation2D
        >>> tasks = EnvironmentTasks(Navigation2D(), tasks_per_batch=3)
        >>> tasks.sample("train", 0).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        environment: Environment,
        tasks_per_batch: int = 20,
        *,
        batches_per_epoch: int = 50,
        val_tasks: int = 20,
        test_tasks: int = 40,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tasks_per_batch, batches_per_epoch=batches_per_epoch, val_tasks=val_tasks, test_tasks=test_tasks, seed=seed
        )
        self.environment = environment

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What tells the tasks apart, ``[tasks, G]``."""
        return (self.environment.sample_tasks(tasks, generator),)

    def build(self, stage: Stage, drawn: tuple[Tensor, ...], device: torch.device) -> Any:
        """The same on the device."""
        return drawn[0].to(device)
