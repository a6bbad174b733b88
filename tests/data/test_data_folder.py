"""Folders of images: both layouts, the split, the cache, the same tasks again, new images labelled, what is refused."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from drawings import bar, write_classes
from lightning_maml import MetaModule, maml
from lightning_maml.data import FolderTasks, image_cache
from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.class_tasks import draw_stages
from lightning_maml.data.image_cache import cache_folder
from lightning_maml.data.images import SUFFIXES, as_pixels, read_images, with_channels

SMALL: dict[str, Any] = {"ways": 2, "queries": 2, "size": 8, "split": (1 / 3, 1 / 3, 1 / 3), "tasks_per_batch": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which nothing but images is kept in."""
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images")


def folder(root: Path, **options: Any) -> FolderTasks:
    return FolderTasks(root, **{**SMALL, **options})


def module(**options: Any) -> MetaModule:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    return MetaModule(network, maml(lr=0.5, steps=3), loss="cross_entropy", engine="batched", **options)


def trainer(**options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **{"max_steps": 2, **quiet, **options})


def write_stages(root: Path) -> Path:
    for first, stage in enumerate(("train", "val", "test")):
        write_classes(root / stage, 2, 4, first=2 * first)
    return root


# The images


def test_tasks_have_the_shapes_asked_for_and_images_of_one_class_each(root: Path) -> None:
    tasks = folder(root, shots=2, queries=3, size=12).sample("train", 0)
    assert tasks.support_inputs.shape == (3, 4, 1, 12, 12)
    assert tasks.query_inputs.shape == (3, 6, 1, 12, 12)
    assert tasks.query_inputs.dtype == torch.float32
    assert tasks.query_targets[0].tolist() == [0, 0, 0, 1, 1, 1]
    bars = tasks.query_inputs[:, :, 0].sum(-1).argmax(-1).view(3, 2, 3)  # the row of a class's bar
    assert (bars == bars[..., :1]).all()
    assert (bars[:, 0] != bars[:, 1]).all()


def test_images_are_kept_as_bytes_and_pillow_resizes_them(root: Path) -> None:
    data = folder(root).data
    assert data.images.dtype == torch.uint8
    assert data.images.shape == (36, 1, 8, 8)
    with Image.open(root / "class_03" / "4.png") as image:
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    assert np.abs(data.images[3 * 6 + 4, 0].numpy().astype(int) - expected).max() <= 1
    assert data.labels.tolist() == [label for label in range(6) for _ in range(6)]


def test_the_split_is_by_classes_and_by_seed(root: Path) -> None:
    classes = {}
    for seed in (0, 1):
        samplers = folder(root, split_seed=seed).samplers
        classes[seed] = {stage: set(sampler.classes.tolist()) for stage, sampler in samplers.items()}
        assert [len(own) for own in classes[seed].values()] == [2, 2, 2]
        assert set.union(*classes[seed].values()) == set(range(6))
    assert classes[0] != classes[1]
    assert [draw_stages(60, (0.7, 0.15, 0.15), 0).count(stage) for stage in ("train", "val", "test")] == [42, 9, 9]
    assert draw_stages(7, (1, 0, 0), 3) == ("train",) * 7


def test_folders_train_val_and_test_are_the_split(tmp_path: Path) -> None:
    stream = folder(write_stages(tmp_path / "stages"))
    names = {stage: [stream.data.names[label] for label in one.classes] for stage, one in stream.samplers.items()}
    assert {stage: {Path(name).parent.name for name in of_stage} for stage, of_stage in names.items()} == {
        "train": {"train"},
        "val": {"val"},
        "test": {"test"},
    }
    shutil.rmtree(tmp_path / "stages" / "test")
    assert [*folder(tmp_path / "stages", test_tasks=0).samplers] == ["train", "val"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "vehicles")
    (root / "class_00").rename(root / "train")
    assert folder(root).data.stages is None


