"""Episodes of N ways and K shots, a whole meta-batch of them by one gather on the images' device."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_maml.checks import check_one_of, check_whole
from lightning_maml.tasks import TaskBatch

Rotations = Literal["none", "random", "classes"]
"""By multiples of 90 degrees. ``"random"``: one for each class of each task. ``"classes"``: each class becomes four."""


class EpisodeSampler:
    """Draws tasks of ``ways`` random classes and of ``shots + queries`` random images of each, all distinct.

    The distribution is that of learn2learn's ``NWays``, ``KShots``, ``RemapLabels`` and ``ConsecutiveLabels``, with
    ``rotations="random"`` also of its ``RandomClassRotation`` as documented. (That of learn2learn 0.2.0 turns all
    classes of a task by the angle meant for the last.) Rows are sorted by label; which class has which is random.

    Args:
        images: ``[M, ...]``, floating, or uint8, which becomes floating in [0, 1] after the gather. Kept on its device.
        labels: ``[M]``, whole numbers; classes may have different numbers of images.
        ways: ``N``, classes of a task.
        shots, queries: support and query images of each class.
        rotations: of the images' last two dimensions, see :data:`Rotations`.

    Raises:
        TypeError: ``images`` or ``labels`` is no tensor.
        ValueError: the data are empty, not finite, not labelled one by one or too few for such tasks.

    Example:
        >>> images, labels = torch.rand(60, 1, 28, 28), torch.arange(60) // 6
        >>> sampler = EpisodeSampler(images, labels, ways=5, shots=1, queries=3)
        >>> tasks = sampler.sample(32, torch.Generator().manual_seed(0))
        >>> tasks.support_inputs.shape, tasks.query_targets.shape
        (torch.Size([32, 5, 1, 28, 28]), torch.Size([32, 15]))
        >>> tasks.query_targets[0].tolist()
        [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    """

    def __init__(
        self, images: Tensor, labels: Tensor, ways: int, shots: int, queries: int, rotations: Rotations = "none"
    ) -> None:
        _check_data(images, labels)
        check_one_of(get_args(Rotations), rotations=rotations)
        if rotations != "none" and (images.ndim < 3 or images.shape[-1] != images.shape[-2]):
            raise ValueError(f"Expected square `images` [M, ..., H, H] for rotations but got {list(images.shape)}.")
        self.rotations = rotations
        self._fold = 4 if rotations == "classes" else 1  # how many classes one of the labels becomes
        self._images = {images.device: images}
        # Rows of one class lie side by side in `_order`: class c has the `_counts[c]` entries from `_starts[c]` on.
        self.classes, inverse, self._counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
        self._order = inverse.argsort(stable=True)
        self._starts = self._counts.cumsum(0) - self._counts
        self._set_sizes(ways, shots, queries)

    @classmethod
    def from_meta_dataset(
        cls, dataset: Any, ways: int, shots: int, queries: int, rotations: Rotations = "none"
    ) -> EpisodeSampler:
        """The same from a learn2learn ``MetaDataset`` (or ``Filtered-``, ``UnionMetaDataset``), by its bookkeeping.

        All images are loaded once, and random transforms of the data set drawn once.

        Raises:
            TypeError: ``dataset`` is no MetaDataset, or its images are not tensors.
            ValueError: its images differ in shape, or as above.
        """
        if not hasattr(dataset, "labels_to_indices"):
            raise TypeError(
                f"Expected `dataset` to be a learn2learn MetaDataset but got {type(dataset).__name__}: "
                "wrap it as learn2learn.data.MetaDataset(dataset)."
            )
        labels = [label for label, indices in dataset.labels_to_indices.items() for _ in indices]
        images = [dataset[index][0] for indices in dataset.labels_to_indices.values() for index in indices]
        if kinds := {type(image).__name__ for image in images if not isinstance(image, Tensor)}:
            raise TypeError(
                f"Expected the images of `dataset` to be tensors but got {', '.join(sorted(kinds))}: "
                "add torchvision.transforms.ToTensor() to its transform."
            )
        if len(shapes := {tuple(image.shape) for image in images}) > 1:
            raise ValueError(f"Expected images of one shape in `dataset` but got {sorted(shapes)}.")
        stacked = torch.stack(images) if images else torch.empty(0)
        return cls(stacked, torch.tensor(labels), ways, shots, queries, rotations)

    def restricted(
        self, classes: Iterable[int], *, ways: int | None = None, shots: int | None = None, queries: int | None = None
    ) -> EpisodeSampler:
        """The same images, of these classes alone, for training, validation or test; other sizes of task if given.

        ValueError where a class has no images or comes twice, or the data are too few for such tasks.
        """
        wanted = torch.tensor(list(classes), dtype=torch.int64).tolist()
        places = {label: place for place, label in enumerate(self.classes.tolist())}
        if not places.keys() >= set(wanted) or len(set(wanted)) < len(wanted):
            raise ValueError(f"Expected `classes` to be labels of images, each once, but got {wanted}.")
        chosen = [places[label] for label in wanted]
        sampler = copy.copy(self)  # shares the images, on all devices
        for name in ("classes", "_counts", "_starts"):
            setattr(sampler, name, getattr(self, name)[chosen])
        sizes = ((ways, self.ways), (shots, self.shots), (queries, self.queries))
        sampler._set_sizes(*(own if size is None else size for size, own in sizes))
        return sampler

    def sample(self, tasks: int, generator: torch.Generator, device: torch.device | str | None = None) -> TaskBatch:
        """``T = tasks`` tasks: inputs ``[T, ways * rows, ...]`` and labels ``[T, ways * rows]`` (int64).

        ``generator`` is one of the CPU; ``device`` is where the tasks go, by default where the images were given.
        """
        check_whole(1, tasks=tasks)
        return self.gather(*self.draw(tasks, generator), next(iter(self._images)) if device is None else device)

    def draw(self, tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of the images ``[T, ways, shots + queries]`` and quarter turns ``[T, ways]``, on the CPU."""
        number = torch.tensor(len(self.classes) * self._fold)
        drawn = _distinct(number.expand(tasks), self.ways, generator)
        classes, turns = drawn // self._fold, drawn % self._fold
        if self.rotations == "random":
            turns = torch.randint(4, classes.shape, generator=generator)
        picks = _distinct(self._counts[classes], self.shots + self.queries, generator)
        return self._order[self._starts[classes].unsqueeze(-1) + picks], turns

    def gather(self, rows: Tensor, turns: Tensor, device: torch.device | str) -> TaskBatch:
        """The tasks that :meth:`draw` stands for, on ``device``."""
        return split_by_class(self.images(rows, turns, device), self.shots)

    def images(self, rows: Tensor, turns: Tensor, device: torch.device | str) -> Tensor:
        """The images of these tasks on ``device``, floating: ``[T, ways, shots + queries, ...]``."""
        device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are one
        if device not in self._images:
            self._images[device] = next(iter(self._images.values())).to(device)
        images = self._images[device][rows.to(device, non_blocking=True)]
        if self.rotations != "none":
            turned = torch.stack([images.rot90(quarter, (-2, -1)) for quarter in range(4)])
            task, way = (torch.arange(number, device=device) for number in turns.shape)
            images = turned[turns.to(device, non_blocking=True), task.unsqueeze(1), way]
        return images if images.is_floating_point() else images.float() / 255

    def _set_sizes(self, ways: int, shots: int, queries: int) -> None:
        check_whole(1, ways=ways, shots=shots, queries=queries)
        number = len(self.classes) * self._fold
        if ways > number:
            raise ValueError(f"Expected `ways` to be at most the number of classes, {number}, but got {ways}.")
        fewest = int(self._counts.argmin())
        if (count := self._counts[fewest]) < shots + queries:
            wanted = f"at least shots + queries = {shots} + {queries} images of each class"
            raise ValueError(f"Expected {wanted} but got {count} of class {self.classes[fewest]}.")
        self.ways, self.shots, self.queries = ways, shots, queries


def split_by_class(data: Tensor, shots: int) -> TaskBatch:
    """Tasks of ``data [T, ways, rows, ...]``: the first ``shots`` rows of a class support, the others are queries."""
    labels = torch.arange(data.shape[1], device=data.device).unsqueeze(1).expand(data.shape[:3])
    support, query = slice(0, shots), slice(shots, None)
    return TaskBatch(*(part[:, :, rows].flatten(1, 2) for rows in (support, query) for part in (data, labels)))


def _distinct(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` distinct numbers below each of ``sizes [...]``, in random order: ``[..., count]``."""
    result = torch.empty(*sizes.shape, count, dtype=torch.int64)
    few = sizes < count * count
    if few.any():
        limits = sizes[few].unsqueeze(1)
        keys = torch.rand(len(limits), int(limits.max()), generator=generator, dtype=torch.float64)
        keys[torch.arange(keys.shape[1]) >= limits] = 2.0  # past the end: sorted last
        result[few] = keys.argsort(1)[:, :count]
    again = ~few
    while again.any():  # where there are many, draw anew the rows with a repetition: at most two in five of them
        limits = sizes[again].unsqueeze(1)
        uniform = torch.rand(len(limits), count, generator=generator, dtype=torch.float64)
        result[again] = (uniform * limits).long()
        ordered = result.sort(-1).values
        again = again & (ordered[..., 1:] == ordered[..., :-1]).any(-1)
    return result


def _check_data(images: Tensor, labels: Tensor) -> None:
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected `{name}` to be a tensor but got {type(value).__name__}.")
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(f"Expected `images` [M, ...] to hold at least one image but got {list(images.shape)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"Expected `images` to be uint8 or floating but got {images.dtype}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"Expected `labels` to be [{len(images)}], one for each image, but got {list(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"Expected `labels` to be whole numbers (int64) but got {labels.dtype}.")
    if images.is_floating_point() and not (finite := images.isfinite().flatten(1).all(1)).all():
        bad = finite.tolist().index(False)
        raise ValueError(f"Expected `images` to be finite but got NaN or infinity, first in image {bad}.")
