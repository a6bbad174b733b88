"""Omniglot (Lake, Salakhutdinov and Tenenbaum 2015, https://doi.org/10.1126/science.aab3050), split as in MAML."""

from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.checks import check_seed, check_wholes
from lightning_maml.data.class_tasks import ClassTasks, Labelled
from lightning_maml.data.episodes import Rotations
from lightning_maml.data.images import read_arrays, read_image
from lightning_maml.data.stream import Stage, sizes_of_stages

PARTS = ("images_background", "images_evaluation")


class OmniglotTasks(ClassTasks):
    """Few-shot classification of Omniglot's characters; inputs ``[T, N, 1, 28, 28]`` in [0, 1], ink 1 and paper 0.

    Arguments that are not described here are those of :class:`~lightning_maml.data.TaskStream`.

    Args:
        root: the folder that holds the official archives as torchvision extracts them,
            ``omniglot-py/images_background/<alphabet>/<character>/*.png`` and the same of ``images_evaluation``; or
            the same images as two arrays, ``images_background.npz`` and ``images_evaluation.npz``, each with ``images``
            ``[characters, drawings, height, width]`` (bool, True is paper) and ``labels [characters, drawings]``.
        ways: ``N``, classes of a task.
        shots: support images of each class.
        queries: query images of each class.
        rotations: ``"classes"``: each character, turned by quarters, is four classes; ``"random"``: each class of each
            task is turned at random; ``"none"``.
        split: the numbers of characters for training, validation and test.
        split_seed: makes the random choice of characters.
        download: fetch the official archives into ``root`` where it has neither layout; needs torchvision.
        test_shots: support images of each class in validation and test; None for ``shots``.
        test_queries: query images of each class in validation and test; None for ``queries``.
        test_ways: classes of a validation or test task; None for ``ways``.

    Raises:
        ValueError: a number is out of range; or, when the images are first needed, a file is damaged.
        FileNotFoundError: ``root`` has neither layout; when the images are first needed.
    """

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 1,
        tasks_per_batch: int = 32,
        rotations: Rotations = "classes",
        split: tuple[int, int, int] = (1100, 100, 423),
        split_seed: int = 0,
        download: bool = False,
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        test_shots: int | None = None,
        test_queries: int | None = None,
        seed: int = 0,
        test_ways: int | None = None,
    ) -> None:
        super().__init__(tasks_per_batch, batches_per_epoch, val_tasks, test_tasks, seed)
        self.sizes = sizes_of_stages(ways=(ways, test_ways), shots=(shots, test_shots), queries=(queries, test_queries))
        if len(split) != 3:
            raise ValueError(f"Expected `split` to be the characters of train, val and test but got {split!r}.")
        check_wholes(1, split=split)
        check_seed(split_seed=split_seed)
        self.root, self.rotations, self.download = Path(root).expanduser(), rotations, download
        self.split, self.split_seed, self.where = tuple(split), split_seed, str(self.root)

    def prepare_data(self) -> None:
        """Downloads the official archives where asked to; Lightning calls it in one process only."""
        if self.download and _layout(self.root) is None:
            from torchvision.datasets import Omniglot

            for part in PARTS:
                Omniglot(str(self.root), background=part == PARTS[0], download=True)

    @cached_property
    def data(self) -> Labelled:
        """All images, each class one character."""
        self.prepare_data()
        images = load_omniglot(self.root)
        characters, drawings = images.shape[:2]
        if sum(self.split) > characters:
            raise ValueError(f"Expected `split` to add up to at most {characters} characters but got {self.split}.")
        labels = torch.arange(characters).repeat_interleave(drawings)
        return Labelled(images.flatten(0, 1), labels, tuple(f"character {number}" for number in range(characters)))

    def classes(self) -> dict[Stage, list[int]]:
        """The characters of each stage, in the order of the random choice."""
        order = torch.randperm(len(self.data.names), generator=torch.Generator().manual_seed(self.split_seed))
        parts = order[: sum(self.split)].split(self.split)
        return {stage: part.tolist() for stage, part in zip(self.sizes, parts, strict=True)}


