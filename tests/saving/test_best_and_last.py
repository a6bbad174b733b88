"""What a run leaves: the best checkpoint and the last one, each what its name says, in a folder of the run's own."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

import processes
from lightning_maml import MLP, MetaModule, cli, maml
from lightning_maml.data import SinusoidTasks
from lightning_maml.saving import BestCheckpoint, FolderInUseError, FolderLock, lock, read_checkpoint, whole_file
from lightning_maml.saving.lock import Owner
from processes import until

SINUSOID = Path(__file__).parents[2] / "configs" / "sinusoid.yaml"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class At(Callback):
    """Does something to the module after a meta-update, or in a validation."""

    def __init__(self, update: int, deed: Any, phase: str = "train") -> None:
        self.update, self.deed, self.phase = update, deed, phase

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self.phase == "train" and trainer.global_step == self.update:
            self.deed(pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self.phase == "validation" and trainer.global_step == self.update:
            self.deed(pl_module)


def fit(
    folder: Path, updates: int, *callbacks: Callback, per_step: int = 1, val_tasks: int = 10, **options: Any
) -> Trainer:
    """Trains, with validations after 20, 40, ... updates; ``options`` are the checkpoints' and ``ckpt_path``."""
    torch.manual_seed(0)
    resumed = options.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=updates,
        callbacks=[*callbacks, BestCheckpoint(folder, **options)],
    )
    module = MetaModule(MLP(1, [8], 1), maml(0.01, 1), updates_per_step=per_step)
    data = SinusoidTasks(5, 5, tasks_per_batch=2, batches_per_epoch=20, val_tasks=val_tasks, test_tasks=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, ckpt_path=resumed)
    return trainer


def spoil(module: MetaModule) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1000)


def content(path: Path) -> dict[str, Any]:
    return read_checkpoint(path, "cpu")


def score(path: Path) -> float:
    """What a checkpoint says that it scored."""
    (state,) = [state for key, state in content(path)["callbacks"].items() if "BestCheckpoint" in key]
    return state["score"]


def validated(path: Path) -> float:
    """What its parameters do score."""
    module = MetaModule.load_from_checkpoint(path, network=MLP(1, [8], 1), algorithm=maml(0.01, 1))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    data = SinusoidTasks(5, 5, tasks_per_batch=2, batches_per_epoch=20, val_tasks=10)
    return trainer.validate(module, data, verbose=False)[0]["val/loss"]


def assert_equal(one: Any, other: Any) -> None:
    """Parameters and the optimiser's state of two checkpoints, bit for bit."""
    assert one["global_step"] == other["global_step"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    states = (part["optimizer_states"][0]["state"] for part in (one, other))
    for mine, yours in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(mine[name], yours[name]) for name in mine)


# The best


@pytest.mark.parametrize("per_step", [1, 4])
def test_the_best_holds_the_parameters_that_earned_the_score(tmp_path: Path, per_step: int) -> None:
    fit(tmp_path, 80, At(76, spoil), every_n_train_steps=4, per_step=per_step)
    assert content(tmp_path / "best.ckpt")["global_step"] == 60
    assert score(tmp_path / "best.ckpt") == pytest.approx(validated(tmp_path / "best.ckpt"), rel=1e-6)
    assert content(tmp_path / "last.ckpt")["global_step"] == 80


@pytest.mark.parametrize("name", ["../../best", "/best"])
def test_the_best_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"name within the folder of checkpoints but got"):
        BestCheckpoint(filename=name)


def test_several_best_ones_and_none_without_a_validation(tmp_path: Path) -> None:
    fit(tmp_path / "three", 80, save_top_k=3, filename="{step}")
    assert len(list((tmp_path / "three").glob("step=*.ckpt"))) == 3
    fit(tmp_path / "none", 10, val_tasks=0)
    assert {path.name for path in (tmp_path / "none").iterdir()} == {"last.ckpt"}


