"""The command line as a user meets it: runs, help, errors, the demo."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_maml import cli
from lightning_maml.cli import demo
from lightning_maml.training.module import MetaModule

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.filterwarnings("ignore:.*could not find the monitored key")

SMALL = [
    "--config",
    str(CONFIGS / "sinusoid.yaml"),
    "--data.batches_per_epoch=4",
    "--data.val_tasks=5",
    "--data.test_tasks=6",
    "--data.tasks_per_batch=4",
    "--model.network.hidden=[8]",
    "--model.updates_per_step=2",
    "--trainer.max_steps=8",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Runs in an empty folder; LightningCLI warns of arguments given in Python beside those of the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-maml"])


def lightning_maml(*args: str) -> None:
    assert cli.main(list(args)) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``fit`` leaves behind."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-maml"])
        lightning_maml("fit", *SMALL)
    return folder / "runs"


@pytest.fixture
def trained(runs: Path) -> Path:
    """A copy in the test's own folder, at the time at which it was written."""
    shutil.copytree(runs, "runs")
    return Path("runs/sinusoid/version_0")


def test_fit_leaves_checkpoints_logs_and_configuration(trained):
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "previous_best.ckpt",
    }
    last = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert "train/meta_gradient_norm" in (trained / "metrics.csv").read_text()
    assert list(Path("runs/sinusoid/tensorboard/version_0").glob("events.out.tfevents.*"))
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["model"]["network"]["init_args"]["hidden"] == [8]
    assert saved["seed_everything"] == 0


