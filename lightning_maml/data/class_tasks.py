"""Tasks made of classes: each stage has classes of its own, and a sampler that draws episodes of them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.episodes import EpisodeSampler, Rotations, split_by_class
from lightning_maml.data.stream import Stage, TaskStream
from lightning_maml.tasks import TaskBatch


class Labelled(NamedTuple):
    """Images with their classes."""

    images: Tensor
    """``[M, C, H, W]``."""
    labels: Tensor
    """``[M]``, int64: a number for each of `names`."""
    names: tuple[str, ...]
    """What classes are called in messages."""
    stages: tuple[Stage, ...] | None = None
    """The stage that each class belongs to; None where a split by seed decides."""


class ClassTasks(TaskStream):
    """A stream of N-way K-shot tasks of images; a subclass has the :attr:`data`, and in :attr:`sizes` what is drawn.

    ValueError when the images are first needed, where a stage has too few classes, or a class too few images.
    """

    augmentation = Augmentation()
    """Of training images."""
    rotations: Rotations = "none"
    """As of :class:`~lightning_maml.data.EpisodeSampler`."""
    sizes: dict[Stage, dict[str, int]]
    """``ways``, ``shots`` and ``queries`` in each stage."""
    split: Sequence[float]
    """The shares of classes for training, validation and test, where the data have no stages of their own."""
    split_seed: int
    """Makes the random choice of classes."""
    where: str
    """What messages call the place of the data."""

    @property
    def data(self) -> Labelled:
        """All images."""
        raise NotImplementedError

    @cached_property
    def samplers(self) -> dict[Stage, EpisodeSampler]:
        """The sampler of each stage that has tasks; they share the images."""
        data, tasks = self.data, {"train": self.tasks_per_batch, "val": self.val_tasks, "test": self.test_tasks}
        everything = EpisodeSampler(data.images, data.labels, 1, 1, 1, self.rotations)
        counts = data.labels.bincount(minlength=len(data.names)).tolist()
        samplers = {}
        for stage, classes in self.classes().items():
            if tasks[stage]:  # a stage without tasks needs no classes
                self._check(stage, classes, counts)
                samplers[stage] = everything.restricted(classes, **self.sizes[stage])
        return samplers

    def classes(self) -> Mapping[Stage, Sequence[int]]:
        """The labels of each stage's classes; their order is part of what a seed means."""
        data = self.data
        stages = draw_stages(len(data.names), self.split, self.split_seed) if data.stages is None else data.stages
        return {stage: [label for label, own in enumerate(stages) if own == stage] for stage in self.sizes}

    def setup(self, stage: str) -> None:
        """Loads the images, once in a process."""
        _ = self.samplers

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Rows of the images ``[T, ways, shots + queries]``, quarter turns ``[T, ways]``, and what augments them."""
        rows, turns = self.samplers[stage].draw(tasks, generator)
        return rows, turns, *(self.augmentation.draw(rows.shape, generator) if stage == "train" else ())

    def build(self, stage: Stage, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        """Inputs ``[T, N, C, H, W]`` and labels ``[T, N]``."""
        sampler, (rows, turns, *augmentation) = self.samplers[stage], drawn
        images = sampler.images(rows, turns, device)
        return split_by_class(self.augmentation.apply(images, tuple(augmentation)), sampler.shots)

    def _check(self, stage: Stage, classes: Sequence[int], counts: Sequence[int]) -> None:
        size, names, fold = self.sizes[stage], self.data.names, 4 if self.rotations == "classes" else 1
        test = "" if stage == "train" else "test_"
        if (number := len(classes) * fold) < size["ways"]:
            name = {"train": "training", "val": "validation"}.get(stage, stage)
            what = "`ways`" if stage == "train" else f"`{stage}_tasks=0` for no {name}, or `test_ways`"
            share = "" if self.data.stages else f", the share that `split` gives it of {len(names) * fold}"
            raise ValueError(
                f"Expected at least {test}ways = {size['ways']} classes for {name} in {self.where} but got "
                f"{number}{share}: add classes, or set {'another `split`, or ' if share else ''}{what}."
            )
        fewest = min(classes, key=lambda label: counts[label])
        if counts[fewest] < size["shots"] + size["queries"]:
            raise ValueError(
                f"Expected at least {test}shots + {test}queries = {size['shots']} + {size['queries']} images of each "
                f"class but got {counts[fewest]} of {names[fewest]}: add images, remove the class, or lower "
                f"`{test}queries`."
            )


def class_columns(names: Sequence[Any], scores: Tensor) -> dict[str, Any]:
    """The ``prediction`` and the probability of each class, as columns of a table, by ``scores`` ``[rows, classes]``.

    Example:
        >>> class_columns(["cat", "dog"], torch.zeros(1, 2))["probability of dog"]
        array([0.5], dtype=float32)
    """
    probabilities = scores.softmax(1).cpu()
    each = zip(names, probabilities.unbind(1), strict=True)
    columns = {f"probability of {name}": column.numpy() for name, column in each}
    return {"prediction": [names[label] for label in probabilities.argmax(1).tolist()], **columns}


def draw_stages(number: int, split: Sequence[float], seed: int) -> tuple[Stage, ...]:
    """The stage of each of ``number`` classes or tasks, by ``seed``: as near to the shares as whole numbers are.

    Example:
        >>> stages = draw_stages(10, (0.7, 0.15, 0.15), seed=0)
        >>> [stages.count(stage) for stage in ("train", "val", "test")]
        [7, 1, 2]
    """
    bounds = [round(number * sum(split[:part])) for part in range(4)]
    train, val, test = (last - first for first, last in pairwise(bounds))
    stages: list[Stage] = [*["train"] * train, *["val"] * val, *["test"] * test]  # type: ignore[list-item]
    return tuple(stages[place] for place in torch.randperm(number, generator=torch.Generator().manual_seed(seed)))


def check_split(split: Sequence[float]) -> None:
    """Raise ValueError unless ``split`` is three shares of which the first, that of training, is above 0."""
    if len(split) != 3 or not all(share >= 0 for share in split) or split[0] <= 0 or abs(sum(split) - 1) > 1e-6:
        raise ValueError(
            f"Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got {list(split)}."
        )
