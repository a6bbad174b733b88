"""Tasks that diverge, meta-batches in parts, checkpoints that are damaged, foreign or malicious, weights in files."""

from __future__ import annotations

import copy
import csv
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from lightning_maml import (
    MLP,
    Batched,
    Eager,
    Fused,
    MetaModule,
    TaskBatch,
    adapt,
    anil,
    imaml,
    load_adapted,
    maml,
    maml_pp,
    meta_loss,
    meta_sgd,
    reptile,
    save_adapted,
)
from lightning_maml.data import SinusoidTasks
from lightning_maml.engine import MetaOutput
from lightning_maml.saving import random_state, restore_random_state
from lightning_maml.training.meta_update import meta_update
from problems import make_problem, meta_gradient, relative_error

BAD, ROOT = 1e200, 0.0


class Rooted(nn.Module):
    """Its slope is infinite, and then NaN, at the input 0, where its value is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return ((inputs * self.scale.T).abs().sum(-1, keepdim=True) * 1.0).sqrt() + self.shift


def tasks_with(bad: dict[int, str], tasks: int = 5) -> tuple[nn.Module, TaskBatch]:
    """A float64 network, and tasks of which some overflow in the inner loop or have no finite meta-gradient."""
    torch.manual_seed(0)
    network = Rooted().double() if "slope" in bad.values() else nn.Linear(3, 1).double()
    inputs, targets = torch.randn(tasks, 6, 3).double(), torch.randn(tasks, 6, 1).double()
    for task, kind in bad.items():
        inputs[task] = BAD * inputs[task] if kind == "overflow" else 0.0
    return network, TaskBatch(inputs[:, :3], targets[:, :3], inputs[:, 3:], targets[:, 3:])


# Tasks that diverge


@pytest.mark.parametrize(
    "bad", [{}, {1: "overflow"}, {0: "overflow", 4: "overflow"}, {2: "slope"}, {0: "slope", 3: "overflow"}]
)
@pytest.mark.parametrize("accumulate", [None, 1, 2, 5])
@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_the_mean_is_that_of_the_finite_tasks(bad: dict[int, str], accumulate: int | None, engine: str) -> None:
    network, tasks = tasks_with(bad)
    steps = 0 if "slope" in bad.values() else 3  # with steps the root's task would not even have finite losses
    algorithm = maml(0.1, 3) if steps else anil(0.1, 0, head="scale|shift")
    update = meta_update(network, algorithm, tasks, loss="mse", engine=engine, accumulate_tasks=accumulate)
    assert update.finite == [task not in bad for task in range(5)]
    gradients = meta_gradient(network, update)
    good = [task for task in range(5) if task not in bad]
    each = [
        meta_gradient(network, meta_loss(network, algorithm, tasks[t : t + 1], loss="mse", engine="eager"))
        for t in good
    ]
    expected = [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]
    assert relative_error(gradients, expected) < 1e-12
    predictions = [predictions for _, predictions in update.parts]
    assert len(update.task_losses) == sum(map(len, predictions)) == len(update.support_losses) == len(good)
    assert torch.equal(torch.cat([part.query_inputs for part, _ in update.parts]), tasks.query_inputs[good])
    assert bool(update.explanation) == bool(bad)


def test_the_explanation_says_what_is_not_finite() -> None:
    network, tasks = tasks_with({2: "slope"})
    update = meta_update(network, anil(0.1, 0, head="scale|shift"), tasks, loss="mse")
    assert "all losses are, but the meta-gradient is not" in update.explanation
    network, tasks = tasks_with({1: "overflow"})
    assert "the support loss of task 1 is inf" in meta_update(network, maml(0.1, 3), tasks, loss="mse").explanation


def test_no_finite_task_gives_zeros() -> None:
    network, tasks = tasks_with(dict.fromkeys(range(3), "overflow"), tasks=3)
    update = meta_update(network, maml(0.1, 3), tasks, loss="mse", accumulate_tasks=2)
    assert update.parts == []
    assert len(update.task_losses) == 0
    assert update.finite == [False] * 3
    assert all(not gradient.any() for gradient in meta_gradient(network, update))


def fit(module: MetaModule, batches: list[Any], **options: Any) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        precision="64-true",
        **(defaults | options),
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


@pytest.mark.parametrize(("policy", "weight"), [("skip", 1.0), ("zero", 0.6)])
@pytest.mark.filterwarnings("ignore:2 of the 5 tasks of meta-update 0 diverged")
def test_policies(tmp_path: Path, policy: str, weight: float) -> None:
    network, tasks = tasks_with({1: "overflow", 3: "overflow"})
    good = TaskBatch(*(value[[0, 2, 4]] for _, value in tasks.named()))
    expected = meta_gradient(network, meta_loss(network, maml(0.1, 3), good, loss="mse", engine="eager"))
    before = copy.deepcopy(network)
    module = MetaModule(network, maml(0.1, 3), optimizer=sgd, on_divergence=policy, metric="mse")
    run = fit(module, [tasks] * 1, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    for new, old, gradient in zip(network.parameters(), before.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.01 * weight * gradient, rtol=1e-12, atol=0)
    with (Path(run.logger.log_dir) / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["train/diverged_tasks"]) == 2
    loss = meta_loss(before, maml(0.1, 3), good, loss="mse").loss.item()
    assert float(row["train/loss"]) == pytest.approx(loss)
    assert float(row["train/mse"]) == pytest.approx(loss)


@pytest.mark.parametrize("updates", [1, 2])
def test_it_is_said_once(updates: int) -> None:
    network, tasks = tasks_with({1: "overflow"})
    module = MetaModule(network, maml(0.1, 3), optimizer=sgd, updates_per_step=updates)
    with pytest.warns(
        UserWarning, match="1 of the 5 tasks of meta-update 0 diverged and are left out.*task 1 is"
    ) as said:
        fit(module, [tasks] * 3 if updates == 1 else [(tasks,) * updates] * 3)
    assert len([one for one in said if "diverged" in str(one.message)]) == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("policy", "bad", "message"),
    [
        ("raise", [4], r"the inner loop diverged|support loss of task 4"),
        ("skip", [0, 2, 4], r"3 of 5 tasks diverge"),
        ("zero", [0, 1, 2, 3], r"4 of 5 tasks diverge"),
    ],
)
def test_a_run_that_cannot_go_on_says_why(policy: str, bad: list[int], message: str) -> None:
    network, tasks = tasks_with(dict.fromkeys(bad, "overflow"))
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match=message):
        fit(MetaModule(network, maml(0.1, 3), on_divergence=policy), [tasks])
    for new, old in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old)


# Meta-batches in parts


@pytest.mark.parametrize("engine", [Eager(), Batched(), Batched(chunk_size=2, checkpoint="step"), "auto"])
@pytest.mark.parametrize(
    "algorithm",
    [maml(0.1, 2), reptile(0.1, 3, "sgd"), imaml(0.1, 3), meta_sgd(0.1, 2), maml_pp(0.1, 2, multi_step_updates=9)],
    ids=lambda algorithm: algorithm.name,
)
def test_parts_add_up_to_the_meta_batch(algorithm: Any, engine: Any) -> None:
    network, tasks = make_problem("mlp", "cross_entropy", tasks=7)
    algorithm = algorithm.with_rates(algorithm.initial_rates(network)).at(3)
    whole = meta_loss(network, algorithm, tasks, loss="cross_entropy", engine="eager")
    expected = meta_gradient(network, whole)
    for size in (1, 3, 7, 100):
        update = meta_update(network, algorithm, tasks, loss="cross_entropy", engine=engine, accumulate_tasks=size)
        assert relative_error(meta_gradient(network, update), expected) < 1e-10
        torch.testing.assert_close(update.task_losses, whole.task_losses)
        torch.testing.assert_close(torch.cat([found for _, found in update.parts]), whole.predictions)


def test_a_part_is_all_that_runs_at_once() -> None:
    sizes = []

    class Seen(Batched):
        def meta_loss(self, problem: Any, tasks: TaskBatch) -> MetaOutput:
            sizes.append(len(tasks))
            return super().meta_loss(problem, tasks)

    network, tasks = tasks_with({}, tasks=7)
    fit(MetaModule(network, maml(0.1, 2), engine=Seen(), accumulate_tasks=3), [tasks])
    assert sizes == [3, 3, 1]


def test_out_of_memory_says_what_to_turn() -> None:
    class Small(Batched):
        def meta_loss(self, problem: Any, tasks: TaskBatch) -> MetaOutput:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network, tasks = tasks_with({}, tasks=7)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"7 tasks of 4 inner.*accumulate_tasks=3\) or .*checkpoint='step'.*2.00 GiB"
    ):
        fit(MetaModule(network, maml(0.1, 4), engine=Small()), [tasks])


# Checkpoints


class Evil:
    """What is run when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def sinusoid_module(hidden: int = 8) -> MetaModule:
    torch.manual_seed(0)
    return MetaModule(MLP(1, [hidden], 1), maml(0.01, 2))


