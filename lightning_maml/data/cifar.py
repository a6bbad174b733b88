"""CIFAR-FS and FC100: the images of CIFAR-100 (Krizhevsky 2009), its classes split in two ways."""

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_maml.data.class_tasks import Labelled
from lightning_maml.data.image_cache import cached
from lightning_maml.data.images import read_arrays
from lightning_maml.data.natural import NaturalTasks
from lightning_maml.data.stream import Stage

BINARY = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin", "cifar-100-binary/fine_label_names.txt")
PYTHON = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")
ARRAYS = ("train_a.npz", "train_b.npz", "val.npz", "test.npz")
BINARY_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
"""Of ``cifar-100-binary.tar.gz``, as https://www.cs.toronto.edu/~kriz/cifar.html gives it."""
IMAGES = 600
"""Of each class."""
SIDE = 32


class CIFAR100Tasks(NaturalTasks):
    """Tasks of CIFAR-100's images; a subclass names its :attr:`benchmark`, the split of the classes.

    Arguments that are not described here are those of :class:`~lightning_maml.data.natural.NaturalTasks`.

    Args:
        root: the folder that holds CIFAR-100 in one of three layouts:

            - ``cifar-100-binary``, the official "binary version": nothing in it is unpickled;
            - ``cifar-100-python``, the official "Python version", which torchvision reads: it unpickles the files once
              it has found them to have the official hashes;
            - arrays, ``train_a.npz``, ``train_b.npz``, ``val.npz`` and ``test.npz``, each with ``classes [C]``, the
              names, and ``residuals [C, M, 3, 32, 32]`` (uint8): red and blue less green, then each row less
              the row above, modulo 256. A class has the images of all files that name it.

            Tasks are the same from each of them: the images of a class are put in the order of their SHA-256.
        download: fetch the official binary version into ``root`` where it has no layout; needs torchvision.
    """

    benchmark: Literal["cifar_fs", "fc100"]
    has_archive = True

    @cached_property
    def data(self) -> Labelled:
        """All images, each class by its official name."""
        if self.download and _layout(self.root) is None:
            from torchvision.datasets import CIFAR100
            from torchvision.datasets.utils import download_and_extract_archive

            url = CIFAR100.url.replace("python", "binary")
            download_and_extract_archive(url, str(self.root), filename=Path(url).name, md5=BINARY_MD5)
        images = load_cifar100(self.root)
        labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
        rows = class_rows()
        stages: tuple[Stage, ...] = tuple(row[self.benchmark] for row in rows)  # type: ignore[misc]
        return Labelled(images.flatten(0, 1), labels, tuple(row["class"] for row in rows), stages)


class CIFARFSTasks(CIFAR100Tasks):
    """CIFAR-FS (Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136): inputs ``[T, N, 3, 32, 32]`` in [0, 1].

    64 classes of CIFAR-100 train, 16 validate and 20 test, with 600 images each; classes of one superclass may be on
    both sides of the split. Of CIFAR-100's 26 pairs of identical images 15 are across it.

    Arguments are those of :class:`~lightning_maml.data.cifar.CIFAR100Tasks`.

    Example:
        >>> tasks = CIFARFSTasks("data/cifar100", ways=5, shots=1, queries=15)
        >>> tasks.sizes["test"]
        {'ways': 5, 'shots': 1, 'queries': 15}
    """

    benchmark = "cifar_fs"


class FC100Tasks(CIFAR100Tasks):
    """FC100 (Oreshkin et al. 2018, https://arxiv.org/abs/1805.10123): inputs ``[T, N, 3, 32, 32]`` in [0, 1].

    60 classes of CIFAR-100 train, 20 validate and 20 test, with 600 images each: 12, 4 and 4 whole superclasses. Of
    CIFAR-100's 26 pairs of identical images 3 are across the split.

    Arguments are those of :class:`~lightning_maml.data.cifar.CIFAR100Tasks`.

    Example:
        >>> tasks = FC100Tasks("data/cifar100", ways=5, shots=5)
        >>> tasks.sizes["train"]
        {'ways': 5, 'shots': 5, 'queries': 15}
    """

    benchmark = "fc100"


def class_rows() -> list[dict[str, str]]:
    """The 100 classes: the ``class``, its ``superclass``, and the stage of it in ``cifar_fs`` and in ``fc100``.

    The splits are those of the papers, as the lists of https://github.com/tristandeleu/pytorch-meta (MIT) have them.
    """
    header, *rows = Path(__file__).with_name("cifar100.tsv").read_text().splitlines()
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


