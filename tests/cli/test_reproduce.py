"""``lightning-maml reproduce``: what it compares, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_maml import cli
from lightning_maml.cli.reproduce import Comparison, protocols
from lightning_maml.training.results import Published

SMALL = ["--data.val_tasks=4", "--data.test_tasks=6", "--trainer.enable_progress_bar=false"]


def test_verdicts():
    def verdict(value: str, measured: float, published: float, half: float | None = None) -> str:
        return Comparison(value, 1, measured, 0.01, published, half).verdict

    assert verdict("accuracy", 0.95, 0.955) == "reproduced"
    assert verdict("accuracy", 0.95, 0.98) == "worse"
    assert verdict("accuracy", 0.95, 0.98, 0.03) == "reproduced"
    assert verdict("accuracy", 0.99, 0.95) == "better"
    assert verdict("loss", 0.50, 0.60) == "better"
    assert verdict("loss", 0.60, 0.50) == "worse"
    assert verdict("loss", float("nan"), 0.50) == verdict("accuracy", float("nan"), 0.50) == "worse"


def test_list(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    shown = capsys.readouterr().out
    for name, path in protocols().items():
        content = yaml.safe_load(path.read_text())
        assert name in shown
        assert f"{content['trainer']['max_steps']:,} updates" in shown
        assert content["published"]["source"] in shown


@pytest.mark.parametrize("name", protocols())
def test_what_is_published_is_tested(name):
    content = yaml.safe_load(protocols()[name].read_text())
    steps = content["model"].get("test_steps", content["model"]["algorithm"]["init_args"]["steps"])
    published = Published(**content["published"])
    assert {*published.loss, *published.accuracy} <= set(range(1, steps + 1))
    assert bool(published.accuracy) == (content["model"]["loss"] == "cross_entropy")


def test_a_shortened_run_gets_no_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "sinusoid", "--max_updates=50", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "beside Finn et al. 2017, table 2" in shown
    assert shown.count("(no verdict)") == 3
    assert "50 of 70,000 updates" in shown
    (written,) = tmp_path.rglob("reproduction.json")
    content = json.loads(written.read_text())
    measured = json.loads(written.with_name("metrics.json").read_text())["loss"]["mean"]
    assert [(row["inner_steps"], row["published"], row["verdict"]) for row in content["results"]] == [
        (1, 0.67, None),
        (5, 0.38, None),
        (10, 0.35, None),
    ]
    found = [row["measured"] for row in content["results"]]
    assert found == pytest.approx([measured[steps] for steps in (1, 5, 10)])


def test_a_whole_run_gets_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(protocols()["sinusoid"].read_text())
    content["trainer"]["max_steps"] = 50
    content["published"] = {"source": "nowhere", "loss": {1: [1e-6]}}
    Path("hard.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["reproduce", "hard.yaml", *SMALL]) == 1
    assert capsys.readouterr().out.count("worse") == 1
    content["published"]["loss"] = {1: [1e6]}
    Path("easy.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["reproduce", "easy.yaml", *SMALL]) == 0
    assert capsys.readouterr().out.count("better") == 1


def test_wrong_requests(tmp_path, capsys):
    for arguments, message in (
        (["nonsense"], "Expected the name of a protocol, one of"),
        (["sinusoid", "--trainer.max_steps=5"], "by `--max_updates`"),
        (["sinusoid", "--max_updates=0"], "`max_updates` to be a whole number of at least 1 but got 0"),
    ):
        assert cli.main(["reproduce", *arguments]) == 1
        assert message in capsys.readouterr().err
    bare = tmp_path / "bare.yaml"
    bare.write_text("trainer: {max_steps: 1}")
    assert cli.main(["reproduce", str(bare)]) == 1
    assert "a section `published`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Expected published numbers"):
        Published("nowhere", loss={1: [1.0, 2.0, 3.0]})
