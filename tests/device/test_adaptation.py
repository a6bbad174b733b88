"""meta_loss, adapt, evaluate and what adapt gives, on the stand-in device: the CPU's numbers, and who waited for it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_choice import Item, tasks_of
from torch import Tensor, nn

import lightning_maml
from lightning_maml import (
    Algorithm,
    Batched,
    MetaOutput,
    TaskBatch,
    adapt,
    evaluate,
    fomaml,
    load_adapted,
    maml,
    meta_loss,
    save_adapted,
)
from lightning_maml.training.meta_update import meta_update
from problems import make_problem
from same import assert_same
from standin import DEVICE, host_copies
from test_family import PRESETS, small

ENGINES = {
    "eager": "eager",
    "batched": "batched",
    "chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
    "chunks and checkpoint": Batched(chunk_size=2, checkpoint="step"),
}
LOOPS = {
    "momentum": lightning_maml.SGD(0.1, 2, momentum=0.9),
    "clip and decay": lightning_maml.SGD(0.1, 2, max_norm=0.5, weight_decay=0.1),
    "mini-batches": lightning_maml.SGD(0.1, 3, batch_size=2),
    "proximal, with a tolerance": lightning_maml.SGD(0.1, 3, proximal=0.5, tolerance=1e-3),
    "adam": lightning_maml.Adam(0.1, 2),
    "sign": lightning_maml.SGD(0.1, 2, transformations=(lightning_maml.Sign(),)),
    "sharpness": lightning_maml.SGD(0.1, 2, transformations=(lightning_maml.SharpnessAware(),)),
    "nine steps": lightning_maml.SGD(0.01, 9),  # of which checkpoint="step" keeps every third
}


def problem(name: str, loss: str, device: torch.device, **sizes: int) -> tuple[nn.Module, TaskBatch]:
    network, tasks = make_problem(name, loss, **sizes)
    return network.to(device), tasks.to(device)


def learned(algorithm: Algorithm, network: nn.Module, device: torch.device) -> tuple[Algorithm, list[Tensor]]:
    """The algorithm with its learned rates, and these."""
    rates = algorithm.initial_rates(network)
    if rates is None:
        return algorithm, []
    return algorithm.with_rates(rates.to(device)), [*rates.parameters()]


def gradients_of(name: str, loss: Any, algorithm: Algorithm, engine: Any, device: torch.device) -> list[Any]:
    """What a meta-gradient consists of, by ``surrogate.backward()``."""
    kind = loss if isinstance(loss, str) else "mse"
    network, tasks = problem(name, kind, device)
    algorithm, rates = learned(algorithm, network, device)
    output = meta_loss(network, algorithm, tasks, loss=loss, engine=engine)
    return results(output, [*network.parameters(), *rates])


def results(output: MetaOutput, trained: list[Tensor]) -> list[Any]:
    """Losses, predictions, and the meta-gradient by ``surrogate.backward()``."""
    output.surrogate.backward()
    gradients = [value.grad for value in trained if value.requires_grad]
    return [output.loss, output.task_losses, output.predictions, output.support_losses, *gradients]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name, loss", [("mlp", "mse"), ("conv4", "cross_entropy"), ("conv_module", "mse"), ("attention", "mse")]
)
def test_meta_gradients_by_engine(name: str, loss: str, engine: str) -> None:
    assert_same(lambda device: gradients_of(name, loss, maml(0.1, 2), ENGINES[engine], device), host=0)


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("network", ["mlp", "conv4"])
def test_meta_gradients_by_preset(network: str, preset: str, engine: str) -> None:
    def run(device: torch.device) -> list[Any]:
        module, tasks = small(network, preset)
        module, tasks = module.double().to(device), tasks.to(device, torch.float64)
        algorithm, rates = learned(PRESETS[preset](network), module, device)
        output = meta_loss(module, algorithm.at(3), tasks, loss="cross_entropy", engine=ENGINES[engine])
        return results(output, [*module.parameters(), *rates])

    # imaml looks whether its conjugate gradients have converged, or it could not say that they have not
    assert_same(run, host=int(preset == "imaml"))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
def test_meta_gradients_by_inner_loop(loop: str, engine: str) -> None:
    algorithm = replace((fomaml if loop == "adam" else maml)(), inner=LOOPS[loop])
    assert_same(lambda device: gradients_of("mlp", "mse", algorithm, ENGINES[engine], device), host=0)


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
@pytest.mark.parametrize("batch_norm", ["batch", "running", "support"])
def test_meta_gradients_by_batch_norm(batch_norm: Any, engine: str) -> None:
    algorithm = maml(0.1, 2, batch_norm=batch_norm)
    assert_same(lambda device: gradients_of("conv4", "cross_entropy", algorithm, ENGINES[engine], device), host=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_draws_the_same_masks_on_the_way_back(engine: str) -> None:
    """checkpoint="step" runs steps again: with the device's generator where it was, which is not the CPU's."""
    algorithm = replace(maml(), inner=LOOPS["nine steps"])

    def run(device: torch.device) -> list[Any]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 20), nn.Dropout(), nn.Tanh(), nn.Linear(20, 5)).to(device)
        tasks = problem("mlp", "mse", device)[1]
        torch.manual_seed(2)
        output = meta_loss(network, algorithm, tasks, loss="mse", engine=ENGINES[engine])
        return [*results(output, [*network.parameters()]), torch.rand(2, device=device)]

    assert_same(run, host=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_norm", ["batch", "running", "support"])
@pytest.mark.parametrize("safeguard", [False, True])
def test_adapt_evaluate_and_serve(batch_norm: Any, engine: str, safeguard: bool) -> None:
    algorithm = maml(3.0, 2, batch_norm=batch_norm)  # a rate that some tasks have to be guarded from

    def run(device: torch.device) -> list[Any]:
        network, tasks = problem("conv4", "cross_entropy", device)
        chosen: dict[str, Any] = {"loss": "cross_entropy", "engine": ENGINES[engine], "safeguard": safeguard}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d of 3 tasks diverged")
            adapted = adapt(network, algorithm, *tasks.sets[0], **chosen)
        with torch.inference_mode():
            evaluation = evaluate(network, algorithm, tasks, **chosen)
        served = adapted.network(1)
        inputs = tasks.query_inputs
        return [
            *adapted.parameters.values(), adapted.support_losses, adapted.diverged, adapted.predict(inputs),
            served.train()(inputs[1]), served.eval()(inputs[1]), *vars(evaluation).values(),
        ]  # fmt: skip

    copies = assert_same(run)
    where = {each.split()[-1] for each in copies.in_library()}
    # whether the halving of steps goes on, and which tasks to warn of
    assert where == ({"shortened"} if safeguard else {"warning_of_divergence"})
    assert copies.in_library() == copies.of


def test_what_adapt_waits_for() -> None:
    """Once: which tasks to warn of."""
    network, tasks = problem("mlp", "mse", DEVICE)
    with host_copies() as copies:
        adapted = adapt(network, maml(0.1, 2), *tasks.sets[0], loss="mse")
        adapted.predict(tasks.query_inputs)
        adapted.network(0)
    assert len(copies) == 1, copies.of
    with host_copies() as copies:
        evaluate(network, maml(0.1, 2), tasks, loss="mse")
    assert not copies.of


# A meta-update: one look, at whether it is finite


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("preset", ["maml", "fomaml", "reptile", "meta_sgd", "maml_pp", "anil"])
def test_a_meta_update_waits_once(preset: str, engine: str) -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem("mlp", "mse", device)
        algorithm = learned(PRESETS[preset]("mlp"), network, device)[0].at(3)
        update = meta_update(network, algorithm, tasks, loss="mse", engine=ENGINES.get(engine, engine))
        return [update.surrogate.detach(), update.task_losses, *update.gradients]

    # "auto" takes compiled operators on the CPU
    copies = assert_same(run, off=1e-12 if engine == "auto" else 0.0, host=1)
    assert "_is_finite" in copies.of[0]


@pytest.mark.parametrize("accumulate, parts", [(1, 3), (2, 2), (3, 1)])
def test_a_meta_update_in_parts_waits_once_for_each(accumulate: int, parts: int) -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem("mlp", "mse", device)
        update = meta_update(network, maml(0.1, 2), tasks, loss="mse", accumulate_tasks=accumulate)
        return [update.surrogate.detach(), update.task_losses, *update.gradients]

    assert_same(run, off=1e-12, host=parts)


def test_a_task_that_diverges_is_left_out() -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem("mlp", "mse", device)
        tasks.support_targets[1] = 1e200
        update = meta_update(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
        return [update.finite, update.explanation, update.surrogate.detach(), *update.gradients]

    assert_same(run)


def test_data_that_is_not_finite_raises_once_a_loss_is_not() -> None:
    network, tasks = problem("mlp", "mse", DEVICE)
    tasks.query_targets[1, 2] = torch.nan
    with pytest.raises(ValueError, match="`query_targets` holds NaN or infinite values in task 1 of 3"):
        meta_update(network, maml(0.1, 2), tasks, loss="mse")


def test_auto_goes_on_to_eager_with_the_devices_random_numbers_where_they_were() -> None:
    """What a network has drawn before torch refused it all tasks at once must not count."""

    def run(device: torch.device) -> list[Any]:
        torch.manual_seed(0)
        network, tasks = Item(drops=0.5).double().to(device), tasks_of().to(device)
        torch.manual_seed(2)
        with pytest.warns(UserWarning, match="'auto' goes on with 'eager'"):
            output = meta_loss(network, maml(0.1, 2), tasks, loss="mse")
        return results(output, [*network.parameters()])

    copies = assert_same(run)
    assert len(copies) == 4 * 3, copies.of  # the network's own, in four forwards of three tasks


# What stopped every call on a GPU


class _Embedded(nn.Module):
    """Rows of whole numbers: there is nothing among the inputs to take a norm of."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 5)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.table(rows).mean(1))


