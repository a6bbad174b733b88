"""What every contender is given: the same network, tasks, loss, inner rate and number of inner steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lightning_maml import TaskBatch

LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


@dataclass(frozen=True)
class Problem:
    """One exact meta-gradient of MAML, to be computed."""

    network: nn.Module
    tasks: TaskBatch
    loss: str
    lr: float
    steps: int

    def in_float64(self) -> Problem:
        """The same numbers, in float64 on the CPU."""
        network = copy.deepcopy(self.network).cpu().double()
        return Problem(network, self.tasks.to("cpu", torch.float64), self.loss, self.lr, self.steps)

    def to(self, device: str) -> Problem:
        """The same on a device."""
        return Problem(self.network.to(device), self.tasks.to(device), self.loss, self.lr, self.steps)

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.tasks.support_inputs.device

    def first_task(self) -> Problem:
        """The first task alone."""
        tasks = TaskBatch(*(value[:1] for _, value in self.tasks.named()))
        return Problem(self.network, tasks, self.loss, self.lr, self.steps)
