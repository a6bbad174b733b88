"""MiniImageNet's Conv4 of 32 filters with max-pooling, 5-way 5-shot, 15 queries a class, random images of 84 x 84."""

from torch import nn

from benchmarks.workloads.images import random_images
from lightning_maml import Conv4, TaskBatch


def build(tasks: int) -> tuple[nn.Module, TaskBatch, str, float]:
    network = Conv4(5, channels=3, hidden=32, image_size=84, form="max_pool")
    return network, random_images(tasks, 5, 5, 15, (3, 84, 84)), "cross_entropy", 0.01