def test_what_a_state_names_is_not_removed(tmp_path: Path) -> None:
    """A checkpoint names files to a callback; a better score must not make it remove them."""
    fit(tmp_path, 40)
    victim = tmp_path / "victim.ckpt"
    victim.write_text("dear to somebody")
    found = content(tmp_path / "last.ckpt")
    named = {"monitor": "val/loss", "dirpath": str(tmp_path), "best_k_models": {str(victim): torch.tensor(1e9)}}
    named |= {"best_model_path": str(victim), "kth_best_model_path": str(victim), "last_model_path": str(victim)}
    named |= {"best_model_score": torch.tensor(1e9), "kth_value": torch.tensor(1e9), "current_score": torch.tensor(1e9)}
    found["callbacks"] = dict.fromkeys(found["callbacks"], named | {"score": 1e9, "names": [str(victim)]})
    torch.save(found, tmp_path / "last.ckpt")
    fit(tmp_path, 80, ckpt_path=tmp_path / "last.ckpt")
    assert victim.read_text() == "dear to somebody"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_best_of_the_whole_run_goes_along(tmp_path: Path, elsewhere: bool) -> None:
    fit(tmp_path, 60)
    best = score(tmp_path / "best.ckpt")
    folder = tmp_path / "next" if elsewhere else tmp_path
    trainer = fit(folder, 100, At(62, spoil), ckpt_path=tmp_path / "last.ckpt")  # from where on nothing is better
    assert score(folder / "best.ckpt") == best
    assert trainer.checkpoint_callback.best_model_path == str(folder / "best.ckpt")  # type: ignore[union-attr]
    assert float(trainer.checkpoint_callback.best_model_score) == pytest.approx(best)  # type: ignore[union-attr,arg-type]


def test_a_damaged_best_gives_way_to_the_one_before(tmp_path: Path) -> None:
    fit(tmp_path, 70)
    before = score(tmp_path / "previous_best.ckpt")
    assert before > score(tmp_path / "best.ckpt")
    (tmp_path / "best.ckpt").write_bytes((tmp_path / "best.ckpt").read_bytes()[:500])
    trainer = fit(tmp_path, 75, ckpt_path=tmp_path / "last.ckpt")
    assert float(trainer.checkpoint_callback.best_model_score) == pytest.approx(before)  # type: ignore[union-attr,arg-type]
    assert score(tmp_path / "best.ckpt") == before


# The last


@pytest.mark.parametrize("per_step", [1, 4])
def test_the_last_is_the_last_whatever_validation_says(tmp_path: Path, per_step: int) -> None:
    fit(tmp_path, 92, At(22, spoil), per_step=per_step)
    assert content(tmp_path / "last.ckpt")["global_step"] == 92


@pytest.mark.parametrize(("per_step", "saved"), [(1, 14), (4, 16)])
@pytest.mark.parametrize("val_tasks", [0, 10])
def test_it_is_saved_from_the_first_updates_on(tmp_path: Path, per_step: int, saved: int, val_tasks: int) -> None:
    seen: list[int] = []
    look = At(16, lambda module: seen.extend(content(path)["global_step"] for path in tmp_path.glob("last.ckpt")))
    late = At(20, lambda module: seen.extend(content(path)["global_step"] for path in tmp_path.glob("last.ckpt")))
    fit(tmp_path, 20, look, late, every_n_train_steps=7, per_step=per_step, val_tasks=val_tasks)
    assert seen == ([14, 14] if per_step == 1 else [8, 16])


@pytest.mark.parametrize("per_step", [1, 4])
def test_it_is_saved_by_time(tmp_path: Path, per_step: int) -> None:
    seen: list[int] = []
    wait = At(8, lambda module: time.sleep(0.3))
    look = At(12, lambda module: seen.extend(content(path)["global_step"] for path in tmp_path.glob("last.ckpt")))
    fit(tmp_path, 16, wait, look, train_time_interval=timedelta(seconds=0.2), per_step=per_step)
    assert seen == [8]


@pytest.mark.parametrize("every", [3, 20])
@pytest.mark.parametrize(
    ("ends", "on", "val_tasks"),
    [*((ends, "train", tasks) for ends in (13, 20, 40) for tasks in (0, 10)), (40, "validation", 10)],
)
def test_a_run_goes_on_from_an_exception(tmp_path: Path, ends: int, on: str, val_tasks: int, every: int) -> None:
    def fail(_: Any) -> None:
        raise ValueError("something went wrong")

    fit(tmp_path / "straight", 100, val_tasks=val_tasks)
    killed = tmp_path / "killed"
    with pytest.raises(ValueError, match="something went wrong"):
        fit(killed, 100, At(ends, fail, on), every_n_train_steps=every, val_tasks=val_tasks)
    assert content(killed / "last.ckpt")["global_step"] == ends
    fit(killed, 100, ckpt_path=killed / "last.ckpt", every_n_train_steps=every, val_tasks=val_tasks)
    assert_equal(content(killed / "last.ckpt"), content(tmp_path / "straight" / "last.ckpt"))
    if val_tasks:
        assert_equal(content(killed / "best.ckpt"), content(tmp_path / "straight" / "best.ckpt"))
        assert score(killed / "best.ckpt") == score(tmp_path / "straight" / "best.ckpt")


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    fit(tmp_path / "straight", 100)
    for updates in (30, 60, 100):
        last = tmp_path / "parts" / "last.ckpt"
        fit(tmp_path / "parts", updates, ckpt_path=last if last.exists() else None)
    for name in ("best.ckpt", "last.ckpt"):
        assert_equal(content(tmp_path / "parts" / name), content(tmp_path / "straight" / name))


