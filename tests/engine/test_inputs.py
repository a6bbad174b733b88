"""Inputs of several tensors, a query loss and weights of tasks: every engine against one task after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_maml import Batched, Eager, Fused, Graphed, TaskBatch, adapt, evaluate, fomaml, maml, meta_loss
from lightning_maml.engine import MetaOutput
from lightning_maml.tasks import Inputs, map_inputs
from problems import meta_gradient, relative_error

LR, STEPS = 0.1, 3
ENGINES = {
    "auto": "auto",
    "eager": Eager(),
    "batched": Batched(),
    "chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
    "checkpointed chunks": Batched(checkpoint="step", chunk_size=2),
}


class Masked(nn.Module):
    """The mean over the places that a mask names, and a linear layer: ``[N, 6, 3]`` and ``[N, 6]`` to ``[N, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Any) -> Tensor:
        x, mask = (inputs["x"], inputs["mask"]) if isinstance(inputs, dict) else inputs
        weights = mask.to(x.dtype).unsqueeze(-1)
        return self.head((torch.tanh(self.embed(x)) * weights).sum(1) / (1 + weights.sum(1)))


def tasks_of(structure: str, tasks: int = 5, support: int = 4, query: int = 6) -> TaskBatch:
    """Random tasks for :class:`Masked`."""

    def inputs(rows: int) -> Inputs:
        x, mask = torch.randn(tasks, rows, 6, 3, dtype=torch.float64), torch.rand(tasks, rows, 6) > 0.4
        return {"x": x, "mask": mask} if structure == "dict" else (x, mask)

    targets = [torch.randn(tasks, rows, 2, dtype=torch.float64) for rows in (support, query)]
    return TaskBatch(inputs(support), targets[0], inputs(query), targets[1])


