"""Omniglot's Conv4, 5-way 1-shot, 5 queries a class, random images."""

from torch import nn

from benchmarks.workloads.images import random_images
from lightning_maml import Conv4, TaskBatch


def build(tasks: int) -> tuple[nn.Module, TaskBatch, str, float]:
    return Conv4(5), random_images(tasks, 5, 1, 5, (1, 28, 28)), "cross_entropy", 0.4