def sinusoid_fit(module: MetaModule, folder: Path, steps: int, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)],
    )
    trainer.fit(module, SinusoidTasks(5, 5, tasks_per_batch=2, val_tasks=0), **options)
    return trainer


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    sinusoid_fit(sinusoid_module(), tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"step=2.ckpt", "step=4.ckpt", "last.ckpt"}
    return tmp_path


resuming = pytest.mark.filterwarnings("ignore:Checkpoint directory")


@resuming
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_a_truncated_checkpoint_is_named_and_the_one_before_loads(checkpoints: Path, kept: float) -> None:
    path = checkpoints / "last.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    message = rf"{re.escape(str(path))} is damaged or none .*Beside it lie step=2.ckpt, step=4.ckpt"
    with pytest.raises(ValueError, match=message):
        sinusoid_fit(sinusoid_module(), checkpoints, 6, ckpt_path=path)
    with pytest.raises(ValueError, match=message):
        MetaModule.load_from_checkpoint(path, network=MLP(1, [8], 1), algorithm=maml(0.01, 2))
    run = sinusoid_fit(sinusoid_module(), checkpoints, 6, ckpt_path=checkpoints / "step=4.ckpt")
    assert run.global_step == 6


@resuming
@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_malicious_pickle_is_refused(checkpoints: Path, tmp_path: Path, protocol: int | None) -> None:
    path, mark = checkpoints / "last.ckpt", tmp_path / "pwned"
    content = torch.load(path, weights_only=True) | {"extra": Evil(mark)}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    message = r"Expected plain data in the checkpoint .*last.ckpt but it refers to .*refused"
    if protocol == 4:  # in which torch writes nothing
        message = r"last.ckpt is damaged or none"
    for phase in (
        lambda: sinusoid_fit(sinusoid_module(), checkpoints, 6, ckpt_path=path),
        lambda: Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).test(
            sinusoid_module(), SinusoidTasks(), ckpt_path=path
        ),
        lambda: MetaModule.load_from_checkpoint(path, network=MLP(1, [8], 1), algorithm=maml(0.01, 2)),
    ):
        with pytest.raises(ValueError, match=message):
            phase()
    assert not mark.exists()
    torch.load(path, weights_only=False) if protocol is None else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file does what is said of it


