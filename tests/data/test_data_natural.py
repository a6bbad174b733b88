"""CIFAR-FS, FC100 and mini-ImageNet: every layout, the splits, the same tasks again, the real images, damaged files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_maml import MetaModule, TaskBatch, maml
from lightning_maml.data import CIFARFSTasks, FC100Tasks, MiniImagenetTasks, TaskStream, cifar, load_cifar100
from lightning_maml.data import mini_imagenet as mini
from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.images import as_pixels, read_image
from photographs import (
    CIFAR_IMAGES,
    MINI_CLASSES,
    MINI_IMAGES,
    cifar_images,
    shrink,
    write_binary,
    write_lists,
    write_packed,
    write_python,
    write_residuals,
)

SMALL: dict[str, Any] = {"ways": 2, "shots": 1, "queries": 2, "tasks_per_batch": 3, "val_tasks": 4, "test_tasks": 4}


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data sets in little; a cache of the test's own."""
    shrink(monkeypatch, tmp_path / "cache")
    return tmp_path / "images"


def cifar_fs(root: Path, **options: Any) -> CIFARFSTasks:
    return CIFARFSTasks(root, **{**SMALL, **options})


def mini_imagenet(root: Path, **options: Any) -> MiniImagenetTasks:
    return MiniImagenetTasks(root, **{**SMALL, **options})


def values(tasks: TaskBatch) -> list[Tensor]:
    return [value for _, value in tasks.named()]


def same(one: TaskBatch, other: TaskBatch) -> bool:
    return all(torch.equal(*pair) for pair in zip(values(one), values(other), strict=True))


# The splits


