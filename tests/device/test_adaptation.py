"""meta_loss, adapt, evaluate and what adapt gives, on the stand-in device: the CPU's numbers, and who waited for it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_maml
from lightning_maml import Algorithm, Batched, Conv4, TaskBatch, adapt, evaluate, load_adapted, maml, meta_loss
from lightning_maml.meta_update import meta_update
from lightning_maml.networks import MLP
from problems import make_problem
from same import assert_same
from standin import DEVICE, host_copies

ENGINES = {
    "eager": "eager",
    "batched": "batched",
    "chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
}
EXACT = ("eager", "batched", "chunks", "checkpoint")
PRESETS = {
    "maml": maml(0.1, 2),
    "nine steps": maml(0.01, 9),  # of which checkpoint="step" keeps every third
    "fomaml": lightning_maml.fomaml(0.1, 2),
    "reptile": lightning_maml.reptile(0.1, 3),
    "imaml": lightning_maml.imaml(0.1, 20, proximal=2.0),
    "pretrained": lightning_maml.pretrained(0.1, 2),
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


def gradients_of(
    name: str, loss: Any, algorithm: Algorithm, engine: Any, device: torch.device, prepare: Any = None
) -> list[Any]:
    """What a meta-gradient consists of, by ``surrogate.backward()``."""
    kind = loss if isinstance(loss, str) else "mse"
    network, tasks = problem(name, kind, device)
    if prepare is not None:
        prepare(network)
    algorithm, rates = learned(algorithm, network, device)
    output = meta_loss(network, algorithm, tasks, loss=loss, engine=engine)
    output.surrogate.backward()
    return [
        output.loss, output.task_losses, output.predictions, output.support_losses,
        *(value.grad for value in (*network.parameters(), *rates) if value.grad is not None),
    ]  # fmt: skip


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize(
    "name, loss", [("mlp", "mse"), ("conv4", "cross_entropy"), ("conv_module", "mse"), ("attention", "mse")]
)
def test_meta_gradients_by_engine(name: str, loss: str, engine: str) -> None:
    assert_same(lambda device: gradients_of(name, loss, maml(0.1, 2), ENGINES[engine], device), host=0)


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
@pytest.mark.parametrize("preset", PRESETS)
def test_meta_gradients_by_algorithm(preset: str, engine: str) -> None:
    # imaml looks whether its conjugate gradients have converged, or it could not say that they have not
    asked = int(preset == "imaml")
    assert_same(lambda device: gradients_of("mlp", "mse", PRESETS[preset], ENGINES[engine], device), host=asked)
