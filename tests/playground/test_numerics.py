"""The page's meta-gradients and updates against the library's: the same C source, in WebAssembly and on this CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_maml as lm

PRESETS = {"maml": lm.maml, "fomaml": lm.fomaml, "anil": lm.anil, "pretrained": lm.pretrained}
# what the tests call in the page: a learner, and tasks as the page draws them
BEGIN = """async ([name, seed, rate, steps, outerRate]) => {
  const { numerics, module } = playground;
  const kernel = await numerics.Kernel.of(await module);
  globalThis.learner = numerics.ALGORITHMS[name](kernel, {rate, steps, outerRate}, seed);
  globalThis.random = new numerics.Random(seed, numerics.Stream.training);
  return Array.from(learner.theta);
}"""
TASKS = """([batch, count, shots, queries]) => {
  globalThis.tasks = playground.numerics.sample(random, batch, count, shots, queries);
  return ["supportInputs", "supportTargets", "queryInputs", "queryTargets"].map((name) => Array.from(tasks[name]));
}"""


def module_of(theta: list[float]) -> lm.MLP:
    network = lm.MLP(1, [40, 40], 1)
    torch.nn.utils.vector_to_parameters(torch.tensor(theta), network.parameters())
    return network


def drawn(page: Any, batch: int, count: int, shots: int, queries: int) -> lm.TaskBatch:
    return lm.TaskBatch(
        *(torch.tensor(part).reshape(count, -1, 1) for part in page.evaluate(TASKS, [batch, count, shots, queries]))
    )


def flat(network: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def off(ours: Any, reference: Tensor) -> float:
    """The distance relative to the reference's length."""
    return float((torch.as_tensor(ours, dtype=torch.float64) - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("count, shots, queries, steps", [(25, 10, 10, 1), (1, 1, 1, 3), (7, 5, 3, 5)])
@pytest.mark.parametrize("name", ["maml", "fomaml", "anil"])
def test_a_meta_gradient_is_the_librarys(
    page: Any, name: str, count: int, shots: int, queries: int, steps: int
) -> None:
    network = module_of(page.evaluate(BEGIN, [name, 3, 0.02, steps, 0.001]))
    tasks = drawn(page, 2, count, shots, queries)
    found = page.evaluate("() => { const g = learner.gradient(tasks); return [g.loss, Array.from(g.theta)]; }")
    output = lm.meta_loss(network, PRESETS[name](0.02, steps), tasks, loss="mse")
    output.surrogate.backward()
    assert off(found[0], output.task_losses.mean()) < 1e-6
    assert off(found[1], flat(network)) < 1e-6


def test_rates_have_the_librarys_gradient(page: Any) -> None:
    network = module_of(page.evaluate(BEGIN, ["meta_sgd", 0, 0.01, 2, 0.001]))
    module = lm.MetaModule(network, lm.meta_sgd(0.01, 2), loss="mse")
    tasks = drawn(page, 0, 9, 10, 10)
    found = page.evaluate(
        "() => { const g = learner.gradient(tasks); return [Array.from(g.theta), Array.from(g.rates)]; }"
    )
    lm.meta_loss(network, module.algorithm, tasks, loss="mse").surrogate.backward()
    assert off(found[0], flat(network)) < 1e-6
    rates = torch.tensor(found[1]).reshape(2, -1).sum(0)
    assert off(rates, flat(module.rates)) < 1e-6


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "pretrained"])
def test_ten_updates_are_the_librarys(page: Any, name: str) -> None:
    network = module_of(page.evaluate(BEGIN, [name, 0, 0.01, 2, 0.002]))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    for update in range(10):
        tasks = drawn(page, update, 25, 10, 10)
        page.evaluate("() => { learner.update(tasks); }")
        optimizer.zero_grad()
        lm.meta_loss(network, PRESETS[name](0.01, 2), tasks, loss="mse").surrogate.backward()
        optimizer.step()
    theta = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    assert off(page.evaluate("() => Array.from(learner.theta)"), theta) < 1e-4


def test_curvature_is_autograds(page: Any) -> None:
    """Gradients and Hessian-vector products of three tasks, each at parameters of its own."""
    script = """async () => {
      const { numerics, module } = playground, kernel = await numerics.Kernel.of(await module);
      const network = {widths: [2, 5, 4, 3], activation: "tanh"};
      const random = new numerics.Random(4, 9), P = numerics.size(network.widths);
      const draw = (from, length) => Float32Array.from({length}, (_, i) => random.normal(from + i));
      const given = [draw(0, 3 * P), draw(1e4, 3 * 7 * 2), draw(2e4, 3 * 7 * 3), draw(3e4, 3 * P)];
      const found = kernel.curvature(network, ...given);
      return [...given, found.losses, found.predictions, found.gradients, found.products].map((one) => Array.from(one));
    }"""
    theta, inputs, targets, along, *found = (torch.tensor(part, dtype=torch.float64) for part in page.evaluate(script))
    shapes = [(5, 2), (5,), (4, 5), (4,), (3, 4), (3,)]

    def predicted(flat: Tensor, rows: Tensor) -> Tensor:
        parts = flat.split([torch.Size(shape).numel() for shape in shapes])
        w, b, v, c, u, d = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        return torch.tanh(torch.tanh(rows @ w.T + b) @ v.T + c) @ u.T + d

    for task, (phi, x, y, way) in enumerate(
        zip(theta.clone().chunk(3), inputs.reshape(3, 7, 2), targets.reshape(3, 7, 3), along.chunk(3), strict=True)
    ):

        def loss(phi: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            return (predicted(phi, x) - y).square().mean()

        phi.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(phi), phi, create_graph=True)
        (product,) = torch.autograd.grad(gradient @ way, phi)
        expected = [loss(phi).detach(), predicted(phi, x).detach(), gradient.detach(), product]
        for ours, reference in zip(found, expected, strict=True):
            assert off(ours.chunk(3)[task], reference.flatten()) < 2e-6


def test_numbers_of_a_seed_are_numpys(page: Any) -> None:
    """What "copy as Python" draws is what the page draws."""
    text = page.evaluate("() => playground.numerics.PYTHON")
    scope: dict[str, Any] = {}
    exec(text, scope)
    for seed, stream in ((0, 0), (7, 3), (999999, 1)):
        found = page.evaluate(
            """([seed, stream]) => {
              const random = new playground.numerics.Random(seed, stream);
              return [0, 1, 5, 1e6].map((i) => random.uniform(i, -5, 5));
            }""",
            [seed, stream],
        )
        assert found == scope["uniform"](seed, stream, [0, 1, 5, 1_000_000], -5.0, 5.0).tolist()
