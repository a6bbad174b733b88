"""Omniglot: both layouts on disk, the split, the real images where they are, damaged files."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drawings import DRAWINGS, SIDE, drawings, small, write_folders, write_npz
from lightning_maml.data import OmniglotTasks, import_learn2learn, load_omniglot


def test_both_layouts_give_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "arrays").mkdir()
    arrays, folders = load_omniglot(write_npz(tmp_path / "arrays")), load_omniglot(write_folders(tmp_path / "official"))
    assert arrays.shape == (7, DRAWINGS, 1, 28, 28)
    assert arrays.dtype == torch.uint8
    assert torch.equal(arrays, folders)


def test_images_are_inverted_and_resized(tmp_path: Path) -> None:
    images = load_omniglot(write_npz(tmp_path)).float() / 255
    paper = torch.from_numpy(np.concatenate(list(drawings().values()))).float()
    assert images.min() == 0
    assert images.max() == 1
    torch.testing.assert_close(images.mean((2, 3, 4)), 1 - paper.mean((2, 3)), rtol=0, atol=0.02)
    assert (images[:, :, 0, 0, 0] > 0.5).equal(paper[:, :, 0, 0] < 0.5)


def test_official_layout_is_read_as_torchvision_and_learn2learn_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        l2l = import_learn2learn()
    except ImportError:
        pytest.skip("learn2learn is not installed")
    from torchvision.datasets import Omniglot

    monkeypatch.setattr(Omniglot, "_check_integrity", lambda self: True)  # of the archives, which are not here
    theirs = l2l.vision.datasets.FullOmniglot(write_folders(tmp_path))
    ours = load_omniglot(tmp_path).flatten(0, 1)
    assert len(theirs) == len(ours)
    # torchvision's order is the file system's: each of its images must be among ours, once
    from lightning_maml.data.omniglot import _shrink

    found = [
        int((ours == _shrink(torch.from_numpy(np.asarray(image) > 127)[None, None])[0]).flatten(1).all(1).nonzero())
        for image, _ in theirs
    ]
    assert sorted(found) == list(range(len(ours)))
    characters: dict[int, set[int]] = {}
    for index, (_, label) in zip(found, theirs, strict=True):
        characters.setdefault(label, set()).add(index // DRAWINGS)
    assert sorted(map(list, characters.values())) == [[number] for number in range(7)]


def test_tasks_are_the_same_from_both_layouts_and_have_the_shapes_asked_for(tmp_path: Path) -> None:
    (tmp_path / "arrays").mkdir()
    options = {"shots": 2, "queries": 1, "test_queries": 2, "test_tasks": 6}
    arrays = small(write_npz(tmp_path / "arrays"), **options)
    folders = small(write_folders(tmp_path / "official"), **options)
    for stage, position, tasks, queries in (("train", 3, 4, 1), ("val", 0, 4, 2), ("test", 1, 2, 2)):
        ours, theirs = arrays.sample(stage, position), folders.sample(stage, position)
        assert ours.support_inputs.shape == (tasks, 4, 1, 28, 28)
        assert ours.query_inputs.shape == (tasks, 2 * queries, 1, 28, 28)
        assert ours.query_inputs.dtype == torch.float32
        for (_, one), (_, other) in zip(ours.named(), theirs.named(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("rotations", ["classes", "random", "none"])
def test_stages_have_characters_of_their_own_by_split_seed(tmp_path: Path, rotations: str) -> None:
    root = write_npz(tmp_path)
    classes = {}
    for seed in (0, 1):
        samplers = small(root, rotations=rotations, split_seed=seed).samplers
        classes[seed] = {stage: set(sampler.classes.tolist()) for stage, sampler in samplers.items()}
        assert [len(classes[seed][stage]) for stage in ("train", "val", "test")] == [3, 2, 2]
        assert set.union(*classes[seed].values()) == set(range(7))
    assert classes[0] != classes[1]
    again = small(root, rotations=rotations, split_seed=0).samplers
    assert {stage: set(sampler.classes.tolist()) for stage, sampler in again.items()} == classes[0]


def test_rotations_are_classes_unless_asked_otherwise(tmp_path: Path) -> None:
    root = write_npz(tmp_path)
    assert small(root, ways=8).sample("train", 0).support_inputs.shape == (4, 8, 1, 28, 28)  # of 3 characters
    upright = small(root, rotations="none").sample("train", 0).support_inputs.flatten(0, 1)
    images = load_omniglot(root).flatten(0, 1).float() / 255
    assert all((images == image).flatten(1).all(1).any() for image in upright)
    turned = small(root, rotations="random").sample("train", 0).support_inputs.flatten(0, 1)
    assert not all((images == image).flatten(1).all(1).any() for image in turned)


def test_images_are_loaded_once_unless_the_files_change(tmp_path: Path) -> None:
    root = write_npz(tmp_path)
    first = load_omniglot(root)
    assert load_omniglot(str(root)) is first
    images = ~drawings()["images_evaluation"]
    np.savez(root / "images_evaluation.npz", images=images, labels=np.arange(3)[:, None].repeat(DRAWINGS, 1))
    assert not torch.equal(load_omniglot(root), first)


def test_the_real_images(omniglot_root: Path) -> None:
    images = load_omniglot(omniglot_root)
    assert images.shape == (1623, 20, 1, 28, 28)
    ink = images.float().mean() / 255
    assert 0.04 < ink < 0.12  # strokes, not paper, are what is bright
    tasks = OmniglotTasks(omniglot_root, ways=20, shots=5, queries=15, tasks_per_batch=2).sample("train", 0)
    assert tasks.query_inputs.shape == (2, 300, 1, 28, 28)
    assert tasks.query_inputs.max() == 1
    # two drawings of one character, turned alike, resemble each other more than two of different ones
    support = tasks.support_inputs.view(2, 20, 5, -1).mean(2)
    query = tasks.query_inputs.view(2, 20, 15, -1).mean(2)
    nearest = torch.cdist(query, support).argmin(-1)
    assert (nearest == torch.arange(20)).float().mean() > 0.9


# Damaged or missing files


def break_truncated(root: Path) -> Path:
    path = root / "images_evaluation.npz"
    path.write_bytes(path.read_bytes()[:-40])
    return path


def break_middle(root: Path) -> Path:
    path = root / "images_background.npz"
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(bytes(content))
    return path


def break_text(root: Path) -> Path:
    path = root / "images_background.npz"
    path.write_text("<html>not found</html>")
    return path


def rewrite(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        np.savez(root / "images_background.npz", **arrays)
        return root / "images_background.npz"

    return write


LABELS = np.arange(4)[:, None].repeat(DRAWINGS, 1)
DAMAGE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (break_truncated, "may be damaged or incomplete"),
    "overwritten inside": (break_middle, "may be damaged or incomplete"),
    "not an archive": (break_text, "may be damaged or incomplete"),
    "array missing": (rewrite(images=np.zeros((4, DRAWINGS, 9, 9), bool)), "labels"),
    "wrong type": (
        rewrite(images=np.zeros((4, DRAWINGS, SIDE, SIDE)), labels=LABELS),
        f"to be bool [characters, drawings, height, width] but got float64 [4, {DRAWINGS}, {SIDE}, {SIDE}]",
    ),
    "wrong shape": (
        rewrite(images=np.zeros((4, 9, 9), bool), labels=LABELS),
        "but got bool [4, 9, 9]",
    ),
    "empty": (rewrite(images=np.zeros((0, DRAWINGS, 9, 9), bool), labels=LABELS[:0]), "but got bool [0, "),
    "other labels": (
        rewrite(images=np.zeros((4, DRAWINGS, SIDE, SIDE), bool), labels=LABELS[::-1]),
        "each drawing's character, counted from 0",
    ),
    "other size": (
        rewrite(images=np.zeros((4, DRAWINGS, 9, 9), bool), labels=LABELS),
        f"as many drawings of one size in .* but got .* = [4, {DRAWINGS}, 9, 9] and [3, {DRAWINGS}, {SIDE}, {SIDE}]",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_arrays_are_refused_by_name(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    path = damage(write_npz(tmp_path))
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(ValueError, match=pattern) as raised:
        small(tmp_path).setup("fit")
    assert str(path) in str(raised.value)


def test_damaged_folders_are_refused_by_name(tmp_path: Path) -> None:
    write_folders(tmp_path)
    file = next(tmp_path.rglob("0006_02.png"))
    content = file.read_bytes()
    file.write_bytes(content[:60])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} to be an image but reading it failed"):
        load_omniglot(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"images_evaluation to hold .*/\*.png, .* but got \[3, 4\] of 3 characters"):
        load_omniglot(tmp_path)


@pytest.mark.parametrize("present", [[], ["images_background.npz"]])
def test_missing_data_say_what_was_looked_for(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError) as raised:
        small(tmp_path).setup("fit")
    for part in (str(tmp_path), "omniglot-py/images_background/", "images_evaluation.npz", "download=True"):
        assert part in str(raised.value)


def test_too_few_characters_or_drawings_are_refused(tmp_path: Path) -> None:
    root = write_npz(tmp_path)
    with pytest.raises(ValueError, match=r"`split` to add up to at most 7 characters but got \(1100, 100, 423\)"):
        OmniglotTasks(root).setup("fit")
    with pytest.raises(ValueError, match=r"shots \+ queries = 1 \+ 4 images of each class but got 4 of character"):
        small(root, queries=4).setup("fit")
    with pytest.raises(ValueError, match=r"at least test_ways = 9 classes for validation in .* but got 8, .* of 28: "):
        small(root, ways=9).setup("fit")


def test_download_fetches_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    asked: list[tuple[str, bool, bool]] = []

    def fetch(root: str, background: bool, download: bool) -> None:
        asked.append((root, background, download))
        if not background:
            write_folders(tmp_path)

    monkeypatch.setattr(datasets, "Omniglot", fetch)
    small(tmp_path, download=True).setup("fit")
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    small(tmp_path, download=True).prepare_data()
    assert len(asked) == 2


def test_importing_the_data_modules_imports_no_optional_package() -> None:
    # Lightning itself imports torchvision where it is installed: ask who imports, not what is imported.
    code = """
import builtins
real, imported = builtins.__import__, set()
def spy(name, globals=None, *rest):
    if str((globals or {}).get("__name__")).startswith("lightning_maml"):
        imported.add(name.split(".")[0])
    return real(name, globals, *rest)
builtins.__import__ = spy
import lightning_maml.data
print(*sorted(imported & {"PIL", "gym", "learn2learn", "numpy", "torch", "torchvision"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["numpy", "torch"]
