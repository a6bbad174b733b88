"""Losses in the plane and the algorithms' directions there against the library's, in double precision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_maml as lm

CENTRES = [[-3.0, -1.5], [3.0, -1.0], [0.5, 2.2], [-0.25, -2.5]]
PLACES = [[-3.5, 2.2], [0.3, 0.1], [4.75, -2.5], [-0.25, -2.49]]


class Bowl(nn.Module):
    """The loss of a task as its output, by matrices; the page writes out each element."""

    def __init__(self, theta: list[float], stiffness: float, width: float) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.tensor(theta[:1], dtype=torch.float64))
        self.head = nn.Parameter(torch.tensor(theta[1:], dtype=torch.float64))
        self.stiffness, self.width = stiffness, width

    def forward(self, inputs: Tensor) -> Tensor:
        offset, radians = torch.cat([self.body, self.head]) - inputs[0, :2], inputs[0, 2] * math.pi / 180
        turn = torch.stack([radians.cos(), radians.sin(), -radians.sin(), radians.cos()]).reshape(2, 2)
        stretch = torch.diag(torch.tensor([self.stiffness, 1.0], dtype=torch.float64))
        return (self.width * torch.log1p(offset @ turn.T @ stretch @ turn @ offset / (2 * self.width)))[None]


@pytest.fixture(scope="module")
def page(built: Path, chromium: Any) -> Any:
    tab = chromium.new_page()
    tab.goto((built / "playground.html").as_uri() + "#landscape")
    tab.wait_for_selector("html[data-page]")
    return tab


def constants(page: Any) -> dict[str, Any]:
    return page.evaluate("(({WIDTH, STIFFNESS, ANGLES}) => ({WIDTH, STIFFNESS, ANGLES}))(playground.numerics)")


def batch(page: Any, count: int) -> lm.TaskBatch:
    rows = [[*centre, angle] for centre, angle in zip(CENTRES, constants(page)["ANGLES"], strict=True)][:count]
    inputs = torch.tensor(rows, dtype=torch.float64)[:, None]
    return lm.TaskBatch(inputs, torch.zeros(count, 1), inputs, torch.zeros(count, 1))


def bowl(page: Any, theta: list[float]) -> Bowl:
    known = constants(page)
    return Bowl(theta, known["STIFFNESS"], known["WIDTH"])


def mean(predictions: Tensor, targets: Tensor) -> Tensor:
    return predictions.mean()


def test_gradient_and_hessian_are_autograds(page: Any) -> None:
    network, tasks = bowl(page, [0.0, 0.0]), batch(page, 4)

    def loss(theta: Tensor, task: int) -> Tensor:
        parameters = {"body": theta[:1], "head": theta[1:]}
        return torch.func.functional_call(network, parameters, tasks.support_inputs[task])[0]

    for place in PLACES:
        found = page.evaluate(
            """([centres, at]) => playground.numerics.bowls(centres).map(
              (one) => [one.loss(at), ...one.gradient(at), ...one.hessian(at)]
            )""",
            [CENTRES, place],
        )
        theta = torch.tensor(place, dtype=torch.float64)
        for task, ours in enumerate(found):
            gradient = torch.func.grad(loss)(theta, task)
            hessian = torch.func.jacrev(torch.func.grad(loss))(theta, task)
            expected = torch.cat([loss(theta, task)[None], gradient, hessian.flatten()[[0, 1, 3]]])
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("count, steps, rate, proximal", [(3, 5, 0.2, 2.0), (4, 20, 0.1, 3.5), (2, 1, 0.5, 10.0)])
@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile", "imaml", "anil", "pretrained"])
def test_a_direction_is_the_librarys(
    page: Any, name: str, count: int, steps: int, rate: float, proximal: float
) -> None:
    settings = {"steps": steps, "rate": rate, "proximal": proximal}
    pulled = page.evaluate("(settings) => playground.numerics.proximalInner(settings)", settings)
    algorithm = {
        "maml": lm.maml(rate, steps),
        "fomaml": lm.fomaml(rate, steps),
        "reptile": lm.reptile(rate, steps, optimizer="sgd"),
        "imaml": lm.imaml(pulled["rate"], pulled["steps"], proximal, cg_steps=2, damping=0.0),
        "anil": lm.anil(rate, steps, head="head"),
        "pretrained": lm.pretrained(rate, steps),
    }[name]
    for place in PLACES:
        network = bowl(page, place)
        output = lm.meta_loss(network, algorithm, batch(page, count), loss=mean, engine="batched")
        output.surrogate.backward()
        found = page.evaluate(
            """([name, centres, ...rest]) => {
              const { bowls, direction } = playground.numerics;
              return direction(name, bowls(centres), ...rest);
            }""",
            [name, CENTRES[:count], place, settings],
        )
        ours, expected = torch.tensor(found, dtype=torch.float64), torch.cat([network.body.grad, network.head.grad])
        assert (ours - expected).norm() <= 1e-8 * expected.norm()
        if name == "maml":
            loss = page.evaluate(
                "([centres, ...rest]) => playground.numerics.metaLoss(playground.numerics.bowls(centres), ...rest)",
                [CENTRES[:count], place, settings],
            )
            assert loss == pytest.approx(output.task_losses.mean().item(), rel=1e-10)


def test_descent_ends_where_the_meta_gradient_vanishes(page: Any) -> None:
    script = """([centres, at, inner]) => {
      const { bowls, descend, direction } = playground.numerics, tasks = bowls(centres);
      return Math.hypot(...direction("maml", tasks, descend(tasks, at, inner).at(-1), {...inner, proximal: 0}));
    }"""
    for steps in (0, 1, 5, 10):
        assert page.evaluate(script, [CENTRES[:3], PLACES[0], {"steps": steps, "rate": 0.2}]) <= 1e-6
