"""A run's page: what stands on it, for whole runs and for those that ended badly."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from drawings import write_npz
from lightning_maml import MLP, meta_curvature
from lightning_maml.cli import main
from lightning_maml.report import read_run, write_report
from lightning_maml.report.rates import rates

SHORT = ["--trainer.max_steps=20", "--data.batches_per_epoch=10", "--trainer.accelerator=cpu", "--quiet"]
SINUSOID = ["fit", "--config=sinusoid", *SHORT, "--data.val_tasks=10", "--data.test_tasks=40"]
SINUSOID += ["--model.updates_per_step=5", "--trainer.log_every_n_steps=1", "--model.test_steps=3"]


class Page(HTMLParser):
    """The headings, notes, elements with names, and pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.headings, self.notes, self.tags = path.read_text(), [], [], []
        self.inside = ""
        self.feed(self.text)
        data = re.search(r'<script type="application/json" id="pictures">(.*?)</script>', self.text)
        assert data is not None
        self.pictures: dict[str, Any] = json.loads(data[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("h1", "h2"):
            self.headings.append(data)
        if self.inside == "li":
            self.notes.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with its baseline beside it."""
    folder = tmp_path_factory.mktemp("sinusoid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*SINUSOID, "--baseline", "--report"]) == 0
    return folder / "runs" / "sinusoid" / "version_0"


@pytest.fixture
def run(sinusoid: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sinusoid, tmp_path / "version_0"))


def test_a_run_of_regression_has_every_section(sinusoid: Path) -> None:
    page = Page(sinusoid / "report.html")
    assert page.headings == [
        "maml on SinusoidTasks",
        "What adapting does: loss by inner step",
        "A task's function, step by step",
        "Learning curve: loss",
        "Where the time went",
        "What it was",
    ]
    assert {*page.pictures} == {"steps", "curve-loss", "speed", *(f"function-{at}" for at in range(4))}
    names = [trace["name"] for trace in page.pictures["steps"]["data"]]
    assert names.count("each task") == 32
    assert names[-3:] == ["95 % interval", "mean of the test", "baseline"]
    assert "baseline, validation after adapting" in [line["name"] for line in page.pictures["curve-loss"]["data"]]
    assert "seed_everything: 0" in page.text
    assert "<dt>run: commit</dt>" in page.text


def test_numbers_are_those_of_the_test(sinusoid: Path) -> None:
    results = json.loads((sinusoid / "metrics.json").read_text())
    mean = next(
        line for line in Page(sinusoid / "report.html").pictures["steps"]["data"] if line["name"] == "mean of the test"
    )
    assert mean["y"] == pytest.approx(results["loss"]["mean"], rel=1e-5)
    assert mean["customdata"] == pytest.approx(results["loss"]["ci95"], rel=1e-5)


def test_the_slider_shows_the_function_after_each_step(sinusoid: Path) -> None:
    page = Page(sinusoid / "report.html")
    (slider,) = [attributes for attributes in page.of("input") if attributes["type"] == "range"]
    assert (slider["min"], slider["max"]) == ("0", "3")
    curves = [page.pictures[f"function-{at}"]["frames"] for at in range(4)]
    assert all(len(frames) == 4 for frames in curves)
    starts = [frames[0][0]["y"] for frames in curves]
    assert all(start == starts[0] for start in starts)  # of one initialisation
    assert curves[0][3][0]["y"] != curves[0][0][0]["y"]


def test_pictures_are_what_plotly_knows(sinusoid: Path) -> None:
    for picture in Page(sinusoid / "report.html").pictures.values():
        text = re.sub(r'"--\w+"', '"#123456"', json.dumps({name: picture[name] for name in ("data", "layout")}))
        go.Figure(json.loads(text))  # which raises where an attribute is none of plotly's


def test_the_page_is_one_file_that_asks_no_host(sinusoid: Path) -> None:
    page = Page(sinusoid / "report.html")
    assert len(page.text.encode()) < 2e6
    assert not page.of("iframe")
    assert [link["href"] for link in page.of("link")] == ["data:,"]
    assert not [attributes for _, attributes in page.tags if (attributes.get("src") or "data:")[:5] != "data:"]
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert all(place.get("aria-label") for place in page.of("div") if place.get("role") == "img")


def test_a_checkpoint_stands_for_its_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink()
    assert main(["report", str(run / "checkpoints" / "last.ckpt")]) == 0
    assert capsys.readouterr().out == f"Page: {run / 'report.html'}\n"
    assert "<dd>last.ckpt</dd>" in (run / "report.html").read_text()


def test_a_run_that_was_killed_says_so(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([*lines[:3], lines[3][: len(lines[3]) // 2]]))
    (run / "metrics.json").unlink()
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    page = Page(write_report(run))
    assert "the log stops after 10 of 20 updates" in page.notes[0]
    assert page.notes[1].startswith("The run was not tested")
    assert page.notes[2] == "No test task is shown by itself: Expected a checkpoint in the run's folder but found none."
    assert page.headings[1:] == ["Learning curve: loss", "Where the time went", "What it was"]


@pytest.mark.parametrize("limit, says", [("00:00:00:03", "its time was up"), ("00:01:00:00", "did not reach its end")])
def test_a_run_whose_time_was_up_says_so(run: Path, limit: str, says: str) -> None:
    path, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    checkpoint = torch.load(path)
    checkpoint["callbacks"]["Timer"] = {"time_elapsed": {"train": 3.1}}
    torch.save(checkpoint, path)
    text = config.read_text().replace("max_steps: 20", "max_steps: 30")
    config.write_text(text.replace("max_time: null", f"max_time: {limit}"))
    assert f"max_time: {limit}" in config.read_text()
    note = Page(write_report(run)).notes[0]
    assert says in note
    assert "20 of 30 updates; --ckpt_path last goes on with it" in note or limit != "00:00:00:03"


def test_a_run_with_nan_says_so(run: Path) -> None:
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    lines[1][lines[0].index("train/loss")] = "nan"
    (run / "metrics.csv").write_text("\n".join(map(",".join, lines)))
    results = json.loads((run / "metrics.json").read_text())
    results["loss"]["mean"][-1] = results["loss"]["ci95"][-1] = None
    (run / "metrics.json").write_text(json.dumps(results))
    page = Page(write_report(run))
    assert "train/loss was no finite number in 1 of 4 lines of the log, first at meta-update 5." in page.notes
    assert any("mean loss is not a finite number" in note for note in page.notes)
    assert "and not finite after 3 inner steps" in page.text
    assert page.pictures["curve-loss"]["data"][0]["y"][0] is None


def test_a_run_without_validation_says_so(run: Path) -> None:
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [at for at, name in enumerate(lines[0]) if not name.startswith("val/")]
    (run / "metrics.csv").write_text("\n".join(",".join(line[at] for at in kept) for line in lines))
    page = Page(write_report(run))
    assert any(note.startswith("There was no validation") for note in page.notes)


def test_a_folder_of_a_test_alone_says_so(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "version_1"
    folder.mkdir()
    for name in ("config.yaml", "metrics.json"):
        shutil.copy(run / name, folder)
    results = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**results, "checkpoint": str(run / "checkpoints" / "best.ckpt")}))
    page = Page(write_report(folder))
    assert page.notes[0] == "This is the folder of a test alone: how the network was trained is in another one."
    assert "A task's function, step by step" in page.headings


def test_a_run_without_a_log_says_so(run: Path) -> None:
    (run / "metrics.csv").unlink()
    assert Page(write_report(run)).notes[0].startswith("There is no metrics.csv")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="Expected the folder of a run, such as runs/sinusoid/version_0"):
        read_run(tmp_path)
    assert main(["report", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err.startswith("lightning-maml: error: Expected the folder of a run")
    (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"Expected .*metrics.json to be JSON"):
        read_run(tmp_path)


def test_names_in_a_configuration_are_only_text(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("lightning_maml.data.SinusoidTasks", "a.</script><b onclick=x>"))
    page = Page(write_report(run))
    assert not page.of("b")
    assert page.text.count("</script>") == 3


def test_images_show_what_is_taken_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL.Image", reason="pillow is not installed")
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path)
    sizes = ["--data.ways=2", "--model.network.ways=2", "--data.split=[3,2,2]", "--data.tasks_per_batch=4"]
    tasks = [f"--data.root={tmp_path}", "--data.val_tasks=4", "--data.test_tasks=5", "--trainer.max_steps=2"]
    assert main(["fit", "--config=omniglot_5w1s", *SHORT, *sizes, *tasks, "--report"]) == 0
    page = Page(tmp_path / "runs" / "omniglot_5w1s" / "version_0" / "report.html")
    assert "Images: what is taken for what" in page.headings
    images = page.of("img")
    assert len(images) == 3 * (2 + 2)
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/png;base64,") for image in images)
    rows = [json.loads(row["data-predicted"] or "") for row in page.of("div") if row.get("data-predicted")]
    assert [len(steps) for steps in rows] == [4, 4, 4]  # three inner steps and none
    assert {label for steps in rows for labels in steps for label in labels} <= {0, 1}


def test_learned_rates_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--data.val_tasks=4", "--data.test_tasks=5", "--model.algorithm=maml_pp", "--report"]
    assert main([*SINUSOID, *few]) == 0
    page = Page(tmp_path / "runs" / "sinusoid" / "version_0" / "report.html")
    assert "Learned inner rates" in page.headings
    assert page.pictures["rates"]["data"][0]["name"] == "linear1.weight"


def test_learned_curvature_is_shown() -> None:
    network = MLP(1, [4], 1)
    learned = meta_curvature(lr=0.1, steps=1).initial_rates(network)
    section = rates(learned)
    assert section is not None
    (bar,) = section.pictures["rates"]["data"]
    assert len(bar["x"]) == len([*learned.parameters()])
    assert bar["y"] == [0.0] * len(bar["x"])
    with torch.no_grad():
        next(learned.parameters()).mul_(3.0)
    assert rates(learned).pictures["rates"]["data"][0]["y"][:2] == pytest.approx([2.0, 0.0])


def test_ways_of_a_policy_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.max_steps=2", "--model.trajectories=2", "--data.tasks_per_batch=2", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config=rl_navigation", *few, "--data.batches_per_epoch=2", "--quiet"]) == 0
    (config,) = tmp_path.rglob("config.yaml")
    page = Page(write_report(config.parent))
    assert page.headings[:2] == ["maml on Navigation2D", "Ways to the goal, step by step"]
    assert "curve-return" in page.pictures
    assert len({*map(str, page.pictures["way-0"]["frames"])}) == len(page.pictures["way-0"]["frames"])