def train_for_long(folder: Path, updates: int) -> None:
    # at every training step, so that a signal finds it wherever it is
    fit(folder, updates, *(At(update, lambda _: time.sleep(0.02)) for update in range(updates - 1)))


@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_and_ends(tmp_path: Path, sent: str, status: int) -> None:
    folder = tmp_path / "told"
    running = processes.start(train_for_long, tmp_path, 1, folder, 10_000)
    until(lambda: (folder / "best.ckpt").exists())
    os.kill(running[0].pid, getattr(signal, sent))
    assert processes.wait(running) == [status]
    step = content(folder / "last.ckpt")["global_step"]
    assert step >= 20
    assert not (folder / ".lock").exists()


# Whose folder it is


def hold(folder: Path) -> None:
    FolderLock(folder).acquire()
    (folder / "held").touch()
    time.sleep(60)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    running = processes.start(hold, tmp_path, 1, tmp_path)
    until(lambda: (tmp_path / "held").exists())
    with pytest.raises(
        FolderInUseError, match=rf"process {running[0].pid} on .* is training there.*--checkpoint.dirpath"
    ):
        fit(tmp_path, 10)
    assert not list(tmp_path.glob("*.ckpt"))
    running[0].kill()  # and not waited for: it is dead, and still counted among the processes
    time.sleep(0.3)
    fit(tmp_path, 10)
    assert (tmp_path / "last.ckpt").exists()
    processes.wait(running)


def test_a_run_that_begins_does_not_write_over_another_one(tmp_path: Path) -> None:
    fit(tmp_path, 10)
    with pytest.raises(
        FolderInUseError, match=r"hold no run for one that begins but found last.ckpt.*--ckpt_path last"
    ):
        fit(tmp_path, 20)
    assert content(tmp_path / "last.ckpt")["global_step"] == 10


@pytest.mark.parametrize("alive", [True, False])
def test_of_another_host_the_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.5)
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": ""}))
    if not alive:
        FolderLock(tmp_path).acquire()
        assert json.loads(path.read_text())["host"] != "elsewhere"
        return
    import threading

    beat = threading.Timer(0.3, os.utime, [path])
    beat.start()
    with pytest.raises(FolderInUseError, match="process 1 on elsewhere"):
        FolderLock(tmp_path).acquire()
    beat.join()


def test_a_number_that_came_back_in_another_process_holds_nothing(tmp_path: Path) -> None:
    owner = Owner.this()
    (tmp_path / ".lock").write_text(json.dumps({"host": owner.host, "pid": 1, "started": "1"}))
    FolderLock(tmp_path).acquire()
    assert Owner.named(owner.name) == owner
    assert not owner.is_gone()


