"""Omniglot's Conv4, 20-way 1-shot, 1 query a class, random images.

With a larger rate than this, five steps on random images are chaos, and no float32 is near float64.
"""

from torch import nn

from benchmarks.workloads.images import random_images
from lightning_maml import Conv4, TaskBatch


def build(tasks: int) -> tuple[nn.Module, TaskBatch, str, float]:
    return Conv4(20), random_images(tasks, 20, 1, 1, (1, 28, 28)), "cross_entropy", 0.05
