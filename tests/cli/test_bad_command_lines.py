"""No command line ends in a traceback, and none that is wrong ends in silence: each is answered in a line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_maml import cli
from lightning_maml.cli.complaints import complaint

CONFIGS = Path(__file__).parents[2] / "configs"

SHORT = [
    "--trainer.max_steps=2",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.tasks_per_batch=2",
    "--data.batches_per_epoch=2",
    "--data.val_tasks=2",
    "--data.test_tasks=2",
]
SINUSOID = ["--config", str(CONFIGS / "sinusoid.yaml"), *SHORT, "--model.updates_per_step=1"]
RL = ["--config", str(CONFIGS / "rl_navigation.yaml"), *SHORT, "--data.environment.horizon=3"]
OMNIGLOT = ["--config", str(CONFIGS / "omniglot_5w1s.yaml"), *SHORT, "--trainer.accelerator=cpu"]


class Unmakeable(nn.Module):
    def __init__(self) -> None:
        raise OSError("cannot be made")


class Unrunnable(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return {}["an entry"]  # type: ignore[no-any-return]


# What stands behind `lightning-maml fit --config configs/sinusoid.yaml`, and what the answer has to contain.
FIT = {
    # the tasks
    "--data.shots=0": "`shots` to be a whole number of at least 1 but got 0",
    "--data.shots=-1": "`shots` to be a whole number of at least 1 but got -1",
    "--data.shots=1.5": "--data.shots: Expected a whole number but got 1.5",
    "--data.shots=nan": "--data.shots: Expected a whole number but got nan",
    "--data.shots=many": "--data.shots: Expected a whole number but got many",
    "--data.shots=null": "`shots` to be a whole number of at least 1 but got None",
    "--data.shots=1000000000000": "8,000.0 GB of memory",
    "--data.shot=3": "did you mean shots?",
    "--data.queries=-3": "`queries` to be a whole number of at least 1 but got -3",
    "--data.tasks_per_batch=0": "`tasks_per_batch` to be a whole number of at least 1 but got 0",
    "--data.tasks_per_batch=true": "--data.tasks_per_batch: Expected a whole number but got true",
    "--data.tasks_per_batch=100000000000": "GB of memory",
    "--data.batches_per_epoch=0": "`batches_per_epoch`",
    "--data.val_tasks=-1": "`val_tasks` to be a whole number of at least 0 but got -1",
    "--data.val_tasks=100000000000000": "memory",
    "--data.test_tasks=-1": "`test_tasks`",
    "--data.test_shots=0": "`test_shots`",
    "--data.test_queries=0": "`test_queries`",
    "--data.seed=-1": "`seed` to be a whole number of at least 0 but got -1",
    "--data.amplitude=[5,1]": "`amplitude` to be an interval (low, high) but got (5.0, 1.0)",
    "--data.amplitude=3": "--data.amplitude: Expected a list but got 3",
    "--data.phase=[0,inf]": "--data.phase: Expected a number",
    "--data=lightning_maml.data.Nope": "has no attribute 'Nope'",
    "--data=lightning_maml.networks.MLP": "subclass of LightningDataModule",
    "--data=lightning.pytorch.LightningDataModule": "`train_dataloader` must be implemented",
    # the seed
    "--seed_everything=-1": "`seed_everything` to be a whole number from 0 to 4294967295 but got -1",
    "--seed_everything=18446744073709551616": "`seed_everything` to be a whole number from 0 to 4294967295",
    "--seed_everything=abc": "--seed_everything: Expected true or false or a whole number but got abc",
    "--seed_everything=": "--seed_everything: Expected true or false or a whole number but got nothing",
    # the network
    "--model.network.in_features=2": "takes inputs [rows, 1], as the tasks have, but got MLP",
    "--model.network.out_features=2": "targets [2, 5, 1] and predictions [2, 5, 2]",
    "--model.network.hidden=[0]": "`hidden[0]` to be a whole number of at least 1 but got 0",
    "--model.network.hidden=wide": "--model.network.hidden: Expected a list but got wide",
    "--model.network.hidden=[1000000000000]": "4,000.0 GB of memory",
    "--model.network=lightning_maml.TaskBatch": "subclass of Module",
    "--model.network=lightning_maml.networks.Nope": "has no attribute 'Nope'",
    "--model.network=nowhere.Nope": "No module named 'nowhere'",
    "--model.network=torch.nn.ReLU": "no parameter of the network is trainable",
    "--model.network=torch.nn.Bilinear": "the following arguments are required: in1_features, in2_features",
    "--model.network=null": "--model.network: Not a valid subclass of Module but got None",
    "--model.network=test_bad_command_lines.Unmakeable": "OSError: cannot be made, in ",
    "--model.network.class_path=test_bad_command_lines.Unrunnable --model.network.init_args.in_features=1 "
    "--model.network.init_args.out_features=1": "KeyError: 'an entry', in ",
    # the algorithm
    "--model.algorithm.steps=-1": "`steps` to be a whole number of at least 0 but got -1",
    "--model.algorithm.steps=2.5": "--model.algorithm.steps: Expected a whole number but got 2.5",
    "--model.algorithm.setps=3": "did you mean steps?",
    "--model.algorithm.lr=0": "`lr` to be positive and finite but got 0.0",
    "--model.algorithm.lr=-1": "`lr` to be positive and finite but got -1.0",
    "--model.algorithm.lr=nan": "--model.algorithm.lr: Expected a number or a list but got nan",
    "--model.algorithm.lr=[]": "`lr` to hold positive and finite rates",
    "--model.algorithm.lr=1e25 --model.algorithm.steps=3": "the inner loop diverged",
    "--model.algorithm.learn_lr=layer": "Expected one of ['shared', ",
    "--model.algorithm.batch_norm=eval": "--model.algorithm.batch_norm: Expected one of ",
    "--model.algorithm.adapts=nothing": "`adapts='nothing'` chooses none",
    "--model.algorithm.adapts=(": "`adapts` to be a regular expression but got '('",
    "--model.algorithm=lightning_maml.mamml": "has no attribute 'mamml'",
    "--model.algorithm=lightning_maml.MLP": "subclass of Algorithm",
    "--model.algorithm=5": "--model.algorithm: Expected a class or function by its import path",
    "--model.algorithm=null": "--model.algorithm: Not a valid subclass of Algorithm but got None",
    # the module
    "--model.loss=msee": "`loss` to be one of ['cross_entropy', 'mse'] or a callable but got 'msee'",
    "--model.loss=torch.nn.functional.nope": "`loss` to be one of ",
    "--model.loss=torch.nn.Linear": "required: in_features, out_features",
    "--model.metric=nope": "`metric` to be one of ['accuracy', 'mse']",
    "--model.metric=accuracy": "`targets` of shape [T, N]",
    "--model.engine=fast": "`engine` to be one of ",
    "--model.engine=lightning_maml.Graphed": "none of cuda",
    "--model.engine=lightning_maml.Fused --model.engine.kernel=nope": "--model.engine.kernel: Expected one of ['auto'",
    "--model.engine=lightning_maml.Batched --model.engine.chunk_size=0": "`chunk_size` to be a whole number",
    "--model.test_steps=-1": "`test_steps` to be a whole number of at least 0 but got -1",
    "--model.updates_per_step=0": "`updates_per_step` to be a whole number of at least 1 but got 0",
    "--model.accumulate_tasks=0": "`accumulate_tasks` to be a whole number of at least 1 but got 0",
    "--model.gradient_clip_val=-1": "`gradient_clip_val` to be positive or None but got -1.0",
    "--model.gradient_clip_algorithm=l1": "Expected one of ['norm', 'value'] but got l1",
    "--model.on_divergence=ignore": "Expected one of ['skip', 'zero', 'raise'] but got ignore",
    "--model.optimizer=torch.optim.Nope": "has no attribute 'Nope'",
    "--model.optimizer=torch.nn.Linear": "to be a subclass of",
    "--model.optimizer=5": "--model.optimizer: Expected a class or function by its import path",
    "--model.optimizer.lr=-1": "Invalid learning rate: -1.0",
    "--model.optimizer.lr=abc": "--model.optimizer.lr: Expected a number",
    "--model.optimizer.lr=0 --model.scheduler=null": "`lr of the optimizer` to be positive and finite but got 0.0",
    "--model.optimizer=torch.optim.SGD --model.optimizer.lr=.nan --model.scheduler=null": "`lr of the optimizer`",
    "--model.optimizer.lrr=0.1": "Option 'lrr' is not accepted",
    "--model.scheduler=torch.optim.lr_scheduler.Nope": "has no attribute 'Nope'",
    "--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau": "but got ReduceLROnPlateau",
    "--model.scheduler.max_lr=-1": "`lr of the optimizer` to be finite and not negative",
    "--model.scheduler.total_steps=0": "total_steps, but got 0",
    "--model.scheduler.total_steps=1": "number of total steps is 1",
    "--model.nope=1": "unrecognized arguments: --model.nope=1",
    # the trainer
    "--trainer.max_steps=-5": "You passed in -5",
    "--trainer.max_steps=0.5": "--trainer.max_steps: Expected a whole number but got 0.5",
    "--trainer.max_stepss=3": "did you mean --trainer.max_steps?",
    "--trainer.min_steps=-3": "`trainer.min_steps` to be a whole number of at least 0 but got -3",
    "--trainer.max_epochs=-5": "You passed in -5",
    "--trainer.max_time=abc": "DD:HH:MM:SS",
    "--trainer.devices=99": "`tasks_per_batch` to be at least the number of processes, 99",
    "--trainer.devices=0": "devices='0'",
    "--trainer.devices=abc": "should be an int > 0",
    "--trainer.num_nodes=0": "but got 0",
    "--trainer.accelerator=foo": "accelerator='foo'",
    "--trainer.accelerator=tpu": "torch_xla",
    "--trainer.strategy=foo": "strategy='foo'",
    "--trainer.precision=foo": "--trainer.precision: Expected ",
    "--trainer.plugins=foo": "--trainer.plugins: Expected ",
    "--trainer.profiler=foo": "'simple', 'advanced'",
    "--trainer.val_check_interval=100000": "`val_check_interval` (100000)",
    "--trainer.val_check_interval=0": "`trainer.val_check_interval` to be positive and finite but got 0",
    "--trainer.val_check_interval=1.5": "invalid value 1.5",
    "--trainer.check_val_every_n_epoch=0": "`trainer.check_val_every_n_epoch` to be a whole number of at least 1",
    "--trainer.log_every_n_steps=-1": "`trainer.log_every_n_steps` to be a whole number of at least 0",
    "--trainer.limit_train_batches=-1": "limit_train_batches",
    "--trainer.limit_val_batches=2.5": "limit_val_batches",
    "--trainer.overfit_batches=-1": "overfit_batches",
    "--trainer.fast_dev_run=-1": "fast_dev_run=-1",
    "--trainer.gradient_clip_val=-1": "`trainer.gradient_clip_val` to be finite and not negative but got -1.0",
    "--trainer.gradient_clip_algorithm=foo": "['value', 'norm']",
    "--trainer.accumulate_grad_batches=0": "`trainer.accumulate_grad_batches` to be a whole number of at least 1",
    "--trainer.num_sanity_val_steps=-5": "`trainer.num_sanity_val_steps` to be a whole number of at least -1",
    "--trainer.reload_dataloaders_every_n_epochs=-1": "got -1",
    "--trainer.benchmark=maybe": "--trainer.benchmark: Expected true or false but got maybe",
    "--trainer.barebones=true": "barebones",
    "--trainer.logger=lightning.pytorch.loggers.Nope": "has no attribute 'Nope'",
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger": "required: save_dir",
    "--trainer.logger=5": "--trainer.logger: Expected ",
    "--trainer.callbacks=lightning.pytorch.callbacks.Nope": "has no attribute 'Nope'",
    "--trainer.callbacks=5": "--trainer.callbacks: Expected a list",
    # folders
    "--trainer.default_root_dir=/proc/nope": "/proc/nope",
    "--trainer.default_root_dir=a_file/x": "a_file/x",
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger --trainer.logger.save_dir=a_file": "a_file",
    "--trainer.logger=lightning.pytorch.loggers.TensorBoardLogger --trainer.logger.save_dir=a_file": "a_file",
    "--checkpoint.dirpath=a_file": "a_file",
    "--checkpoint.dirpath=/proc/nope": "/proc/nope",
    # checkpoints
    "--checkpoint.monitor=val/nothing": "val/nothing",
    "--checkpoint.mode=foo": "foo",
    "--checkpoint.save_top_k=-5": "-5",
    "--checkpoint.nope=1": "--checkpoint.nope=1",
    "--ckpt_path=nowhere.ckpt": "Expected a checkpoint at nowhere.ckpt but there is no such file.",
    "--ckpt_path=.": "Expected a checkpoint at . but",
    "--ckpt_path=a_file": "a_file",
    "--ckpt_path=garbage": "garbage",
    "--weights_only=perhaps": "--weights_only: Expected true or false but got perhaps",
    # the line itself
    "--modl.loss=mse": "did you mean --model.loss?",
    "--model.loss": "argument --model.loss: expected one argument",
    "--model": "argument --model: expected one argument",
    "--untrained": "unrecognized arguments: --untrained",
    "extra": "unrecognized arguments: extra",
    "-": "unrecognized arguments: -",
    "--☃": "--☃",
    "--model.algorithm.steps=abc --print_config": "--model.algorithm.steps: Expected a whole number but got abc",
    "--print_config=nope": '"nope"',
    "--config=missing.yaml": "File does not exist",
}

RL_FIT = {
    "--data.tasks_per_batch=0": "`tasks_per_batch`",
    "--data.seed=-1": "`seed`",
    "--data.environment.horizon=0": "`horizon` to be a whole number of at least 1 but got 0",
    "--data.environment.spread=-1": "`spread` to be positive and finite but got -1.0",
    "--data.environment.spread=nan": "--data.environment.spread: Expected a number but got nan",
    "--data.environment=lightning_maml.rl.Nope": "--data.environment: lightning_maml.rl.Nope: module",
    "--data.environment=5": "--data.environment: Expected a class or function by its import path, as a.b.C but got 5",
    "--model.policy.observation_size=3": "a policy of `observation_size` 2, for Navigation2D but got 3",
    "--model.policy.hidden=[0]": "`hidden[0]`",
    "--model.policy.init_std=0": "`init_std` to be positive and finite but got 0.0",
    "--model.policy.activation=sin": "but got 'sin'",
    "--model.trajectories=0": "`trajectories`",
    "--model.estimator=nope": "`estimator` to be one of ",
    "--model.outer.clip=-1": "`clip` to be positive and finite but got -1.0",
    "--model.outer.epochs=0": "`epochs` to be a whole number of at least 1 but got 0",
    "--model.advantages.discount=2": "`discount` to lie in [0, 1] but got 2.0",
    "--model.kl_penalty=-1": "`kl_penalty`",
    "--model.test_rates=[0.1]": "each of 4 test steps",
    "--model.test_rates=[0.1,0.1,0.1,-1]": "`test_rates[3]` to be positive and finite but got -1.0",
    "--model.engine=batchd": "but got 'batchd'",
    "--model.algorithm=lightning_maml.imaml": "Proximal",
}

OMNIGLOT_FIT = {
    "--data.ways=0": "`ways` to be a whole number of at least 1 but got 0",
    "--data.ways=5000": "at least ways = 5000 classes for training in ",
    "--data.ways=20": "the network has 5 outputs",
    "--data.shots=50": "shots + queries = 50 + 1",
    "--data.split=[1,2]": "Expected a tuple with 3 elements",
    "--data.split=[2000,1,1]": "at most 1623",
    "--data.split_seed=-1": "`split_seed` to be a whole number from 0 to 4294967295 but got -1",
    "--data.rotations=some": "--data.rotations: Expected one of ",
    "--data.root=nowhere": "Expected Omniglot in nowhere",
    "--data.root=damaged": "images_background.npz to be an .npz file",
    "--model.network.ways=3": "the network has 3 outputs",
    "--model.network.channels=3": "takes inputs [rows, 1, 28, 28], as the tasks have, but got Conv4",
    "--model.loss=mse": "`loss='mse'`",
}

WHOLE = {
    "": "Expected one of ['fit', 'validate', 'test', 'predict', 'report', 'export', 'reproduce', 'demo'] but got ''.",
    "fitt": "but got 'fitt' (did you mean fit?).",
    "--nope": "'predict', 'report', 'export', 'reproduce', 'demo'] to come first",
    f"--config {CONFIGS / 'sinusoid.yaml'}": "to come first but got --config",
    "fit fit": "unrecognized arguments: fit",
    "fit": "required: fit.model.network, fit.model.algorithm, fit.data (--config FILE gives them",
    "fit --config": "expected one argument",
    "fit --config .": "Path is not a file",
    "fit --config a_file": "but got an empty file",
    "fit --config garbage": "it is no text in UTF-8 (byte 128 is 0x80)",
    "fit --config list.yaml": "a configuration of sections",
    "fit --config open.yaml": "expected ',' or ']'",
    "fit --config tag.yaml": "python/object/apply:os.system",
    "fit --config deep.yaml": "deep.yaml but it is no YAML: exceeded maximum nesting depth (line 1)",
    "fit --config number.yaml": "Key must be a string, got: 1.",
    "fit --config null.yaml": "required: ",
    f"fit --config {'a' * 5000}": "File name too long",
    f"fit --config {CONFIGS / 'rl_navigation.yaml'} --config {CONFIGS / 'sinusoid.yaml'}": "in_features",
    "fit --data.help=lightning_maml.Nope": "has no attribute 'Nope'",
    "demo --steps 0": "`steps` to be a whole number of at least 1 but got 0",
    "demo --steps -1": "`steps` to be a whole number of at least 1 but got -1",
    "demo --steps abc": "argument --steps: invalid int value: 'abc'",
    "demo --steps 99999999999999999999999": "Expected smaller numbers",
    "demo --seconds nan": "`seconds` to be positive and finite but got nan",
    "demo --seconds -1": "`seconds` to be positive and finite but got -1.0",
    "demo --seconds inf": "`seconds` to be positive and finite but got inf",
    "demo --seed -1": "`seed` to be a whole number from 0 to 4294967295 but got -1",
    "demo --nope": "unrecognized arguments: --nope",
    "reproduce nope": "the name of a protocol",
    "reproduce --nope": "the name of a protocol before --nope",
    "reproduce sinusoid --nope": "unrecognized arguments: --nope",
    "reproduce sinusoid --max_updates 0": "`max_updates` to be a whole number of at least 1 but got 0",
    "reproduce sinusoid --max_updates=2 --data.shots=0": "`shots`",
    "reproduce sinusoid --trainer.max_steps=3": "`--max_updates`",
    "reproduce list.yaml": "list.yaml to be a configuration of sections but got list",
    "reproduce open.yaml": "expected ',' or ']'",
    "reproduce garbage": "it is no text in UTF-8 (byte 128 is 0x80)",
    "reproduce empty.yaml": "empty.yaml to say `trainer.max_steps`",
}

TRAINED = {  # of each of validate, test and predict
    "": "Expected a trained network to {} but got no checkpoint: add --ckpt_path last, or a file's path, or --",
    "--ckpt_path=nowhere.ckpt": "Expected a checkpoint at nowhere.ckpt but there is no such file.",
    "--ckpt_path=.": "Expected a checkpoint at . but",
    "--ckpt_path=a_file": "a_file",
    "--ckpt_path=last": "Expected a checkpoint for --ckpt_path last",
    "--ckpt_path=a_file --untrained": "Expected no --untrained with a checkpoint but got --ckpt_path a_file.",
    "--nope=1": "unrecognized arguments: --nope=1",
}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Runs in a folder with files that are not what they should be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-maml"])
    contents = {
        "a_file": "",
        "list.yaml": "- 1\n- 2\n",
        "open.yaml": "a: [1\nb: }",
        "tag.yaml": "model: !!python/object/apply:os.system [ls]",
        "deep.yaml": "[" * 3000,
        "number.yaml": "1: 2",
        "null.yaml": "model: null\ndata: null\n",
        "empty.yaml": "published: {source: x}",
    }
    for name, content in contents.items():
        Path(name).write_text(content)
    Path("garbage").write_bytes(bytes(range(256)))
    Path("damaged").mkdir()
    for part in ("background", "evaluation"):
        Path(f"damaged/images_{part}.npz").write_bytes(b"no archive")


def answer(args: list[str], capsys: Any) -> tuple[int, str]:
    """The exit status and what was said on stderr."""
    capsys.readouterr()
    try:
        status = cli.main(args)
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, capsys.readouterr().err


def refused(args: list[str], expected: str, capsys: Any) -> None:
    status, said = answer(args, capsys)
    assert status in (1, 2), said
    assert expected in said.splitlines()[-1], said
    assert "error: " in said.splitlines()[-1]
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 12
    assert len(said.splitlines()[-1]) < 1000


pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning warns of, before it refuses


@pytest.mark.parametrize("options", FIT)
def test_fit(options, capsys):
    refused(["fit", *SINUSOID, *options.split()], FIT[options], capsys)


@pytest.mark.parametrize("options", RL_FIT)
def test_fit_of_reinforcement_learning(options, capsys):
    refused(["fit", *RL, *options.split()], RL_FIT[options], capsys)


@pytest.mark.parametrize("options", OMNIGLOT_FIT)
def test_fit_on_images(options, capsys, omniglot_root):
    refused(["fit", *OMNIGLOT, f"--data.root={omniglot_root}", *options.split()], OMNIGLOT_FIT[options], capsys)


@pytest.mark.parametrize("line", WHOLE)
def test_whole_lines(line, capsys):
    refused(line.split() or [""], WHOLE[line], capsys)


@pytest.mark.parametrize("options", TRAINED)
@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_what_needs_a_trained_network(subcommand, options, capsys):
    refused([subcommand, *SINUSOID, *options.split()], TRAINED[options].format(subcommand), capsys)


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_an_untrained_network_is_taken_on_purpose(subcommand, capsys):
    assert answer([subcommand, *SINUSOID, "--untrained"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("fit --debug --config missing.yaml", Exception, "File does not exist"),
        ("--debug demo --steps 0", ValueError, "`steps`"),
        ("reproduce nope --debug", FileNotFoundError, "the name of a protocol"),
        ("fit --nope --debug", Exception, "--nope"),
    ],
)
def test_debug_lets_the_exception_through(line, error, message):
    with pytest.raises(error, match=message):
        cli.main(line.split())


def test_debug_shows_where_the_users_own_code_failed():
    options = next(option for option in FIT if "Unrunnable" in option).split()
    with pytest.raises(KeyError, match="an entry"):
        cli.main(["fit", *SINUSOID, *options, "--debug"])


def test_a_hint_at_debug_where_the_error_is_not_ours(capsys):
    assert answer(["fit", *SINUSOID, "--trainer.max_steps=-5"], capsys)[1].endswith("(--debug shows the traceback)\n")
    assert "--debug" not in answer(["fit", *SINUSOID, "--data.shots=0"], capsys)[1]
    assert "--debug" in cli.HELP


def _fill() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def test_a_full_disk_names_the_file():
    if not Path("/dev/full").exists():
        pytest.skip("has no /dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        _fill()
    assert complaint(caught.value).startswith("Expected to use /dev/full but the system says: No space left on device")


def test_memory_that_is_used_up():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("tried to allocate 8 bytes"),
    ):
        assert "memory" in complaint(error)
        assert "ask for fewer tasks in a batch" in complaint(error)


def process(line: str, **how: Any) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"COLUMNS": "1"}
    command = [sys.executable, "-m", "lightning_maml.cli", *line.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen(command, env=env, **pipes)


def test_processes_of_their_own():
    """A reader that goes, an input that is closed and a terminal one column wide; started together, to be fast."""
    early, closed = process("reproduce --list"), process("fit --config missing.yaml", stdin=subprocess.DEVNULL)
    assert early.stdout is not None
    early.stdout.close()
    full = None
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as nowhere:
            full = process("reproduce --list", stdout=nowhere)
    early.wait(120)
    assert early.returncode == 141
    assert early.stderr is not None
    assert early.stderr.read() == b""
    said = closed.communicate(timeout=120)[1].decode()
    assert closed.returncode == 2
    assert len(said.splitlines()) == 1
    assert "File does not exist" in said
    if full is not None:
        said = full.communicate(timeout=120)[1].decode()
        assert (full.returncode, len(said.splitlines())) == (1, 1)
        assert "No space left on device" in said


@pytest.mark.parametrize(
    "line",
    [
        f"fit --config {CONFIGS / 'sinusoid.yaml'} --trainer.enable_progress_bar=false",
        "demo --steps 1000000",
    ],
    ids=["fit", "demo"],
)
def test_ctrl_c_is_a_line_and_130(line):
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Path("said").open("wb"))
        running = process(line, stderr=log, stdout=log)
        stack.callback(running.kill)  # one that did not stop would train for hours
        until = time.monotonic() + 120
        while not any(word in Path("said").read_text() for word in ("Params", "updates of 25", "Trainable")):
            assert running.poll() is None, Path("said").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 130
    said = Path("said").read_text()
    assert "\nlightning-maml: stopped by Ctrl-C\n" in said
    assert "Traceback" not in said
