"""Configurations that go on from others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_maml import cli
from lightning_maml.cli.bases import chain, with_bases

ONE_STEP = ["--trainer.max_steps=1", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
SMALL = {"init_args": {"val_tasks": 2, "test_tasks": 2, "batches_per_epoch": 1, "tasks_per_batch": 2}}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, **sections: Any) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(sections))
    return path


def test_what_differs_is_all_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.yaml", base="sinusoid", model={"algorithm": {"init_args": {"steps": 3}}}, data=SMALL)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "mine.yaml", "--print_config"])
    mine = yaml.safe_load(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "sinusoid", "--print_config"])
    other = yaml.safe_load(capsys.readouterr().out)
    assert "base" not in mine
    assert mine["model"]["algorithm"]["init_args"].pop("steps") == 3
    assert other["model"]["algorithm"]["init_args"].pop("steps") == 1
    for name, value in SMALL["init_args"].items():
        assert mine["data"]["init_args"].pop(name) == value
        assert other["data"]["init_args"].pop(name) != value
    assert mine == other


def test_another_class_drops_the_arguments_that_it_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    algorithm = {"class_path": "lightning_maml.anil", "init_args": {"lr": 0.1}}
    write("mine.yaml", base="sinusoid_reptile", model={"algorithm": algorithm})
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "mine.yaml", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["algorithm"]
    assert (found["class_path"], found["init_args"]["lr"]) == ("lightning_maml.anil", 0.1)
    assert "batch_size" not in found["init_args"]


def test_bases_stand_beside_the_file_that_names_them() -> None:
    write("below/first.yaml", base="sinusoid", data=SMALL)
    write("below/second.yaml", base="first.yaml", seed_everything=3)
    third = write("third.yaml", base="below/second.yaml")
    names = [path.name for path in chain(third)]
    assert names == ["sinusoid.yaml", "first.yaml", "second.yaml", "third.yaml"]
    sinusoid, *_ = chain(third)
    folder = Path("below").resolve()
    before = [str(sinusoid), str(folder / "first.yaml"), str(folder / "second.yaml")]
    assert [*with_bases(["fit", "--config=third.yaml", "--data.seed", "1"])] == [
        *("fit", *(f"--config={path}" for path in before), "--config=third.yaml", "--data.seed", "1")
    ]
    expected = ["-c", before[0], "-c", before[1], "-c", before[2], "-c", "third.yaml"]
    assert [*with_bases(["-c", "third.yaml"])] == expected


def test_fit_test_and_what_is_saved_go_on_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.yaml", base="sinusoid", data=SMALL, model={"updates_per_step": 1}, trainer={"max_steps": 2})
    assert cli.main(["fit", "--config", "mine.yaml", "--quiet"]) == 0
    assert cli.main(["test", "--config", "mine.yaml", "--ckpt_path", "best", "--quiet"]) == 0
    saved = next(Path("runs").rglob("config.yaml"))
    assert cli.main(["fit", "--config", str(saved), "--quiet", *ONE_STEP]) == 0


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("sinusoit", "but got 'sinusoit' (did you mean sinusoid?)."),
        ("nowhere/none.yaml", "a path from its folder, but got 'nowhere/none.yaml'."),
        (3, "but got 3."),
        ("mine.yaml", "to lead to an end but got a circle: mine.yaml -> mine.yaml."),
        ("other.yaml", "but got a circle: mine.yaml -> other.yaml -> mine.yaml."),
        ("broken.yaml", "broken.yaml but it is no YAML"),
    ],
)
def test_a_base_that_is_none(base: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("other.yaml", base="mine.yaml")
    Path("broken.yaml").write_text("{")
    write("mine.yaml", base=base)
    for command in (["fit", "--config", "mine.yaml"], ["reproduce", "mine.yaml"]):
        assert cli.main(command) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert len(printed.splitlines()) == 1
