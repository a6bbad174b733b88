"""Inputs of several tensors on every engine, beside one task after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_maml import Batched, Eager, Fused, Graphed, TaskBatch, adapt, evaluate, fomaml, maml, meta_loss
from lightning_maml.tasks import map_inputs
from one_after_another import ENGINES, LR, STEPS, Masked, assert_equal, oracle, tasks_of
from problems import relative_error


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