def test_files_that_are_no_images_hidden_ones_and_folders_below_a_class(root: Path) -> None:
    before = folder(root).data
    (root / "readme.txt").write_text("of the data")
    (root / "class_00" / "notes.txt").write_text("of a class")
    (root / "class_00" / "._0.png").write_bytes(b"a Mac's")
    (root / ".hidden").mkdir()
    (root / "class_05" / "more").mkdir()
    (root / "class_05" / "5.png").rename(root / "class_05" / "more" / "5.PNG")
    after = folder(root).data
    assert torch.equal(before.images, after.images)
    assert before.names == after.names


def test_one_image_in_colour_makes_all_have_three_channels(root: Path, tmp_path: Path) -> None:
    grey = folder(root).data.images
    Image.fromarray(bar(0, 0, colour=True)).save(root / "class_00" / "0.png")
    mixed = folder(root).data.images
    assert mixed.shape == (36, 3, 8, 8)
    assert torch.equal(mixed[1:], grey[1:].expand(-1, 3, -1, -1))
    assert not torch.equal(mixed[0, 0], mixed[0, 2])
    assert folder(root, channels=1).data.images.shape == (36, 1, 8, 8)
    assert (
        folder(write_classes(tmp_path / "grey", colour=False), channels=3).sample("val", 0).query_inputs.shape[2] == 3
    )


def test_grey_is_pillows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    ours = with_channels(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0), 1)
    assert np.array_equal(ours[0, 0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))


def test_kinds_of_images() -> None:
    ramp = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    assert as_pixels(Image.fromarray(ramp), None)[0].flatten().tolist() == [*range(0, 256, 16)]
    ink = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    ink.putpixel((1, 0), (0, 0, 0, 255))
    assert as_pixels(ink, None)[:, 0].tolist() == [[255, 0]] * 3  # black on paper, and not on black
    turned = Image.new("L", (3, 2))
    turned.getexif()[0x0112] = 6  # what a camera that was held upright writes
    assert as_pixels(turned, None).shape == (3, 3, 2)


def test_every_suffix_is_one_that_pillow_reads() -> None:
    assert set(SUFFIXES) <= set(Image.registered_extensions())


# The cache


def test_images_are_read_once_until_a_file_changes(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(files: list[Path], size: int) -> torch.Tensor:
        calls.append(size)
        return read_images(files, size)

    monkeypatch.setattr(image_cache, "read_images", counted)
    first = folder(root).data.images
    assert torch.equal(folder(root).data.images, first)
    assert calls == [8]
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
    assert cache == cache_folder()
    folder(root, size=6).data  # noqa: B018
    assert calls == [8, 6]
    Image.fromarray(bar(7, 7)).save(root / "class_00" / "0.png")
    os.utime(root / "class_00" / "0.png", (1, 1))
    changed = folder(root).data.images
    assert not torch.equal(changed[0], first[0])
    assert torch.equal(changed[1:], first[1:])
    (root / "class_05" / "5.png").unlink()
    assert len(folder(root).data.images) == 35
    assert calls == [8, 6, 8, 8]
    assert len([*cache.iterdir()]) == 2  # one for each size: an old one is replaced


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: content[:-9] + b"\1" * 9, lambda _: b""]
)
def test_a_damaged_cache_is_made_anew(root: Path, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    first = folder(root).data.images
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert torch.equal(folder(root).data.images, first)
    assert file.read_bytes() == content


def test_without_a_place_for_the_cache_images_are_read_each_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"keep the images of .* they are read again the next time"):
        assert len(folder(root).data.images) == 36


# Augmentation


def test_flips_and_crops_are_of_training_images_alone(root: Path) -> None:
    plain, augmented = folder(root), folder(root, flips=True, crops=2)
    assert torch.equal(plain.sample("val", 0).query_inputs, augmented.sample("val", 0).query_inputs)
    ours, theirs = augmented.sample("train", 1), augmented.sample("train", 1)
    assert torch.equal(ours.support_inputs, theirs.support_inputs)
    assert not torch.equal(ours.support_inputs, plain.sample("train", 1).support_inputs)


