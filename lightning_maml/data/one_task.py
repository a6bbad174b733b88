"""The examples of one task, out of a table or a folder of images, for a network that was trained on such."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_maml.data.columns import Columns, Table
from lightning_maml.data.images import class_folders, images_in, read_images, with_channels


@dataclass(frozen=True)
class OneTask:
    """Examples, as numbers, and what these mean."""

    inputs: Tensor
    """``[N, ...]``."""
    targets: Tensor
    """``[N, ...]``, or labels ``[N]``."""
    about: dict[str, Any]
    """How a row becomes inputs and what the outputs are, as plain data."""


def read_task(
    path: str | Path,
    *,
    columns: Columns | None = None,
    inputs: Sequence[str] = (),
    targets: Sequence[str] = (),
    labels: bool = False,
    size: int | None = None,
    channels: int | None = None,
) -> OneTask:
    """Reads a table whose rows are all of one task, or a folder with a folder of images for each class.

    Args:
        path: the table, ``.csv`` or ``.parquet``, or the folder. Rows without a target are passed over.
        columns: how the columns became numbers in training; None for their numbers as they are.
        inputs, targets: names of columns, where ``columns`` does not say them; by default the last is the target, and
            all others are inputs.
        labels: whether the target of a table without ``columns`` is a label; classes are numbered in their order.
        size, channels: of images.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is no such table or folder, in one line that says what is missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "line.csv"
        >>> _ = path.write_text(chr(10).join(["x,y", "1,2", "2,4", "3,6"]))
        >>> task = read_task(path)
        >>> task.inputs.shape, task.about["outputs"]
        (torch.Size([3, 1]), ['y'])
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _of_images(path, size, channels)
    if columns is None:
        columns, table = _as_they_are(path, list(inputs), list(targets), labels)
    else:
        given = columns.input_names, columns.target_names, None, [*columns.categories], bool(columns.classes)
        table = Table(path, *given)
    found, wanted = columns.encoded(table)
    known = torch.from_numpy(~table.to_predict)
    if not known.any():
        raise ValueError(f"Expected rows with a target in {path}, to adapt on, but it has none.")
    outputs = columns.classes or columns.target_names
    about = {"outputs": outputs, "classification": bool(columns.classes), "columns": asdict(columns)}
    return OneTask(found[known], wanted[known], about)


def _as_they_are(path: Path, inputs: list[str], targets: list[str], labels: bool) -> tuple[Columns, Table]:
    names = Table.names_in(path)
    targets = targets or [name for name in names if name not in inputs][-1:]
    inputs = inputs or [name for name in names if name not in targets]
    table = Table(path, inputs, targets, None, [], labels)
    one = [0.0, 1.0]
    classes = sorted(set(table.labels(targets[0])) - {""}) if labels else []
    return Columns(
        inputs, targets, dict.fromkeys(inputs, one), {}, [] if labels else [one] * len(targets), classes
    ), table


def _of_images(folder: Path, size: int | None, channels: int | None) -> OneTask:
    if size is None or channels is None:
        raise ValueError(
            f"Expected the `size` and the `channels` of the images in {folder} but got {size}, {channels}."
        )
    classes = class_folders(folder)
    files = [images_in(one, below=True) for one in classes]
    images = with_channels(read_images([file for of_class in files for file in of_class], size), channels)
    labels = torch.arange(len(files)).repeat_interleave(torch.tensor([*map(len, files)]))
    images_are = {"size": size, "channels": channels, "range": [0, 1]}
    about = {"outputs": [one.name for one in classes], "classification": True, "images": images_are}
    return OneTask(images.float() / 255, labels, about)
