"""mini-ImageNet (Vinyals et al. 2016), with the classes of Ravi and Larochelle (2017)."""

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_maml.data.class_tasks import Labelled
from lightning_maml.data.image_cache import cached
from lightning_maml.data.images import as_pixels, read_arrays, read_image, read_images, with_channels
from lightning_maml.data.natural import NaturalTasks
from lightning_maml.data.stream import Stage

ARRAYS: dict[Stage, list[str]] = {"train": ["train_a.npz", "train_b.npz"], "val": ["val.npz"], "test": ["test.npz"]}
CLASSES: dict[Stage, int] = {"train": 64, "val": 16, "test": 20}
IMAGES = 600
"""Of each class."""
SIDE = 84


class Part(NamedTuple):
    """The images of one stage, before they are read."""

    classes: list[str]
    """Their names."""
    files: list[Path]
    """What is read."""
    read: Callable[[], Tensor]
    """Reads them: uint8 ``[classes * IMAGES, 3, SIDE, SIDE]``."""


class MiniImagenetTasks(NaturalTasks):
    """mini-ImageNet (Ravi and Larochelle 2017, https://openreview.net/forum?id=rJY0-Kcll): ``[T, N, 3, 84, 84]``.

    64 classes train, 16 validate and 20 test, with 600 images each. Inputs are in [0, 1].

    Arguments that are not described here are those of :class:`~lightning_maml.data.natural.NaturalTasks`.

    Args:
        root: the folder that holds the images in one of two layouts:

            - the official lists ``train.csv``, ``val.csv`` and ``test.csv``, with columns ``filename`` and ``label``,
              and the files that they name in the folder ``images``; other sizes than 84 x 84 are resized;
            - arrays, ``train_a.npz`` and ``train_b.npz``, ``val.npz``, and ``test.npz``, each with ``classes [C]`` and
              ``files [C, M]``, their names, and with the JPEG files one after the other, ``jpeg [bytes]`` (uint8), of
              which image ``k`` has those from ``offsets[k]`` to ``offsets[k + 1]``. Where those of
              training are not here, there are validation and test alone.

    Raises:
        ValueError: besides what is named there, there are no training classes, when these are first needed.

    Example:
        >>> tasks = MiniImagenetTasks("data/mini_imagenet", ways=5, shots=1, queries=15)
        >>> tasks.sizes["test"]
        {'ways': 5, 'shots': 1, 'queries': 15}
    """

    @cached_property
    def data(self) -> Labelled:
        """All images that are there, each class by its WordNet number."""
        parts = _parts(self.root)
        images = [cached(self.root, part.files, f"mini-ImageNet {stage}", part.read) for stage, part in parts.items()]
        names = [name for part in parts.values() for name in part.classes]
        stages = [stage for stage, part in parts.items() for _ in part.classes]
        labels = torch.arange(len(names)).repeat_interleave(IMAGES)
        return Labelled(torch.cat(images), labels, tuple(names), tuple(stages))

    def classes(self) -> dict[Stage, list[int]]:
        """The labels of each stage's classes; of training only where its images are there."""
        return {stage: [*labels] for stage, labels in super().classes().items() if labels}

    def setup(self, stage: str) -> None:
        """Loads the images, once in a process."""
        super().setup(stage)
        if stage == "fit":
            self._check_training()

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As of :class:`~lightning_maml.data.class_tasks.ClassTasks`."""
        if stage == "train":
            self._check_training()
        return super().draw(stage, tasks, generator)

    def _check_training(self) -> None:
        if "train" not in self.samplers:
            raise ValueError(
                f"Expected the training classes of mini-ImageNet in {self.root} but {' and '.join(ARRAYS['train'])} "
                "are not here: add them, or validate and test alone."
            )


def _parts(root: Path) -> dict[Stage, Part]:
    """What ``root`` has, by stage; FileNotFoundError where a file is missing."""
    stages: list[Stage] = [*CLASSES]
    lists = {stage: root / f"{stage}.csv" for stage in stages}
    if any(file.exists() for file in lists.values()):
        return {stage: _listed(_present(file), stage) for stage, file in lists.items()}
    arrays = {stage: [root / name for name in ARRAYS[stage]] for stage in stages}
    if not any(file.exists() for files in arrays.values() for file in files):
        raise FileNotFoundError(
            f"Expected mini-ImageNet in {root} but found neither the official lists train.csv, val.csv and test.csv "
            f"nor the arrays {', '.join(file.name for files in arrays.values() for file in files)}: set `root` to the "
            "folder that holds them."
        )
    if not any(file.exists() for file in arrays["train"]):
        del arrays["train"]
    return {stage: _packed([*map(_present, files)], stage) for stage, files in arrays.items()}


def _present(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"Expected mini-ImageNet's file {file} beside its others but found none: add it.")
    return file


def _check_classes(stage: Stage, counts: dict[str, int], file: Path) -> None:
    """Raise ValueError where these are not the images of each class."""
    wrong = [(name, count) for name, count in counts.items() if count != IMAGES]
    if len(counts) != CLASSES[stage] or wrong:
        what = f"{wrong[0][1]} of {wrong[0][0]}" if wrong else f"{len(counts)} classes"
        raise ValueError(
            f"Expected {CLASSES[stage]} classes of {IMAGES} images in {file} but got {what}: take the official files."
        )


def _listed(file: Path, stage: Stage) -> Part:
    """The files of an official list, in its order."""
    with file.open(newline="") as content:
        rows = csv.DictReader(content)
        if rows.fieldnames is None or not {"filename", "label"} <= {*rows.fieldnames}:
            raise ValueError(
                f"Expected the columns filename and label in {file} but got {rows.fieldnames}: take the official list."
            )
        names: dict[str, list[str]] = {}
        for row in rows:
            names.setdefault(row["label"], []).append(row["filename"])
    _check_classes(stage, {label: len(of_class) for label, of_class in names.items()}, file)
    files = [file.parent / "images" / name for of_class in names.values() for name in of_class]
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(
            f"Expected {missing[0]}, which {file.name} names, but found no such file, and {len(missing):,} are missing "
            "in all: put the images into the folder `images`."
        )
    return Part([*names], files, lambda: with_channels(read_images(files, SIDE), 3))


def _packed(files: list[Path], stage: Stage) -> Part:
    """The images of arrays: those of a class are in all of these files, one after the other."""
    counts: dict[str, int] = {}
    for file in files:
        classes, names = read_arrays(file, "classes", "files")
        if classes.ndim != 1 or names.shape[:1] != classes.shape or names.ndim != 2:
            raise ValueError(
                f"Expected `classes` [classes] and `files` [classes, images] in {file} but got {list(classes.shape)} "
                f"and {list(names.shape)}: copy the file again."
            )
        for label in _text(classes):
            counts[label] = counts.get(label, 0) + names.shape[1]
    _check_classes(stage, counts, files[-1])
    return Part([*counts], files, partial(_unpack, files, [*counts]))


def _unpack(files: Sequence[Path], classes: Sequence[str]) -> Tensor:
    images: dict[str, list[Tensor]] = {label: [] for label in classes}
    for file in files:
        for label, of_class in zip(*_decode(file), strict=True):
            images[label].append(of_class)
    return torch.cat([part for label in classes for part in images[label]])


def _decode(file: Path) -> tuple[list[str], Tensor]:
    """The names of its classes, and their images: uint8 ``[classes, images, 3, SIDE, SIDE]``."""
    labels, names, jpeg, offsets = read_arrays(file, "classes", "files", "jpeg", "offsets")
    if len(offsets) != names.size + 1 or offsets[0] != 0 or offsets[-1] != len(jpeg) or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"Expected `offsets` in {file} to be where each of {names.size} JPEG files begins, and the end of "
            f"{len(jpeg)} bytes, but got others: copy the file again."
        )

    def read(name: str, piece: tuple[int, int]) -> Tensor:
        content = io.BytesIO(jpeg[slice(*piece)].tobytes())
        return read_image(file / name, lambda image: as_pixels(image, SIDE), content)

    with ThreadPoolExecutor() as threads:  # Pillow decodes without holding Python's lock
        images = torch.stack([*threads.map(read, _text(names.flatten()), pairwise(offsets.tolist()))])
    return _text(labels), images.unflatten(0, names.shape)


def _text(names: np.ndarray) -> list[str]:
    return np.char.decode(names, "ascii").tolist()
