"""What was trained, saved and run before the inner loops were redesigned: it still loads, goes on, and runs as it did.

``before/`` holds the data, and ``before/make.py`` says how they were made.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import who_ran
from lightning_maml import SGD, Algorithm, Joint, MetaModule, Part, SinusoidTasks, TaskBatch, cavia, cli
from lightning_maml.data import TaskStream
from lightning_maml.networks import Context
from lightning_maml.rl import MetaRLModule, Navigation2D
from lightning_maml.saving.configuration import read_configuration
from lightning_maml.saving.moved import MOVED

BEFORE = Path(__file__).parent / "before"

CONFIGURATIONS = sorted(path.stem for path in BEFORE.glob("*.yaml"))
CHECKPOINTS = sorted(path.stem for path in BEFORE.glob("*.ckpt"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),
    pytest.mark.filterwarnings("ignore:The conjugate gradients of the implicit"),
    pytest.mark.filterwarnings("ignore:.*tasks diverged"),
    # said once a process, of the first of these tests
    pytest.mark.filterwarnings(r"ignore:\s*(By default only one Jsonarg|``instantiate_classes`` was)"),
]


# What the configurations name, and what was built without one


class Blobs(TaskStream):
    """Points around a random centre for each class, rows or images of ``shape``: tasks that need no files."""

    def __init__(
        self, shape: list[int], tasks_per_batch: int, batches_per_epoch: int, val_tasks: int, test_tasks: int
    ) -> None:
        super().__init__(
            tasks_per_batch, batches_per_epoch=batches_per_epoch, val_tasks=val_tasks, test_tasks=test_tasks
        )
        self.shape = shape

    def draw(self, stage: Any, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Centres ``[T, 1, 3, *shape]`` of three classes, and offsets of two support and two query rows of each."""
        return (
            2 * torch.rand(tasks, 1, 3, *self.shape, generator=generator) - 1,
            0.5 * torch.rand(tasks, 4, 3, *self.shape, generator=generator),
        )

    def build(self, stage: Any, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        """Inputs ``[T, 6, *shape]`` and labels ``[T, 6]``."""
        inputs = (drawn[0] + drawn[1]).to(device)
        labels = torch.arange(3, device=device).expand(*inputs.shape[:3])
        parts = [part.flatten(1, 2) for rows in (slice(2), slice(2, 4)) for part in (inputs[:, rows], labels[:, rows])]
        return TaskBatch(*parts)


class Head:
    """A predicate over the names of parameters."""

    def __call__(self, name: str) -> bool:
        return name.startswith("head")


def _cavia_of_python() -> MetaModule:
    network = nn.Sequential(Context(2), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    algorithm = cavia(0.2, 3).with_inner(momentum=0.5, max_norm=2.0, weight_decay=0.01)
    return MetaModule(network, algorithm, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02))


BUILT: dict[str, Callable[[], MetaModule]] = {"cavia_of_python": _cavia_of_python}
"""Modules of Python code, which a checkpoint does not hold."""


def given(name: str) -> dict[str, Any]:
    """What the checkpoint of a configuration does not hold: the command line could not write it as plain data."""
    if name == "algorithm_part":
        return {"algorithm": Algorithm(SGD(0.05, 2, adapts=Part("head")), Joint())}
    loss = configuration(name)["model"].get("loss")
    return {"loss": loss} if loss == "cross_entropy" else {}


def tasks_of_built() -> DataLoader[Any]:
    """The training data of :data:`BUILT`."""
    stream = SinusoidTasks(shots=5, queries=5, tasks_per_batch=4)
    return DataLoader([stream.sample("train", position) for position in range(2)], batch_size=None)


def built_and_trained(name: str, folder: Path, updates: int, checkpoint: Path | None = None) -> Trainer:
    """The trainer of one of :data:`BUILT` after so many updates in all."""
    torch.manual_seed(0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, max_steps=updates, enable_checkpointing=False, **quiet
    )
    trainer.fit(BUILT[name](), tasks_of_built(), ckpt_path=checkpoint)
    return trainer


# Running them


def asked(name: str) -> dict[str, Tensor]:
    """The inputs of a case: those of its kind of network."""
    content = {} if name in BUILT else configuration(name)
    kind = "observations" if "policy" in content.get("model", {}) else "regression"
    if (shape := content.get("data", {}).get("init_args", {}).get("shape")) is not None:
        kind = "rows" if len(shape) == 1 else "images"
    inputs = json.loads((BEFORE / "inputs.json").read_text())[kind]
    return {key: torch.tensor(value) for key, value in inputs.items()}


def answer(name: str, later: bool = False) -> Tensor:
    """What came out of a case for these inputs; ``later``, one more update after the checkpoint that was kept."""
    return torch.tensor(json.loads((BEFORE / "answers.json").read_text())[f"{name}, later" if later else name])


def configuration(name: str) -> Any:
    return yaml.safe_load((BEFORE / f"{name}.yaml").read_text())


def fit(name: str, *options: str) -> Path:
    """Runs ``lightning-maml fit`` in this process and in the working directory; returns the last checkpoint."""
    assert cli.main(["fit", "--config", str(BEFORE / f"{name}.yaml"), *options]) == 0
    return Path("runs/run/version_0/checkpoints/last.ckpt")


def fit_further(name: str) -> Path:
    """One more update, or meta-iteration, from the checkpoint that was kept."""
    trainer = configuration(name)["trainer"]
    (option,) = {"max_steps", "max_epochs"} & set(trainer)
    return fit(name, f"--trainer.{option}={trainer[option] + 1}", "--ckpt_path", str(BEFORE / f"{name}.ckpt"))


def load(name: str, path: Path) -> MetaModule | MetaRLModule:
    """The module of a checkpoint, read as plain data."""
    if name in BUILT:
        own = BUILT[name]()
        return MetaModule.load_from_checkpoint(
            path, weights_only=True, network=own.network, algorithm=own.algorithm, optimizer=own.optimizer
        )
    if "policy" in configuration(name)["model"]:
        return MetaRLModule.load_from_checkpoint(path, weights_only=True, environment=Navigation2D(horizon=6))
    module = MetaModule.load_from_checkpoint(path, weights_only=True, allow=["test_before"], **given(name))
    return module.double() if configuration(name)["trainer"].get("precision") == "64-true" else module


def answers(name: str, module: Any) -> Tensor:
    """Predictions for a case's inputs after adapting to its support sets; of a policy, its outputs."""
    like = next(module.parameters())
    inputs = {key: value.to(like) if value.is_floating_point() else value for key, value in asked(name).items()}
    if isinstance(module, MetaRLModule):
        with torch.no_grad():
            return module(inputs["observations"])
    with torch.inference_mode():  # as the trainer predicts
        return module.predict_step(
            tuple(inputs[key] for key in ("support_inputs", "support_targets", "query_inputs")), 0
        )


def _same(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: a second thread would be waited for more than it would help."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in an empty folder; LightningCLI warns of arguments given in Python beside those of the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-maml"])


