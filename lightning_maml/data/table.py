"""Tasks from a table: a CSV or Parquet file with a column that says to which task a row belongs."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_maml.checks import check_whole
from lightning_maml.data.class_tasks import check_split, draw_stages
from lightning_maml.data.columns import Columns, Table
from lightning_maml.data.rows import RowTasks
from lightning_maml.data.stream import Stage


class TableTasks(RowTasks):
    """Tasks from the rows of a CSV or Parquet file; a column says which task a row belongs to.

    In training ``shots`` rows of a task, drawn anew each time, are its support and its other rows are queries. Rows
    whose targets are empty are what ``predict`` predicts, from all the other rows of their task; a task without any is
    left out there, and one with ``shots`` rows or fewer is left out of training. Targets are numbers, or labels in one
    column: their classes are those of the whole table.

    Numbers are standardised by what the training tasks' rows have, so that losses are in units of the targets'
    variance; categories become a column each that is 0 or 1. A checkpoint keeps all of that.

    Args:
        path: the file, ``.csv`` or ``.parquet`` (which needs pyarrow).
        inputs: names of the columns that predictions are made from.
        targets: names of the columns to predict; of labels one.
        task: the name of the column that tells tasks apart.
        categorical: those of ``inputs`` that hold categories: text, or numbers that are names.
        classification: whether the target is a label; None where it is text.
        shots: support rows of a training task.
        split: the shares of the tasks for training, validation and test, which ``seed`` draws.
        split_column: a column that says ``train``, ``val`` or ``test`` of each task instead.
        tasks_per_batch, batches_per_epoch, seed: as of :class:`~lightning_maml.data.TaskStream`.

    FileNotFoundError where there is no such file; ValueError, with the row and what to do, where it is no such table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lines.csv"
        >>> rows = [f"t{i // 8},{i % 8},{i // 8 * (i % 8)}" for i in range(80)]
        >>> with path.open("w") as file:
        ...     print("task,x,y", *rows, sep=chr(10), file=file)
        >>> tasks = TableTasks(path, inputs=["x"], targets=["y"], shots=3, tasks_per_batch=4)
        >>> tasks.sample("train", 0).query_inputs.shape
        torch.Size([4, 5, 1])
    """

    def __init__(
        self,
        path: str | Path,
        inputs: Sequence[str],
        targets: Sequence[str],
        task: str = "task",
        categorical: Sequence[str] = (),
        classification: bool | None = None,
        shots: int = 10,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_column: str | None = None,
        tasks_per_batch: int = 25,
        batches_per_epoch: int = 500,
        seed: int = 0,
    ) -> None:
        check_whole(1, shots=shots)
        check_whole(0, seed=seed)
        self.table = Table(Path(path), inputs, targets, task, categorical, classification)
        labelled = {name: rows[~self.table.to_predict[rows]] for name, rows in self.table.tasks.items()}
        check_split(split)
        stages = dict(zip(labelled, draw_stages(len(labelled), split, seed), strict=True))
        stages = self.table.stages(split_column) if split_column else stages
        rows: dict[Stage, list[Tensor]] = {"train": [], "val": [], "test": []}
        for name, stage in stages.items():
            if len(labelled[name]) > shots:
                rows[stage].append(torch.from_numpy(labelled[name]))
        if not rows["train"]:
            most = max(map(len, labelled.values()))
            raise ValueError(
                f"Expected training tasks with more than `shots` = {shots} rows with a target in {path} but the most "
                f"is {most}: lower --data.shots."
            )
        to_predict = []
        for name, of_task in self.table.tasks.items():
            unknown = of_task[self.table.to_predict[of_task]]
            if len(unknown) and not len(labelled[name]):
                raise ValueError(
                    f"Expected a row with a target in each task of {path} but task {name!r} (row "
                    f"{self.table.number(unknown[0])}) has none to adapt on: give it one, or take its rows out."
                )
            if len(unknown):
                to_predict.append((torch.from_numpy(labelled[name]), torch.from_numpy(unknown)))
        super().__init__(rows, to_predict, shots, tasks_per_batch, batches_per_epoch, seed)
        self._columns: Columns | None = None

    @property
    def columns(self) -> Columns:
        """How columns become numbers: by the training tasks' rows, or as the checkpoint says."""
        if self._columns is None:
            train = self.rows["train"]
            used = torch.cat([rows[:count] for rows, count in zip(*train, strict=True)])
            self._columns = Columns.of(self.table, used.numpy())
        return self._columns

    @property
    def sizes_of_network(self) -> dict[str, int]:
        """How many numbers a network gets and is to return, by its arguments' names."""
        found = self.columns
        inputs = len(found.input_scales) + sum(map(len, found.categories.values()))
        return {"in_features": inputs, "out_features": len(found.classes) or len(found.target_names)}

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs ``[M, F]`` and targets, numbers ``[M, targets]`` or classes ``[M]``."""
        return self.columns.encoded(self.table)

    def state_dict(self) -> dict[str, Any]:
        """Names, scales, categories and classes, as plain data."""
        return asdict(self.columns)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Columns become numbers as they did in training; ValueError where they have other names."""
        self._columns = Columns(**state_dict)
        self._columns.check(self.table)
        self.__dict__.pop("data", None)
        self._placed = None

    def predictions(self, outputs: Sequence[Any]) -> Any:
        """A row for each predicted row of the file, in the file's order: task, row and what was predicted.

        From what ``Trainer.predict`` returns, ``[T, Nq, outputs]`` for each batch or a list of these, to a
        ``pandas.DataFrame``: of numbers a column for each target, of labels the class and a probability of each.
        """
        parts = [part for batch in outputs for part in (batch if isinstance(batch, list) else [batch])]
        rows = [rows.flatten() for rows in self.predicted_rows()]
        if not parts:
            raise ValueError(f"Expected rows without a target in {self.table.path} to predict but each has one.")
        values = torch.cat([part.flatten(0, 1) for part in parts]).float()
        return self.columns.decoded(self.table, torch.cat(rows).numpy(), values)

    def filled(self, predictions: Any) -> Any:
        """The table with its empty targets filled by :meth:`predictions`, as a ``pandas.DataFrame``."""
        return self.table.filled(predictions)
