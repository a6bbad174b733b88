"""Compiled libraries between runs: in a folder of the user's own, and loaded only where they are what was written.

A library lies under its key and the hash of its content, ``KEY_SHA256.so``: one that was cut or changed does not agree
with its name, and is built anew. Nothing here protects from somebody who writes as the user.
"""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept(key: str, build: Callable[[Path], None], kind: str = "so") -> Path:
    """The library of a key, or a GPU's code as a ``"cubin"``; ``build`` writes it to the path that it is given, where
    there is no whole one.
    OSError where the folder is not the user's own, or cannot be written.
    """
    folder = _own_folder()
    for path in sorted(folder.glob(f"{key}_*.{kind}")):
        if _is_whole(path):
            return path
    with tempfile.TemporaryDirectory(dir=folder) as room:
        built = Path(room) / f"built.{kind}"
        build(built)
        content = built.read_bytes()
        path = folder / f"{key}_{hashlib.sha256(content).hexdigest()}.{kind}"
        built.chmod(0o700)
        _sync(built)  # or a crash could leave the name, and not what is in it
        built.replace(path)
        _sync(folder)
    return path


def _own_folder() -> Path:
    """``$LIGHTNING_MAML_CACHE``, or ``~/.cache/lightning_maml``, made where it is not there, for the user alone."""
    folder = Path(os.environ.get("LIGHTNING_MAML_CACHE") or Path.home() / ".cache" / "lightning_maml")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or not _is_mine(found):
        raise PermissionError(
            f"compiled libraries are kept in a folder of the user's own, and {folder} is a link or another user's: "
            "set $LIGHTNING_MAML_CACHE to another"
        )
    if found.st_mode & 0o077:  # what others may have put there is theirs, and not loaded
        folder.chmod(0o700)
    return folder


def _is_whole(path: Path) -> bool:
    """Whether a library is the user's, no link, and what its name says; one that is not is removed."""
    found = path.lstat()
    mine = stat.S_ISREG(found.st_mode) and _is_mine(found) and not found.st_mode & 0o022
    named = re.fullmatch(r".*_([0-9a-f]{64})\.(?:so|cubin)", path.name)
    if mine and named and hashlib.sha256(path.read_bytes()).hexdigest() == named[1]:
        return True
    path.unlink(missing_ok=True)
    return False


def _is_mine(found: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