def test_a_run_whose_folder_was_taken_does_not_write_there(tmp_path: Path) -> None:
    def take(_: Any) -> None:
        (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": ""}))

    with pytest.raises(FolderInUseError, match="another one has taken it"):
        fit(tmp_path, 20, At(8, take), every_n_train_steps=5)
    assert content(tmp_path / "last.ckpt")["global_step"] == 5


# Whose run it is


SMALL = ["--config", str(SINUSOID), "--data.batches_per_epoch=20", "--data.val_tasks=5", "--data.test_tasks=6"]
SMALL += ["--data.tasks_per_batch=4", "--model.network.hidden=[8]", "--model.updates_per_step=2"]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of seed 0 in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-maml"])
    assert cli.main(["fit", *SMALL, "--trainer.max_steps=40"]) == 0
    return tmp_path / "runs" / "sinusoid"


def test_the_last_of_another_seed_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other, said in (
        ("--seed_everything=1", "seed_everything (0 there, 1 here)"),
        ("--model.algorithm.lr=0.5", "model.algorithm.init_args.lr (0.001 there, 0.5 here)"),
        ("--data.shots=7", "data.init_args.shots (10 there, 7 here)"),
        ("--model.network.hidden=[9]", "model.network.init_args.hidden ([8] there, [9] here)"),
    ):
        assert cli.main(["fit", *SMALL, "--trainer.max_steps=60", "--ckpt_path=last", other]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error
        assert "leave out --ckpt_path" in error
    assert cli.main(["fit", *SMALL, "--trainer.max_steps=60", "--ckpt_path=last", "--model.engine=eager"]) == 0
    assert content(run / "version_1/checkpoints/last.ckpt")["global_step"] == 60


def test_it_takes_its_own_last_among_others(run: Path) -> None:
    assert cli.main(["fit", *SMALL, "--trainer.max_steps=20", "--seed_everything=1"]) == 0  # a newer one
    assert cli.main(["fit", *SMALL, "--trainer.max_steps=60", "--ckpt_path=last"]) == 0
    found = content(run / "version_2/checkpoints/last.ckpt")
    assert found["configuration"]["seed_everything"] == 0
    assert found["global_step"] == 60


def test_a_test_compares_what_was_learned_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = FolderLock(run / "version_0/checkpoints")
    held.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": ""}))  # a run that goes on
    free = ["--seed_everything=3", "--data.shots=7", "--model.test_steps=2", "--ckpt_path=last"]
    assert cli.main(["test", *SMALL, *free]) == 0
    assert json.loads(held.path.read_text())["host"] == "elsewhere"
    assert cli.main(["test", *SMALL, "--model.algorithm.lr=0.5", "--ckpt_path=last"]) == 1
    assert "model.algorithm.init_args.lr (0.001 there, 0.5 here)" in capsys.readouterr().err


def test_a_damaged_last_gives_way_to_the_one_before(run: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert cli.main(["fit", *SMALL, "--trainer.max_steps=60", "--ckpt_path=last"]) == 0
    folder = run / "version_1/checkpoints"
    assert (
        cli.main(["fit", *SMALL, "--trainer.max_steps=66", "--ckpt_path=last", f"--checkpoint.dirpath={folder}"]) == 0
    )
    assert content(folder / "previous_last.ckpt")["global_step"] == 60
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-200])
    again = ["--trainer.max_steps=70", "--ckpt_path=last", f"--checkpoint.dirpath={folder}"]
    assert cli.main(["fit", *SMALL, *again]) == 0
    assert any("The one before, previous_last.ckpt, is taken" in str(one.message) for one in recwarn)
    assert content(folder / "last.ckpt")["global_step"] == 70


def test_the_same_command_twice_is_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "version_0/checkpoints"
    (folder / "held").unlink(missing_ok=True)
    running = processes.start(hold, run, 1, folder)
    until(lambda: (folder / "held").exists())
    assert cli.main(["fit", *SMALL, "--trainer.max_steps=60", "--ckpt_path=last"]) == 1
    assert f"process {running[0].pid} on" in capsys.readouterr().err
    running[0].kill()
    processes.wait(running)


def test_a_section_of_every_setting_still_loads(run: Path) -> None:
    """As configurations were saved before: every argument of Lightning's callback."""
    section = {
        "dirpath": "kept",
        "filename": "best",
        "monitor": "val/loss",
        "verbose": False,
        "save_last": True,
        "save_top_k": 1,
        "save_on_exception": False,
        "save_weights_only": False,
        "mode": "min",
        "auto_insert_metric_name": True,
        "every_n_train_steps": 5,
        "train_time_interval": None,
        "every_n_epochs": None,
        "save_on_train_epoch_end": None,
        "enable_version_counter": True,
    }
    Path("more.yaml").write_text(yaml.safe_dump({"checkpoint": section}))
    assert cli.main(["fit", *SMALL, "--config", "more.yaml", "--trainer.max_steps=40"]) == 0
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in Path("kept").iterdir()}


# What is written


def write_much(folder: Path) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with whole_file(folder / "file") as file:
            file.write(b"new" * 10_000)
    except OSError as error:
        return str(error)
    return ""


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (said,) = processes.run(write_much, tmp_path, 1, tmp_path)
    assert f"Expected room for {tmp_path / 'file'} but 20,000 of its 30,000 bytes could not be written" in said
    assert (tmp_path / "file").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def write_often(folder: Path, letter: bytes) -> None:
    for _ in range(300):
        with whole_file(folder / "file") as file:
            file.write(letter * 100_000)


def test_two_that_write_to_one_place_do_not_damage_it(tmp_path: Path) -> None:
    running = [*processes.start(write_often, tmp_path, 1, tmp_path, b"a")]
    running += processes.start(write_often, tmp_path, 1, tmp_path, b"b")
    until(lambda: (tmp_path / "file").exists())
    while any(process.is_alive() for process in running):
        assert (tmp_path / "file").read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert processes.wait(running) == [0, 0]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers")
def test_predictions_are_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["predict", *SMALL, "--ckpt_path=last"]) == 0
    (path,) = run.glob("*/predictions.csv")
    whole = path.read_bytes()

    def fail(_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"), whole_file(path) as file:
        torch.save([], file)
    assert path.read_bytes() == whole
