"""Omniglot in little: made-up drawings, in both layouts on disk, and a data module of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_maml.data import OmniglotTasks

CHARACTERS = {"images_background": 4, "images_evaluation": 3}
DRAWINGS, SIDE = 4, 21


def drawings() -> dict[str, np.ndarray]:
    """Random thick strokes on paper (True), bool [characters, drawings, height, width]."""
    random, size = np.random.default_rng(0), SIDE // 3
    coarse = {part: random.random((number, DRAWINGS, size, size)) > 0.3 for part, number in CHARACTERS.items()}
    return {part: images.repeat(3, 2).repeat(3, 3) for part, images in coarse.items()}


def write_npz(root: Path) -> Path:
    for part, images in drawings().items():
        labels = np.arange(len(images))[:, None].repeat(DRAWINGS, 1)
        np.savez_compressed(root / f"{part}.npz", images=images, labels=labels)
    return root


def write_folders(root: Path) -> Path:
    """The official layout. Alphabets in reverse order: only the numbers in the file names tell the order."""
    image_module = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    number = 0
    for part, images in drawings().items():
        for index, character in enumerate(images):
            number += 1
            folder = root / "omniglot-py" / part / f"Alphabet_{'ba'[index % 2]}" / f"character{index // 2 + 1:02d}"
            folder.mkdir(parents=True)
            for person, drawing in enumerate(character):
                image_module.fromarray(drawing).save(folder / f"{number:04d}_{person + 1:02d}.png")
    return root


def small(root: Path, **options: Any) -> OmniglotTasks:
    return OmniglotTasks(root, **{"ways": 2, "tasks_per_batch": 4, "split": (3, 2, 2), **options})


def write_classes(root: Path, classes: int = 6, number: int = 6, *, first: int = 0, colour: bool = False) -> Path:
    """A folder for each class, ``class_00/0.png``: a bar at a place of the class's own, with a few specks."""
    image_module = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    for label in range(first, first + classes):
        folder = root / f"class_{label:02d}"
        folder.mkdir(parents=True)
        for index in range(number):
            image_module.fromarray(bar(label, index, colour)).save(folder / f"{index}.png")
    return root


def bar(label: int, index: int, colour: bool = False) -> np.ndarray:
    """One image of a class, uint8 ``[12, 10]``, in colour ``[12, 10, 3]``."""
    pixels = np.random.default_rng((label, index)).integers(0, 60, (12, 10))
    pixels[label % 12] = 250
    return (pixels[..., None] - [0, 0, 20 * colour]).clip(0).astype(np.uint8)[..., : 3 if colour else 1].squeeze()
