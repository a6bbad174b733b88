"""What ANIL adapts of a Conv4: a linear layer on 64 features, 5-way 5-shot, 15 queries a class, random features."""

from torch import nn

from benchmarks.workloads.images import random_images
from lightning_maml import MLP, TaskBatch


def build(tasks: int) -> tuple[nn.Module, TaskBatch, str, float]:
    images = random_images(tasks, 5, 5, 15, (64, 1, 1))
    features = TaskBatch(*(value.flatten(2) if value.ndim > 2 else value for _, value in images.named()))
    return MLP(64, [], 5, init="default"), features, "cross_entropy", 0.1
