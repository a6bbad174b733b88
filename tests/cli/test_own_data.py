# ruff: noqa: E501 -- messages are compared whole
"""The commands of docs/own_data.md: from a table to a filled one, from a folder of images to labels; and what they print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import processes
from drawings import write_classes
from lightning_maml.cli import main
from lightning_maml.cli.progress import ProgressLines

SHORT = ["--trainer.max_steps", "4", "--data.batches_per_epoch", "2", "--trainer.accelerator", "cpu"]
TABLE = ["--config", "table", "--data.path", "quad.csv", "--data.inputs", "[x1, x2]", "--data.targets", "[y]"]
FEW = [*TABLE, "--data.shots", "3", *SHORT, "--model.updates_per_step", "1", "--model.test_steps", "1"]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = processes.command(words, folder, LIGHTNING_MAML_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def commands(repository: Path, name: str) -> list[list[str]]:
    """The commands of the document that name a configuration."""
    text = (repository / "docs" / "own_data.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if f"--config {name} " in line]


def write_table(folder: Path) -> pd.DataFrame:
    """Twenty tasks of eight rows, ``y`` linear in each; two tasks have two rows without ``y``, and one a nasty name."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(160, 2)), columns=["x1", "x2"])
    table.insert(0, "task", np.repeat(["=1+1", *(f"t{i}" for i in range(1, 20))], 8))
    table["y"] = table["x1"] * np.repeat(random.normal(size=20), 8)
    table.loc[[0, 5, 8, 9], "y"] = np.nan
    table.to_csv(folder / "quad.csv", index=False)
    return table


def test_a_table_is_filled_by_two_commands(repository: Path, tmp_path: Path) -> None:
    before = write_table(tmp_path)
    (_, *fit), (_, *predict) = commands(repository, "table")
    assert (fit[0], predict[0]) == ("fit", "predict")
    options = FEW[len(TABLE) :]
    said = run([*fit, *options], tmp_path).stdout
    assert "Test of maml on 2 tasks" in said
    assert "Best checkpoint: runs/table/version_0/checkpoints/best.ckpt" in said
    assert said.splitlines()[-1].startswith("Next: lightning-maml predict --config table --data.path quad.csv ")
    run([*predict, *options], tmp_path)
    folder = tmp_path / "runs" / "table" / "version_1"
    predictions = pd.read_csv(folder / "predictions.csv")
    assert predictions.columns.tolist() == ["task", "row", "y"]
    assert predictions["row"].tolist() == [2, 7, 10, 11]
    assert predictions["task"].tolist() == ["'=1+1", "'=1+1", "t1", "t1"]  # no spreadsheet runs it
    filled = pd.read_csv(folder / "quad_filled.csv")
    assert filled["y"].notna().all()
    there = before["y"].notna()
    np.testing.assert_allclose(filled["y"][there], before["y"][there])
    np.testing.assert_allclose(filled["y"][~there], predictions["y"])


def test_images_become_labels_by_two_commands(repository: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "chars", 16, 10)
    write_classes(tmp_path / "examples", 5, 3, first=20)
    (write_classes(tmp_path / "more", 1, 4, first=21) / "class_21").rename(tmp_path / "new")
    options = [*SHORT, "--data.val_tasks", "2", "--data.test_tasks", "2"]
    for words in commands(repository, "folder"):
        done = run([*words[1:], *options], tmp_path)
    predictions = pd.read_csv(Path(tmp_path, done.stdout.split()[-1]))
    assert predictions.columns.tolist()[:2] == ["file", "prediction"]
    assert len(predictions) == 4


def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path)


def test_the_baseline_stands_beside(tmp_path, monkeypatch, capsys):
    here(tmp_path, monkeypatch)
    assert main(["fit", *FEW, "--baseline", "--model.algorithm", "fomaml"]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if "±" in line][-2:]
    assert [row[0] for row in rows] == ["0", "1"]
    assert "inner step" in said
    head = next(line.split() for line in said.splitlines() if "pretrained" in line)
    assert head == ["inner", "step", "fomaml", "pretrained"]


def test_quiet_keeps_the_result(tmp_path, monkeypatch, capsys):
    here(tmp_path, monkeypatch)
    assert main(["fit", *FEW, "--quiet"]) == 0
    said = capsys.readouterr()
    assert "Best checkpoint" in said.out
    assert "Trainable params" not in said.out + said.err
    assert "Epoch" not in said.out + said.err


def test_what_is_piped_has_a_line_a_minute(tmp_path, monkeypatch, capsys):
    here(tmp_path, monkeypatch)
    monkeypatch.setattr("lightning_maml.cli.progress.EVERY", 0.0)
    assert main(["fit", *FEW]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("update ")]
    assert lines[1].startswith("update 2 of 4, train/loss ")
    assert "\r" not in said
    assert ProgressLines("MAML").name == "MAML: "


def test_networks_of_ones_own_stand_beside(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Line(nn.Linear):\n    def __init__(self, wide: bool = True):\n"
        "        super().__init__(2, 1)\n"
    )
    script = "import sys; from lightning_maml.cli import main; sys.path.remove(''); sys.exit(main())"
    words = ["fit", *FEW, "--model.network", "mine.Line"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "words, message",
    [
        (["fti"], "Expected one of ['fit', 'validate', 'test', 'predict', 'report', 'export', 'reproduce', 'demo'] but got 'fti' (did you mean fit?)."),
        (["fit", *TABLE, "--model.algorithm", "foaml"], "Expected --model.algorithm to be one of ['anil', 'boil', 'cavia', 'fomaml', 'imaml', 'lora', 'maml', 'maml_pp', 'meta_curvature', 'meta_sgd', 'pretrained', 'proto_maml', 'reptile', 'unicorn_maml'], or a class or function by its import path, as a.b.C, but got 'foaml' (did you mean fomaml?)."),
        (["fit", *TABLE, "--data", "TabelTasks"], "Expected --data to be one of ['CIFARFSTasks', 'DatasetTasks', 'FC100Tasks', 'FolderTasks', 'Learn2LearnTasks', 'MiniImagenetTasks', 'OmniglotTasks', 'SinusoidTasks', 'TableTasks', 'TensorTasks'], or a class or function by its import path, as a.b.C, but got 'TabelTasks' (did you mean TableTasks?)."),
        (["fit", *TABLE, "--ckpt_path", "best"], "Expected --ckpt_path last, or a file's path, to go on training from but got best."),
        (["fit", "--config", "table", "--data", "SinusoidTasks"], "Expected --model.network.in_features to be 1 or more but got 0, which stands for what TableTasks has; SinusoidTasks does not say."),
    ],
)  # fmt: skip
def test_mistakes_are_a_line(tmp_path, monkeypatch, capsys, words, message):
    here(tmp_path, monkeypatch)
    assert main(words) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.removesuffix(" (--debug shows the traceback)") == f"lightning-maml: error: {message}"


def test_help_loads_neither_torch_nor_lightning() -> None:
    script = "import sys; from lightning_maml.cli import main; main({!r}); print([m for m in ('torch', 'lightning') if m in sys.modules])"
    for words in (["--help"], ["--version"], ["fti"]):
        done = subprocess.run([sys.executable, "-c", script.format(words)], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_help_that_cannot_be_written_is_a_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("has no /dev/full")
    for words in (["--help"], ["--version"]):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "lightning_maml.cli", *words]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("lightning-maml: error: Expected to use ")
        assert done.stderr.count("\n") == 1