def test_a_run_starts_from_its_saved_configuration(trained):
    lightning_maml("fit", "--config", str(trained / "config.yaml"))
    first, second = (
        torch.load(f"runs/sinusoid/version_{version}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for version in (0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_test_writes_metrics_json(trained, capsys):
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    lightning_maml("test", *SMALL, "--ckpt_path", checkpoint, "--model.test_steps=3", "--data.seed=5")
    written = json.loads(Path("runs/sinusoid/version_1/metrics.json").read_text())
    assert written["checkpoint"] == checkpoint
    assert (written["algorithm"], written["seed"], written["data_seed"], written["tasks"]) == ("maml", 0, 5, 6)
    assert written["inner_steps"] == [0, 1, 2, 3]  # what is asked for now, not what the checkpoint was trained with
    assert "Test of maml on 6 tasks" in capsys.readouterr().out


def test_validate_and_predict(trained, capsys):
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    lightning_maml("validate", *SMALL, "--ckpt_path", checkpoint)
    assert "val/loss" in capsys.readouterr().out
    lightning_maml("predict", *SMALL, "--ckpt_path", checkpoint)
    lines = Path("runs/sinusoid/version_2/predictions.csv").read_text().splitlines()
    assert lines[0] == "task,row,prediction"
    assert [line.split(",")[:2] for line in lines[1:]] == [[str(i // 100), str(i % 100)] for i in range(600)]


def test_resuming_continues(trained):
    lightning_maml("fit", *SMALL, "--trainer.max_steps=12", "--ckpt_path", str(trained / "checkpoints" / "last.ckpt"))
    lightning_maml("fit", *SMALL, "--trainer.max_steps=12")
    resumed, whole = (
        torch.load(f"runs/sinusoid/version_{version}/checkpoints/last.ckpt", weights_only=True) for version in (1, 2)
    )
    assert resumed["global_step"] == whole["global_step"] == 12
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_last_is_the_newest_of_all_runs(trained, capsys, caplog):
    straight = ["--trainer.max_steps=12", "--checkpoint.dirpath=straight"]
    lightning_maml("fit", *SMALL, *straight, "--ckpt_path=last")
    assert "straight/last*.ckpt: training starts from the beginning." in caplog.text
    lightning_maml("fit", *SMALL, "--trainer.max_steps=12", "--ckpt_path=last")
    resumed = [torch.load(path, weights_only=True) for path in Path().glob("runs/*/*/checkpoints/last.ckpt")]
    (resumed,) = [checkpoint for checkpoint in resumed if checkpoint["global_step"] == 12]
    expected = torch.load("straight/last.ckpt", weights_only=True)
    assert all(torch.equal(value, expected["state_dict"][name]) for name, value in resumed["state_dict"].items())
    assert cli.main(["test", *SMALL, "--checkpoint.dirpath=empty", "--ckpt_path=last"]) == 1
    assert "empty has no last*.ckpt" in capsys.readouterr().err


def test_a_checkpoint_of_the_command_line_loads_without_arguments(trained):
    module = MetaModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert module.algorithm.name == "maml"
    assert module.algorithm.inner.steps == 1
    assert module.network[0].out_features == 8
    # in a process that has not been a command line before
    code = "import sys; from lightning_maml import MetaModule; MetaModule.load_from_checkpoint(sys.argv[1])"
    command = [sys.executable, "-c", code, str(trained / "checkpoints" / "best.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_any_class_and_function_can_be_named():
    lightning_maml(
        "fit",
        *SMALL,
        "--trainer.fast_dev_run=1",
        "--model.network=torch.nn.Linear",
        '--model.network.init_args={"in_features": 1, "out_features": 1}',
        "--model.algorithm=lightning_maml.fomaml",
        "--model.algorithm.steps=2",
        "--model.engine=lightning_maml.Batched",
        "--model.engine.chunk_size=2",
        "--model.loss=torch.nn.functional.l1_loss",
        "--model.metric=lightning_maml.metrics.mse",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.1",
        "--model.scheduler=torch.optim.lr_scheduler.CosineAnnealingLR",
        "--model.scheduler.T_max=10",
    )
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("ignore:The conjugate gradients")  # iMAML's paper takes 5 of them, converged or not
@pytest.mark.parametrize(
    "config",
    # those of one's own data run in test_own_data.py, those that go on from another in test_configurations.py
    sorted(
        path
        for path in CONFIGS.rglob("*.yaml")
        if path.stem not in ("folder", "table") and "\nbase:" not in path.read_text()
    ),
    ids=lambda path: path.stem,
)
def test_configurations_run(config, request):
    roots = {"omniglot": "omniglot_root", "cifar": "cifar100_root"}
    images = [f"--data.root={request.getfixturevalue(roots[k])}" for k in roots if config.stem.startswith(k)]
    few = ["--data.tasks_per_batch=2", "--data.val_tasks=2", "--trainer.enable_progress_bar=false"]
    lightning_maml("fit", "--config", str(config), "--trainer.fast_dev_run=1", *few, *images)


def test_print_config_can_be_run_again(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", *SMALL, "--model.algorithm.learn_lr=per_parameter", "--print_config"])
    assert stopped.value.code == 0
    Path("own.yaml").write_text(capsys.readouterr().out)
    assert (
        yaml.safe_load(Path("own.yaml").read_text())["model"]["algorithm"]["init_args"]["learn_lr"] == "per_parameter"
    )
    lightning_maml("fit", "--config", "own.yaml", "--trainer.fast_dev_run=1")


def test_help_fits_on_a_screen(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 34
    assert all(len(line) <= 120 for line in printed.splitlines())
    for subcommand in ("demo", "fit", "validate", "test", "predict", "report"):
        assert f"  {subcommand} " in printed


def test_help_of_fit_starts_with_the_model_and_lists_no_hundred_classes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    printed = capsys.readouterr().out
    assert printed.index("What is meta-learned") < printed.index("The tasks") < printed.index("Lightning's Trainer")
    assert "torch.nn.Bilinear" not in printed
    assert "--model.updates_per_step" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--config", "missing.yaml"], "File does not exist: "),
        (["fit", *SMALL, "--model.netwrk=3"], "unrecognized arguments: --model.netwrk=3"),
        (["fit", *SMALL, "--model.algorithm.setps=3"], "Option 'setps' is not accepted"),
        (
            ["fit", *SMALL, "--model.algorithm.steps=2.5"],
            "--model.algorithm.steps: Expected a whole number but got 2.5",
        ),
        (["fit", *SMALL, "--model.algorithm=lightning_maml.mamml"], "has no attribute 'mamml'"),
        (["fit", *SMALL, "--model.gradient_clip_algorithm=l1"], "norm"),
        (["fit", "--model.loss=mse"], "are required: fit.model.network, fit.model.algorithm, fit.data"),
    ],
)
def test_what_the_parser_rejects(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) < 15
    assert "Traceback" not in said


def test_an_unknown_key_in_the_file(capsys):
    content = yaml.safe_load((CONFIGS / "sinusoid.yaml").read_text())
    content["model"]["network"]["init_args"]["hiden"] = [40]
    Path("typo.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "typo.yaml"])
    said = capsys.readouterr().err
    assert "hiden" in said
    assert len(said.splitlines()) < 15


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.algorithm.lr=-1"], "Expected `lr` to be positive and finite but got -1.0."),
        (["--model.loss=msee"], "Expected `loss` to be one of "),
        (["--model.engine=fast"], "Expected `engine` to be one of "),
        (["--trainer.gradient_clip_val=1"], "use MetaModule(gradient_clip_val=...)"),
        (["--model.algorithm.lr=1e25", "--model.algorithm.steps=3"], "the inner loop diverged"),
        (["--ckpt_path=missing.ckpt"], "Expected a checkpoint at missing.ckpt but there is no such file."),
        (["--data=lightning_maml.data.OmniglotTasks", '--data.init_args={"root": "nowhere"}'], "nowhere"),
    ],
)
def test_our_own_errors_come_without_a_traceback(args, message, capsys):
    assert cli.main(["fit", *SMALL, *args]) == 1
    said = capsys.readouterr().err
    assert "lightning-maml: error: " in said
    assert message in said
    assert "Traceback" not in said


def broken_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise ValueError("a mistake in the user's own code")


def test_the_traceback_of_other_code_is_there_to_debug():
    with pytest.raises(ValueError, match="a mistake in the user's own code"):
        cli.main(["fit", *SMALL, "--model.loss=test_cli.broken_loss", "--debug"])


def test_demo(capsys, monkeypatch):
    monkeypatch.setattr(demo, "is_interactive", lambda: True)
    results = demo.main(["--steps", "40"])
    printed = capsys.readouterr()
    for step in (0, 1, 5, 10):
        for result in results.values():
            assert f"{result[f'test/loss_step_{step}']:.3f} ± " in printed.out
    assert "40 updates of 25 tasks" in printed.out
    assert "40/40 updates" in printed.err
    assert printed.out.endswith("Page: runs/demo/maml/version_0/report.html\n")
    assert {path.name for path in Path().rglob("*.html")} == {"report.html"}


def test_demo_starts_both_from_the_same_weights_and_tests_them_on_the_same_tasks():
    results = demo.main(["--steps", "20", "--seed", "3"])
    assert results["MAML"] == demo.main(["--steps", "20", "--seed", "3"])["MAML"]
    assert results["MAML"]["test/loss_step_0"] != results["pretrained"]["test/loss_step_0"]


def test_demo_takes_a_time(capsys):
    demo.main(["--seconds", "0.5"])
    assert " updates of 25 tasks" in capsys.readouterr().out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step():
    # in a process of its own: here, tensors may lie in what earlier tests have freed, or be the last of a heap
    script = """
import os, sys, torch
from lightning_maml import cli
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
if sys.argv[1] == "kept":
    cli.keep_freed_memory()
before = resident()
tensors = [torch.ones(1 << 22) for _ in range(16)]  # of 16 MB
del tensors
print(resident() - before)
"""
    grown = {
        how: int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert grown["kept"] > 200
    assert grown["given back"] < 50


def test_the_installed_command():
    command = Path(sys.executable).with_name("lightning-maml")
    if not command.exists():
        pytest.skip("lightning-maml is not installed beside this Python")
    run = subprocess.run([command, "fit", *SMALL], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    for noise in ("Tip:", "Warning", "TPU", "deprecated"):
        assert noise not in run.stderr + run.stdout