def load_cifar100(root: str | Path) -> Tensor:
    """All images: uint8 ``[100, 600, 3, 32, 32]``, classes as in :func:`class_rows`, each by its images' SHA-256.

    They are read once, kept as :func:`~lightning_maml.data.image_cache.cached` does, and loaded once in a process,
    unless the files change; errors are those of :class:`CIFARFSTasks`.
    """
    root = Path(root).expanduser()
    names = _layout(root)
    if names is None:
        raise FileNotFoundError(
            f"Expected CIFAR-100 in {root} but found no cifar-100-binary or cifar-100-python, the official folders, "
            f"nor the arrays {', '.join(ARRAYS)}: set `root` to the folder that holds them, or `download=True`."
        )
    files = tuple(root / name for name in names)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"Expected CIFAR-100's file {file} beside its others but found none: extract or copy all of them."
            )
    return _load(root, files, tuple(file.stat().st_mtime_ns for file in files))


def _layout(root: Path) -> tuple[str, ...] | None:
    """The files of the layout that ``root`` has, or has a part of."""
    found = (names for names in (BINARY, PYTHON, ARRAYS) if any((root / name).exists() for name in names))
    return next(found, None)


@lru_cache(maxsize=1)
def _load(root: Path, files: tuple[Path, ...], modified: tuple[int, ...]) -> Tensor:
    read = {BINARY[0]: _read_binary, PYTHON[0]: _read_python, ARRAYS[0]: _read_arrays}
    return cached(root, files, "CIFAR-100", lambda: _in_order(read[files[0].relative_to(root).as_posix()](root), root))


def _in_order(images: dict[str, list[Tensor]], root: Path) -> Tensor:
    names = [row["class"] for row in class_rows()]
    if images.keys() != set(names):
        odd = sorted(images.keys() ^ set(names))
        raise ValueError(f"Expected the 100 classes of CIFAR-100 in {root} but {odd[0]!r} is missing or none of them.")
    classes = []
    for name in names:
        of_class = torch.cat(images[name])
        if len(of_class) != IMAGES:
            raise ValueError(
                f"Expected {IMAGES} images of {name} in {root} but got {len(of_class)}: extract or copy it again."
            )
        rows = of_class.permute(0, 2, 3, 1).contiguous().numpy()  # the bytes: rows x columns x red, green, blue
        digests = [hashlib.sha256(row.data).digest() for row in rows]
        classes.append(of_class[sorted(range(IMAGES), key=digests.__getitem__)])
    return torch.stack(classes)


def _read_arrays(root: Path) -> dict[str, list[Tensor]]:
    images: dict[str, list[Tensor]] = {}
    for name in ARRAYS:
        residuals, classes = read_arrays(root / name, "residuals", "classes")
        wanted = (*classes.shape, *residuals.shape[1:2], 3, SIDE, SIDE)
        if residuals.dtype != np.uint8 or residuals.shape != wanted or classes.dtype.kind != "S":
            raise ValueError(
                f"Expected `residuals` in {root / name} to be uint8 [classes, images, 3, {SIDE}, {SIDE}] and `classes` "
                f"their names but got {residuals.dtype} {list(residuals.shape)} and {classes.dtype} "
                f"{list(classes.shape)}: copy the file again."
            )
        residuals[:, :, [0, 2]] += residuals[:, :, [1]]
        pixels = torch.from_numpy(residuals.cumsum(axis=3, dtype=np.uint8))
        for label, of_class in zip(classes.tolist(), pixels, strict=True):
            images.setdefault(label.decode(), []).append(of_class)
    return images


def _read_binary(root: Path) -> dict[str, list[Tensor]]:
    names = (root / BINARY[2]).read_text().split()
    images: dict[str, list[Tensor]] = {}
    for name in BINARY[:2]:
        content = np.fromfile(root / name, np.uint8)
        length = 2 + 3 * SIDE * SIDE  # superclass, class, pixels
        if len(content) == 0 or len(content) % length:
            raise ValueError(
                f"Expected {root / name} to hold rows of {length} bytes but got {len(content)} bytes: extract it again."
            )
        rows = torch.from_numpy(content).view(-1, length)
        _sort_into(images, names, rows[:, 1].long(), rows[:, 2:].view(-1, 3, SIDE, SIDE), root / name)
    return images


def _read_python(root: Path) -> dict[str, list[Tensor]]:
    from torchvision.datasets import CIFAR100

    images: dict[str, list[Tensor]] = {}
    for name, train in zip(PYTHON[:2], (True, False), strict=True):
        try:
            data = CIFAR100(str(root), train=train)
        except RuntimeError as error:  # of a hash that is another
            raise ValueError(
                f"Expected CIFAR-100's official files in {root / name} but torchvision refuses them ({error}): extract "
                "the archive again."
            ) from error
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2)
        _sort_into(images, data.classes, torch.tensor(data.targets), pixels, root / name)
    return images


def _sort_into(images: dict[str, list[Tensor]], names: list[str], labels: Tensor, pixels: Tensor, file: Path) -> None:
    if (greatest := int(labels.max())) >= len(names):
        raise ValueError(f"Expected labels below {len(names)} in {file} but got {greatest}: extract the archive again.")
    for label in labels.unique().tolist():
        images.setdefault(names[label], []).append(pixels[labels == label])
