"""Few-shot classification of random images, for the workloads that are shaped like a data set."""

import torch

from lightning_maml import TaskBatch


def random_images(tasks: int, ways: int, shots: int, queries: int, shape: tuple[int, int, int]) -> TaskBatch:
    """``support [tasks, ways * shots, *shape]`` and ``query [tasks, ways * queries, *shape]``, classes in turn."""
    labels = torch.arange(ways).repeat(tasks, 1)
    support, query = (torch.randn(tasks, ways * rows, *shape) for rows in (shots, queries))
    return TaskBatch(support, labels.repeat(1, shots), query, labels.repeat(1, queries))
