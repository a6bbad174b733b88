"""What `lightning-maml predict` writes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_maml import saving
from lightning_maml.data.class_tasks import class_columns

RUN = ("=", "+", "-", "@")  # a cell that begins so is a formula to a spreadsheet


def write(folder: Path, rank: str, data: Any, loss: Any, outputs: Sequence[Any]) -> Iterator[Path]:
    """Writes what ``Trainer.predict`` returned to ``predictions.csv``, a table also to ``<its name>_filled.csv``.

    Predictions that are no row of numbers, such as images, are written as tensors, ``predictions.pt``: a list of
    ``[T, Nq, ...]``, one a batch. ``rank`` ends the files' names, under several processes; ``data`` may tell by
    ``predictions(outputs)`` whose predictions these are; of ``loss="cross_entropy"`` a prediction is a class.
    """
    frame = data.predictions(outputs) if hasattr(data, "predictions") else None
    if frame is None and all(isinstance(output, Tensor) and output.ndim in (2, 3) for output in outputs):
        frame = _by_place(outputs, loss == "cross_entropy")
    if frame is None:
        path = folder / f"predictions{rank}.pt"
        with saving.whole_file(path) as file:
            torch.save(list(outputs), file)
        yield path
        return
    yield _written(frame, folder / f"predictions{rank}.csv")
    if hasattr(data, "filled"):
        yield _written(data.filled(frame), folder / f"{data.table.path.stem}_filled{rank}.csv")


def _by_place(outputs: Sequence[Tensor], of_classes: bool) -> Any:
    """A row for each query row, named by the numbers of task and row."""
    import pandas as pd

    values = torch.cat([output.reshape(*output.shape[:2], -1) for output in outputs]).float()
    task, row = (part.flatten() for part in torch.meshgrid(*map(torch.arange, values.shape[:2]), indexing="ij"))
    flat = values.flatten(0, 1)
    if of_classes:
        columns = class_columns(range(flat.shape[1]), flat)
    else:
        names = ["prediction"] if flat.shape[1] == 1 else [f"prediction {number}" for number in range(flat.shape[1])]
        columns = {name: column.numpy() for name, column in zip(names, flat.unbind(1), strict=True)}
    return pd.DataFrame({"task": task.numpy(), "row": row.numpy(), **columns})


def _written(frame: Any, path: Path) -> Path:
    import pandas as pd

    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = [
                f"'{cell}" if isinstance(cell, str) and cell.startswith(RUN) else cell for cell in frame[name]
            ]
    with saving.whole_file(path) as file:
        file.write(frame.to_csv(index=False).encode())
    return path