def oracle(
    network: nn.Module,
    tasks: TaskBatch,
    order: int = 2,
    steps: int = STEPS,
    rows: Callable[[int], Any] = lambda step: slice(None),
    loss: Callable[..., Tensor] = F.mse_loss,
    query_loss: Callable[..., Tensor] = F.mse_loss,
    shares: list[float] | None = None,
    leaves: tuple[Tensor, ...] = (),
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The meta-gradient, query losses and predictions of one task after another, written out."""
    theta = dict(network.named_parameters())
    losses, predictions = [], []
    for task in range(len(tasks)):
        one = tasks.each(lambda value, task=task: value[task])
        phi = theta
        for step in range(steps):
            seen = map_inputs(lambda value, step=step: value[rows(step)], one.support_inputs)
            inner = loss(functional_call(network, phi, (seen,)), one.support_targets[rows(step)])
            slopes = torch.autograd.grad(inner, [*phi.values()], create_graph=order == 2, retain_graph=True)
            phi = {name: value - LR * slope for (name, value), slope in zip(phi.items(), slopes, strict=True)}
        predictions.append(functional_call(network, phi, (one.query_inputs,)))
        losses.append(query_loss(predictions[-1], one.query_targets))
    shares = shares or [1 / len(tasks)] * len(tasks)
    total = sum(share * one for share, one in zip(shares, losses, strict=True))
    gradient = torch.autograd.grad(total, [*theta.values(), *leaves], materialize_grads=True)
    return [*gradient], torch.stack(losses).detach(), torch.stack(predictions).detach()


def assert_equal(network: nn.Module, output: MetaOutput, expected: tuple[list[Tensor], Tensor, Tensor]) -> None:
    gradient, losses, predictions = expected
    torch.testing.assert_close(output.task_losses, losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.predictions, predictions, rtol=1e-10, atol=1e-12)
    assert relative_error(meta_gradient(network, output), gradient) < 1e-10


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_several_inputs_equal_one_task_after_another(engine: str, order: int, structure: str) -> None:
    network, tasks = Masked().double(), tasks_of(structure)
    algorithm = (maml if order == 2 else fomaml)(LR, STEPS)
    output = meta_loss(network, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert_equal(network, output, oracle(network, tasks, order))


@pytest.mark.parametrize("engine", ENGINES)
def test_mini_batches_of_several_inputs(engine: str) -> None:
    network, tasks = Masked().double(), tasks_of("dict")
    algorithm = maml(LR, STEPS).with_inner(batch_size=2)
    output = meta_loss(network, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert_equal(network, output, oracle(network, tasks, rows=lambda step: algorithm.inner.rows(step, 4)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_adaptation_to_several_inputs(engine: str, structure: str) -> None:
    network, tasks = Masked().double(), tasks_of(structure)
    _, losses, predictions = oracle(network, tasks)
    adapted = adapt(network, maml(LR, STEPS), *tasks.sets[0], loss="mse", engine=ENGINES[engine])
    torch.testing.assert_close(adapted.predict(tasks.query_inputs), predictions, rtol=1e-10, atol=1e-12)
    result = evaluate(network, maml(LR, STEPS), tasks, loss="mse", engine=ENGINES[engine])
    torch.testing.assert_close(result.query_losses[:, -1], losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.predictions[:, -1], predictions, rtol=1e-10, atol=1e-12)
    one = adapted.network(3)(map_inputs(lambda value: value[3], tasks.query_inputs))
    torch.testing.assert_close(one, predictions[3], rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"^Expected inputs of 5 tasks, \[5, rows, ...\], but got \[4, 6"):
        adapted.predict(tasks[:4].query_inputs)


def test_a_sequence_takes_several_inputs_first() -> None:
    torch.manual_seed(1)
    network, tasks = nn.Sequential(Masked(), nn.Tanh(), nn.Linear(2, 2)).double(), tasks_of("tuple")
    output = meta_loss(network, maml(LR, STEPS), tasks, loss="mse", engine="batched")
    assert_equal(network, output, oracle(network, tasks))


def test_inputs_that_ask_for_a_gradient_get_it() -> None:
    network, tasks = Masked().double(), tasks_of("dict")
    leaves = tasks.support_inputs["x"].requires_grad_(), tasks.query_inputs["x"].requires_grad_()
    expected, *_ = oracle(network, tasks, leaves=leaves)
    for engine in (Eager(), Batched(), Batched(chunk_size=2), Batched(checkpoint="step")):
        for leaf in leaves:
            leaf.grad = None
        meta_loss(network, maml(LR, STEPS), tasks, loss="mse", engine=engine).surrogate.backward()
        assert relative_error([leaf.grad for leaf in leaves], expected[-2:]) < 1e-10


def test_statistics_of_support_sets_with_several_inputs() -> None:
    class Normed(Masked):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, inputs: Any) -> Tensor:
            return self.norm(super().forward(inputs))

    network, tasks = Normed().double(), tasks_of("dict")
    algorithm = maml(LR, STEPS, batch_norm="support")
    ours, theirs = (meta_loss(network, algorithm, tasks, loss="mse", engine=one) for one in ("batched", "eager"))
    torch.testing.assert_close(ours.predictions, theirs.predictions, rtol=1e-10, atol=1e-12)
    assert relative_error([*ours.gradients], [*theirs.gradients]) < 1e-10


@pytest.mark.parametrize(
    "engine", [Fused(), Fused(compile=True), Fused(kernel="sgd_update"), Batched(compile=True), Graphed()]
)
def test_other_engines_refuse_several_inputs_in_one_line(engine: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"^Engine '\w+' cannot run this: [^\n]*inputs are several tensors"):
        meta_loss(Masked().double(), maml(LR, STEPS), tasks_of("dict"), loss="mse", engine=engine)


X, Y = torch.randn(3, 4, 2), torch.randn(3, 4, 2)


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        ([X, X], TypeError, "a dictionary by names of such tensors, but got list"),
        ((), TypeError, "but got an empty tuple"),
        ({}, TypeError, r"but got dict with the keys \[\]"),
        ({0: X}, TypeError, r"but got dict with the keys \[0\]"),
        (
            {"x": X, "y": (X, X)},
            TypeError,
            r"`support_inputs\['y'\]` to be a tensor \[tasks, rows, ...\] but got tuple",
        ),
        ((X, 3), TypeError, r"`support_inputs\[1\]` to be a tensor"),
        ((X, X[0, 0]), ValueError, r"`support_inputs\[1\]` to have shape \[tasks, rows, ...\] but got \[2\]"),
        ((X, X[:2]), ValueError, r"same number of tasks everywhere but got .*'support_inputs\[1\]': 2"),
        ((X, X[:, :3]), ValueError, r"as many support targets as support inputs\[1\] in each task but got 4 and 3"),
    ],
)
def test_inputs_of_another_kind_are_refused(inputs: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        TaskBatch(inputs, Y, inputs, Y)


def test_support_and_query_inputs_are_of_one_structure() -> None:
    for one, other in (({"x": X}, X), ((X, X), (X,)), ({"x": X, "y": X}, {"x": X, "z": X})):
        with pytest.raises(ValueError, match="^Expected support and query inputs of one structure but got a "):
            TaskBatch(one, Y, other, Y)
    TaskBatch({"x": X, "y": X}, Y, {"y": X, "x": X}, Y)


def test_parts_and_moves_of_several_inputs() -> None:
    tasks = tasks_of("dict")
    assert [len(part) for part in tasks.parts(2)] == [2, 2, 1]
    assert [name for name, _ in tasks.named()][:2] == ["support_inputs['x']", "support_inputs['mask']"]
    half = tasks.to(torch.float32)
    assert (half.query_inputs["x"].dtype, half.query_inputs["mask"].dtype) == (torch.float32, torch.bool)
    assert torch.equal(tasks[3:].query_inputs["mask"], tasks.query_inputs["mask"][3:])
    with pytest.raises(ValueError, match="^Expected a slice with at least one of the 5 tasks but got slice"):
        tasks[5:]


def test_data_that_is_not_finite_is_named() -> None:
    tasks = tasks_of("dict")
    tasks.query_inputs["x"][2, 0, 0] = torch.nan
    with pytest.raises(
        ValueError, match=r"^Expected finite numbers but `query_inputs\['x'\]` holds NaN .* tasks \[2\]"
    ):
        meta_loss(Masked().double(), maml(LR, STEPS), tasks, loss="mse")
