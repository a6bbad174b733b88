"""Tasks with different numbers of rows: losses and meta-gradient are those of one task after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_maml import (
    MLP,
    Batched,
    Conv4,
    Eager,
    Fused,
    MetaModule,
    TaskBatch,
    UnequalTasks,
    evaluate,
    imaml,
    maml,
    meta_loss,
    meta_sgd,
    reptile,
)
from lightning_maml.training.meta_update import meta_update
from problems import meta_gradient, relative_error

SIZES = [(3, 5, 7), (1, 2, 1), (2, 5, 3)]
"""Of each group: tasks, support rows, query rows."""
ENGINES = [Eager(), Batched(), Batched(chunk_size=2), Batched(checkpoint="step"), Fused(), Fused(compile=True), "auto"]


def groups(*shape: int, labels: int = 0, least: int = 1) -> list[TaskBatch]:
    made = []
    for tasks, support, query in SIZES:
        query = max(query, least)
        x, xq = torch.randn(tasks, support, *shape).double(), torch.randn(tasks, query, *shape).double()
        if labels:
            y, yq = torch.randint(labels, (tasks, support)), torch.randint(labels, (tasks, query))
        else:
            y, yq = x.flatten(2).sum(2, keepdim=True).sin(), xq.flatten(2).sum(2, keepdim=True).sin()
        made.append(TaskBatch(x, y, xq, yq))
    return made


def one_by_one(network: nn.Module, algorithm: Any, tasks: UnequalTasks, loss: str) -> tuple[Tensor, list[Tensor]]:
    outputs = [meta_loss(network, algorithm, task, loss=loss, engine="eager") for task in tasks.parts(1)]
    gradients = [meta_gradient(network, output) for output in outputs]
    mean = [torch.stack(each).mean(0) for each in zip(*gradients, strict=True)]
    return torch.cat([output.task_losses for output in outputs]), mean


ALGORITHMS = [maml(0.1, 2), meta_sgd(0.1, 2), reptile(0.1, 2, "sgd"), imaml(0.1, 2)]
# the fused engine runs no iMAML, and compiles no Reptile
RUNS = [(a, e) for a in ALGORITHMS for e in ENGINES if not (isinstance(e, Fused) and a.name in ("imaml", "reptile"))]


@pytest.mark.parametrize("algorithm, engine", RUNS, ids=str)
@pytest.mark.parametrize("accumulate", [None, 2])
def test_a_perceptron(algorithm, engine, accumulate):
    network, tasks = MLP(2, [7, 5], 1).double(), UnequalTasks(groups(2))
    algorithm = algorithm.with_rates(
        rates.double() if (rates := algorithm.initial_rates(network)) is not None else None
    )
    losses, gradients = one_by_one(network, algorithm, tasks, "mse")
    update = meta_update(network, algorithm, tasks, loss="mse", engine=engine, accumulate_tasks=accumulate)
    torch.testing.assert_close(update.task_losses, losses, rtol=1e-10, atol=1e-12)
    assert update.finite == [True] * len(tasks)
    assert relative_error(meta_gradient(network, update), gradients) < 1e-10


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_batch_norm_sees_no_row_that_is_not_there(engine):
    network = Conv4(3, hidden=4, channels=1, image_size=16).double()
    tasks = UnequalTasks(groups(1, 16, 16, labels=3, least=2))
    losses, gradients = one_by_one(network, maml(0.1, 1), tasks, "cross_entropy")
    update = meta_update(network, maml(0.1, 1), tasks, loss="cross_entropy", engine=engine)
    torch.testing.assert_close(update.task_losses, losses, rtol=1e-10, atol=1e-12)
    assert relative_error(meta_gradient(network, update), gradients) < 1e-10


def test_tasks_that_diverge_are_left_out():
    parts = groups(2)
    parts[0].query_targets[1] = 1e200  # whose loss is infinite
    network, tasks = MLP(2, [7], 1).double(), UnequalTasks(parts)
    update = meta_update(network, maml(0.1, 1), tasks, loss="mse")
    assert update.finite == [True, False, True, True, True, True]
    kept = [task for task in tasks.parts(1) if float(task.query_targets.max()) < 1e100]
    each = [meta_gradient(network, meta_loss(network, maml(0.1, 1), task, loss="mse", engine="eager")) for task in kept]
    expected = [torch.stack(gradients).mean(0) for gradients in zip(*each, strict=True)]
    assert relative_error(meta_gradient(network, update), expected) < 1e-10


def test_a_module_trains_validates_and_predicts():
    tasks = [UnequalTasks(groups(2)) for _ in range(2)]
    network = MLP(2, [7], 1).double()
    module = MetaModule(network, maml(0.1, 2), loss="mse", metric="mse")
    trainer = Trainer(max_steps=2, accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False)
    loader: Any = DataLoader(tasks, batch_size=None)  # type: ignore[arg-type]
    evaluated = [evaluate(network, maml(0.1, 2), part, loss="mse") for whole in tasks for part in whole.groups]
    (logged,) = trainer.validate(module, loader, verbose=False)
    wanted = torch.cat([each.query_losses for each in evaluated]).mean(0)
    assert logged["val/loss"] == pytest.approx(float(wanted[-1]), rel=1e-6)
    assert logged["val/mse_step_0"] == pytest.approx(float(wanted[0]), rel=1e-6)
    predicted = trainer.predict(module, loader)
    assert [[tuple(group.shape) for group in batch] for batch in predicted or []] == [
        [(3, 7, 1), (1, 1, 1), (2, 3, 1)]
    ] * 2
    for group, each in zip([group for batch in predicted or [] for group in batch], evaluated, strict=True):
        torch.testing.assert_close(group, each.predictions[:, -1])
    before = [parameter.clone() for parameter in network.parameters()]
    trainer.fit(module, loader)
    assert not torch.equal(before[0], next(network.parameters()))
    assert trainer.global_step == 2


def test_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"^Expected `groups` to hold at least one task batch but got none\.$"):
        UnequalTasks([])
