"""ZeroOrder: a meta-gradient of losses alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_maml import SGD, Adam, Algorithm, Batched, Fused, ZeroOrder, maml, meta_loss
from problems import make_problem, meta_gradient, reference, relative_error

LR, STEPS = 0.1, 3


def directions(network: torch.nn.Module, rule: ZeroOrder) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed((rule.seed << 32) + rule.update)
    shapes = [parameter.shape for parameter in network.parameters()]
    return [[torch.randn(shape, generator=generator).double() for shape in shapes] for _ in range(rule.directions)]


@pytest.mark.parametrize(
    "engine", ["eager", "batched", Batched(chunk_size=2), Batched(checkpoint="step"), Fused("sgd_update")], ids=repr
)
def test_it_is_the_gradients_part_along_each_direction(engine: Any) -> None:
    network, tasks = make_problem("mlp", "mse")
    rule = ZeroOrder(5, sigma=1e-5, seed=3, update=11)
    exact = reference(network, tasks, "mse", LR, STEPS)
    expected = [torch.zeros_like(value) for value in exact]
    for z in directions(network, rule):
        slope = sum((a * b).sum() for a, b in zip(z, exact, strict=True))
        expected = [total + slope * part / rule.directions for total, part in zip(expected, z, strict=True)]
    output = meta_loss(network, Algorithm(SGD(LR, STEPS), rule), tasks, loss="mse", engine=engine)
    assert relative_error(meta_gradient(network, output), expected) < 1e-7
    same = meta_loss(network, maml(LR, STEPS), tasks, loss="mse", engine="eager")
    for name in ("loss", "task_losses", "support_losses", "predictions"):
        torch.testing.assert_close(getattr(output, name), getattr(same, name), rtol=1e-12, atol=1e-12)


def test_a_wide_pair_of_directions_is_a_difference_of_losses() -> None:
    network, tasks = make_problem("mlp", "mse")
    rule = ZeroOrder(1, sigma=0.5)
    (z,) = directions(network, rule)
    values = []
    for sign in (1, -1):
        moved, _ = make_problem("mlp", "mse")
        with torch.no_grad():
            for parameter, part in zip(moved.parameters(), z, strict=True):
                parameter += sign * 0.5 * part
        values.append(meta_loss(moved, Algorithm(Adam(LR, STEPS), rule), tasks, loss="mse", engine="eager").loss)
    expected = [(values[0] - values[1]) * part for part in z]
    output = meta_loss(network, Algorithm(Adam(LR, STEPS), rule), tasks, loss="mse", engine="batched")
    assert relative_error(meta_gradient(network, output), expected) < 1e-10


def test_each_update_has_directions_of_its_own() -> None:
    algorithm = Algorithm(SGD(LR, STEPS), ZeroOrder(2))
    network, tasks = make_problem("mlp", "mse")
    first, second = (
        meta_gradient(network, meta_loss(network, algorithm.at(update), tasks, loss="mse")) for update in (0, 1)
    )
    assert relative_error(first, second) > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroOrder(0), "Expected `directions` to be a whole number of at least 1 but got 0."),
        (lambda: ZeroOrder(sigma=0.0), "Expected `sigma` to be positive and finite but got 0.0."),
        (lambda: ZeroOrder(seed=-1), "Expected `seed` to be a whole number from 0 to 4294967295 but got -1."),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