def test_tasks_of_whole_numbers_alone() -> None:
    """``torch._foreach_norm([])`` raises, and on a device no tensor is looked at: this was the first line to fail."""

    def run(device: torch.device) -> list[Any]:
        torch.manual_seed(0)
        network, rows, labels = _Embedded().to(device), torch.randint(7, (3, 4, 6)), torch.randint(5, (3, 4))
        tasks = TaskBatch(rows, labels, rows.flip(1), labels.flip(1)).to(device)
        update = meta_update(network, maml(0.1, 2), tasks, loss="cross_entropy", engine="batched")
        adapted = adapt(network, maml(0.1, 2), *tasks.sets[0], loss="cross_entropy")
        return [update.surrogate.detach(), *update.gradients, adapted.predict(tasks.query_inputs)]

    assert_same(run)


def test_a_network_elsewhere_is_refused_by_name() -> None:
    network, tasks = make_problem("mlp", "mse")
    with pytest.raises(ValueError, match="network and tasks on one device but got standin:0 and, of `support_inputs`"):
        meta_loss(network.to(DEVICE), maml(), tasks, loss="mse")
    with pytest.raises(RuntimeError, match="at least two devices"):
        adapt(network, maml(), *tasks.to(DEVICE).sets[0], loss="mse").predict(tasks.query_inputs)


# Files


@pytest.mark.parametrize("batch_norm", ["batch", "support"])
def test_adapted_networks_go_to_a_file_and_come_back(tmp_path: Path, batch_norm: Any) -> None:
    algorithm = maml(0.1, 2, batch_norm=batch_norm)

    def run(device: torch.device) -> list[Any]:
        network, tasks = problem("conv4", "cross_entropy", device)
        adapted = adapt(network, algorithm, *tasks.sets[0], loss="cross_entropy", engine="batched")
        file = tmp_path / f"{device.type}.safetensors"
        save_adapted(adapted, file)
        loaded = load_adapted(file, network, algorithm, loss="cross_entropy")
        return [loaded.predict(tasks.query_inputs), loaded.support_losses]

    assert_same(run)
    here, there = (load_file(tmp_path / f"{device}.safetensors") for device in ("cpu", "standin"))
    assert here.keys() == there.keys()
    assert all(torch.equal(value, there[name]) for name, value in here.items())
