"""DDP: n processes with a share of the tasks each give the numbers of one process with all of them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import processes
from lightning_maml import (
    Algorithm,
    Batched,
    Eager,
    Fused,
    MetaModule,
    TaskBatch,
    anil,
    boil,
    evaluate,
    fomaml,
    imaml,
    maml,
    maml_pp,
    meta_curvature,
    meta_loss,
    meta_sgd,
    pretrained,
    proto_maml,
    reptile,
    unicorn_maml,
)
from lightning_maml.data import TaskStream
from lightning_maml.metrics import accuracy

WAYS = 3


class Blobs(TaskStream):
    """Classes around random centres: inputs ``[T, 6, 3]``; a task whose first centre is in ``bad`` overflows."""

    bad = False

    def draw(self, stage: str, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        centres = torch.randn(tasks, WAYS, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(tasks, 12, 3, generator=generator, dtype=torch.float64)
        return centres, noise

    def build(self, stage: str, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        centres, noise = drawn
        labels = torch.arange(12).expand(len(centres), 12) % WAYS
        inputs = centres.gather(1, labels.unsqueeze(-1).expand(-1, -1, 3)) + 0.3 * noise
        if self.bad and stage == "train":
            inputs[centres[:, 0, 0] > 0.8] *= 1e200  # finite, but not what comes of it
        return TaskBatch(inputs[:, :6], labels[:, :6], inputs[:, 6:], labels[:, 6:])


class Overflowing(Blobs):
    bad = True


class Weighted(Overflowing):
    """Tasks that count by their first number; some nothing at all."""

    def build(self, stage: str, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        tasks = super().build(stage, drawn, device)
        tasks.task_weights = (drawn[0][:, 1, 0] + 1.0).clamp(min=0.0)
        return tasks


class Net(nn.Module):
    """Two layers and batch-norm, whose buffers DDP sends around, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.unused = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(2, 2)
        self.head = nn.Linear(5, WAYS)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.body(inputs))))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, WAYS))


def rectified() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, WAYS))


def column() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, WAYS))


# name: algorithm, and what else is particular
CASES: dict[str, dict[str, Any]] = {
    "maml": {"algorithm": maml(0.1, 2)},
    "unused parameters": {"algorithm": maml(0.1, 2), "network": Net},
    "unused parameters, looked for": {
        "algorithm": maml(0.1, 2),
        "network": Net,
        "strategy": "ddp_find_unused_parameters_true",
    },
    "uneven shares": {"algorithm": maml(0.1, 2), "tasks": 7},
    "fomaml": {"algorithm": fomaml(0.1, 2)},
    "pretrained": {"algorithm": pretrained(0.1, 2)},
    "anil": {"algorithm": anil(0.1, 2)},
    "boil": {"algorithm": boil(0.1, 2)},
    "reptile": {"algorithm": reptile(0.01, 3, batch_size=4)},
    "reptile, uneven": {"algorithm": reptile(0.1, 3, "sgd"), "tasks": 5},
    "imaml, uneven": {"algorithm": imaml(0.1, 4), "tasks": 5},
    "maml_pp": {"algorithm": maml_pp(0.1, 2, multi_step_updates=10, first_order_updates=1)},
    "meta_sgd": {"algorithm": meta_sgd(0.1, 2)},
    "meta_curvature": {"algorithm": meta_curvature(0.1, 2)},
    "proto_maml": {"algorithm": proto_maml(0.1, 2)},
    "unicorn_maml": {"algorithm": unicorn_maml(0.1, 2)},
    "learned rates": {"algorithm": maml(0.1, 2, learn_lr="per_parameter_and_step")},
    "engine eager": {"algorithm": maml(0.1, 2), "engine": Eager()},
    "engine fused": {"algorithm": maml(0.1, 2), "engine": Fused(kernel="mlp_adapt"), "network": column},
    "engine batched": {"algorithm": maml(0.1, 2), "engine": Batched(chunk_size=2, checkpoint="step"), "tasks": 6},
    "accumulated tasks": {"algorithm": maml(0.1, 2), "tasks": 7, "accumulate_tasks": 1},
    "accumulated batches": {"algorithm": maml(0.1, 2), "batches": 2},
    "several updates": {"algorithm": maml(0.1, 2), "updates": 3, "tasks": 6},
    "several updates, uneven": {"algorithm": meta_sgd(0.1, 2), "updates": 2, "tasks": 7, "network": Net},
    "diverging tasks": {"algorithm": maml(0.1, 2), "data": Overflowing, "network": rectified, "tasks": 9},
    "diverging tasks, as zero": {
        "algorithm": maml(0.1, 2),
        "data": Overflowing,
        "network": rectified,
        "tasks": 9,
        "on_divergence": "zero",
        "updates": 2,
    },
    "weights": {"algorithm": maml(0.1, 2), "data": Weighted, "network": rectified, "tasks": 9},
    "weights in parts, as zero": {
        "algorithm": reptile(0.1, 3, "sgd"),
        "data": Weighted,
        "network": rectified,
        "tasks": 9,
        "on_divergence": "zero",
        "accumulate_tasks": 2,
    },
}
QUICK = 0.1  # the outer rate