@pytest.mark.parametrize(("benchmark", "numbers"), [("cifar_fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_splits_share_no_class(benchmark: str, numbers: tuple[int, ...]) -> None:
    rows = cifar.class_rows()
    assert len({row["class"] for row in rows}) == len(rows) == 100
    assert Counter(row["superclass"] for row in rows) == dict.fromkeys({row["superclass"] for row in rows}, 5)
    assert Counter(row[benchmark] for row in rows) == dict(zip(("train", "val", "test"), numbers, strict=True))


def test_the_superclasses_of_fc100_are_whole() -> None:
    pairs = {(row["superclass"], row["fc100"]) for row in cifar.class_rows()}
    assert Counter(stage for _, stage in pairs) == {"train": 12, "val": 4, "test": 4}


@pytest.mark.parametrize("kind", [CIFARFSTasks, FC100Tasks])
def test_tasks_are_of_their_stages_classes(little: Path, kind: Any) -> None:
    stream = kind(write_binary(little), **SMALL, flips=False)
    rows = cifar.class_rows()
    names = cifar_images()
    for stage in ("train", "val", "test"):
        of_stage = {row["class"] for row in rows if row[kind.benchmark] == stage}
        assert {stream.data.names[label] for label in stream.samplers[stage].classes} == of_stage
        tasks = stream.sample(stage, 0)
        assert tasks.support_inputs.shape == (3, 2, 3, 32, 32)
        assert tasks.query_inputs.shape == (3, 4, 3, 32, 32)
        drawn = torch.cat([tasks.support_inputs.unflatten(1, (2, 1)), tasks.query_inputs.unflatten(1, (2, 2))], 2)
        for of_class in drawn.flatten(0, 1):
            pixels = (of_class * 255).round().to(torch.uint8).numpy()
            where = [{name for name, known in names.items() if (known == one).all((1, 2, 3)).any()} for one in pixels]
            assert len(where[0] & of_stage) == 1
            assert where[0] == where[1] == where[2]
            assert len(np.unique(pixels, axis=0)) == 3


# The layouts


def test_every_layout_of_cifar_gives_the_same_images(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = write_binary(little / "b"), write_python(little / "p", monkeypatch), write_residuals(little / "a")
    binary, python, arrays = map(load_cifar100, roots)
    assert binary.shape == (100, CIFAR_IMAGES, 3, 32, 32)
    assert binary.dtype == torch.uint8
    assert torch.equal(binary, python)
    assert torch.equal(binary, arrays)
    known = cifar_images()
    for row, of_class in zip(cifar.class_rows(), binary.numpy(), strict=True):
        channels_last = [image.transpose(1, 2, 0).tobytes() for image in known[row["class"]]]
        ordered = sorted(channels_last, key=lambda image: hashlib.sha256(image).digest())
        assert [image.transpose(1, 2, 0).tobytes() for image in of_class] == ordered


def test_both_layouts_of_mini_imagenet_give_the_same_tasks(little: Path) -> None:
    lists, packed = mini_imagenet(write_lists(little / "lists")), mini_imagenet(write_packed(little / "packed"))
    assert lists.data.names == packed.data.names == tuple(f"n{label:08d}" for label in range(7))
    assert lists.data.images.shape == (7 * MINI_IMAGES, 3, 84, 84)
    assert torch.equal(lists.data.images, packed.data.images)
    assert {stage: len(one.classes) for stage, one in lists.samplers.items()} == MINI_CLASSES
    assert all(same(lists.sample(stage, 0), packed.sample(stage, 0)) for stage in ("train", "val", "test"))
    first = read_image(little / "lists" / "images" / "n0000000000000000.jpg", lambda image: as_pixels(image, None))
    assert torch.equal(lists.data.images[0], first)


def test_larger_images_of_mini_imagenet_are_resized(little: Path) -> None:
    assert mini_imagenet(write_lists(little, side=100)).data.images.shape == (7 * MINI_IMAGES, 3, 84, 84)


def test_without_training_classes_there_is_validation_and_test(little: Path) -> None:
    stream = mini_imagenet(write_packed(little, training=False))
    for stage in ("validate", "test", "predict"):
        stream.setup(stage)
    assert [stream.sample(stage, 0).query_inputs.shape[0] for stage in ("val", "test")] == [3, 3]
    wanted = (
        rf"training classes of mini-ImageNet in {re.escape(str(little))} but train_a.npz and train_b.npz are not here"
    )
    for training in (lambda: stream.setup("fit"), lambda: stream.sample("train", 0)):
        with pytest.raises(ValueError, match=wanted):
            training()


WRITERS: dict[str, tuple[Callable[[Path], Path], Any, str]] = {
    "CIFAR-100, binary": (write_binary, cifar_fs, "_read_binary"),
    "CIFAR-100, arrays": (write_residuals, cifar_fs, "_read_arrays"),
    "mini-ImageNet, lists": (write_lists, mini_imagenet, "read_images"),
    "mini-ImageNet, arrays": (write_packed, mini_imagenet, "_unpack"),
}


@pytest.mark.parametrize("case", WRITERS)
def test_images_are_read_once_and_kept(little: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, stream, reader = WRITERS[case]
    first = stream(write(little)).data.images
    cifar._load.cache_clear()

    def refuse(*_: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(cifar if reader.startswith("_read") else mini, reader, refuse)
    assert torch.equal(stream(little).data.images, first)


def test_the_download_is_of_the_official_archive(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("torchvision.datasets.utils", reason="torchvision is not installed")
    asked: list[dict[str, str]] = []

    def fetch(url: str, root: str, **options: str) -> None:
        asked.append({"url": url, **options})
        write_binary(Path(root))

    monkeypatch.setattr(utils, "download_and_extract_archive", fetch)
    cifar_fs(little, download=True).setup("fit")
    cifar_fs(little, download=True).prepare_data()
    (only,) = asked
    assert only["url"].endswith("/cifar-100-binary.tar.gz")
    assert only["filename"] == "cifar-100-binary.tar.gz"
    assert only["md5"] == cifar.BINARY_MD5


# The same tasks again


STREAMS: dict[str, Callable[..., TaskStream]] = {
    "CIFAR-FS": lambda root, **options: cifar_fs(write_binary(root), **options),
    "mini-ImageNet": lambda root, **options: mini_imagenet(write_packed(root), **options),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_seed_makes_the_tasks(little: Path, name: str) -> None:
    make: Any = STREAMS[name]
    one = make(little, crops=2, jitter=0.4)
    options = {**SMALL, "crops": 2, "jitter": 0.4}
    again, other = type(one)(little, **options), type(one)(little, **options, seed=1)
    for stage in ("train", "val", "test"):
        assert same(one.sample(stage, 1), again.sample(stage, 1))
        assert not same(one.sample(stage, 1), other.sample(stage, 1))
        assert not same(one.sample(stage, 1), one.sample(stage, 0))


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(little: Path) -> None:
    def fit(stop: int, checkpoint: Path | None = None) -> Trainer:
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 2))
        module = MetaModule(network, maml(lr=0.1, steps=1), loss="cross_entropy", engine="batched")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", max_steps=stop, enable_checkpointing=False, **quiet)
        data = cifar_fs(little, batches_per_epoch=4, val_tasks=0, crops=2, jitter=0.2)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
        return trainer

    write_binary(little)
    whole, half = fit(6), fit(3)
    half.save_checkpoint(little / "half.ckpt")
    resumed = fit(6, little / "half.ckpt")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(half.model.parameters()), next(whole.model.parameters()))


# Colours


@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_is_torchvisions(channels: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional", reason="torchvision is not installed")
    images, factors = torch.rand(2, 5, channels, 8, 8), 1 + 0.8 * (torch.rand(2, 5, 3) - 0.5)
    made = Augmentation(jitter=0.4).apply(images, (factors,))
    for image, (brightness, contrast, saturation), ours in zip(
        images.flatten(0, 1), factors.flatten(0, 1).tolist(), made.flatten(0, 1), strict=True
    ):
        theirs = functional.adjust_brightness(image, brightness)
        theirs = functional.adjust_contrast(theirs, contrast)
        torch.testing.assert_close(ours, functional.adjust_saturation(theirs, saturation))


def test_what_augments_is_drawn_in_its_bounds_and_changes_training_alone(little: Path) -> None:
    drawn = Augmentation(True, 3, 0.25).draw(torch.Size((2000,)), torch.Generator().manual_seed(0))
    flips, crops, factors = drawn
    assert 900 < flips.sum() < 1100
    assert crops.unique().tolist() == [*range(7)]
    assert factors.shape == (2000, 3)
    assert 0.75 <= factors.min() < 0.76
    assert 1.24 < factors.max() <= 1.25
    plain = cifar_fs(write_binary(little), flips=False)
    changed = cifar_fs(little, jitter=0.3)
    assert all(same(plain.sample(stage, 0), changed.sample(stage, 0)) for stage in ("val", "test"))
    tasks = changed.sample("train", 0).query_inputs
    assert not torch.equal(tasks, plain.sample("train", 0).query_inputs)
    assert tasks.min() >= 0
    assert tasks.max() <= 1


@pytest.mark.parametrize("jitter", [-0.1, 1.5, float("nan")])
def test_a_jitter_out_of_range_is_refused(jitter: float) -> None:
    with pytest.raises(ValueError, match="`jitter` to be from 0 to 1 but got"):
        CIFARFSTasks("data", jitter=jitter)


# The real images


def test_the_real_images_of_cifar100(cifar100_root: Path) -> None:
    images = load_cifar100(cifar100_root)
    assert images.shape == (100, 600, 3, 32, 32)
    assert (
        hashlib.sha256(images.numpy().data).hexdigest()
        == "89d960bd41d06b6f24d78c29872b88427913b94ad92cb8c5315042d2230610da"
    )
    rows = images.flatten(0, 1).flatten(1).numpy()
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.tobytes(), []).append(place // 600)
    twice = [classes for classes in places.values() if len(classes) > 1]
    assert len(twice) == 26
    assert {*map(len, twice)} == {2}
    for stream, number in ((CIFARFSTasks(cifar100_root), 15), (FC100Tasks(cifar100_root), 3)):
        stages = stream.data.stages
        assert stages is not None
        assert sum(stages[one] != stages[other] for one, other in twice) == number
        counts = {stage: [len(one.classes), int(one._counts.unique())] for stage, one in stream.samplers.items()}
        train = 64 if number == 15 else 60
        assert counts == {"train": [train, 600], "val": [80 - train, 600], "test": [20, 600]}


def test_the_real_images_of_mini_imagenet(mini_imagenet_root: Path) -> None:
    stream = MiniImagenetTasks(mini_imagenet_root)
    counts = {stage: [len(one.classes), int(one._counts.unique())] for stage, one in stream.samplers.items()}
    assert counts == {"val": [16, 600], "test": [20, 600]}
    for stage, first in (("val", 0), ("test", 16)):
        lines = (mini_imagenet_root / "splits" / f"{stage}.csv").read_text().splitlines()[1:]
        names = [*dict.fromkeys(line.split(",")[1] for line in lines)]
        assert list(stream.data.names[first : first + len(names)]) == names
    mean = stream.data.images[:9600].float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.4784, 0.4708, 0.4411]), atol=1e-4, rtol=0)


# Damaged or missing files


def cut(name: str, bytes_left: int | None = None) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: bytes_left if bytes_left is not None else len(content) - 40])
        return root / name

    return damage


def remove(name: str) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        (root / name).unlink()
        return root / name

    return damage


def replace(name: str, **changed: Any) -> Callable[[Path], Path]:
    """The arrays of a file, some of them changed by functions; None leaves one out."""

    def damage(root: Path) -> Path:
        with np.load(root / name) as arrays:
            content = dict(arrays)
        for key, change in changed.items():
            content[key] = None if change is None else change(content[key])
        np.savez(root / name, **{key: value for key, value in content.items() if value is not None})
        return root / name

    return damage


def rewrite(name: str, text: str) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        (root / name).write_text(text)
        return root / name

    return damage


def label_200(root: Path) -> Path:
    file = root / "cifar-100-binary" / "test.bin"
    content = bytearray(file.read_bytes())
    content[1] = 200
    file.write_bytes(bytes(content))
    return file


def broken_jpeg(jpeg: np.ndarray) -> np.ndarray:
    return np.concatenate([jpeg[:-900], np.zeros(900, np.uint8)])


DAMAGE: dict[str, tuple[str, Callable[[Path], Path], type[Exception], str]] = {
    "binary, cut": ("CIFAR-100, binary", cut("cifar-100-binary/train.bin"), ValueError, "rows of 3074 bytes but got"),
    "binary, empty": ("CIFAR-100, binary", cut("cifar-100-binary/test.bin", 0), ValueError, "but got 0 bytes"),
    "binary, a row less": (
        "CIFAR-100, binary",
        cut("cifar-100-binary/test.bin", 99 * 3074),
        ValueError,
        "Expected 4 images of worm in .* but got 3",
    ),
    "binary, a label out of range": ("CIFAR-100, binary", label_200, ValueError, "labels below 100 in .* but got 200"),
    "binary, a file less": (
        "CIFAR-100, binary",
        remove("cifar-100-binary/test.bin"),
        FileNotFoundError,
        "beside its others but found none",
    ),
    "binary, of CIFAR-10": (
        "CIFAR-100, binary",
        rewrite("cifar-100-binary/fine_label_names.txt", "\n".join(map(str, range(100)))),
        ValueError,
        "the 100 classes of CIFAR-100 in .* but '0' is missing or none of them",
    ),
    "arrays, cut": ("CIFAR-100, arrays", cut("val.npz"), ValueError, "damaged or incomplete"),
    "arrays, a page": ("CIFAR-100, arrays", rewrite("val.npz", "<html>"), ValueError, "damaged or incomplete"),
    "arrays, of others": ("CIFAR-100, arrays", replace("test.npz", residuals=None), ValueError, "`residuals`"),
    "arrays, other type": (
        "CIFAR-100, arrays",
        replace("test.npz", residuals=lambda value: value.astype(np.float32)),
        ValueError,
        r"but got float32 \[20, 4, 3, 32, 32\]",
    ),
    "arrays, other shape": (
        "CIFAR-100, arrays",
        replace("test.npz", residuals=lambda value: value[:, :, :, :28]),
        ValueError,
        r"but got uint8 \[20, 4, 3, 28, 32\]",
    ),
    "arrays, a file less": ("CIFAR-100, arrays", remove("train_b.npz"), FileNotFoundError, "but found none"),
    "arrays, the first less": ("CIFAR-100, arrays", remove("train_a.npz"), FileNotFoundError, "but found none"),
    "lists, one less": ("mini-ImageNet, lists", remove("val.csv"), FileNotFoundError, "but found none: add it"),
    "lists, other columns": (
        "mini-ImageNet, lists",
        rewrite("train.csv", "file,class\na.jpg,b\n"),
        ValueError,
        r"columns filename and label in .* but got \['file', 'class'\]",
    ),
    "lists, empty": ("mini-ImageNet, lists", rewrite("test.csv", ""), ValueError, "filename and label in .* got None"),
    "lists, cut": ("mini-ImageNet, lists", cut("train.csv"), ValueError, "but got 1 of n00000002: take the official"),
    "lists, an image less": (
        "mini-ImageNet, lists",
        remove("images/n0000000400000002.jpg"),
        FileNotFoundError,
        "which val.csv names, but found no such file, and 1 are missing",
    ),
    "lists, an image cut": (
        "mini-ImageNet, lists",
        cut("images/n0000000400000002.jpg", 400),
        ValueError,
        "to be an image but reading it failed",
    ),
    "packed, cut": ("mini-ImageNet, arrays", cut("test.npz"), ValueError, "damaged or incomplete"),
    "packed, half of training": ("mini-ImageNet, arrays", remove("train_b.npz"), FileNotFoundError, "found none: add"),
    "packed, no validation": ("mini-ImageNet, arrays", remove("val.npz"), FileNotFoundError, "found none: add it"),
    "packed, an image cut": (
        "mini-ImageNet, arrays",
        replace("test.npz", jpeg=broken_jpeg),
        ValueError,
        "n0000000600000002.jpg to be an image but reading it failed",
    ),
    "packed, other offsets": (
        "mini-ImageNet, arrays",
        replace("test.npz", offsets=lambda value: value[::-1]),
        ValueError,
        "where each of 6 JPEG files begins",
    ),
    "packed, a class less": (
        "mini-ImageNet, arrays",
        replace("test.npz", classes=lambda value: value[:1], files=lambda value: value[:1]),
        ValueError,
        "Expected 2 classes of 3 images in .* but got 1 classes",
    ),
    "packed, other names": (
        "mini-ImageNet, arrays",
        replace("val.npz", files=lambda value: value.ravel()),
        ValueError,
        r"`files` \[classes, images\] in .* but got \[2\] and \[6\]",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged_or_missing_is_named_in_one_line(little: Path, case: str) -> None:
    kind, damage, error, message = DAMAGE[case]
    write, stream, _ = WRITERS[kind]
    file = damage(write(little))
    with pytest.raises(error, match=message) as raised:
        stream(little).setup("fit")
    said = str(raised.value)
    assert "\n" not in said
    assert str(file) in said or case in ("binary, a row less", "binary, of CIFAR-10")  # whose folder is named


def test_files_with_other_hashes_are_not_unpickled(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_python(little, monkeypatch)
    (little / "cifar-100-python" / "train").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match="cifar-100-python/train but torchvision refuses them"):
        cifar_fs(little).setup("fit")


@pytest.mark.parametrize(("stream", "parts"), [(cifar_fs, ["cifar-100-binary", "download"]), (mini_imagenet, [".csv"])])
def test_missing_data_say_what_was_looked_for(little: Path, stream: Any, parts: list[str]) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        stream(little).setup("fit")
    assert all(part in str(raised.value) for part in [str(little), "train_a.npz", *parts])


def test_what_has_no_archive_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="Expected `download` to be False, as MiniImagenetTasks has no official archive"
    ):
        mini_imagenet(tmp_path, download=True)
