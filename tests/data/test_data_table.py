# ruff: noqa: E501 -- a table: one mistake a line
"""Tables: what a task's rows become, the split, what is kept in a checkpoint, and every mistake in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_maml.data import TableTasks
from lightning_maml.tasks import TaskBatch, UnequalTasks


def frame(tasks: int = 12, rows: int = 6, missing: int = 0) -> pd.DataFrame:
    """``y = 2 x + task``; of the first two tasks ``missing`` rows have no target."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"task": np.repeat([f"t{i}" for i in range(tasks)], rows), "x": random.normal(size=tasks * rows)}
    )
    table["kind"] = np.tile(["red", "green", "blue"], tasks * rows // 3)
    table["y"] = 2 * table["x"] + table["task"].str[1:].astype(int)
    table["label"] = np.where(table["x"] > 0, "high", "low")
    for task in range(2):
        table.loc[task * rows : task * rows + missing - 1, ["y", "label"]] = np.nan
    return table


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table, and says where."""

    def written(table: pd.DataFrame, name: str = "table.csv") -> Path:
        path = tmp_path / name
        table.to_csv(path, index=False) if name.endswith("csv") else table.to_parquet(path)
        return path

    return written


def tasks_of(path: Path, **options: Any) -> TableTasks:
    return TableTasks(path, **{"inputs": ["x"], "targets": ["y"], "shots": 2, "tasks_per_batch": 4, **options})


def groups(batch: TaskBatch | UnequalTasks) -> list[TaskBatch]:
    return batch.groups if isinstance(batch, UnequalTasks) else [batch]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_rows_of_a_task_are_its_support_and_its_queries(write, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = frame()
    tasks = tasks_of(write(table, name))
    mean, deviation = tasks.columns.input_scales["x"]
    (y_mean, y_deviation), seen = tasks.columns.target_scales[0], set()
    for position in range(3):
        batch = tasks.sample("train", position)
        assert isinstance(batch, TaskBatch)
        assert batch.support_inputs.shape == (4, 2, 1)
        assert batch.query_targets.shape == (4, 4, 1)
        x = torch.cat([batch.support_inputs, batch.query_inputs], 1).double() * deviation + mean
        y = torch.cat([batch.support_targets, batch.query_targets], 1).double() * y_deviation + y_mean
        which = (y - 2 * x).mean((1, 2)).round().long()
        torch.testing.assert_close(y - 2 * x, which.double().view(4, 1, 1).expand_as(y), rtol=0, atol=1e-5)
        assert len(set(which.tolist())) == 4
        for task, rows in zip(which.tolist(), x, strict=True):
            of_task = np.sort(table[table["task"] == f"t{task}"]["x"].to_numpy())
            np.testing.assert_allclose(np.sort(rows.flatten()), of_task, atol=1e-5)
        seen |= set(which.tolist())
    assert len(seen) > 4
    assert torch.equal(
        tasks.sample("train", 1).query_inputs, tasks_of(tasks.table.path).sample("train", 1).query_inputs
    )


def test_only_training_tasks_say_what_standard_is(write):
    tasks = tasks_of(write(frame()))
    used = torch.cat([rows[:count] for rows, count in zip(*tasks.rows["train"], strict=True)]).numpy()
    wanted = tasks.table.frame["x"].to_numpy()[used]
    assert len(used) == 60
    np.testing.assert_allclose(tasks.columns.input_scales["x"], [wanted.mean(), wanted.std()])


def test_each_task_is_in_one_part_of_the_split(write):
    tasks = tasks_of(write(frame(20)), split=(0.5, 0.25, 0.25))
    parts = [{tasks.table.frame["task"][int(row)] for row in rows.padded[:, 0]} for rows in tasks.rows.values()]
    assert [len(part) for part in parts] == [10, 5, 5]
    assert len(set().union(*parts)) == 20
    others = tasks_of(tasks.table.path, split=(0.5, 0.25, 0.25), seed=1)
    assert not torch.equal(others.rows["val"].padded, tasks.rows["val"].padded)


def test_a_column_may_say_the_split(write):
    table = frame(6)
    table["part"] = np.repeat(["train", "test", "val", "train", "train", "train"], 6)
    tasks = tasks_of(write(table), split_column="part")
    assert tasks.rows["test"].padded.tolist() == [[6, 7, 8, 9, 10, 11]]
    assert tasks.rows["val"].padded.tolist() == [[12, 13, 14, 15, 16, 17]]


def test_tasks_of_unequal_size_are_grouped(write):
    table = frame(8)
    tasks = tasks_of(write(table.drop(index=[0, 7, 8, 9])), tasks_per_batch=6, split=(1.0, 0.0, 0.0))
    batch = tasks.sample("train", 0)
    sizes = [(len(group), group.support_inputs.shape[1], group.query_inputs.shape[1]) for group in groups(batch)]
    assert len(batch) == 6
    assert {support for _, support, _ in sizes} == {2}
    assert [query for *_, query in sizes] == sorted({query for *_, query in sizes})
    assert sum(number for number, *_ in sizes) == 6


def test_more_tasks_in_a_batch_than_there_are_repeat_some(write):
    assert len(tasks_of(write(frame()), tasks_per_batch=40).sample("train", 0)) == 40


def test_rows_without_a_target_are_predicted_from_all_others(write):
    table = frame(missing=2)
    table = table.drop(index=[11])
    tasks = tasks_of(write(table))
    assert tasks.predict_tasks == 2
    (batch,) = tasks.predict_dataloader()
    parts = groups(tasks._evaluation_batch(batch, "cpu"))
    assert [(p.support_inputs.shape[1], p.query_inputs.shape[1]) for p in parts] == [(4, 2), (3, 2)]
    outputs = [[part.query_inputs * 0 + number for number, part in enumerate(parts)]]
    found = tasks.predictions(outputs)
    assert found["row"].tolist() == [2, 3, 8, 9]
    assert found["task"].tolist() == ["t0", "t0", "t1", "t1"]
    mean, deviation = tasks.columns.target_scales[0]
    np.testing.assert_allclose(found["y"], [mean, mean, mean + deviation, mean + deviation])
    filled = tasks.filled(found)
    assert filled["y"].notna().all()
    untouched = ~tasks.table.to_predict
    pd.testing.assert_frame_equal(filled[untouched], tasks.table.frame[untouched])


def test_labels_are_classes_of_the_whole_table(write):
    tasks = tasks_of(write(frame(missing=1)), targets=["label"])
    assert tasks.columns.classes == ["high", "low"]
    assert tasks.sizes_of_network == {"in_features": 1, "out_features": 2}
    batch = groups(tasks.sample("train", 0))[-1]
    assert batch.query_targets.dtype == torch.int64
    mean, deviation = tasks.columns.input_scales["x"]
    assert (batch.query_targets == (batch.query_inputs[..., 0] * deviation + mean <= 0)).all()
    found = tasks.predictions([torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])])
    assert found["prediction"].tolist() == ["high", "low"]
    np.testing.assert_allclose(found["probability of low"], [1 / (1 + np.exp(2)), 1 / (1 + np.exp(-1))], rtol=1e-6)
    assert tasks.filled(found)["label"][0] == "high"


def test_numbers_may_be_labels(write):
    table = frame(missing=1)
    table["label"] = np.where(table["label"].isna(), np.nan, table["label"] == "high")
    assert tasks_of(write(table), targets=["label"], classification=True).columns.classes == ["0", "1"]


def test_categories_are_columns_of_zeros_and_ones(write):
    tasks = tasks_of(write(frame()), inputs=["x", "kind"], categorical=["kind"])
    assert tasks.columns.categories == {"kind": ["blue", "green", "red"]}
    assert tasks.data[0][:3, 1:].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_a_checkpoint_keeps_scales_and_classes(write):
    before = tasks_of(write(frame()), inputs=["x", "kind"], categorical=["kind"])
    table = frame(6)
    table["x"] *= 100
    table = table[table["kind"] != "blue"]
    after = tasks_of(write(table, "new.csv"), inputs=["x", "kind"], categorical=["kind"])
    assert after.data[0].shape[1] == 3
    after.load_state_dict(before.state_dict())
    assert after.data[0].shape[1] == 4
    mean, deviation = before.columns.input_scales["x"]
    np.testing.assert_allclose(after.data[0][:, 0], (table["x"] - mean) / deviation, rtol=1e-5)
    table.loc[7, "kind"] = "violet"
    with_new = tasks_of(write(table, "violet.csv"), inputs=["x", "kind"], categorical=["kind"])
    with_new.load_state_dict(before.state_dict())
    with pytest.raises(ValueError, match=r"violet.csv, row 7: Expected the column 'kind' to hold one of .*'violet'"):
        _ = with_new.data
    with pytest.raises(ValueError, match=r"Expected `inputs` to be \['x', 'kind'\], as in training, but got \['x'\]"):
        tasks_of(write(frame())).load_state_dict(before.state_dict())


def change(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def changed(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return changed


MISTAKES: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = [
    (change("x", 3, "abc"), {}, "{path}, row 5: Expected a number in the column 'x' but got 'abc': correct it, or name it in --data.categorical."),
    (change("x", 3, "inf"), {}, "{path}, row 5: Expected a number in the column 'x' but got inf: correct it, or name it in --data.categorical."),
    (change("x", 3, None), {}, "{path}, row 5: Expected an input in the column 'x' but got nothing: fill the cell or take the row out."),
    (change("task", 3, None), {}, "{path}, row 5: Expected a task in the column 'task' but got nothing: fill the cell or take the row out."),
    (change("y", 3, "many"), {}, "{path}, row 5: Expected a number in the column 'y' but got 'many': correct it, or use --data.classification true for labels."),
    (change("y", 3, None), {"targets": ["y", "z"]}, "{path}, row 5: Expected all targets ['y', 'z'] or none but got nothing in 'y': fill or empty the row."),
    (lambda t: t, {"inputs": ["x", "kind"]}, "{path}, row 2: Expected a number in the column 'kind' but got 'red': correct it, or name it in --data.categorical."),
    (lambda t: t, {"inputs": ["xs"]}, "Expected a column 'xs' in {path} but it has ['task', 'x', 'kind', 'y', 'label', 'z'] (did you mean 'x'?)."),
    (lambda t: t, {"task": "person"}, "Expected a column 'person' in {path} but it has ['task', 'x', 'kind', 'y', 'label', 'z']."),
    (lambda t: t, {"inputs": ["x", "y"]}, "Expected each column in one role but 'y' is named twice, among ['x', 'y', 'y', 'task']."),
    (lambda t: t, {"inputs": []}, "Expected the names of columns in `inputs` and `targets` but got [] and ['y']; {path} has ['task', 'x', 'kind', 'y', 'label', 'z']."),
    (lambda t: t, {"categorical": ["kind"]}, "Expected `categorical` to name some of the inputs ['x'] but got ['kind']."),
    (lambda t: t, {"targets": ["label", "y"]}, "Expected one target, as it is a label, but got ['label', 'y']."),
    (lambda t: t[:0], {}, "Expected rows in {path} but it has none."),
    (lambda t: t, {"shots": 6}, "Expected training tasks with more than `shots` = 6 rows with a target in {path} but the most is 6: lower --data.shots."),
    (lambda t: t, {"split": (0.5, 0.2, 0.2)}, "Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got [0.5, 0.2, 0.2]."),
    (lambda t: t.assign(part="training"), {"split_column": "part"}, "{path}, row 2: Expected one of ['train', 'val', 'test'] in the column 'part' but got 'training'."),
    (lambda t: t.assign(part=["train", "val"] * 36), {"split_column": "part"}, "{path}, row 3: Expected task 't0' in one part of the split, 'train' but got 'val'."),
    (lambda t: t.assign(y=t["y"].where(t["task"] != "t3")), {}, "Expected a row with a target in each task of {path} but task 't3' (row 20) has none to adapt on: give it one, or take its rows out."),
]  # fmt: skip


@pytest.mark.parametrize("change, options, message", MISTAKES, ids=[message[:60] for *_, message in MISTAKES])
def test_a_mistake_is_one_line(write, change, options, message):
    path = write(change(frame().assign(z=1.0)))
    with pytest.raises(ValueError) as caught:
        tasks_of(path, **options)
    assert str(caught.value) == message.format(path=path)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        tasks_of(tmp_path / "none.csv")
    assert str(missing.value) == f"Expected a table but there is no file {tmp_path / 'none.csv'}."
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"Expected a table in a file of .csv or .parquet but got .*table.xlsx"):
        tasks_of(tmp_path / "table.xlsx")
    (tmp_path / "twice.csv").write_text("task,x,x,y\na,1,2,3\n")
    with pytest.raises(
        ValueError, match=r"Expected each column of .*twice.csv to have a name of its own but 'x' comes"
    ):
        tasks_of(tmp_path / "twice.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"Expected a table in .*empty.csv but it cannot be read: No columns to parse"):
        tasks_of(tmp_path / "empty.csv")
    (tmp_path / "torn.csv").write_text("task,x,y\na,1,2\na,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"Expected a table in .*torn.csv but it cannot be read: .* line 3"):
        tasks_of(tmp_path / "torn.csv")