def test_augmented_images_are_cut_out_of_padded_ones() -> None:
    images = torch.rand(50, 3, 6, 5)
    augmentation = Augmentation(flips=True, crops=2)
    flips, places = augmentation.draw(torch.Size([50]), torch.Generator().manual_seed(0))
    assert (places.amin(), places.amax(), flips.float().mean().round(decimals=1) < 1) == (0, 4, True)
    padded = nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    for image, one, flip, (row, column) in zip(
        padded, augmentation.apply(images, (flips, places)), flips, places.tolist(), strict=True
    ):
        cut = image[:, row : row + 6, column : column + 5]
        assert torch.equal(one, cut.flip(-1) if flip else cut)
    assert Augmentation().apply(images, ()) is images


# Training and prediction


def test_a_stopped_run_goes_on_with_the_same_tasks(root: Path, tmp_path: Path) -> None:
    options = {"flips": True, "crops": 1, "batches_per_epoch": 2, "val_tasks": 0}
    parameters = []
    for stops in ([4], [3, 4]):
        torch.manual_seed(0)
        one, path = module(), None
        for stop in stops:
            train = trainer(max_steps=stop)
            train.fit(one, folder(root, **options), ckpt_path=path)
            path = tmp_path / "stopped.ckpt"
            train.save_checkpoint(path)
        parameters.append([parameter.detach().clone() for parameter in one.parameters()])
    assert all(torch.equal(once, twice) for once, twice in zip(*parameters, strict=True))


def test_new_images_are_labelled_from_unequal_examples(root: Path, tmp_path: Path) -> None:
    one = module()
    trainer(max_steps=20).fit(one, folder(root, val_tasks=0))
    examples = write_classes(tmp_path / "examples", 2, 3, first=8)
    (examples / "class_09" / "2.png").unlink()
    new = tmp_path / "new"
    new.mkdir()
    for index in range(6):
        Image.fromarray(bar(8 + index % 2, 100 + index)).save(new / f"{index}.png")
    stream = folder(root, examples=examples, new=new)
    outputs = trainer().predict(one, stream)
    assert [output.shape for output in outputs or []] == [(1, 6, 2)]
    table = stream.predictions(outputs or [])  # type: ignore[arg-type]
    assert [*table.columns] == ["file", "prediction", "probability of class_08", "probability of class_09"]
    assert table["file"].tolist() == [f"{index}.png" for index in range(6)]
    assert table["prediction"].tolist() == ["class_08", "class_09"] * 3
    np.testing.assert_allclose(table.iloc[:, 2:].sum(axis=1), 1, rtol=1e-6)


