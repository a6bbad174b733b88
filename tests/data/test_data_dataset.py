"""Data sets of labelled images: tensors, Pillow's images and columns give the same tasks; what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from drawings import bar, write_classes
from lightning_maml.data import DatasetTasks, FolderTasks

SMALL: dict[str, Any] = {"ways": 2, "queries": 2, "split": (0.4, 0.3, 0.3), "tasks_per_batch": 3}
COLOUR = [(Image.fromarray(bar(label, index, colour=label == 3)), label) for label in range(6) for index in range(6)]
GREY = [(Image.fromarray(bar(label, index)), f"c{label}") for label in range(6) for index in range(6)]


def tasks_of(dataset: Any, **options: Any) -> DatasetTasks:
    return DatasetTasks(dataset, **{**SMALL, **options})


def test_pillows_images_columns_tensors_and_a_folder_give_the_same_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "cache"))
    folder = FolderTasks(write_classes(tmp_path / "images"), **SMALL, size=8)
    streams = [
        tasks_of(GREY, size=8),
        tasks_of([{"picture": image, "kind": name} for image, name in GREY], image="picture", label="kind", size=8),
        tasks_of(TensorDataset(folder.data.images, folder.data.labels)),
    ]
    for stage in ("train", "val", "test"):
        expected = folder.sample(stage, 1)
        assert expected.query_inputs.shape == (3, 4, 1, 8, 8)
        for stream in streams:
            for (_, ours), (_, theirs) in zip(stream.sample(stage, 1).named(), expected.named(), strict=True):
                assert torch.equal(ours, theirs)


def test_images_in_colour_and_floating_ones(tmp_path: Path) -> None:
    assert tasks_of(COLOUR).sample("train", 0).support_inputs.shape == (3, 2, 3, 12, 10)
    images = torch.randn(36, 2, 5, 5, dtype=torch.float64)
    drawn = tasks_of(TensorDataset(images, torch.arange(36) % 6)).sample("train", 0).query_inputs.flatten(0, 1)
    assert all((images == image).flatten(1).all(1).any() for image in drawn)


def test_flips_and_crops_are_of_training_images_alone() -> None:
    plain, augmented = tasks_of(GREY), tasks_of(GREY, flips=True, crops=2)
    assert torch.equal(plain.sample("test", 0).query_inputs, augmented.sample("test", 0).query_inputs)
    assert not torch.equal(plain.sample("train", 0).query_inputs, augmented.sample("train", 0).query_inputs)


class Torn:
    """A data set without a length."""

    def __getitem__(self, index: int) -> Any:
        return COLOUR[index]


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no length": (
        Torn(),
        {},
        (
            "Expected `dataset` to have a length and rows by number, as a torch Dataset, but got Torn: an iterable one "
            "becomes list(dataset)."
        ),
    ),
    "empty": ([], {}, "Expected images in `dataset` but got an empty list."),
    "sizes": (
        [*GREY, (Image.new("L", (3, 4)), "c1")],
        {},
        (
            "Expected images of one shape in `dataset` but got [3, 12, 10] and, of row 36, [3, 4, 3]: set `size` for "
            "Pillow's images, or resize them by the data set's transform."
        ),
    ),
    "columns": (
        [{"img": None, "fine_label": 1}],
        {},
        (
            "Expected the columns `image='image'` and `label='label'` in `dataset` but got img, fine_label: name those "
            "that hold them."
        ),
    ),
    "three parts": (
        [(1, 2, 3)],
        {},
        "Expected (image, label) in row 0 of `dataset`, or columns of these names, but got tuple of 3.",
    ),
    "a label that is none": (
        [(GREY[0][0], 0.5)],
        {},
        "Expected a whole number or text as label in row 0 of `dataset` but got float.",
    ),
    "no image": ([("a.png", 1)], {}, "Expected a tensor or Pillow's image in row 0 of `dataset` but got str."),
    "too few images": (
        GREY[:-3],
        {"queries": 4},
        (
            "Expected at least test_shots + test_queries = 1 + 4 images of each class but got 3 of class c5: add "
            "images, remove the class, or lower `test_queries`."
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_sets_are_refused_in_one_line(case: str) -> None:
    dataset, options, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        tasks_of(dataset, **options).setup("fit")


def test_hugging_faces_datasets() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    rows: Sequence[Any] = [{"image": image, "label": label} for image, label in COLOUR]
    stream = tasks_of(datasets.Dataset.from_list(rows))
    assert torch.equal(stream.sample("val", 0).query_inputs, tasks_of(COLOUR).sample("val", 0).query_inputs)
