"""The rates of steps to come: those that a scheduler then gives, and nothing changed by asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from lightning_maml.training.coming_rates import SCHEDULERS, coming_rates

MADE: dict[type, Callable[[Any], Any]] = {
    lr_scheduler.ChainedScheduler: lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, 1, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    lr_scheduler.ConstantLR: lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    lr_scheduler.CosineAnnealingLR: lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    lr_scheduler.CosineAnnealingWarmRestarts: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    lr_scheduler.ExponentialLR: lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    lr_scheduler.LambdaLR: lambda o: lr_scheduler.LambdaLR(o, [lambda n: 1 / (n + 1), lambda n: 0.9**n]),
    lr_scheduler.LinearLR: lambda o: lr_scheduler.LinearLR(o, 0.1, 1, 7),
    lr_scheduler.MultiStepLR: lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 9], 0.5),
    lr_scheduler.MultiplicativeLR: lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.95),
    lr_scheduler.PolynomialLR: lambda o: lr_scheduler.PolynomialLR(o, 9),
    lr_scheduler.SequentialLR: lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1, 4), lr_scheduler.CosineAnnealingLR(o, 9)], [4]
    ),
    lr_scheduler.StepLR: lambda o: lr_scheduler.StepLR(o, 3, 0.5),
}


def made(kind: type) -> tuple[torch.optim.Optimizer, Any]:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": parameters[:1], "lr": 0.3}, {"params": parameters[1:], "lr": 0.7}])
    optimizer.step()
    return optimizer, MADE[kind](optimizer)


@pytest.mark.parametrize("kind", sorted(SCHEDULERS, key=lambda kind: kind.__name__))
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # once, before an optimizer's first step
def test_rates_to_come_are_those_that_come(kind: type) -> None:
    (optimizer, scheduler), (asked, of_asked) = made(kind), made(kind)
    for _ in range(6):
        found = coming_rates(asked, of_asked, 5)
        expected = []
        for _ in range(5):
            expected.append([group["lr"] for group in optimizer.param_groups])
            for each in (optimizer, scheduler, asked, of_asked):
                each.step()
        assert found == expected
        assert [group["lr"] for group in asked.param_groups] == [group["lr"] for group in optimizer.param_groups]
        assert of_asked.get_last_lr() == scheduler.get_last_lr()


def test_others_are_not_asked() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    once = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)  # which changes betas, too
    assert coming_rates(optimizer, once, 3) is None
    several = lr_scheduler.SequentialLR(optimizer, [lr_scheduler.LinearLR(optimizer), once], [4])
    assert coming_rates(optimizer, several, 3) is None
    assert coming_rates(optimizer, None, 3) == [[optimizer.param_groups[0]["lr"]]] * 3
