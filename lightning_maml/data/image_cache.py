"""Images as they were read the last time: one array in the user's cache, as long as their files are the same."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_maml.data.images import read_images
from lightning_maml.saving import whole_file

FORMAT = "1"
"""Changes where the same files would be read as other numbers."""


def cached_images(root: Path, files: Sequence[Path], size: int) -> Tensor:
    """What :func:`~lightning_maml.data.images.read_images` makes of files below ``root``, see :func:`cached`.

    Raises:
        ValueError: a file is no image.
    """
    return cached(root, files, str(size), lambda: read_images(files, size))


def cached(root: Path, files: Sequence[Path], form: str, read: Callable[[], Tensor]) -> Tensor:
    """What ``read`` makes of files below ``root``, read once and then kept.

    They are kept in ``$LIGHTNING_MAML_CACHE``, or ``~/.cache/lightning_maml``, in one file for each ``root`` and
    ``form``, until the name, the size or the time of a file changes. A cache that is damaged is made anew. Errors are
    those of ``read``.
    """
    root = root.resolve()
    cache = cache_folder() / f"{_digest(f'{root} {form}')[:32]}.safetensors"
    stats = [(file, file.stat()) for file in files]
    names = "\n".join([FORMAT, *(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)])
    if (images := _read(cache, names)) is not None:
        return images
    rank_zero_info(f"Reading the images in {root}; they are kept in {cache}.")
    images = read()
    content = save({"images": images}, {"digest": _digest(names, images)})
    try:
        with whole_file(cache) as file:
            file.write(content)
    except OSError as error:
        rank_zero_warn(
            f"Expected to keep the images of {root} but writing failed ({error}): they are read again the next time, "
            "unless $LIGHTNING_MAML_CACHE names a folder that can be written."
        )
    return images


def cache_folder() -> Path:
    """Where images are kept; beside the compiled kernels."""
    return Path(os.environ.get("LIGHTNING_MAML_CACHE") or Path.home() / ".cache" / "lightning_maml") / "images"


def _read(cache: Path, names: str) -> Tensor | None:
    """The images in a cache, where it is whole and of these files."""
    try:
        with safe_open(cache, "pt") as file:
            about, images = file.metadata(), file.get_tensor("images")
    except (OSError, SafetensorError):
        return None
    return images if about == {"digest": _digest(names, images)} else None


def _digest(names: str, images: Tensor | None = None) -> str:
    digest = hashlib.blake2b(names.encode(errors="surrogateescape"))
    if images is not None:
        digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
