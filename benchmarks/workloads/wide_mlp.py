"""The size of a reinforcement learning policy: 2-100-100-2, 20 + 20 rows a task."""

import torch
from torch import nn

from lightning_maml import MLP, TaskBatch


def build(tasks: int) -> tuple[nn.Module, TaskBatch, str, float]:
    network = MLP(2, [100, 100], 2, init="default")
    return network, TaskBatch(*(torch.randn(tasks, 20, 2) for _ in range(4))), "mse", 0.01