@resuming
def test_foreign_files_are_named(checkpoints: Path) -> None:
    path = checkpoints / "foreign.ckpt"
    for content, message in (
        ([1, 2], r"Lightning wrote but .*foreign.ckpt holds list"),
        (sinusoid_module().state_dict(), r"Lightning wrote but .*foreign.ckpt holds a dictionary of \['network"),
        ({"state_dict": {}, "pytorch-lightning_version": "2.5.0"}, r"foreign.ckpt lacks network.head.bias"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            sinusoid_fit(sinusoid_module(), checkpoints, 6, ckpt_path=path)
    path.write_text("no checkpoint\n")
    with pytest.raises(ValueError, match=r"foreign.ckpt is damaged or none"):
        sinusoid_fit(sinusoid_module(), checkpoints, 6, ckpt_path=path)
    with pytest.raises(ValueError, match=r"last.ckpt has network.* of shape \[1, 8\] in the place of \[1, 9\]"):
        sinusoid_fit(sinusoid_module(hidden=9), checkpoints, 6, ckpt_path=checkpoints / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no such file. Beside it lie foreign.ckpt, last.ckpt"):
        sinusoid_fit(sinusoid_module(), checkpoints, 6, ckpt_path=checkpoints / "lost.ckpt")


def test_the_random_state_comes_back() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float, float]:
        return torch.rand(()).item(), np.random.normal(), random.random(), random.gauss()  # noqa: NPY002

    draw()
    state = pickle.loads(pickle.dumps(random_state()))
    first, second = draw(), draw()
    assert first != second
    restore_random_state(state)
    assert (draw(), draw()) == (first, second)


def test_a_failed_write_leaves_the_old_checkpoint(checkpoints: Path) -> None:
    path = checkpoints / "last.ckpt"
    before = path.read_bytes()
    run = sinusoid_fit(sinusoid_module(), checkpoints / "other", 2)
    run.lightning_module.on_save_checkpoint = lambda checkpoint: checkpoint.update(bad=lambda: None)
    with pytest.raises((AttributeError, pickle.PicklingError)):  # a function cannot be saved
        run.save_checkpoint(path)
    assert path.read_bytes() == before
    assert not list(checkpoints.glob(".*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_time_interval": __import__("datetime").timedelta(minutes=1)}, "never saves by time"),
        (
            {"every_n_train_steps": 5},
            r"every_n_train_steps=5\) and the batches of an epoch, 6, to be multiples of the 2",
        ),
    ],
)
def test_checkpoints_that_would_not_be_written_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[ModelCheckpoint(tmp_path, **options)], max_steps=4)
    module = MetaModule(MLP(1, [4], 1), maml(), updates_per_step=2)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, SinusoidTasks(batches_per_epoch=6, val_tasks=0))


