"""Files that are whole or not there, and checkpoints that run no code when read."""

import contextlib
import errno
import io
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _load
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_maml.saving.lock import Owner
from lightning_maml.saving.plain import check_form, check_plain

PREVIOUS = "previous_"


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoint files by :func:`whole_file` and :func:`read_checkpoint`; Lightning's own may be left half written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):  # a remote file system
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: Any = None) -> dict[str, Any]:
        return read_checkpoint(path, map_location, weights_only)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that is at ``path`` when the context ends, and not before; an error leaves what was there.

    It is written under another name, reaches the disk, and is then renamed. OSError where it cannot be, with how many
    bytes there is no room for, where that is why.
    """
    content = io.BytesIO()  # in memory first, so that what a full disk lacks can be told
    yield content
    path.parent.mkdir(parents=True, exist_ok=True)
    _forget_partial_files(path)
    # a name of this process's own: two that write to one place must not write to one file
    partial = path.with_name(f".{path.name}.{Owner.this().name}.partial")
    written, whole = 0, content.getbuffer()
    try:
        with partial.open("wb", buffering=0) as file:
            while written < len(whole):
                written += file.write(whole[written:])
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        room = f"for {path} but {len(whole) - written:,} of its {len(whole):,} bytes could not be written"
        full = OSError(f"Expected room {room} ({error.strerror}); what was there stays.")
        full.errno = error.errno
        raise full from error
    finally:
        _unlink(partial)
    if os.name == "posix":  # the name, too, has to reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep_previous(path: Path) -> None:
    """Has the file at ``path``, if there is one, under a second name too, ``previous_<name>``."""
    if not path.is_file():
        return
    previous = path.with_name(f"{PREVIOUS}{path.name}")
    other = path.with_name(f".{previous.name}.{Owner.this().name}.partial")
    _unlink(other)
    try:
        other.hardlink_to(path)
    except OSError:  # not every file system has two names for one file
        shutil.copy2(path, other)
    other.replace(previous)


def whole_or_previous(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint at ``path`` and what it holds but for tensors, or, where it is damaged or gone, the one before.

    Without a whole one, raises as :func:`read_checkpoint`.
    """
    try:
        return path, read_checkpoint(path, "meta")
    except (FileNotFoundError, ValueError) as error:
        previous = path.with_name(f"{PREVIOUS}{path.name}")
        if not previous.is_file():
            raise
        content = read_checkpoint(previous, "meta")
        if path.is_file():
            rank_zero_warn(f"{error} The one before, {previous.name}, is taken instead.")
        return previous, content


def _forget_partial_files(path: Path) -> None:
    """Removes what processes left behind that were killed while they wrote to ``path``."""
    for partial in path.parent.glob(f".*{path.name}.*.partial"):
        owner = Owner.named(partial.name.removesuffix(".partial").rpartition(f"{path.name}.")[2])
        if owner is not None and owner.is_gone():
            _unlink(partial)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # of a folder that is gone, or another process's
        path.unlink(missing_ok=True)


def read_checkpoint(path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
    """A checkpoint of Lightning's, read as plain data: no code that it may hold is run.

    Args:
        path: the file, or its address on a remote file system, or a file that is open.
        map_location: as of :func:`torch.load`.
        weights_only: ``False`` unpickles arbitrary objects, which may do anything: for files of trusted origin alone.

    Raises:
        FileNotFoundError: there is no such file; says which checkpoints lie beside.
        ValueError: the file is damaged, holds objects other than plain data, or is no checkpoint of Lightning's.
    """
    named = isinstance(path, str | os.PathLike)
    local = not named or "://" not in str(path)
    if named and local and not Path(path).is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path} but there is no such file.{_neighbours(path)}")
    try:
        with warnings.catch_warnings():
            # the first is said of what is no checkpoint anyway, the second of what is refused below
            warnings.filterwarnings("ignore", message="Detected pickle protocol|Validating sparse tensor")
            if local and zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                        raise ValueError("parts of it are compressed, which torch never does")
                    if (part := archive.testzip()) is not None:  # torch itself does not look
                        raise ValueError(f"the checksum of {part} is wrong")
            if not named:
                path.seek(0)
            content: Any = _load(path, map_location, weights_only is not False)
    except Exception as error:  # a damaged file may raise anything
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise ValueError(
                f"Expected plain data in the checkpoint {path} but it refers to `{found[1]}`: reading that would run "
                "its code, so it was refused. Where the file's origin is trusted, weights_only=False reads it."
            ) from None
        what = f"{path} is damaged or none ({first_line(error)[:200]}).{_neighbours(path)}"
        raise ValueError(f"Expected a whole checkpoint but {what}") from error
    of = f"a dictionary of {sorted(map(str, content))[:5]}" if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        alone = "Weights alone are loaded by module.network.load_state_dict(...)."
        raise ValueError(f"Expected a checkpoint that Lightning wrote but {path} holds {of}. {alone}")
    with naming(path, "a checkpoint that Lightning wrote"):
        check_form(content)
        if weights_only is not False:
            check_plain(content, values=map_location != "meta")
    return content


@contextlib.contextmanager
def naming(path: Any, expected: str) -> Iterator[None]:
    """Within the context an error says of which checkpoint it is, and what was expected of it."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {expected} but of {path} this is wrong: {error}.") from None


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or else what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _neighbours(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        return ""
    others = sorted(file.name for file in Path(path).parent.glob("*.ckpt") if file.name != Path(path).name)
    return f" Beside it lie {', '.join(others[:5])}." if others else ""
