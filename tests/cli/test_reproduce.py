"""``lightning-maml reproduce``: what it compares, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_maml import MLP, Conv4, cli
from lightning_maml.cli.bases import latest, read_chain
from lightning_maml.cli.reproduce import Protocol, protocols
from lightning_maml.cli.reproduction import FIELDS, Comparison, is_transductive
from lightning_maml.networks import step_batch_norm
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
        contents = read_chain(path)
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [name]]
        assert f"{latest(contents, 'trainer', 'max_steps'):,} updates" in line
        assert line.endswith((contents[-1]["published"] or {"source": "no number at hand"})["source"])


@pytest.mark.parametrize("name", protocols())
def test_what_is_published_is_tested(name):
    contents = read_chain(protocols()[name])
    if contents[-1]["published"] is None:
        return
    steps = latest(contents, "model", "test_steps")
    steps = latest(contents, "model", "algorithm", "init_args", "steps") if steps is None else steps
    published = Published(**contents[-1]["published"])
    assert {*published.loss, *published.accuracy} <= set(range(steps + 1))
    assert bool(published.accuracy) == (latest(contents, "model", "loss") == "cross_entropy")


def test_a_shortened_run_gets_no_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "sinusoid", "--max_updates=50", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "beside Finn et al. 2017, table 2" in shown
    assert shown.count("(no verdict)") == 3
    assert "50 of 70,000 updates" in shown
    (written,) = tmp_path.rglob("reproduction.json")
    content = json.loads(written.read_text())
    assert set(FIELDS) <= content.keys()
    assert (content["updates"], content["of_updates"], content["cut_short"]) == (50, 70_000, False)
    assert (content["test_tasks"], content["test_queries"], content["transductive"]) == (6, 100, False)
    assert content["inner_steps"] == 10
    assert content["minutes"] >= 0
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


def test_where_the_data_lie_is_not_written(tmp_path):
    path = tmp_path / "mine.yaml"
    overrides = ["--data.root", "somewhere", "--model.engine=eager", "--data.download=true", "--data.seed", "3"]
    protocol = Protocol("mine", path, [{"trainer": {"max_steps": 5}}], None, overrides)
    assert protocol.asked()["overrides"] == ["--model.engine=eager", "--data.seed", "3"]
    assert "--data.root" in protocol.arguments(resumes=False)


def test_what_depends_on_other_queries():
    assert is_transductive(Conv4(5), "batch")
    assert is_transductive(step_batch_norm(Conv4(5), 3), "batch")
    assert not is_transductive(Conv4(5), "running")
    assert not is_transductive(Conv4(5), "support")
    assert not is_transductive(Conv4(5, norm="group"), "batch")
    assert not is_transductive(MLP(1, [4], 1), "batch")


FEW = {
    "base": "sinusoid",
    "model": {"updates_per_step": 1, "network": {"init_args": {"hidden": [8]}}},
    "data": {"init_args": {"batches_per_epoch": 3, "val_tasks": 4, "test_tasks": 6, "tasks_per_batch": 2}},
    "trainer": {"max_steps": 12, "enable_progress_bar": False, "enable_model_summary": False},
    "published": None,
}


def small_protocol(name: str, **sections: object) -> Path:
    path = Path(f"{name}.yaml")
    logger = [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": name}}]
    content = {**FEW, "trainer": {**FEW["trainer"], "logger": logger}, **sections}
    path.write_text(yaml.safe_dump(content))
    return path


def results_of(name: str) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(Path("runs", name).glob("*/reproduction.json"))]


def test_a_run_goes_on_to_the_bit_and_a_finished_one_is_tested(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("parts", "whole"):
        small_protocol(name)
    assert cli.main(["reproduce", "whole.yaml"]) == 0
    for arguments in (["--max_updates=5"], ["--resume"], ["--resume"]):
        assert cli.main(["reproduce", "parts.yaml", *arguments]) == 0
    (whole,) = results_of("whole")
    first, second, third = results_of("parts")
    assert (first["updates"], first["of_updates"]) == (5, 12)
    assert first["weights"] != whole["weights"]
    assert second["weights"] == third["weights"] == whole["weights"]
    assert second["results"] == third["results"] == whole["results"]
    assert second["updates"] == third["updates"] == 12
    assert "after 5 of 12 meta-updates" in caplog.text
    assert "none is left to train" in caplog.text
    assert "Finn" not in capsys.readouterr().out  # whose number it is not


def test_a_finished_run_is_tested_with_its_best(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_protocol("worst", checkpoint={"monitor": "val/loss", "mode": "max"})  # the first validation's
    for _ in range(2):
        assert cli.main(["reproduce", "worst.yaml", "--resume"]) == 0
    first, second = results_of("worst")
    assert first["weights"] == second["weights"]
    last, best = (next(Path("runs").rglob(f"version_0/checkpoints/{which}.ckpt")) for which in ("last", "best"))
    assert torch.load(best)["global_step"] < torch.load(last)["global_step"] == 12


def test_what_time_has_cut_short_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_protocol("cut", trainer={**FEW["trainer"], "max_steps": 10**6})
    assert cli.main(["reproduce", "cut.yaml", "--trainer.max_time=00:00:00:01", "--trainer.logger=false"]) == 0
    (path,) = Path().glob("reproduction.json")
    content = json.loads(path.read_text())
    assert content["cut_short"] is True
    assert 0 < content["updates"] < content["of_updates"] == 10**6
    assert content["minutes"] == pytest.approx(1 / 60, abs=0.05)
    shown = capsys.readouterr().out
    assert ", cut short by max_time; seed 0" in shown
    assert "No verdict on the protocol" in shown


def test_all_of_a_beginning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {name: small_protocol(name) for name in ("a_good", "a_hard", "b_other")}
    files["a_bad"] = small_protocol("a_bad", model={"algorithm": {"init_args": {"lr": -1.0}}})
    files["a_hard"] = small_protocol("a_hard", published={"source": "nowhere", "loss": {1: [1e-6]}})
    monkeypatch.setattr("lightning_maml.cli.reproduce.protocols", lambda: dict(sorted(files.items())))
    monkeypatch.setattr("lightning_maml.cli.reproduce.commit", lambda: "abc1234")
    assert cli.main(["reproduce", "--all", "a_"]) == 1
    shown = capsys.readouterr().out
    end = shown.split("All of them:")[1]
    assert [line.split()[:2] for line in end.splitlines() if line] == [
        ["a_bad", "failed:"],
        ["a_good", "no"],
        ["a_hard", "worse"],
    ]
    assert "lr" in end
    assert not results_of("b_other")

    assert cli.main(["reproduce", "--all", "a_"]) == 1  # made again is what failed
    end = capsys.readouterr().out.split("All of them:")[1]
    assert end.count("is there: runs/a_good/version_0/reproduction.json") == 1
    assert len(results_of("a_good")) == len(results_of("a_hard")) == 1
    for other in (["--max_updates=4"], ["--seed_everything=3"]):  # another budget, another seed
        cli.main(["reproduce", "--all", "a_g", *other])
    assert [content["seed"] for content in results_of("a_good")] == [0, 0, 3]
    monkeypatch.setattr("lightning_maml.cli.reproduce.commit", lambda: "abc1234-dirty")
    for _ in range(2):
        assert cli.main(["reproduce", "--all", "a_g"]) == 0
    assert len(results_of("a_good")) == 5

    assert cli.main(["reproduce", "--all", "c_"]) == 1
    assert "Expected --all with how the names of protocols begin but got 'c_'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "a_good", "--all"])
    assert "but got both" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--resume"])
    assert "to go on with but got none" in capsys.readouterr().err
