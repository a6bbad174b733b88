"""Reptile, iMAML, CAVIA and MAML++ in the page against the library's presets: meta-gradients, updates, inner steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_maml as lm
from lightning_maml.networks import Context
from test_numerics import BEGIN, drawn, off

CONTEXTS, HIDDEN = 5, 40
PRESETS = {
    "reptile": lambda rate, steps: lm.reptile(rate, steps, "sgd"),
    "imaml": lambda rate, steps: lm.imaml(rate, steps, proximal=1.0, cg_steps=5),
    "cavia": lm.cavia,
    "maml_pp": lambda rate, steps: lm.maml_pp(rate, steps, multi_step_updates=500),
}
# inner rates at which no task of these diverges
RATES = {"reptile": 0.02, "imaml": 0.005, "cavia": 0.2, "maml_pp": 0.01}


def flattened(name: str, of: dict[str, list[float]], steps: int) -> Tensor:
    """What the page holds by name, as the library orders it: the network's parameters, then the rates."""
    values = {key: torch.tensor(value, dtype=torch.float64) for key, value in of.items()}
    if name == "cavia":
        theta, first = values["theta"], values["theta"][:HIDDEN, None]
        weight = torch.cat([first, values["contextWeights"].reshape(HIDDEN, CONTEXTS)], 1)
        return torch.cat([torch.zeros(CONTEXTS), weight.flatten(), theta[HIDDEN:]])
    if name == "maml_pp":
        return torch.cat([values["theta"], values["rates"].reshape(steps, -1).T.flatten()])
    return values["theta"]


def begun(page: Any, name: str, seed: int, steps: int) -> lm.MetaModule:
    """A learner in the page, and the library's from the same weights, in double precision: the page's is single."""
    page.evaluate(BEGIN, [name, seed, RATES[name], steps, 0.002])
    layers = lm.MLP(1 + CONTEXTS * (name == "cavia"), [HIDDEN, HIDDEN], 1)
    network = nn.Sequential(Context(CONTEXTS), layers) if name == "cavia" else layers
    module = lm.MetaModule(network.double(), PRESETS[name](RATES[name], steps), loss="mse")
    weights = page.evaluate(
        "() => Object.fromEntries(Object.entries(learner.weights).map(([k, v]) => [k, Array.from(v)]))"
    )
    torch.nn.utils.vector_to_parameters(flattened(name, weights, steps), parameters(module))
    return module


def parameters(module: lm.MetaModule) -> list[nn.Parameter]:
    rates = [] if module.rates is None else module.rates.parameters()
    return [*module.network.parameters(), *rates]


def backward(module: lm.MetaModule, tasks: lm.TaskBatch, update: int) -> Tensor:
    """Leaves the library's meta-gradient at a meta-update where an optimizer looks; the mean loss after all steps."""
    for parameter in parameters(module):
        parameter.grad = None
    output = lm.meta_loss(module.network, module.algorithm.at(update), tasks.each(Tensor.double), loss="mse")
    output.surrogate.backward()
    for parameter in parameters(module):
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return output.task_losses.mean()


@pytest.mark.parametrize("count, shots, queries, steps", [(25, 10, 10, 2), (1, 1, 1, 3), (7, 5, 3, 5)])
@pytest.mark.filterwarnings("ignore:The conjugate gradients")  # early in training some tasks meet negative curvature
@pytest.mark.parametrize("name", PRESETS)
def test_a_meta_gradient_is_the_librarys(
    page: Any, name: str, count: int, shots: int, queries: int, steps: int
) -> None:
    steps = 16 if name == "imaml" else steps  # its meta-gradient is of the inner optimum
    module = begun(page, name, 3, steps)
    tasks = drawn(page, 2, count, shots, queries)
    loss, found = page.evaluate(
        """() => {
          const {loss, of} = learner.gradient(tasks);
          return [loss, Object.fromEntries(Object.entries(of).map(([k, v]) => [k, Array.from(v)]))];
        }"""
    )
    assert off(loss, backward(module, tasks, 0)) < 1e-5
    reference = torch.cat([parameter.grad.flatten() for parameter in parameters(module)])
    assert off(flattened(name, found, steps), reference) < 1e-5


@pytest.mark.filterwarnings("ignore:The conjugate gradients")  # early in training some tasks meet negative curvature
@pytest.mark.parametrize("name", PRESETS)
def test_ten_updates_are_the_librarys_and_so_are_ten_inner_steps(page: Any, name: str) -> None:
    steps = 16 if name == "imaml" else 3
    module = begun(page, name, 0, steps)
    optimizer = torch.optim.Adam(parameters(module), lr=0.002)
    for update in range(10):
        tasks = drawn(page, update, 25, 10, 10)
        page.evaluate("() => { learner.update(tasks); }")
        if name == "reptile":  # which learns from all rows
            rows = [torch.cat(pair, 1) for pair in zip(tasks.sets[0], tasks.sets[1], strict=True)]
            tasks = lm.TaskBatch(*rows, *tasks.sets[1])
        backward(module, tasks, update)
        optimizer.step()
    weights = page.evaluate(
        "() => Object.fromEntries(Object.entries(learner.weights).map(([k, v]) => [k, Array.from(v)]))"
    )
    reference = torch.nn.utils.parameters_to_vector(parameters(module)).detach()
    assert off(flattened(name, weights, steps), reference) < 1e-4

    tasks = drawn(page, 99, 9, 5, 20).each(Tensor.double)
    curve = page.evaluate("() => learner.curve(tasks, 10)")
    expected = lm.evaluate(module.network, module.algorithm, tasks, loss="mse", steps=10).query_losses.mean(0)
    assert off(curve, expected) < 1e-4
