"""What every contender is given: the same network, tasks, loss, inner rate and number of inner steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml import MLP, Conv4, Sine, TaskBatch

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


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
        return replace(self, network=network, tasks=self.tasks.to("cpu", torch.float64))

    def to(self, device: str) -> Problem:
        """The same on a device."""
        return replace(self, network=self.network.to(device), tasks=self.tasks.to(device))

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.tasks.support_inputs.device

    def each_task(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Support inputs and targets, query inputs and targets, of one task after another."""
        yield from zip(*(value for _, value in self.tasks.named()), strict=True)


Built = tuple[nn.Module, TaskBatch, str, float]
"""Network, tasks, loss and inner rate."""


def random_images(tasks: int, ways: int, shots: int, queries: int, *shape: int) -> TaskBatch:
    """``support [tasks, ways * shots, *shape]`` and ``query [tasks, ways * queries, *shape]``, classes in turn."""
    labels = torch.arange(ways).repeat(tasks, 1)
    support, query = (torch.randn(tasks, ways * rows, *shape) for rows in (shots, queries))
    return TaskBatch(support, labels.repeat(1, shots), query, labels.repeat(1, queries))


def regression(tasks: int, rows: int, size: int, hidden: list[int]) -> Built:
    """A perceptron from ``size`` numbers to as many, on ``rows`` + ``rows`` random points a task."""
    points = TaskBatch(*(torch.randn(tasks, rows, size) for _ in range(4)))
    return MLP(size, hidden, size, init="default"), points, "mse", 0.01


def signals(tasks: int, points: int, hidden: list[int]) -> Built:
    """SIREN (Sitzmann et al., 2020) with its weights, from places to colours, at ``points`` + ``points``."""
    widths, frequency = [2, *hidden, 3], 30.0
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs)
        bound = (6 / inputs) ** 0.5 / frequency if number else 1 / inputs
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine(frequency)]
    places, colours = ([torch.rand(tasks, points, size) * 2 - 1 for _ in range(2)] for size in (2, 3))
    return nn.Sequential(*layers[:-1]), TaskBatch(places[0], colours[0], places[1], colours[1]), "mse", 0.01


def classification(network: nn.Module, images: TaskBatch, lr: float) -> Built:
    """Few-shot classification of random images."""
    return network, images, "cross_entropy", lr


WORKLOADS: dict[str, Callable[[int], Built]] = {
    "sinusoid": lambda tasks: regression(tasks, 10, 1, [40, 40]),
    # the size of a reinforcement learning policy
    "wide_mlp": lambda tasks: regression(tasks, 20, 2, [100, 100]),
    # a signal by its values at places, which a wide and deep network represents
    "siren": lambda tasks: signals(tasks, 1024, [256] * 4),
    "omniglot_5w1s": lambda tasks: classification(Conv4(5), random_images(tasks, 5, 1, 5, 1, 28, 28), 0.4),
    # with a larger rate five steps on random images are chaos, and no float32 is near float64
    "omniglot_20w1s": lambda tasks: classification(Conv4(20), random_images(tasks, 20, 1, 1, 1, 28, 28), 0.05),
    # Conv4 of 32 filters with max-pooling, 15 queries a class
    "cifar_fs": lambda tasks: classification(
        Conv4(5, channels=3, hidden=32, image_size=32, form="max_pool"), random_images(tasks, 5, 1, 15, 3, 32, 32), 0.05
    ),
    # the same, 5-shot
    "mini_imagenet": lambda tasks: classification(
        Conv4(5, channels=3, hidden=32, image_size=84, form="max_pool"), random_images(tasks, 5, 5, 15, 3, 84, 84), 0.01
    ),
    # what ANIL adapts of a Conv4: a linear layer on 64 features, here random ones
    "anil_head": lambda tasks: classification(MLP(64, [], 5, init="default"), random_images(tasks, 5, 5, 15, 64), 0.1),
}
"""One entry a workload: of a number of tasks."""
TASKS = {"mini_imagenet": 4, "siren": 16}
"""How many tasks there are by default where 25 take minutes, and more memory than a machine has."""