def test_nothing_of_it_is_lost() -> None:
    presets = "anil boil cavia fomaml imaml lora maml maml_pp meta_curvature meta_sgd pretrained proto_maml reptile"
    assert {*presets.split(), *BUILT, "algorithm", "navigation"} == set(CHECKPOINTS)
    assert set(CHECKPOINTS) - set(BUILT) < set(CONFIGURATIONS)
    assert len(CONFIGURATIONS) == 28


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name not in CHECKPOINTS])
def test_a_configuration_trains_to_the_same_network(name: str) -> None:
    # conjugate gradients make more of the last bit of float32, which differs between processors
    tolerance = 3e-4 if name == "navigation_trpo" else 1e-5
    _same(answers(name, load(name, fit(name))), answer(name), tolerance)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_loads_to_the_same_network(name: str) -> None:
    path = BEFORE / f"{name}.ckpt"
    module, state = load(name, path), torch.load(path, weights_only=True)["state_dict"]
    own = module.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    _same(answers(name, module), answer(name))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name not in BUILT])
def test_a_checkpoint_goes_on_to_the_same_network(name: str) -> None:
    _same(answers(name, load(name, fit_further(name))), answer(name, later=True))


@pytest.mark.parametrize("name", BUILT)
def test_a_module_of_python_code_goes_on_to_the_same_network(name: str, tmp_path: Path) -> None:
    for updates, checkpoint in ((2, None), (3, BEFORE / f"{name}.ckpt")):
        trainer = built_and_trained(name, tmp_path, updates, checkpoint)
        assert trainer.global_step == updates
        _same(answers(name, trainer.lightning_module), answer(name, later=updates == 3))


# What each engine and operator ran


@cache
def recorded(file: str) -> dict[str, Any]:
    """What was written down before: of the pairs ``problem @ engine`` what ran, or of the problems the numbers."""
    return json.loads((BEFORE / file).read_text())


