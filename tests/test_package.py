"""What a user who installs the wheel gets, and what must not land in their site-packages."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import lightning_maml


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy: a build leaves files in its tree."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("lightning_maml", "configs", "kernels"):
        shutil.copytree(repository / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / file, source / file)
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", build, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def members(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        return archive.namelist()


def test_nothing_but_the_package_lands_at_the_top(members: list[str]) -> None:
    top = {name.split("/")[0] for name in members}
    assert {name for name in top if not name.endswith(".dist-info")} == {"lightning_maml"}


def test_every_source_file_is_installed(members: list[str], repository: Path) -> None:
    # a sub-package that pyproject.toml does not list would be missing from the wheel alone
    placed = {"lightning_maml": "*.py", "lightning_maml/kernels": "*.[pch]*", "lightning_maml/configs": "*.yaml"}
    expected = {
        f"{installed}/{path.relative_to(folder).as_posix()}"
        for installed, pattern in placed.items()
        for folder in [repository / installed.removeprefix("lightning_maml/")]
        for path in folder.rglob(pattern)
        if "__pycache__" not in path.parts
    }
    sources = {
        f"lightning_maml/kernels/{operation}/native.c" for operation in ("mlp_adapt", "conv_adapt", "policy_gradient")
    }
    sources.add("lightning_maml/kernels/emulator/engine.c")
    expected.add("lightning_maml/data/cifar100.tsv")
    assert {*sources, "lightning_maml/configs/paper/omniglot_5w5s.yaml"} <= expected
    assert expected - set(members) == set()


def test_types_are_announced(members: list[str]) -> None:
    assert "lightning_maml/py.typed" in members


def test_type_checkers_see_what_is_exported(repository: Path) -> None:
    """In a stub, only ``from x import y as y`` is for others."""
    lines = ast.parse((repository / "lightning_maml" / "__init__.pyi").read_text()).body
    imported = [name for line in lines if isinstance(line, ast.ImportFrom) for name in line.names]
    assert len(imported) > 50
    assert [name.name for name in imported if name.asname != name.name] == []


def test_a_room_exports_what_it_imports(repository: Path) -> None:
    """Else mypy's strict mode says that it does not."""
    rooms = [*(repository / "lightning_maml").glob("*/__init__.py")]
    assert len(rooms) > 8
    for path in rooms:
        room = f"lightning_maml.{path.parent.name}"
        imports = [line for line in ast.parse(path.read_text()).body if isinstance(line, ast.ImportFrom)]
        own = [line for line in imports if str(line.module).startswith(f"{room}.")]
        names = {alias.name for line in own for alias in line.names}
        assert not names or names <= {*importlib.import_module(room).__all__}, room


def test_command_line_is_an_entry_point(wheel: Path, members: list[str]) -> None:
    (path,) = (name for name in members if name.endswith(".dist-info/entry_points.txt"))
    entries = ConfigParser()
    with ZipFile(wheel) as archive:
        entries.read_string(archive.read(path).decode())
    assert dict(entries["console_scripts"]) == {"lightning-maml": "lightning_maml.cli:main"}


def test_metadata(wheel: Path, members: list[str]) -> None:
    (path,) = (name for name in members if name.endswith(".dist-info/METADATA"))
    with ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(path).decode())
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert {"test", "dev", "rl", "report", "learn2learn"} <= set(metadata.get_all("Provides-Extra") or [])
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    # learn2learn does not build by a plain `pip install`, and triton has no wheel for every platform
    assert not [line for line in required if line.startswith(("learn2learn", "triton", "gym", "torchvision"))]


@pytest.fixture(scope="module")
def imported(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where the wheel is unpacked, and the files and the version of what is imported from there."""
    folder = tmp_path_factory.mktemp("installed")
    # unpacked and put first on the path: the editable install of this checkout must not answer instead
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    command = (
        "import lightning_maml, lightning_maml.kernels as k; "
        "print(lightning_maml.__file__, k.__file__, lightning_maml.__version__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "lightning_maml", done.stdout.splitlines()


def test_installed_wheel_imports(imported: tuple[Path, list[str]]) -> None:
    package, (file, of_kernels, _) = imported
    assert [file, of_kernels] == [str(package / "__init__.py"), str(package / "kernels" / "__init__.py")]


def test_the_version_is_that_of_pyproject(imported: tuple[Path, list[str]], repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert imported[1][2] == project["version"]
    with pytest.raises(AttributeError, match="no attribute 'version_of_another'"):
        _ = lightning_maml.version_of_another


def test_make_installs_the_learn2learn_of_pyproject(repository: Path) -> None:
    # the version stands in both files, and pip needs flags that pyproject.toml cannot hold
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    (pinned,) = (line for line in project["optional-dependencies"]["learn2learn"] if line.startswith("learn2learn"))
    assert f"build_ext {pinned}\n" in (repository / "Makefile").read_text()
