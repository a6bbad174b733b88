"""``lightning-maml export``: from a run and a task's files to a network that predicts as ``predict`` does."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_maml.cli import main

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
QUIET = ["--quiet", "--trainer.accelerator=cpu", "--trainer.max_steps=4", "--data.batches_per_epoch=4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_tables(folder: Path) -> None:
    """Twelve tasks, and the examples of another one, beside its rows to predict."""
    draw = random.Random(0)
    lines = ["task,x1,x2,color,y"]
    for task in range(13):
        for row in range(12):
            x1, x2, color = draw.gauss(3, 2), draw.gauss(0, 1), draw.choice(["red", "blue"])
            y = "" if task == 12 and row > 7 else f"{task * x1 - x2 + (color == 'red'):.4f}"
            lines.append(f"t{task},{x1:.4f},{x2:.4f},{color},{y}")
    (folder / "all.csv").write_text("\n".join(lines))
    own = [line.split(",", 1)[1] for line in lines if line.startswith("t12,")]
    (folder / "pump.csv").write_text("\n".join(["x1,x2,color,y", *own]))


def test_a_table_s_network_predicts_what_predict_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    write_tables(folder)
    columns = ["--data.inputs=[x1,x2,color]", "--data.categorical=[color]", "--data.targets=[y]", "--data.shots=6"]
    given = ["--config=table", "--data.path=all.csv", *columns]
    assert main(["fit", *given, *QUIET, "--trainer.limit_val_batches=0"]) == 0
    assert main(["predict", *given, "--quiet", "--ckpt_path=runs/table/version_0/checkpoints/last.ckpt"]) == 0
    written = pd.read_csv(next(folder.rglob("predictions.csv")))
    capsys.readouterr()
    assert main(["export", "runs/table/version_0/checkpoints/last.ckpt", "--task=pump.csv", "--to=torch"]) == 0
    said = capsys.readouterr().out
    assert "Adapted to 8 examples in" in said
    extra = {"lightning_maml": ""}
    served = torch.export.load("pump.pt2", extra_files=extra).module()
    found = json.loads(extra["lightning_maml"])["columns"]
    table = pd.read_csv("pump.csv")
    new = table[table.y.isna()]
    numbers = [(new[name] - mean) / deviation for name, (mean, deviation) in found["input_scales"].items()]
    numbers += [(new.color == color).astype(float) for color in found["categories"]["color"]]
    ((mean, deviation),) = found["target_scales"]
    predicted = served(torch.tensor(pd.concat(numbers, axis=1).to_numpy(), dtype=torch.float32))[:, 0].detach()
    expected = torch.tensor(written.y.to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(predicted * deviation + mean, expected, rtol=1e-4, atol=1e-4)
    for shown in (
        f"(x1 - {found['input_scales']['x1'][0]:.6g}) / ",
        "color is blue, color is red",
        "Predictions: [rows, 1]",
    ):
        assert shown in said


def test_numbers_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{x / 3},{2 * math.sin(x / 3 + 1)}" for x in range(-10, 10, 2)]
    (folder / "sine.csv").write_text("\n".join(["x,y", *rows]))
    assert (
        main(["fit", "--config=sinusoid", *QUIET, "--model.updates_per_step=2", "--trainer.limit_val_batches=0"]) == 0
    )
    capsys.readouterr()
    last = "runs/sinusoid/version_0/checkpoints/last.ckpt"
    assert main(["export", last, "--task=sine.csv", "--to=safetensors", "--out=there/it.safetensors", "--steps=3"]) == 0
    said = capsys.readouterr().out
    assert "Adapted to 10 examples in 3 steps" in said
    assert "Inputs: [rows, 1], float32: x\nPredictions: [rows, 1]: y\nWritten to there/it.safetensors" in said
    assert (folder / "there" / "it.safetensors").is_file()


def test_images_by_a_name_that_ships(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    for number, name in enumerate(["ant", "bee", "cat", "dog", "elk"]):
        (folder / "animals" / name).mkdir(parents=True)
        Image.new("RGB", (40, 50), (50 * number, 100, 200 - 40 * number)).save(folder / "animals" / name / "1.png")
    export = ["export", "cifar_fs_5w1s", "--task=animals", "--to=onnx"]
    with pytest.warns(UserWarning, match="depend on which rows come together"):
        assert main(export) == 1
    assert "`--batch-norm support`" in capsys.readouterr().err
    assert main([*export, "--batch-norm=support"]) == 0
    said = capsys.readouterr().out
    assert "Inputs: [rows, 3, 32, 32], float32 from 0 to 1" in said
    assert "of each class a score: ant, bee, cat, dog, elk" in said


@pytest.mark.parametrize(
    ("more", "status", "reason"),
    [
        (["--task=nothing.csv", "--to=torch"], 1, "Expected a folder with a folder of images|there is no file nothing"),
        (["--task=a.csv", "--to=torch"], 1, "Expected a folder with a folder of images for each class but a.csv is a"),
        (["--task=a.csv", "--to=tflite"], 2, "invalid choice: 'tflite'"),
        (["--to=torch"], 2, "the following arguments are required: --task"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], status: int, reason: str
) -> None:
    (folder / "a.csv").write_text("x,y\n1,2\n")
    if status == 2:  # of the parser
        with pytest.raises(SystemExit, match="2"):
            main(["export", "cifar_fs_5w1s", *more])
    else:
        assert main(["export", "cifar_fs_5w1s", *more]) == status
    assert re.search(reason, capsys.readouterr().err)


def test_a_policy_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"state_dict": {}, "hyper_parameters": {"policy": {}}, "pytorch-lightning_version": "2.6.0"}
    torch.save(content, folder / "policy.ckpt")
    (folder / "a.csv").write_text("x,y\n1,2\n")
    assert main(["export", "policy.ckpt", "--task=a.csv", "--to=torch"]) == 1
    said = capsys.readouterr().err
    assert "Expected a checkpoint of a network to adapt to examples but policy.ckpt is one of a policy" in said