SPEED = {"batched": 0, "sgd_update": 1, "mlp_adapt": 2, "mlp_adapt compiled": 3, "conv_adapt compiled": 3}


def _tolerance(name: str) -> float:
    """Of numbers relative to the largest: two engines differ by rounding alone."""
    if "autocast" in name or "bfloat16" in name:
        return 0.05
    return 1e-6 if "float64" in name else 3e-4


def _still(engine: str, before: str, now: str) -> bool:
    """Whether what ran before still runs, by the same operator, or, where an engine may choose, by a faster one."""
    if before == "refused" or now == before:
        return True
    if not engine.startswith(("fused", "auto")) or not {before, now} <= SPEED.keys():
        return False
    return SPEED[now] > SPEED[before]


def check_what_runs(name: str, engines: Collection[str]) -> None:
    """Every engine runs the problem on the operator that it ran on, with the numbers of the eager engine."""
    finds, fallen = who_ran.engines_of(name), []
    eager = finds["eager"]()
    for what, got, before in zip(
        ("loss", "gradient", "adapted"), who_ran.summary(eager), recorded("numbers.json")[name], strict=True
    ):
        if before is not None and got != pytest.approx(before, rel=_tolerance(name), abs=_tolerance(name)):
            fallen.append(f"the eager engine's {what} was {before} and is {got}")
    for engine in engines:
        names = recorded("who_ran.json")[f"{name} @ {engine}"]
        both = [names, names] if isinstance(names, str) else names
        found = eager if engine == "eager" else finds[engine]()
        for what, before, now, expected in zip(("meta_loss", "adapt"), both, found, eager, strict=True):
            if not _still(engine, before, now.name):
                fallen.append(f"{what} on {engine!r} ran by {before!r}, and now by {now.name!r}")
            if engine == "batched in chunks" and now.at_once > 2:
                fallen.append(f"{what} in chunks of 2 ran {now.at_once} tasks at once")
            scale = max([number.abs().max().item() for number in expected.numbers if number.numel()], default=1.0)
            for got, other in zip(now.numbers, expected.numbers, strict=now.name != "refused"):
                if not torch.allclose(got.double(), other.double(), rtol=0, atol=scale * _tolerance(name)):
                    fallen.append(f"{what} on {engine!r} differs from 'eager' by {(got - other).abs().max():.2g}")
    assert not fallen, "\n".join(fallen)


def has_compiler() -> bool:
    from lightning_maml.kernels.mlp_adapt import native

    return native.unavailable() is None


def test_the_table_holds_every_pair() -> None:
    pairs = {f"{name} @ {engine}" for name in who_ran.NAMES for engine in who_ran.engines_of(name)}
    assert pairs == recorded("who_ran.json").keys()
    assert set(who_ran.NAMES) == recorded("numbers.json").keys()
    of_auto = {str(names) for pair, names in recorded("who_ran.json").items() if pair.endswith("@ auto")}
    assert {"batched", "mlp_adapt compiled", "conv_adapt compiled", "policy_gradient"} <= of_auto


@pytest.mark.parametrize("name", who_ran.NAMES)
def test_what_ran_still_runs(name: str) -> None:
    left_out = [who_ran.COMPILING, *([] if has_compiler() else ["auto", "fused compiled"])]
    check_what_runs(name, [engine for engine in who_ran.engines_of(name) if engine not in left_out])


@pytest.mark.slow
@pytest.mark.parametrize("name", who_ran.COMPILED)
def test_what_was_compiled_is_still_compiled(name: str) -> None:
    check_what_runs(name, [who_ran.COMPILING])


@pytest.mark.parametrize("module", sorted(MOVED))
def test_names_of_before_resolve(tmp_path: Path, module: str) -> None:
    """In files and on the command line: of every class of a module that has moved."""
    home = importlib.import_module(f"lightning_maml.{MOVED[module]}")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"lightning_maml.{module}")
    classes = [
        name for name, value in vars(home).items() if isinstance(value, type) and value.__module__ == home.__name__
    ]
    assert classes or module == "checkpoints"
    for name in classes:
        (tmp_path / "named.yaml").write_text(f"names: [lightning_maml.{module}.{name}]")
        assert read_configuration(tmp_path / "named.yaml")["names"] == [f"lightning_maml.{MOVED[module]}.{name}"]


def test_a_name_of_before_on_the_command_line(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.fast_dev_run=1", "--model.engine=lightning_maml.engine.batched.Batched"]
    assert cli.main(["fit", "--config", str(repository / "configs/sinusoid.yaml"), *options]) == 0
