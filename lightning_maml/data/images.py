"""Image files as arrays: which files count, how they are read, and folders with a folder of images for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of files that are images, in small or capital letters. Other files, and hidden ones, are passed over."""

Result = TypeVar("Result")


def read_image(file: Path, convert: Callable[[Image.Image], Result], content: BinaryIO | None = None) -> Result:
    """What ``convert`` makes of an image file, or of its ``content`` where that lies elsewhere.

    Raises:
        ValueError: it cannot be read; names the file.
    """
    from PIL import Image

    try:
        with Image.open(content or file) as image:
            return convert(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise ValueError(
            f"Expected {file} to be an image but reading it failed ({_one_line(error)}): replace or remove it."
        ) from error


def read_arrays(file: Path, *names: str) -> list[np.ndarray]:
    """The arrays of these names in an ``.npz`` file; nothing is unpickled.

    Raises:
        ValueError: it is no such file, or damaged; names the file.
    """
    try:
        with file.open("rb") as content, np.load(content) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # a damaged archive may raise anything: zipfile alone has six kinds of error for it
        wanted = f"Expected {file} to be an .npz file with the arrays {' and '.join(f'`{name}`' for name in names)}"
        raise ValueError(f"{wanted} but it may be damaged or incomplete: {error}") from error


def as_pixels(image: Image.Image, size: int | None) -> Tensor:
    """Red, green and blue, resized to ``size``, or as large as it is: uint8 ``[3, height, width]``.

    An image is turned as its camera says, and what is transparent is white. Of 16 bits the upper 8 are kept.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)  # antialiased where it shrinks
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_images(files: Sequence[Path], size: int) -> Tensor:
    """All of them, resized: uint8 ``[M, C, size, size]``; ``C`` is 1 where none has colour, and else 3.

    Raises:
        ValueError: one cannot be read; names the file.
    """
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    read = partial(read_image, convert=partial(as_pixels, size=size))
    with ThreadPoolExecutor() as threads:  # Pillow decodes without holding Python's lock
        for place, pixels in enumerate(threads.map(read, files)):
            images[place] = pixels
    return without_colour(images) if is_grey(images) else images


def is_grey(images: Tensor) -> bool:
    """Whether red, green and blue ``[M, 3, ...]`` are equal everywhere."""
    return bool((images == images[:, :1]).all())


def with_channels(images: Tensor, channels: int) -> Tensor:
    """``[M, 1 or 3, ...]`` as ``[M, channels, ...]``: colour becomes grey, or grey is three times the same."""
    if images.shape[1] == channels:
        return images
    return without_colour(images) if channels == 1 else images.expand(-1, channels, *images.shape[2:])


def without_colour(images: Tensor) -> Tensor:
    """The brightness of uint8 ``[M, 3, ...]``, as Pillow weighs the colours: ``[M, 1, ...]``."""
    red, green, blue = (images[:, [channel]].int() for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)


def images_in(folder: Path, *, below: bool = False) -> list[Path]:
    """The image files of a folder, by name; with ``below`` those of its folders, too.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image.
    """
    check_folder(folder)
    found = folder.rglob("*") if below else folder.iterdir()
    files = sorted(
        file
        for file in found
        if file.suffix.lower() in SUFFIXES and not _is_hidden(file.relative_to(folder)) and file.is_file()
    )
    if not files:
        raise ValueError(
            f"Expected images in {folder} but found no file whose name ends with one of {', '.join(SUFFIXES)}: "
            "add images or remove the folder."
        )
    return files


def class_folders(root: Path) -> list[Path]:
    """The folders in ``root``, by name, but for hidden ones.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no folder.
    """
    check_folder(root)
    folders = sorted(
        folder for folder in root.iterdir() if folder.is_dir() and not _is_hidden(folder.relative_to(root))
    )
    if not folders:
        raise ValueError(
            f"Expected a folder of images for each class in {root} but found no folder: move the images of each class "
            "into a folder of the class's name."
        )
    return folders


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError where there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of images but found none at {folder}: correct the path.")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