def test_checkpoints_within_an_epoch_with_several_updates(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)],
        max_steps=8,
    )
    trainer.fit(
        MetaModule(MLP(1, [4], 1), maml(), updates_per_step=2), SinusoidTasks(batches_per_epoch=20, val_tasks=0)
    )  # a warning would be an error here
    assert {path.name for path in tmp_path.iterdir()} == {"step=4.ckpt", "step=8.ckpt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_divergence": "ignore"}, r"`on_divergence` to be one of \['skip', 'zero', 'raise'\] but got 'ignore'"),
        ({"accumulate_tasks": 0}, "`accumulate_tasks` to be a whole number of at least 1 but got 0"),
    ],
)
def test_rejects_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaModule(MLP(1, [4], 1), maml(), **arguments)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_sharded_parameters_are_refused(strategy: str) -> None:
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

    class Given:
        training = True

    Given.strategy = {"fsdp": FSDPStrategy, "deepspeed": DeepSpeedStrategy}[strategy].__new__(
        {"fsdp": FSDPStrategy, "deepspeed": DeepSpeedStrategy}[strategy]
    )
    module = sinusoid_module()
    module._trainer = Given()
    with pytest.raises(NotImplementedError, match="whole parameters in each process but .*Strategy splits them"):
        module.configure_callbacks()


# Adapted weights in files


def test_adapted_weights_come_back(tmp_path: Path) -> None:
    network, tasks = make_problem("norm_mlp", "mse", dtype=torch.float32)
    algorithm = anil(0.1, 3)
    adapted = adapt(network, algorithm, tasks.support_inputs, tasks.support_targets, loss="mse")
    path = tmp_path / "adapted.safetensors"
    save_adapted(adapted, path)
    raw = load_file(path)
    assert set(raw) >= {"adapted/3.weight", "shared/0.weight", "shared/1.running_mean", "support_losses"}
    other = make_problem("norm_mlp", "mse", dtype=torch.float32)[0]
    with torch.no_grad():
        other[0].weight.add_(1)
    before = copy.deepcopy(other)
    again = load_adapted(path, other, algorithm, loss="mse")
    assert torch.equal(again.predict(tasks.query_inputs), adapted.predict(tasks.query_inputs))
    assert torch.equal(again.support_losses, adapted.support_losses)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
    for first, second in zip(again.network(1).parameters(), adapted.network(1).parameters(), strict=True):
        assert torch.equal(first, second)


def test_tied_weights_come_back(tmp_path: Path) -> None:
    network, tasks = make_problem("tied", "mse")
    adapted = adapt(network, maml(0.1, 2), tasks.support_inputs, tasks.support_targets, loss="mse")
    save_adapted(adapted, tmp_path / "tied.safetensors")
    again = load_adapted(tmp_path / "tied.safetensors", network, maml(0.1, 2), loss="mse")
    assert torch.equal(again.predict(tasks.query_inputs), adapted.predict(tasks.query_inputs))


def test_files_that_are_no_adapted_weights(tmp_path: Path) -> None:
    network, tasks = make_problem("mlp", "mse")
    adapted = adapt(network, maml(0.1, 2), tasks.support_inputs, tasks.support_targets, loss="mse")
    path = tmp_path / "adapted.safetensors"
    save_adapted(adapted, path)
    with pytest.raises(ValueError, match=r"adapted.safetensors has .* of shape .* in the place of"):
        load_adapted(path, make_problem("mlp", "mse", out=4)[0], maml(0.1, 2), loss="mse")
    whole = path.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"adapted.safetensors is damaged or none"):
            load_adapted(path, network, maml(0.1, 2), loss="mse")
    path.write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    with pytest.raises(ValueError, match=r"adapted.safetensors is damaged or none"):
        load_adapted(path, network, maml(0.1, 2), loss="mse")
    assert not (tmp_path / "pwned").exists()
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"save_adapted wrote but .* is another one, with \['x'\]"):
        load_adapted(path, network, maml(0.1, 2), loss="mse")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_adapted(tmp_path / "lost", network, maml(0.1, 2), loss="mse")


# Determinism


@pytest.mark.parametrize(
    "engine",
    [
        "eager",
        "batched",
        "fused",
        Fused(compile=True),
        Batched(chunk_size=2),
        Batched(checkpoint="step"),
        pytest.param(Batched(compile=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_same_seed_same_bits(engine: Any) -> None:
    def trained() -> list[torch.Tensor]:
        torch.manual_seed(3)
        module = MetaModule(MLP(1, [8, 8], 1), maml(0.01, 3), engine=engine)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_steps=10,
        )
        trainer.fit(module, SinusoidTasks(tasks_per_batch=5, val_tasks=0))
        assert all(math.isfinite(parameter.sum().item()) for parameter in module.parameters())
        return [parameter.detach() for parameter in module.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(trained(), trained(), strict=True))
