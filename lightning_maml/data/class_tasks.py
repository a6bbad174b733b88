"""Tasks made of classes: each stage has classes of its own, and a sampler that draws episodes of them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.episodes import EpisodeSampler, Rotations, split_by_class
from lightning_maml.data.stream import Stage, TaskStream
from lightning_maml.tasks import TaskBatch


class ClassTasks(TaskStream):
    """A stream of N-way K-shot tasks; a subclass has the :attr:`samplers`, and in :attr:`sizes` what they draw."""

    augmentation = Augmentation()
    """Of training images."""
    sizes: dict[Stage, dict[str, int]]
    """``ways``, ``shots`` and ``queries`` in each stage."""

    @property
    def samplers(self) -> Mapping[Stage, EpisodeSampler]:
        """The sampler of each stage that has tasks; they share the images."""
        raise NotImplementedError

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


def samplers_of(
    data: Labelled,
    sizes: Mapping[Stage, Mapping[str, int]],
    tasks: Mapping[Stage, int],
    *,
    rotations: Rotations,
    split: Sequence[float],
    seed: int,
    where: str,
) -> dict[Stage, EpisodeSampler]:
    """A sampler for each stage that has tasks.

    Args:
        data: all images.
        sizes: ``ways``, ``shots`` and ``queries`` in each stage.
        tasks: how many tasks each stage has; one with none needs no classes.
        rotations: as of :class:`~lightning_maml.data.EpisodeSampler`.
        split: the shares of classes for training, validation and test, where the data have no stages of their own.
        seed: makes the random choice of classes.
        where: what messages call the place of the data.

    Raises:
        ValueError: a stage has too few classes, or a class too few images, for its tasks.
    """
    stages = draw_stages(len(data.names), split, seed) if data.stages is None else data.stages
    everything = EpisodeSampler(data.images, data.labels, 1, 1, 1, rotations)
    counts = data.labels.bincount(minlength=len(data.names)).tolist()
    samplers = {}
    for stage, size in sizes.items():
        if tasks[stage] == 0:
            continue
        classes = [label for label, own in enumerate(stages) if own == stage]
        _check_classes(stage, len(classes) * (4 if rotations == "classes" else 1), size["ways"], data, where)
        fewest = min(classes, key=lambda label: counts[label])
        if counts[fewest] < size["shots"] + size["queries"]:
            test = "" if stage == "train" else "test_"
            raise ValueError(
                f"Expected at least {test}shots + {test}queries = {size['shots']} + {size['queries']} images of each "
                f"class but got {counts[fewest]} of {data.names[fewest]}: add images, remove the class, or lower "
                f"`{test}queries`."
            )
        samplers[stage] = everything.restricted(classes, **size)
    return samplers


def _check_classes(stage: Stage, number: int, ways: int, data: Labelled, where: str) -> None:
    if number >= ways:
        return
    name = {"train": "training", "val": "validation"}.get(stage, stage)
    test, what = ("", "`ways`") if stage == "train" else ("test_", f"`{stage}_tasks=0` for no {name}, or `test_ways`")
    share = "" if data.stages else f", the share that `split` gives it of {len(data.names)}"
    raise ValueError(
        f"Expected at least {test}ways = {ways} classes for {name} in {where} but got {number}{share}: add classes, "
        f"or set {'another `split`, or ' if share else ''}{what}."
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
