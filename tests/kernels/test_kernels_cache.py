"""Compiled libraries are kept for their user alone, and loaded only where they are what was written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_maml.kernels import cache

CONTENT = bytes(range(256)) * 64
SCRIPT = """
import torch
from lightning_maml import Fused, TaskBatch, maml, meta_loss
x = torch.ones(2, 3, 1)
network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
print(meta_loss(network, maml(0.1, 1), TaskBatch(x, x, x, x), loss="mse", engine=Fused(compile=True)).loss.isfinite())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "libraries"))
    return tmp_path / "libraries"


class Build:
    """A compiler that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        path.write_bytes(CONTENT)


def test_a_library_is_built_once_for_its_user_alone(folder: Path) -> None:
    build = Build()
    path = cache.kept("name", build)
    assert path == cache.kept("name", build)
    assert (build.calls, path.read_bytes()) == (1, CONTENT)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == [path]
    cache.kept("other", build)
    assert build.calls == 2


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def changed(path: Path) -> None:
    path.write_bytes(CONTENT[:-1] + b"!")


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def open_to_all(path: Path) -> None:
    path.chmod(0o722)


def misnamed(path: Path) -> None:
    path.rename(path.with_name("name_.so"))


DAMAGE = {"4096": cut(4096), "100": cut(100), "empty": cut(0), "changed": changed}
DAMAGE |= {"linked": linked, "open": open_to_all, "misnamed": misnamed}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_library_that_is_not_what_was_written_is_built_anew(damage: str, folder: Path) -> None:
    build = Build()
    DAMAGE[damage](cache.kept("name", build))
    path = cache.kept("name", build)
    assert (build.calls, path.read_bytes(), path.is_symlink()) == (2, CONTENT, False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert not (folder / "name_.so").exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no owners")
def test_what_another_user_put_there_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build()
    path = cache.kept("name", build)
    real, me = Path.lstat, os.getuid()

    def lstat(self: Path) -> os.stat_result:
        found = list(real(self))
        if self == path:
            found[stat.ST_UID] = me + 1
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert not cache._is_whole(path)
    assert not path.exists()
    cache.kept("name", build)
    assert build.calls == 2


def test_a_folder_that_was_open_to_others_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    cache.kept("name", Build())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_is_refused(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir()
    folder.symlink_to(folder.with_name("elsewhere"))
    with pytest.raises(PermissionError, match=r"libraries is a link or another user's: set \$LIGHTNING_MAML_CACHE"):
        cache.kept("name", Build())


def test_a_build_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(CONTENT)
        raise RuntimeError("the compiler says no")

    with pytest.raises(RuntimeError, match="the compiler says no"):
        cache.kept("name", fail)
    assert list(folder.iterdir()) == []


def _loss() -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


def test_a_run_goes_on_where_the_library_was_cut(folder: Path) -> None:
    """It ended by a signal, SIGBUS, as the loader maps what is not there."""
    assert _loss() == "tensor(True)"
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    assert contents
    for path in contents:
        os.truncate(path, 4096)
    assert _loss() == "tensor(True)"
    assert {path: path.read_bytes() for path in folder.iterdir()} == contents