def test_many_new_images_come_in_batches_with_the_same_support(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_maml.data.folder.AT_ONCE", 3)
    new = write_classes(tmp_path / "new", 1, 7)
    stream = folder(root, examples=write_classes(tmp_path / "examples", 2, 2), new=new / "class_00", channels=1)
    shutil.rmtree(root)  # prediction needs no training images where `channels` is given
    outputs = trainer().predict(module(), stream)
    assert [output.shape[1] for output in outputs or []] == [3, 3, 1]
    assert len(stream.predictions(outputs or [])) == 7  # type: ignore[arg-type]


def test_without_examples_the_test_tasks_are_predicted(root: Path) -> None:
    outputs = trainer().predict(module(), folder(root, test_tasks=4))
    assert [output.shape for output in outputs or []] == [(3, 4, 2), (1, 4, 2)]
    assert folder(root).predictions([]) is None


# What is refused, each before training and in one line

CLASSES = "Expected a folder of images for each class in {root} but found no folder: move the images of each class into a folder of the class's name."  # noqa: E501
NONE = "Expected images in {root}/class_02 but found no file whose name ends with one of .bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp: add images or remove the folder."  # noqa: E501
REFUSED: dict[str, tuple[dict[str, Any], Callable[[Path], Any], str]] = {
    "no root": (
        {},
        lambda root: root.rename(root.with_name("elsewhere")),
        "Expected a folder of images but found none at {root}: correct the path.",
    ),
    "no class folders": ({}, lambda root: [shutil.rmtree(one) for one in root.iterdir()], CLASSES),
    "a class without images": ({}, lambda root: [one.unlink() for one in (root / "class_02").iterdir()], NONE),
    "an image that is none": (
        {},
        lambda root: (root / "class_02" / "1.png").write_text("<html>"),
        (
            "Expected {root}/class_02/1.png to be an image but reading it failed (UnidentifiedImageError: cannot "
            "identify image file '{root}/class_02/1.png'): replace or remove it."
        ),
    ),
    "a class with too few images": (
        {"queries": 4},
        lambda root: [(root / "class_02" / f"{index}.png").unlink() for index in range(2)],
        (
            "Expected at least test_shots + test_queries = 1 + 4 images of each class but got 4 of {root}/class_02: "
            "add images, remove the class, or lower `test_queries`."
        ),
    ),
    "too few classes": (
        {"ways": 3},
        lambda root: None,
        (
            "Expected at least ways = 3 classes for training in {root} but got 2, the share that `split` gives it of "
            "6: add classes, or set another `split`, or `ways`."
        ),
    ),
    "too few classes for validation": (
        {"test_ways": 3},
        lambda root: None,
        (
            "Expected at least test_ways = 3 classes for validation in {root} but got 2, the share that `split` gives "
            "it of 6: add classes, or set another `split`, or `val_tasks=0` for no validation, or `test_ways`."
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_folders_are_refused_in_one_line(root: Path, case: str) -> None:
    options, damage, message = REFUSED[case]
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        trainer().fit(module(), folder(root, **options))
    assert str(raised.value) == message.format(root=root)


PREDICTION = {
    "other classes": (
        lambda one: write_classes(one / "examples", 3, 1),
        (
            "Expected as many class folders in {one}/examples as the network has outputs, ways = 2, but got 3: "
            "class_00, class_01, class_02. Train with `ways=3` to tell so many apart."
        ),
    ),
    "nothing new": (
        lambda one: write_classes(one / "examples", 2, 1),
        (
            "Expected images in {one}/new but found no file whose name ends with one of .bmp, .gif, .jpeg, .jpg, .pgm, "
            ".png, .ppm, .tif, .tiff, .webp: add images or remove the folder."
        ),
    ),
    "no examples": (
        lambda one: None,
        "Expected a folder of images but found none at {one}/examples: correct the path.",
    ),
}


@pytest.mark.parametrize("case", PREDICTION)
def test_bad_folders_of_prediction_are_refused_in_one_line(root: Path, tmp_path: Path, case: str) -> None:
    prepare, message = PREDICTION[case]
    (tmp_path / "new").mkdir()
    prepare(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        trainer().predict(module(), folder(root, examples=tmp_path / "examples", new=tmp_path / "new"))
    assert str(raised.value) == message.format(one=tmp_path)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "examples alone": (
        {"examples": "a"},
        "Expected `new` beside `examples` but got None: prediction needs both folders.",
    ),
    "new alone": ({"new": "a"}, "Expected `examples` beside `new` but got None: prediction needs both folders."),
    "channels": ({"channels": 2}, "Expected `channels` to be one of ['auto', 1, 3] but got 2."),
    "size": ({"size": 0}, "Expected `size` to be a whole number of at least 1 but got 0."),
    "crops": ({"crops": -1}, "Expected `crops` to be a whole number of at least 0 but got -1."),
    "split of two": (
        {"split": (0.5, 0.5)},
        "Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got [0.5, 0.5].",
    ),
    "split below 0": (
        {"split": (1, -1, 1)},
        "Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got [1, -1, 1].",
    ),
    "split without training": (
        {"split": (0, 0.5, 0.5)},
        "Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got [0, 0.5, 0.5].",
    ),
    "split above 1": (
        {"split": (0.7, 0.7, 0.7)},
        "Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got [0.7, 0.7, 0.7].",
    ),
    "rotations": (
        {"rotations": "all"},
        "Expected `rotations` to be one of ['none', 'random', 'classes'] but got 'all'.",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments_are_refused_in_one_line(case: str) -> None:
    options, message = ARGUMENTS[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        folder(Path("nowhere"), **options)