class Recording(MetaModule):
    """Keeps each meta-gradient that reaches the optimiser."""

    seen: list[list[Tensor]]
    all_reduces = 0

    def on_train_start(self) -> None:
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.register_comm_hook(None, self.count)

    def count(self, state, bucket):  # torch reads annotations, as objects
        self.all_reduces += 1
        return allreduce_hook(state, bucket)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        gradients = [parameter.grad for parameter in self.parameters() if parameter.requires_grad]
        self.seen.append([torch.empty(0) if g is None else g.clone() for g in gradients])


def quiet() -> None:
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("error", message="Grad strides do not match")  # of a layout that DDP would have to copy
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def made(case: dict[str, Any]) -> tuple[Recording, TaskStream]:
    torch.manual_seed(0)
    network = case.get("network", plain)()
    module = Recording(
        network,
        case["algorithm"],
        loss="cross_entropy",
        optimizer=sgd,
        engine=case.get("engine", "auto"),
        updates_per_step=case.get("updates", 1),
        accumulate_tasks=case.get("accumulate_tasks"),
        on_divergence=case.get("on_divergence", "skip"),
    )
    module.seen = []
    data = case.get("data", Blobs)(case.get("tasks", 4), batches_per_epoch=6, val_tasks=9, test_tasks=11)
    return module, data


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=QUICK)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, precision="64-true", **(defaults | options)
    )


def train_and_test(folder: Path, world_size: int, names: list[str]) -> dict[str, Any]:
    """In each process: every case's meta-gradients, how often they were reduced, and what validation and test say."""
    quiet()
    results: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        module, data = made(case)
        run = trainer(
            folder,
            devices=world_size,
            strategy=case.get("strategy", "ddp") if world_size > 1 else "auto",
            max_steps=3,
            limit_val_batches=0,
            accumulate_grad_batches=case.get("batches", 1),
            use_distributed_sampler=False,
        )
        run.fit(module, data)
        results[name] = {"gradients": module.seen, "all_reduces": module.all_reduces}
    module, data = made(CASES["unused parameters"])
    run = trainer(folder, devices=world_size, strategy="ddp" if world_size > 1 else "auto")
    results["val"] = run.validate(module, data, verbose=False)[0]
    results["test"] = run.test(module, data, verbose=False)[0]
    results["tasks"] = int(module._intervals()["loss"].tasks)
    return results


