"""Tasks from any data set of labelled images: torch's, torchvision's, or one of Hugging Face's `datasets`."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from lightning_maml.checks import check_one_of, check_seed, check_whole
from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.class_tasks import ClassTasks, Labelled, check_split
from lightning_maml.data.episodes import Rotations
from lightning_maml.data.images import as_pixels, is_grey, without_colour
from lightning_maml.data.stream import sizes_of_stages


class DatasetTasks(ClassTasks):
    """Few-shot classification of a data set's images; inputs ``[T, N, C, H, W]``.

    All images are loaded once and kept in one tensor, random transforms of the data set drawn once. A seeded choice of
    classes trains, validates and tests.

    Arguments that are not described here are those of :class:`~lightning_maml.data.FolderTasks`.

    Args:
        dataset: has a length and, by number, ``(image, label)`` or a mapping such as ``{"image": ..., "label": ...}``.
            Images are tensors ``[C, H, W]`` of one shape, uint8 or floating, or Pillow's; these become uint8, grey
            where none has colour, and inputs in [0, 1]. Labels are whole numbers or text.
        label: the column of labels, where rows are mappings.
        image: the column of images, where rows are mappings.
        size: height and width that Pillow's images are resized to; None where all have one size.

    Raises:
        TypeError: ``dataset`` has no length or no rows by number, or these are none of the above.
        ValueError: a number is out of range; when the images are first needed, that they differ in shape, or that
            classes or images are too few for such tasks.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images, labels = torch.rand(120, 1, 28, 28), torch.arange(120) % 20
        >>> tasks = DatasetTasks(TensorDataset(images, labels), ways=2, queries=3, tasks_per_batch=4)
        >>> tasks.sample("train", 0).query_inputs.shape
        torch.Size([4, 6, 1, 28, 28])
    """

    def __init__(
        self,
        dataset: Any,
        label: str = "label",
        image: str = "image",
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        size: int | None = None,
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        flips: bool = False,
        crops: int = 0,
        rotations: Rotations = "none",
        tasks_per_batch: int = 32,
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        test_ways: int | None = None,
        test_shots: int | None = None,
        test_queries: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks_per_batch, batches_per_epoch, val_tasks, test_tasks, seed)
        self.sizes = sizes_of_stages(ways=(ways, test_ways), shots=(shots, test_shots), queries=(queries, test_queries))
        if not all(hasattr(dataset, name) for name in ("__len__", "__getitem__")):
            raise TypeError(
                "Expected `dataset` to have a length and rows by number, as a torch Dataset, but got "
                f"{type(dataset).__name__}: an iterable one becomes list(dataset)."
            )
        if size is not None:
            check_whole(1, size=size)
        check_one_of(get_args(Rotations), rotations=rotations)
        check_split(split)
        check_seed(split_seed=split_seed)
        self.augmentation = Augmentation(flips, crops)
        self.dataset, self.label, self.image, self.size = dataset, label, image, size
        self.rotations: Rotations = rotations
        self.split, self.split_seed, self.where = tuple(split), split_seed, "`dataset`"

    @cached_property
    def data(self) -> Labelled:
        """All images, each class named by its label."""
        rows = [self._row(index) for index in range(len(self.dataset))]
        if not rows:
            raise ValueError(f"Expected images in `dataset` but got an empty {type(self.dataset).__name__}.")
        shape = rows[0][0].shape
        for index, (image, _) in enumerate(rows):
            if image.shape != shape:
                raise ValueError(
                    f"Expected images of one shape in `dataset` but got {list(shape)} and, of row {index}, "
                    f"{list(image.shape)}: set `size` for Pillow's images, or resize them by the data set's transform."
                )
        names = sorted({label for _, label in rows}, key=lambda label: (isinstance(label, str), label))
        numbers = {name: number for number, name in enumerate(names)}
        images, labels = torch.stack([image for image, _ in rows]), [numbers[label] for _, label in rows]
        if images.dtype == torch.uint8 and len(shape) == 3 and shape[0] == 3 and is_grey(images):
            images = without_colour(images)
        return Labelled(images, torch.tensor(labels), tuple(f"class {name}" for name in names))

    def _row(self, index: int) -> tuple[Tensor, int | str]:
        row = self.dataset[index]
        if isinstance(row, Mapping):
            if self.image not in row or self.label not in row:
                raise ValueError(
                    f"Expected the columns `image={self.image!r}` and `label={self.label!r}` in `dataset` but got "
                    f"{', '.join(map(str, row))}: name those that hold them."
                )
            row = row[self.image], row[self.label]
        if not isinstance(row, tuple | list) or len(row) != 2:
            raise TypeError(
                f"Expected (image, label) in row {index} of `dataset`, or columns of these names, but got "
                f"{type(row).__name__}{f' of {len(row)}' if isinstance(row, tuple | list) else ''}."
            )
        image, label = row
        label = label.item() if hasattr(label, "item") else label  # of a tensor, or numpy's
        if not isinstance(label, int | str):
            raise TypeError(
                f"Expected a whole number or text as label in row {index} of `dataset` but got {type(label).__name__}."
            )
        return (image if isinstance(image, Tensor) else self._pixels(image, index)), label

    def _pixels(self, image: Any, index: int) -> Tensor:
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise TypeError(
                f"Expected a tensor or Pillow's image in row {index} of `dataset` but got {type(image).__name__}."
            )
        return as_pixels(image, self.size)
