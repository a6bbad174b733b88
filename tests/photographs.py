"""CIFAR-100 and mini-ImageNet in little: made-up images in the layouts that are read, a few of each class."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_maml.data import cifar, mini_imagenet

CIFAR_IMAGES = 4
MINI_IMAGES = 3
MINI_CLASSES = {"train": 3, "val": 2, "test": 2}


def shrink(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """The data sets have as few images as here, and are kept in a cache of the test's own."""
    patch.setenv("LIGHTNING_MAML_CACHE", str(cache))
    patch.setattr(cifar, "IMAGES", CIFAR_IMAGES)
    patch.setattr(mini_imagenet, "IMAGES", MINI_IMAGES)
    patch.setattr(mini_imagenet, "CLASSES", MINI_CLASSES)


# CIFAR-100


def cifar_images() -> dict[str, np.ndarray]:
    """By class, uint8 ``[images, 3, 32, 32]``; the names in the order of the alphabet, as the official labels are."""
    names = sorted(row["class"] for row in cifar.class_rows())
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (len(names), CIFAR_IMAGES, 3, 8, 8), dtype=np.uint8)
    return dict(zip(names, coarse.repeat(4, 3).repeat(4, 4), strict=True))


def write_binary(root: Path) -> Path:
    """The official "binary version": the last image of a class is in ``test.bin``."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    images = cifar_images()
    (folder / "fine_label_names.txt").write_text("".join(f"{name}\n" for name in images))
    for name, part in (("train", slice(0, -1)), ("test", slice(-1, None))):
        rows = [b"\0" + bytes([label]) + image.tobytes() for label, image in _labelled(images, part)]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))
    return root


def write_python(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """The official "Python version", whose hashes torchvision then expects."""
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    from torchvision.datasets.utils import calculate_md5

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    images = cifar_images()
    for name, part in (("train", slice(0, -1)), ("test", slice(-1, None))):
        labels, pixels = zip(*_labelled(images, part), strict=True)
        content = {"data": np.stack(pixels).reshape(len(labels), -1), "fine_labels": list(labels)}
        (folder / name).write_bytes(pickle.dumps(content))
        patch.setattr(datasets.CIFAR100, f"{name}_list", [[name, calculate_md5(folder / name)]])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(images)}))
    patch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": calculate_md5(folder / "meta")})
    return root


def write_residuals(root: Path) -> Path:
    """The arrays: half of the images of a training class are in each of two files."""
    root.mkdir(parents=True, exist_ok=True)
    images, half = cifar_images(), CIFAR_IMAGES // 2
    stages = {row["class"]: row["cifar_fs"] for row in cifar.class_rows()}
    whole = slice(None)
    files = {"train_a": ("train", slice(half)), "train_b": ("train", slice(half, None))}
    for name, (stage, part) in (files | {"val": ("val", whole), "test": ("test", whole)}).items():
        classes = [label for label in images if stages[label] == stage]
        residuals = np.stack([images[label][part] for label in classes])
        residuals[:, :, [0, 2]] -= residuals[:, :, [1]]
        residuals[..., 1:, :] = np.diff(residuals, axis=3)
        np.savez_compressed(root / f"{name}.npz", residuals=residuals, classes=np.array(classes, "S16"))
    return root


def _labelled(images: dict[str, np.ndarray], part: slice) -> Iterator[tuple[int, np.ndarray]]:
    for label, of_class in enumerate(images.values()):
        for image in of_class[part]:
            yield label, image


# mini-ImageNet


def mini_files(stage: str, side: int = mini_imagenet.SIDE) -> dict[str, dict[str, bytes]]:
    """The JPEG files of a stage, by class and name."""
    image_module = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    first = {"train": 0, "val": 3, "test": 5}[stage]
    files: dict[str, dict[str, bytes]] = {}
    for label in range(first, first + MINI_CLASSES[stage]):
        for index in range(MINI_IMAGES):
            random, content = np.random.default_rng((label, index)), io.BytesIO()
            coarse = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
            image = image_module.fromarray(coarse).resize((side, side))
            image.save(content, "JPEG", quality=95)
            files.setdefault(f"n{label:08d}", {})[f"n{label:08d}{index:08d}.jpg"] = content.getvalue()
    return files


def write_lists(root: Path, **options: Any) -> Path:
    """The official lists, and the files that they name."""
    (root / "images").mkdir(parents=True)
    for stage in MINI_CLASSES:
        with (root / f"{stage}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for label, of_class in mini_files(stage, **options).items():
                for name, content in of_class.items():
                    (root / "images" / name).write_bytes(content)
                    rows.writerow([name, label])
    return root


def write_packed(root: Path, *, training: bool = True) -> Path:
    """The arrays: the first image of a training class is in one file, the others are in another."""
    root.mkdir(parents=True, exist_ok=True)
    whole = slice(None)
    parts = {"val": ("val", whole), "test": ("test", whole)}
    if training:
        parts |= {"train_a": ("train", slice(1)), "train_b": ("train", slice(1, None))}
    for name, (stage, part) in parts.items():
        files = {label: [*of_class.items()][part] for label, of_class in mini_files(stage).items()}
        contents = [content for of_class in files.values() for _, content in of_class]
        np.savez_compressed(
            root / f"{name}.npz",
            jpeg=np.frombuffer(b"".join(contents), np.uint8),
            offsets=np.array([0, *accumulate(map(len, contents))]),
            classes=np.array([*files], "S9"),
            files=np.array([[name for name, _ in of_class] for of_class in files.values()], "S21"),
        )
    return root