def expected_gradients(case: dict[str, Any]) -> list[list[Tensor]]:
    """The meta-gradients of one process with all tasks: a plain loop over the eager engine in float64."""
    module, data = made(case)
    module.double()
    network, batches = module.network, case.get("batches", 1)
    algorithm: Algorithm = module.algorithm
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer, gradients, position = sgd(parameters), [], 0
    for update in range(3):
        optimizer.zero_grad()
        for _ in range(batches):
            tasks = data.sample("train", position).to(torch.float64)
            good = [t for t in range(len(tasks)) if tasks.support_inputs[t].abs().max() < 1e6]
            weights = torch.ones(len(tasks)) if tasks.task_weights is None else tasks.task_weights
            whole = weights.sum() if case.get("on_divergence") == "zero" else weights[good].sum()
            for t in good:
                one = TaskBatch(*(value[t : t + 1] for value in (*tasks.sets[0], *tasks.sets[1])))
                output = meta_loss(network, algorithm.at(update), one, loss="cross_entropy", engine="eager")
                (output.surrogate * weights[t] / (whole * batches)).backward()
            position += 1
        gradients.append([p.grad.clone() for p in parameters])
        optimizer.step()
    return gradients


FEW = [
    "engine fused",
    "uneven shares",
    "several updates, uneven",
    "imaml, uneven",
    "diverging tasks",
    "learned rates",
    "weights",
]


@pytest.mark.parametrize(
    ("world_size", "names"),
    [
        pytest.param(1, FEW, id="1"),
        pytest.param(2, list(CASES), id="2"),
        pytest.param(4, FEW, id="4"),
        pytest.param(1, list(CASES), id="1-all", marks=pytest.mark.slow),
        pytest.param(4, list(CASES), id="4-all", marks=pytest.mark.slow),
    ],
)
def test_processes_give_the_numbers_of_one(tmp_path: Path, world_size: int, names: list[str]) -> None:
    results = processes.run(train_and_test, tmp_path, world_size, tmp_path, world_size, names)
    for name in names:
        expected = expected_gradients(CASES[name])
        assert max(g.abs().max() for g in expected[0]) > 1e-3
        for result in results:
            assert len(result[name]["gradients"]) == 3
            assert result[name]["all_reduces"] == (3 if world_size > 1 else 0)  # one a meta-update
            for update, (gradients, wanted) in enumerate(zip(result[name]["gradients"], expected, strict=True)):
                scale = max(g.abs().max().item() for g in wanted)
                for gradient, g in zip(gradients, wanted, strict=True):
                    assert gradient.dtype == torch.float64
                    worst = (gradient - g).abs().max().item() / scale
                    assert worst < 1e-10, f"{name}, update {update}: {worst}"

    module, data = made(CASES["unused parameters"])
    module.double()
    for stage, count in (("val", 9), ("test", 11)):
        batches = [data.sample(stage, i).to(torch.float64) for i in range((count + 3) // 4)]
        each = [evaluate(module.network, maml(0.1, 2), batch, loss="cross_entropy") for batch in batches]
        losses = torch.cat([part.query_losses for part in each])
        labels = torch.cat([batch.query_targets for batch in batches])
        hits = accuracy(torch.cat([part.predictions[:, 2] for part in each]), labels)
        assert len(losses) == count
        for result in results:
            said = result[stage]
            name = f"{stage}/loss" if stage == "val" else "test/loss_step_2"
            assert said[name] == pytest.approx(losses[:, 2].mean().item(), rel=1e-6)
            name = f"{stage}/accuracy" if stage == "val" else "test/accuracy_step_2"
            assert said[name] == pytest.approx(hits.double().mean().item(), rel=1e-6)
            if stage == "test":
                ci95 = 1.96 * losses[:, 2].std().item() / count**0.5
                assert said["test/loss_step_2_ci95"] == pytest.approx(ci95, rel=1e-6)
                assert said["test/loss_step_2_median"] == pytest.approx(losses[:, 2].median().item(), rel=1e-6)
                diverged = torch.cat([part.diverged for part in each]).sum(0)
                assert [said[f"test/diverged_step_{step}"] for step in range(3)] == diverged.tolist()
                assert result["tasks"] == count