def load_omniglot(root: str | Path) -> Tensor:
    """All images, 28x28 and inverted: uint8 ``[characters, drawings, 1, 28, 28]``, ink 255 and paper 0.

    Characters are in the order of the official file names (0001_01.png, ...) from either layout, so a split by seed is
    the same from both. Loaded once in a process, unless the files change; errors are those of :class:`OmniglotTasks`.
    """
    root = Path(root).expanduser()
    paths = _layout(root)
    if paths is None:
        folders = " and ".join(f"omniglot-py/{part}/<alphabet>/<character>/*.png" for part in PARTS)
        raise FileNotFoundError(
            f"Expected Omniglot in {root} but found neither the official folders {folders}, nor the arrays "
            f"{' and '.join(f'{part}.npz' for part in PARTS)}. Set `root` to the folder that holds them, or "
            "`download=True` to fetch the former."
        )
    return _load(paths, tuple(path.stat().st_mtime_ns for path in paths))


def _layout(root: Path) -> tuple[Path, ...] | None:
    """The two folders or the two files that ``root`` has; the former first."""
    folders = tuple(root / "omniglot-py" / part for part in PARTS)
    files = tuple(root / f"{part}.npz" for part in PARTS)
    if all(path.is_dir() for path in folders):
        return folders
    return files if all(path.is_file() for path in files) else None


@lru_cache(maxsize=2)
def _load(paths: tuple[Path, ...], modified: tuple[int, ...]) -> Tensor:
    parts = [_read_folder(path) if path.is_dir() else _read_npz(path) for path in paths]
    if len({part.shape[1:] for part in parts}) > 1:
        got = f"[characters, drawings, height, width] = {list(parts[0].shape)} and {list(parts[1].shape)}"
        raise ValueError(f"Expected as many drawings of one size in {paths[0]} and {paths[1]} but got {got}.")
    return torch.cat([_shrink(part) for part in parts])


def _read_npz(path: Path) -> Tensor:
    """True is paper: bool ``[characters, drawings, height, width]``."""
    images, labels = read_arrays(path, "images", "labels")
    if images.dtype != np.bool_ or images.ndim != 4 or 0 in images.shape:
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"Expected `images` in {path} to be bool [characters, drawings, height, width] but got {got}.")
    if labels.shape != images.shape[:2] or (labels != np.arange(len(labels))[:, None]).any():
        wanted = f"{list(images.shape[:2])}, each drawing's character, counted from 0,"
        raise ValueError(f"Expected `labels` in {path} to be {wanted} but got others of shape {list(labels.shape)}.")
    return torch.from_numpy(images)


def _read_folder(folder: Path) -> Tensor:
    """True is paper: bool ``[characters, drawings, height, width]``."""
    drawings = [sorted(character.glob("*.png")) for character in folder.glob("*/*") if character.is_dir()]
    drawings.sort(key=lambda files: [file.name for file in files])  # 0001_01.png: characters have numbers
    counts = sorted({len(files) for files in drawings})
    if len(counts) != 1 or counts == [0]:
        got = f"{counts} of {len(drawings)} characters"
        raise ValueError(f"Expected {folder} to hold <alphabet>/<character>/*.png, as many of each, but got {got}.")
    images = []
    for file in chain(*drawings):
        images.append(read_image(file, lambda image: np.asarray(image.convert("L")) > 127))
        if images[-1].shape != images[0].shape:
            raise ValueError(f"Expected {file} to be of the size {images[0].shape} but got {images[-1].shape}.")
    return torch.from_numpy(np.stack(images)).unflatten(0, (len(drawings), -1))


def _shrink(paper: Tensor) -> Tensor:
    """Ink 255 and paper 0, by antialiased interpolation: uint8 ``[characters, drawings, 1, 28, 28]``."""
    chunks = [
        F.interpolate(1 - chunk.float(), (28, 28), mode="bilinear", antialias=True, align_corners=False)
        for chunk in paper.flatten(0, 1).unsqueeze(1).split(500)  # a bound on memory
    ]
    return (torch.cat(chunks) * 255).round().to(torch.uint8).unflatten(0, paper.shape[:2])
