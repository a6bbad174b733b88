"""A table's columns: read and checked, and what they are as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_maml.checks import did_you_mean
from lightning_maml.data.class_tasks import class_columns
from lightning_maml.data.stream import Stage

SUFFIXES = (".csv", ".parquet")


class Table:
    """A file's rows, checked: every message names the file, the row and what to do."""

    def __init__(
        self,
        path: Path,
        inputs: Sequence[str],
        targets: Sequence[str],
        task: str | None,
        categorical: Sequence[str],
        classification: bool | None,
    ) -> None:
        self.path, self.task = path, task
        self.inputs, self.targets, self.categorical = list(inputs), list(targets), list(categorical)
        self.frame = _read(path)
        if not self.inputs or not self.targets:
            raise ValueError(
                f"Expected the names of columns in `inputs` and `targets` but got {self.inputs} and {self.targets}; "
                f"{path} has {self._columns}."
            )
        self._check_names([*self.inputs, *self.targets, *([] if task is None else [task])])
        if others := [name for name in self.categorical if name not in self.inputs]:
            raise ValueError(f"Expected `categorical` to name some of the inputs {self.inputs} but got {others}.")
        if not len(self.frame):
            raise ValueError(f"Expected rows in {path} but it has none.")
        if task is not None:
            self._check_filled(task, "a task")
        empty = self.frame[self.targets].isna().to_numpy()
        self.to_predict: np.ndarray = empty.all(1)
        """Of each row, whether its targets are empty."""
        if (some := empty.any(1) & ~self.to_predict).any():
            row = int(some.argmax())
            missing = self.targets[int(empty[row].argmax())]
            self.complain(row, f"all targets {self.targets} or none", f"nothing in {missing!r}: fill or empty the row")
        self.is_classification = classification if classification is not None else self._is_text(self.targets[0])
        if self.is_classification and len(self.targets) > 1:
            raise ValueError(f"Expected one target, as it is a label, but got {self.targets}.")
        for name in self.inputs:
            self._check_filled(name, "an input")
            if name not in self.categorical:
                self._check_numbers(name, "name it in --data.categorical")
        if not self.is_classification:
            for name in self.targets:
                self._check_numbers(name, "use --data.classification true for labels")

    @staticmethod
    def names_in(path: Path) -> list[str]:
        """Of a file's columns, in their order."""
        return [str(name) for name in _read(path).columns]

    def number(self, row: int) -> int:
        """The number of a row in the file; of CSV the line, where the names are line 1."""
        return int(row) + (2 if self.path.suffix == ".csv" else 1)

    @cached_property
    def tasks(self) -> dict[str, np.ndarray]:
        """The rows of each task, in their order; tasks in the order of the file. Without a column of tasks, one."""
        if self.task is None:
            return {"": np.arange(len(self.frame))}
        groups = self.frame.groupby(self.task, sort=False).indices
        return {_label(name): np.sort(rows) for name, rows in groups.items()}

    def stages(self, column: str) -> dict[str, Stage]:
        """The stage of each task, as a column says."""
        self._check_names([column])
        stages: dict[str, Stage] = {}
        known = get_args(Stage)[:3]
        values = self.frame[column].to_numpy()
        for name, rows in self.tasks.items():
            for row in rows:
                if values[row] not in known:
                    self.complain(row, f"one of {list(known)} in the column {column!r}", repr(values[row]))
                if stages.setdefault(name, values[row]) != values[row]:
                    self.complain(row, f"task {name!r} in one part of the split, {stages[name]!r}", repr(values[row]))
        return stages

    def labels(self, name: str) -> list[str]:
        """The text of each row's category or class; of no row it is empty."""
        cells = zip(self.frame[name].tolist(), self.frame[name].isna(), strict=True)
        return ["" if missing else _label(value) for value, missing in cells]

    def numbers(self, name: str) -> np.ndarray:
        """Of a column of numbers; of an empty cell NaN."""
        return self.frame[name].to_numpy(dtype=np.float64, na_value=np.nan)

    def filled(self, predictions: Any) -> Any:
        """A copy of the table in which :meth:`TableTasks.predictions` stand where targets are empty."""
        frame = self.frame.copy()
        names = {"prediction": self.targets[0]} if self.is_classification else {name: name for name in self.targets}
        rows = predictions["row"].to_numpy() - self.number(0)
        for column, target in names.items():
            frame[target] = frame[target].astype(object if self.is_classification else float)
            frame.loc[frame.index[rows], target] = predictions[column].to_numpy()
        return frame

    @property
    def _columns(self) -> list[str]:
        return [str(name) for name in self.frame.columns]

    def _is_text(self, name: str) -> bool:
        import pandas as pd

        cells = self.frame[name]
        return not pd.api.types.is_numeric_dtype(cells) and pd.to_numeric(cells, errors="coerce").isna().all()

    def _check_names(self, names: list[str]) -> None:
        for name in names:
            if name not in self._columns:
                hint = did_you_mean(name, self._columns, shown=repr)
                raise ValueError(f"Expected a column {name!r} in {self.path} but it has {self._columns}{hint}.")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Expected each column in one role but {twice[0]!r} is named twice, among {names}.")

    def _check_filled(self, name: str, what: str) -> None:
        if (missing := self.frame[name].isna().to_numpy()).any():
            expected, got = f"{what} in the column {name!r}", "nothing: fill the cell or take the row out"
            self.complain(int(missing.argmax()), expected, got)

    def _check_numbers(self, name: str, otherwise: str) -> None:
        import pandas as pd

        numbers = pd.to_numeric(self.frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        there = ~self.frame[name].isna().to_numpy()
        if (wrong := there & ~np.isfinite(numbers)).any():
            row = int(wrong.argmax())
            got = self.frame[name].tolist()[row]
            self.complain(row, f"a number in the column {name!r}", f"{got!r}: correct it, or {otherwise}")

    def complain(self, row: int, expected: str, got: str) -> NoReturn:
        """Raise ValueError that names the file and the row."""
        raise ValueError(f"{self.path}, row {self.number(row)}: Expected {expected} but got {got}.")


@dataclass
class Columns:
    """How the columns of a table become numbers, as plain data.

    Scales are mean and standard deviation of each column of numbers; classes are those of a target that is a label.
    """

    input_names: list[str]
    target_names: list[str]
    input_scales: dict[str, list[float]]
    categories: dict[str, list[str]]
    target_scales: list[list[float]]
    classes: list[str]

    @classmethod
    def of(cls, table: Table, used: np.ndarray) -> "Columns":
        """By the rows that are ``used`` in training; categories and classes are those of all rows."""
        numbers = [name for name in table.inputs if name not in table.categorical]
        label = table.targets[0] if table.is_classification else None
        return cls(
            table.inputs,
            table.targets,
            {name: _scale(table.numbers(name)[used]) for name in numbers},
            {name: sorted(set(table.labels(name))) for name in table.categorical},
            [] if label else [_scale(table.numbers(name)[used]) for name in table.targets],
            sorted(set(table.labels(label)) - {""}) if label else [],
        )

    def check(self, table: Table) -> None:
        """Raise ValueError where a table has other columns or kinds than in training."""
        for name, mine, its in (
            ("inputs", self.input_names, table.inputs),
            ("targets", self.target_names, table.targets),
            ("categorical", list(self.categories), [name for name in table.inputs if name in table.categorical]),
        ):
            if mine != its:
                raise ValueError(f"Expected `{name}` to be {mine}, as in training, but got {its}.")
        if bool(self.classes) != table.is_classification and not table.to_predict.all():
            kinds = ("labels", "numbers") if self.classes else ("numbers", "labels")
            raise ValueError(f"Expected targets to be {kinds[0]}, as in training, but {table.path} has {kinds[1]}.")

    def encoded(self, table: Table) -> tuple[Tensor, Tensor]:
        """Inputs ``[M, F]`` and targets ``[M, targets]`` or classes ``[M]``; a row without a target has zeros."""
        columns: list[np.ndarray] = []
        for name in self.input_names:
            if name in self.input_scales:
                mean, deviation = self.input_scales[name]
                columns.append((table.numbers(name) - mean) / deviation)
            else:
                codes = _codes(table, name, self.categories[name])
                columns += [codes == code for code in range(len(self.categories[name]))]
        inputs = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
        if self.classes:
            return inputs, torch.from_numpy(_codes(table, self.target_names[0], self.classes))
        scales = zip(self.target_names, self.target_scales, strict=True)
        scaled = [(table.numbers(name) - mean) / deviation for name, (mean, deviation) in scales]
        return inputs, torch.from_numpy(np.nan_to_num(np.stack(scaled, 1)).astype(np.float32))

    def decoded(self, table: Table, rows: np.ndarray, values: Tensor) -> Any:
        """Predictions ``[rows, outputs]`` as a table, in the file's order."""
        import pandas as pd

        order = rows.argsort()
        rows, values = rows[order], values[torch.from_numpy(order)]
        frame = pd.DataFrame({"row": rows + table.number(0)})
        if table.task is not None:
            frame.insert(0, table.task, [_label(value) for value in table.frame[table.task].iloc[rows]])
        if self.classes:
            frame = frame.assign(**class_columns(self.classes, values))
        else:
            columns = zip(self.target_names, self.target_scales, values.unbind(1), strict=True)
            for name, (mean, deviation), column in columns:
                frame[name] = column.double().numpy() * deviation + mean
        return frame


def _read(path: Path) -> Any:
    """The file as a ``pandas.DataFrame``."""
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"Expected a table but there is no file {path}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected a table in a file of {' or '.join(SUFFIXES)} but got {path}.")
    try:
        if path.suffix == ".csv":
            names = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].tolist()
            frame = pd.read_csv(path)
        else:
            frame = pd.read_parquet(path)
            names = frame.columns.tolist()
    except ImportError as error:
        raise ImportError(f"Expected pyarrow to read {path}: pip install 'lightning-maml[parquet]'.") from error
    except Exception as error:  # pandas and pyarrow have many
        raise ValueError(f"Expected a table in {path} but it cannot be read: {str(error).strip()}") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Expected each column of {path} to have a name of its own but {twice[0]!r} comes twice.")
    return frame


def _label(value: Any) -> str:
    """A category or class as text: a whole number without a point, which empty cells in its column would give it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _scale(numbers: np.ndarray) -> list[float]:
    return [float(numbers.mean()), float(numbers.std()) or 1.0]


def _codes(table: Table, name: str, known: Sequence[str]) -> np.ndarray:
    """The place of each row's label among those known; 0 where it is empty."""
    places = {label: place for place, label in enumerate(known)} | {"": 0}
    labels = table.labels(name)
    for row, label in enumerate(labels):
        if label not in places:
            table.complain(row, f"the column {name!r} to hold one of {list(known)}, as in training,", repr(label))
    return np.array([places[label] for label in labels], dtype=np.int64)
