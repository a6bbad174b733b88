"""Checkpoints and configurations that try to run or remove something, or to hang: each is refused by name."""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.core.saving import save_hparams_to_tags_csv

from lightning_maml import MLP, MetaModule, SinusoidTasks, adapt, cli, load_adapted, maml, save_adapted
from lightning_maml.rl import EnvironmentTasks, GaussianPolicy, MetaRLModule, Navigation2D
from lightning_maml.saving import build, read_checkpoint
from lightning_maml.saving.configuration import named_in, read_configuration

CONFIGS = Path(__file__).parents[2] / "configs"
EVIL = """
from pathlib import Path
import torch
mark = Path(__file__).parent / "pwned"
mark.touch()
def run(*args, **kwargs):
    mark.touch()
    return torch.zeros(())
class Network(torch.nn.Linear):
    def __init__(self, command: str = "touch"):
        mark.touch()
        super().__init__(1, 1)
"""


def described(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


LINEAR = described("torch.nn.Linear", in_features=1, out_features=1)
BASE = {
    "_instantiator": "lightning.pytorch.cli.instantiate_module",
    "network": described("lightning_maml.MLP", in_features=1, hidden=[4], out_features=1),
    "algorithm": described("lightning_maml.maml", lr=0.01, steps=1),
    "loss": "mse",
    "optimizer": described("torch.optim.Adam", lr=0.001),
}
RL = {
    "_instantiator": "lightning.pytorch.cli.instantiate_module",
    "policy": described("lightning_maml.rl.GaussianPolicy", observation_size=2, action_size=2, hidden=[4]),
    "algorithm": described("lightning_maml.maml", lr=0.1, steps=1),
    "outer": {"clip": 0.2, "epochs": 2},
}
# Where it stands, and what: each is refused with its name, or what it is named by.
FUNCTIONS = [
    "evil.run",
    "os.system",
    "posix.system",
    "subprocess.run",
    "builtins.exec",
    "builtins.eval",
    "shutil.rmtree",
    "pickle.loads",
    "importlib.import_module",
    "functools.partial",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load",
    "torch.nn.init.os.system",
    "torch.nn.functional.torch.hub.load",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.functional.__loader__.load_module",
    "torch.nn.functional._verify_batch_size",
    "torch.nn.Module.load_state_dict",
    "torch.nn.modules.module.register_module_forward_hook",
    "torch.nn.utils.clip_grad_norm_",
    "torch.nn.parallel.data_parallel",
    "torch.optim.swa_utils.update_bn",
    "torch.optim.lr_scheduler.LambdaLR.load_state_dict",
    "lightning_maml.cli.command_line.main",
    "lightning_maml.cli.command_line.sys.exit",
    "lightning_maml.cli.reproduce.main",
    "lightning_maml.cli.demo.main",
    "lightning_maml.save_adapted",
    "lightning_maml.saving.weights.save_adapted",
    "lightning_maml.saving.whole_file",
    "lightning_maml.data.load_omniglot",
    "lightning_maml.presets.maml",
]
HOSTILE: list[tuple[str, Any]] = [
    *[("loss", name) for name in FUNCTIONS],
    ("metric", "evil.run"),
    ("query_loss", "evil.run"),
    ("query_loss", "os.system"),
    ("query_loss", described("evil.run", command="touch")),
    ("loss", described("evil.run", command="touch")),
    ("loss", described("os.system", command="touch pwned")),
    ("network", described("evil.Network", command="touch")),
    ("network", "evil.Network"),
    ("network", described("subprocess.Popen", args=["touch", "pwned"])),
    ("network", described("torch.nn.parallel.DistributedDataParallel", module=LINEAR)),
    ("network", described("lightning_maml.OmniglotTasks", root="x", download=True)),
    ("network", described("lightning_maml.MLP", in_features=1, hidden=described("evil.run"), out_features=1)),
    ("network", described("lightning_maml.networks.add_lora", network=described("evil.Network"), rank=1)),
    ("algorithm", described("evil.run")),
    ("algorithm", described("lightning_maml.maml", lr=0.1, adapts=described("evil.run"))),
    ("optimizer", described("evil.run")),
    ("optimizer", described("os.system", command="touch pwned")),
    ("scheduler", described("torch.optim.lr_scheduler.LambdaLR", lr_lambda="evil.run")),
    ("engine", described("evil.Network")),
    ("engine", described("lightning_maml.engine.Graphed", engine=described("evil.Network"))),
    ("_instantiator", "evil.run"),
    ("_class_path", "evil.Network"),
]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder on the path with a module that leaves a mark when imported; afterwards there must be none."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before, environment = set(sys.modules), _environment()
    yield tmp_path
    loaded = {name for name in set(sys.modules) - before if not name.startswith(("torch", "lightning", "numpy"))}
    assert "evil" not in loaded
    assert not loaded & {"webbrowser", "lightning_maml.kernels.cache"}
    assert _environment() == environment
    assert not list(tmp_path.rglob("pwned"))


def _environment() -> dict[str, str]:
    """All but what pytest and Lightning put there."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PL_"))}
    return {name: value for name, value in ours.items() if name != "POPLAR_ENGINE_OPTIONS"}


def written(path: Path, module: Any, config: dict[str, Any], **more: Any) -> Path:
    content = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0", "hyper_parameters": config}
    torch.save(content | more, path)
    return path


def one_line(error: pytest.ExceptionInfo[Exception], value: Any) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert any(name in text for name in named_in([value]))


def names_of(value: Any) -> str:
    return (value if isinstance(value, str) else str(value["class_path"])).replace("lightning_maml", "maml")


hostile = pytest.mark.parametrize(
    ("place", "value"), HOSTILE, ids=[f"{p}-{names_of(v)}-{i}" for i, (p, v) in enumerate(HOSTILE)]
)


def test_there_are_fifty() -> None:
    assert len(HOSTILE) >= 50


@hostile
def test_a_checkpoint_names_nothing_that_is_run(evil: Path, place: str, value: Any) -> None:
    module = MetaModule(MLP(1, [4], 1), maml(0.01, 1))
    path = written(evil / "hostile.ckpt", module, BASE | {place: value})
    with pytest.raises(ValueError, match="Expected") as error:
        MetaModule.load_from_checkpoint(path)
    one_line(error, value)
    with path.open("rb") as file, pytest.raises(ValueError, match="Expected") as error:
        MetaModule.load_from_checkpoint(file)
    one_line(error, value)
    # hyper-parameters in a file of their own
    whole = written(evil / "whole.ckpt", module, BASE)
    (evil / "hparams.yaml").write_text(yaml.safe_dump(BASE | {place: value}))
    save_hparams_to_tags_csv(evil / "hparams.csv", BASE | {place: value})
    for name in ("hparams.yaml", "hparams.csv"):
        with pytest.raises(ValueError, match="Expected") as error:
            MetaModule.load_from_checkpoint(whole, hparams_file=evil / name)
        one_line(error, value)
        (evil / name).unlink()


@hostile
def test_nor_does_one_of_reinforcement_learning(evil: Path, place: str, value: Any) -> None:
    place = {"network": "policy", "loss": "estimator", "query_loss": "estimator", "metric": "outer"}.get(place, place)
    module = MetaRLModule(GaussianPolicy(2, 2, [4]), maml(0.1, 1), Navigation2D(horizon=4))
    path = written(evil / "hostile.ckpt", module, RL | {place: value})
    with pytest.raises(ValueError, match="Expected") as error:
        MetaRLModule.load_from_checkpoint(path, environment=Navigation2D(horizon=4))
    one_line(error, value)
    with pytest.raises(ValueError, match="environment"):
        MetaRLModule.load_from_checkpoint(
            written(path, module, RL | {"environment": described("lightning_maml.rl.GymnasiumTasks", env="evil:x-v0")})
        )


@hostile
def test_states_are_loaded_without_what_is_named(evil: Path, place: str, value: Any) -> None:
    module = MetaModule(MLP(1, [4], 1), maml(0.01, 1))
    trained = copy.deepcopy(module)
    with torch.no_grad():
        trained.network.head.bias.fill_(3.0)
    names = {"hyper_parameters", "datamodule_hyper_parameters"}
    path = written(evil / "hostile.ckpt", trained, {}, **dict.fromkeys(names, BASE | {place: value}))
    quiet().test(module, SinusoidTasks(5, 5, tasks_per_batch=2, test_tasks=2), ckpt_path=path)
    assert module.network.head.bias.item() == 3.0


@pytest.mark.parametrize("place, value", [HOSTILE[0], HOSTILE[36], HOSTILE[-2], HOSTILE[-1]])
def test_nor_does_the_command_line_run_it(evil: Path, place: str, value: Any) -> None:
    model = {name: BASE[name] for name in ("network", "algorithm")}
    data = described("lightning_maml.SinusoidTasks", tasks_per_batch=2, test_tasks=2)
    trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    (evil / "run.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    written(evil / "hostile.ckpt", MetaModule(MLP(1, [4], 1), maml(0.01, 1)), BASE | {place: value})
    assert cli.main(["test", "--config", "run.yaml", "--ckpt_path", "hostile.ckpt"]) == 0


@hostile
def test_data_is_built_from_what_is_plain(evil: Path, place: str, value: Any) -> None:
    config = {"environment": value, "tasks_per_batch": 2}
    if place.startswith("_"):
        config = {place: value, "environment": described("lightning_maml.rl.Navigation2D"), "tasks_per_batch": 2}
    path = written(
        evil / "hostile.ckpt", MetaModule(MLP(1, [4], 1), maml(0.01, 1)), {}, datamodule_hyper_parameters=config
    )
    with pytest.raises(ValueError, match="Expected") as error:
        EnvironmentTasks.load_from_checkpoint(path)
    one_line(error, value)


def test_what_is_allowed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text(
        "import torch\nfrom os import system\ndef loss(p, t):\n    return (p - t).abs().mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = MetaModule(MLP(1, [4], 1), maml(0.01, 1))
    path = written(tmp_path / "good.ckpt", module, BASE | {"loss": "good.loss"})
    for allow in (["good"], ["good.loss"]):
        assert MetaModule.load_from_checkpoint(path, allow=allow).loss.__name__ == "loss"
    with pytest.raises(
        ValueError, match=r"`loss` to name .* but got 'good.loss'.*allow=\['good.loss'\].*--allow good.loss"
    ):
        MetaModule.load_from_checkpoint(path, allow=["good.los", "goo"])
    for name in ("good.system", "good.torch.load"):  # not defined there
        with pytest.raises(ValueError, match=name):
            MetaModule.load_from_checkpoint(written(path, module, BASE | {"loss": name}), allow=["good"])
    # what the caller gives is not looked for in the file
    path = written(path, module, BASE | {"loss": "os.system"})
    assert MetaModule.load_from_checkpoint(path, loss="mse").loss == "mse"


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "cross_entropy", "metric": "accuracy"},
        {"loss": "torch.nn.functional.l1_loss", "metric": "mse"},
        {"loss": described("torch.nn.HuberLoss", delta=0.5)},
        {"query_loss": described("torch.nn.HuberLoss", delta=0.5)},
        {"query_loss": "torch.nn.functional.l1_loss"},
        {"query_loss": "cross_entropy", "metric": "accuracy"},
        {"query_loss": None},
        {"algorithm": described("lightning_maml.maml", adapts={"part": "head", "head": None}, lr=[0.1, 0.2])},
        {"algorithm": described("lightning_maml.maml", adapts="head.weight")},
        {"engine": described("lightning_maml.Batched", chunk_size=2)},
        {"scheduler": described("torch.optim.lr_scheduler.StepLR", step_size=3)},
    ],
    ids=str,
)
def test_what_the_library_has_is_built(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = BASE | changes
    path = written(tmp_path / "good.ckpt", MetaModule(MLP(1, [4], 1), maml(0.01, 1)), config)
    loaded = MetaModule.load_from_checkpoint(path)
    assert loaded.query_loss is None or "query_loss" in changes
    assert isinstance(loaded.optimizer([torch.zeros(1, requires_grad=True)]), torch.optim.Adam)
    if "adapts" in str(changes):
        assert loaded.algorithm.inner.adapted(dict(loaded.network.named_parameters()))[0] == "head.weight"


class Stopped(Exception):  # noqa: N818
    """Instead of building what was asked for."""


class Dumped(cli.MetaCLI):
    def instantiate_classes(self) -> None:
        self._dump_config()
        raise Stopped(self.config_dump["model"])


A_TABLE = ["--data.path=none.csv", "--data.inputs=[x]", "--data.targets=[y]"]
A_TABLE += ["--model.network.in_features=1", "--model.network.out_features=1"]  # which the file would say


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_built_from_its_checkpoint(path: Path) -> None:
    kind: Any = MetaRLModule if "policy" in read_configuration(path)["model"] else MetaModule
    with warnings.catch_warnings():
        for message in cli.QUIET_WARNINGS:  # as `cli.main` has it
            warnings.filterwarnings("ignore", message=message)
        with pytest.raises(Stopped) as stopped:
            Dumped(["fit", "--config", str(path), *(A_TABLE if path.stem == "table" else [])], kind)
    (config,) = stopped.value.args
    assert "Unable to serialize" not in str(config)
    given: dict[str, Any] = {}
    if kind is MetaRLModule:
        given["environment"] = environment = Navigation2D(horizon=4)
        policy = config["policy"]["init_args"]
        environment.observation_size, environment.action_size = policy["observation_size"], policy["action_size"]
    assert isinstance(build(kind, config, given), kind)


# States


def quiet(**options: Any) -> Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return Trainer(**defaults | {"enable_progress_bar": False, "enable_model_summary": False} | options)


def trained(folder: Path, steps: int, **options: Any) -> Trainer:
    torch.manual_seed(0)
    module = MetaModule(
        MLP(1, [4], 1), maml(0.01, 1), scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3)
    )
    saves = ModelCheckpoint(folder, "{step}", monitor="train/loss", every_n_train_steps=1, save_top_k=2, save_last=True)
    run = quiet(enable_checkpointing=True, callbacks=[saves, EarlyStopping("train/loss", patience=99)], max_steps=steps)
    run.fit(module, SinusoidTasks(5, 5, tasks_per_batch=2, val_tasks=0), **options)
    return run


def state_of(content: dict[str, Any]) -> dict[str, Any]:
    return next(state for key, state in content["callbacks"].items() if key.startswith("ModelCheckpoint"))


FOLLOWED = {
    "dots": lambda folder, victim: f"{folder}/../{victim.relative_to(folder.parent)}",
    "link": lambda folder, victim: str(folder / "link" / victim.name),
    "elsewhere": lambda folder, victim: str(victim),
    "folder": lambda folder, victim: f"{folder}/..",
    "remote": lambda folder, victim: f"local://{victim}",
    "file": lambda folder, victim: f"file://{victim}",
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The checkpoint .* names files as those of")
@pytest.mark.parametrize("kind", FOLLOWED)
@pytest.mark.parametrize("place", ["best_k_models", "last_model_path", "best_model_path"])
def test_no_file_of_anybody_elses_is_removed(tmp_path: Path, kind: str, place: str) -> None:
    folder, victim = tmp_path / "run", tmp_path / "others" / "theirs.ckpt"
    victim.parent.mkdir()
    victim.touch()
    trained(folder, 3)
    (folder / "link").symlink_to(victim.parent)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    state, path = state_of(content), FOLLOWED[kind](folder, victim)
    state[place] = {path: torch.tensor(1e9)} if place == "best_k_models" else path
    if place == "best_k_models":
        state["kth_best_model_path"], state["kth_value"] = path, torch.tensor(1e9)
    torch.save(content, folder / "hostile.ckpt")
    run = trained(folder, 8, ckpt_path=folder / "hostile.ckpt")
    assert run.global_step == 8
    assert victim.exists()
    assert (folder / "last.ckpt").exists()


def _callback(content: dict[str, Any]) -> None:
    content["callbacks"] = {next(iter(content["callbacks"])): [1]}


def _nested(content: dict[str, Any]) -> None:
    for _ in range(300):
        content["epoch_"] = [content.get("epoch_")]


HOSTILE_STATES = {
    "version": (lambda c: c.update({"pytorch-lightning_version": "0.1"}), "it is of Lightning 0.1"),
    "no version": (lambda c: c.update({"pytorch-lightning_version": "'; rm"}), "pytorch-lightning_version is"),
    "version of another kind": (lambda c: c.update({"pytorch-lightning_version": [2]}), "version is"),
    "function": (lambda c: c.update(hparams_type=torch._utils._rebuild_tensor_v2), "_rebuild_tensor_v2"),
    "function in a state": (lambda c: c["lr_schedulers"][0].update(step=torch._utils._rebuild_parameter), "_rebuild_"),
    "callbacks": (lambda c: c.update(callbacks=[1]), "its callbacks is list"),
    "callback": (_callback, "its callbacks has list"),
    "loops": (lambda c: c.update(loops=3), "its loops is int"),
    "no loops": (lambda c: c.pop("loops"), "it has no loops"),
    "progress": (lambda c: c["loops"]["fit_loop"]["epoch_progress"].update(total=1), "epoch_progress.total is int"),
    "method": (
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(reset="os.system"),
        "has 'reset', which is unknown",
    ),
    "counter": (
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="1"),
        "is str instead of a number",
    ),
    "random": (lambda c: c.update(random_states=[{"torch": 1}]), "its random_states are none"),
    "random keys": (lambda c: c["random_states"][0]["python"][1].__class__ and c.update(random_states=[[]]), "none"),
    "scheduler": (
        lambda c: c["lr_schedulers"][0].update(step="os.system"),
        "lr_schedulers has 'step', which is a method",
    ),
    "phase": (lambda c: c["lr_schedulers"][0].update(last_epoch="os.system"), "lr_schedulers.last_epoch is str"),
    "stopping": (
        lambda c: next(v for k, v in c["callbacks"].items() if "EarlyStopping" in k).update(wait_count="x"),
        "callbacks.EarlyStopping.wait_count is str",
    ),
    "schedulers": (lambda c: c.update(lr_schedulers=[]), "states of 0 lr_schedulers"),
    "optimizer": (lambda c: c["optimizer_states"][0].pop("state"), "those of another optimizer"),
    "groups": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(params=[9]), "of other parameters"),
    "moments": (
        lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(7)),
        r"exp_avg of shape \[7\]",
    ),
    "rate": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="os.system"), "lr is str"),
    "sparse": (lambda c: c.update(x=torch.zeros(3).to_sparse()), "torch.sparse_coo"),
    "meta": (lambda c: c.update(x=torch.zeros(3, device="meta")), "a tensor without values"),
    "huge": (lambda c: c.update(x=torch.zeros(1).expand(10**12)), "made of 4 bytes"),
    "deep": (_nested, "nested more than 100 deep"),
    "parameters": (lambda c: c.update(state_dict={"x": "os.system"}), "its state_dict has str"),
    "settings": (lambda c: c.update(hyper_parameters=["x"]), "its hyper_parameters is list"),
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("kind", HOSTILE_STATES)
def test_states_of_another_form_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    change, message = HOSTILE_STATES[kind]
    trained(tmp_path, 2)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(ValueError, match=message) as error:
        trained(tmp_path, 3, ckpt_path=tmp_path / "hostile.ckpt")
    assert "\n" not in str(error.value)
    assert "hostile.ckpt" in str(error.value)


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "whole.ckpt", MetaModule(MLP(1, [4], 1), maml(0.01, 1)), {})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in whole.namelist():
            bomb.writestr(part, whole.read(part))
    with pytest.raises(ValueError, match="parts of it are compressed"):
        read_checkpoint(tmp_path / "bomb.ckpt")


# Adapted weights


def test_no_damaged_weights_are_loaded(tmp_path: Path) -> None:
    network, inputs = MLP(1, [4], 1), torch.randn(3, 5, 1)
    adapted = adapt(network, maml(0.1, 1), inputs, 2 * inputs, loss="mse")
    path, random = tmp_path / "adapted.safetensors", torch.Generator().manual_seed(0)
    save_adapted(adapted, path)
    whole = path.read_bytes()
    for number in range(300):
        damaged = bytearray(whole)
        place = int(torch.randint(len(whole), (), generator=random))
        if number % 3 == 2:
            damaged = damaged[:place]
        else:
            damaged[place] ^= 1 << int(torch.randint(8, (), generator=random))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"adapted.safetensors (is damaged|is another one|holds|lacks)"):
            load_adapted(path, network, maml(0.1, 1), loss="mse")


def test_weights_without_a_checksum_load_with_a_warning(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    network, inputs = MLP(1, [4], 1), torch.randn(3, 5, 1)
    adapted = adapt(network, maml(0.1, 1), inputs, 2 * inputs, loss="mse")
    path = tmp_path / "adapted.safetensors"
    save_adapted(adapted, path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"format": "lightning-maml adapted weights 1", "algorithm": "maml"})
    with pytest.warns(UserWarning, match="written without a checksum"):
        again = load_adapted(path, network, maml(0.1, 1), loss="mse")
    assert torch.equal(again.predict(inputs), adapted.predict(inputs))


# Configurations

ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "aliases": (ALIASES.encode(), "more than 20,000 values"),
    "merged": (b"a: &a {x: 1}\nb: &b {<<: [" + b"*a, " * 30000 + b"]}\n", "values"),
    "itself": (b"a: &a [*a]\n", r"\*a stands for what it is in"),
    "deep": (b"a: " + b"[" * 500, "nested more than 50 deep"),
    "deeper": (b"a: " + b"[" * 100_000, "exceeded maximum nesting depth"),
    "deep mappings": (b"a: " + b"{a: " * 500, "nested more than 50 deep"),
    "UTF-16": ("model: {}\n".encode("utf-16"), "no text in UTF-8"),
    "binary": (bytes(range(256)), "no text in UTF-8"),
    "zeros": (b"\0" * 100, "a zero byte"),
    "tag": (b"a: !!python/object/apply:os.system [touch pwned]\n", "!!python/object/apply:os.system asks for"),
    "own tag": (b"a: !mine {}\n", "its tag !mine asks for"),
    "large": (b"a: b\n" * 20_000_000, "larger than 262,144 bytes"),
    "list": (b"[1, 2]\n", "to be a configuration of sections but got list"),
    "no YAML": (b"a: [1\nb: 2\n", "it is no YAML: .*line"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_configuration_is_read_within_bounds(tmp_path: Path, capsys: Any, monkeypatch: Any, kind: str) -> None:
    content, message = BAD[kind]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        read_configuration(path)
    for arguments in (["fit", "--config", str(path)], ["reproduce", str(path)], ["test", f"--config={path}"]):
        assert cli.main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("lightning-maml: error: Expected")
        assert len(said.splitlines()) == 1
    assert time.monotonic() - start < 20  # without bounds, minutes
    assert not (tmp_path / "pwned").exists()


def test_options_and_files_within_files_are_bounded(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "trainer.yaml").write_text(ALIASES)
    for options, message in (
        (["--model.network", "[" * 60], "nested more than 50 deep"),
        (["--trainer", str(tmp_path / "trainer.yaml")], "stands for more than 20,000 values"),
    ):
        try:
            code = cli.main(["fit", "--config", "configs/sinusoid.yaml", *options])
        except SystemExit as end:  # jsonargparse's own way to say what is wrong with an option
            code = end.code
        assert code in (1, 2)
        assert message in capsys.readouterr().err


def test_allow_is_an_option_of_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A network that itself loads a checkpoint: what configuration and command line name, it may name, too."""
    (tmp_path / "mine.py").write_text(
        "from lightning_maml import MetaModule, MLP\n"
        "def loss(p, t):\n    return (p - t).abs().mean()\n"
        "class Net(MLP):\n"
        "    def __init__(self, path: str):\n"
        "        super().__init__(1, [4], 1)\n"
        "        self.load_state_dict(MetaModule.load_from_checkpoint(path).network.state_dict())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "first.ckpt", MetaModule(MLP(1, [4], 1), maml(0.01, 1)), BASE | {"loss": "mine.loss"})
    model = {"network": described("mine.Net", path="first.ckpt"), "algorithm": BASE["algorithm"]}
    data = described("lightning_maml.SinusoidTasks", tasks_per_batch=2, test_tasks=2)
    trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    command = ["test", "--config", "run.yaml", "--untrained"]
    assert cli.main(command) == 1
    assert "but got 'mine.loss'" in capsys.readouterr().err
    assert cli.main([*command, "--allow", "mine.loss"]) == 0
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"model": model | {"loss": "mine.loss"}, "data": data, "trainer": trainer})
    )
    assert cli.main(command) == 0
