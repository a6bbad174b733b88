"""Tasks that count more than others: every engine and every way of parts against one task after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml import (
    Batched,
    Eager,
    Fused,
    Graphed,
    TaskBatch,
    evaluate,
    fomaml,
    imaml,
    maml,
    maml_pp,
    meta_loss,
    pretrained,
    reptile,
)
from lightning_maml.networks import MLP
from lightning_maml.tasks import UnequalTasks
from lightning_maml.training.meta_update import MetaUpdate, meta_update
from one_after_another import ENGINES, LR, STEPS, Masked, assert_equal, oracle, tasks_of
from problems import meta_gradient, relative_error

WEIGHTS = [0.5, 3.0, 0.0, 1.0, 0.25]
SHARES = [weight / sum(WEIGHTS) for weight in WEIGHTS]
LOOPS = ENGINES | {"sgd_update": Fused(kernel="sgd_update")}


def small(weights: Any = WEIGHTS) -> tuple[nn.Module, TaskBatch]:
    sets = [torch.randn(5, rows, size).double() for rows in (4, 6) for size in (3, 2)]
    weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    return MLP(3, [4], 2, activation="tanh").double(), TaskBatch(*sets, task_weights=weights)


def without(tasks: TaskBatch, weights: Tensor | None = None) -> TaskBatch:
    """The same tasks with other weights, or none."""
    return TaskBatch(*tasks.sets[0], *tasks.sets[1], task_weights=weights)


@pytest.mark.parametrize("engine", LOOPS)
@pytest.mark.parametrize("order", [1, 2])
def test_the_mean_is_by_weights(engine: str, order: int) -> None:
    network, tasks = small()
    output = meta_loss(network, (maml if order == 2 else fomaml)(LR, STEPS), tasks, loss="mse", engine=LOOPS[engine])
    expected = oracle(network, tasks, order, shares=SHARES)
    assert_equal(network, output, expected)
    torch.testing.assert_close(
        output.loss, (expected[1] * torch.tensor(SHARES, dtype=torch.float64)).sum(), rtol=1e-10, atol=0
    )


def test_compiled_graphs_take_them() -> None:
    network, tasks = small()
    tasks = tasks.each(lambda value: value[:4])  # two chunks of one shape
    shares = [weight / sum(WEIGHTS[:4]) for weight in WEIGHTS[:4]]
    engine = Batched(compile=True, chunk_size=2)
    output = meta_loss(network, maml(LR, STEPS), tasks, loss="mse", engine=engine)
    assert_equal(network, output, oracle(network, tasks, shares=shares))
    plain = meta_loss(network, maml(LR, STEPS), without(tasks), loss="mse", engine=engine)
    assert_equal(network, plain, oracle(network, tasks))


@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_with_several_inputs_and_a_query_loss(structure: str) -> None:
    network, tasks = Masked().double(), tasks_of(structure)
    tasks = without(tasks, torch.tensor(WEIGHTS))
    for engine in ENGINES.values():
        output = meta_loss(network, maml(LR, STEPS), tasks, loss="mse", query_loss=F.huber_loss, engine=engine)
        assert_equal(network, output, oracle(network, tasks, query_loss=F.huber_loss, shares=SHARES))


RULES = {
    "pretrained": pretrained(LR, STEPS),
    "reptile": reptile(LR, STEPS),
    "imaml": imaml(LR, 200, proximal=2.0, cg_steps=30, damping=0.0),
    "maml_pp": maml_pp(LR, STEPS, learn_lr=None, multi_step_updates=10).at(5),
    "mini-batches": maml(LR, STEPS).with_inner(batch_size=3),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_the_mean_of_its_tasks(rule: str) -> None:
    network, tasks = small()
    each = [
        meta_loss(network, RULES[rule], without(tasks)[task : task + 1], loss="mse", engine="eager").gradients
        for task in range(len(tasks))
    ]
    expected = [sum(share * one for share, one in zip(SHARES, parts, strict=True)) for parts in zip(*each, strict=True)]
    for engine in (Eager(), Batched(), Batched(chunk_size=2), Batched(checkpoint="step"), "auto"):
        output = meta_loss(network, RULES[rule], tasks, loss="mse", engine=engine)
        assert relative_error([*output.gradients], expected) < 1e-10


def test_a_weight_of_nought_is_as_if_the_task_were_not_there() -> None:
    network, tasks = small([1.0, 1.0, 0.0, 1.0, 0.0])
    rest = without(tasks).each(lambda value: value[[0, 1, 3]])
    for engine in (*LOOPS.values(), Batched(chunk_size=1)):
        ours, theirs = (meta_loss(network, maml(LR, STEPS), one, loss="mse", engine=engine) for one in (tasks, rest))
        assert relative_error([*ours.gradients], [*theirs.gradients]) < 1e-10
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=0)


def test_a_common_factor_or_kind_of_number_changes_nothing() -> None:
    network, tasks = small()
    for weights in (torch.tensor([2, 12, 0, 4, 1]), torch.tensor(WEIGHTS).half(), 100 * torch.tensor(WEIGHTS)):
        output = meta_loss(network, maml(LR, STEPS), without(tasks, weights), loss="mse")
        assert relative_error([*output.gradients], oracle(network, tasks, shares=SHARES)[0]) < 1e-6


def assert_update(network: nn.Module, update: MetaUpdate, tasks: TaskBatch, shares: list[float]) -> None:
    gradient, losses, predictions = oracle(network, tasks, shares=shares)
    torch.testing.assert_close(update.task_losses, losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([one for _, one in update.parts]), predictions, rtol=1e-10, atol=1e-12)
    mean = (losses * torch.tensor(shares, dtype=torch.float64)).sum()
    torch.testing.assert_close(update.surrogate.detach(), mean, rtol=1e-10, atol=0)
    assert relative_error(meta_gradient(network, update), gradient) < 1e-10


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
def test_parts_add_up_by_their_weights(accumulate: int) -> None:
    network, tasks = small()
    update = meta_update(network, maml(LR, STEPS), tasks, loss="mse", accumulate_tasks=accumulate)
    assert_update(network, update, tasks, SHARES)


def test_uneven_weights_over_two_parts_and_one_that_counts_nothing() -> None:
    network, tasks = small([0.0, 0.0, 5.0, 0.1, 0.4])
    for accumulate in (2, 3):
        update = meta_update(network, maml(LR, STEPS), tasks, loss="mse", accumulate_tasks=accumulate)
        assert_update(network, update, tasks, [0, 0, 5 / 5.5, 0.1 / 5.5, 0.4 / 5.5])


def test_what_diverges_takes_its_weight_along() -> None:
    network, tasks = small()
    far = tasks.each(Tensor.clone)
    far.query_targets[1] = 1e200
    rest = tasks.each(lambda value: value[[0, 2, 3, 4]])
    for accumulate in (None, 2):
        update = meta_update(network, maml(LR, STEPS), far, loss="mse", accumulate_tasks=accumulate)
        assert update.finite == [True, False, True, True, True]
        assert update.total_weight == 1.75
        assert_update(network, update, rest, [weight / 1.75 for weight in (0.5, 0.0, 1.0, 0.25)])


@pytest.mark.parametrize("accumulate", [None, 1, 2])
def test_groups_of_unequal_tasks_count_by_the_weights_of_all(accumulate: int | None) -> None:
    network, tasks = small()
    shorter = without(tasks)[3:].each(lambda value: value[:, :2])  # each of them counts 1
    unequal = UnequalTasks([tasks[:3], shorter])
    update = meta_update(network, maml(LR, STEPS), unequal, loss="mse", accumulate_tasks=accumulate)
    parts = (tasks[:3], [weight / 5.5 for weight in WEIGHTS[:3]]), (shorter, [1 / 5.5, 1 / 5.5])
    found = [oracle(network, part, shares=shares) for part, shares in parts]
    torch.testing.assert_close(update.task_losses, torch.cat([losses for _, losses, _ in found]))
    expected = [one + other for one, other in zip(found[0][0], found[1][0], strict=True)]
    assert relative_error(meta_gradient(network, update), expected) < 1e-10
    assert unequal.total_weight == update.total_weight == 5.5


def test_slices_parts_and_moves_keep_them() -> None:
    _, tasks = small()
    assert [part.task_weights.tolist() for part in tasks.parts(2)] == [[0.5, 3.0], [0.0, 1.0], [0.25]]
    assert (tasks[2:3].shares.tolist(), tasks[2:3].total_weight) == ([0.0], 0.0)
    assert tasks.to(torch.float32).task_weights.dtype == torch.float32
    assert (without(tasks).shares, without(tasks).total_weight) == (None, 5.0)
    unequal = UnequalTasks([tasks[:2], without(tasks)[2:]])
    assert [part.total_weight for part in unequal.parts(5)] == [3.5, 3.0]
    assert [name for name, _ in tasks.named()][-1] == "task_weights"


def test_evaluation_is_of_each_task() -> None:
    network, tasks = small()
    ours, theirs = (evaluate(network, maml(LR, STEPS), one, loss="mse") for one in (tasks, without(tasks)))
    assert torch.equal(ours.query_losses, theirs.query_losses)


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        ([1.0] * 5, TypeError, r"to be a tensor \[tasks\] but got list"),
        (torch.ones(4), ValueError, r"to have shape \[5\] but got \[4\]"),
        (torch.ones(5, 1), ValueError, r"to have shape \[5\] but got \[5, 1\]"),
        (torch.zeros(5), ValueError, "to be finite, not negative and not all 0 but got"),
        (torch.tensor([1.0, -1, 1, 1, 1]), ValueError, "to be finite, not negative and not all 0 but got"),
        (torch.tensor([1.0, torch.nan, 1, 1, 1]), ValueError, "to be finite, not negative and not all 0 but got"),
        (torch.tensor([1.0, torch.inf, 1, 1, 1]), ValueError, "to be finite, not negative and not all 0 but got"),
        (torch.ones(5, requires_grad=True), ValueError, "without a gradient but they ask for one"),
    ],
)
def test_weights_out_of_range_are_refused(weights: Any, error: type, said: str) -> None:
    _, tasks = small(None)
    with pytest.raises(error, match=f"^Expected `task_weights` {said}"):
        without(tasks, weights)


@pytest.mark.parametrize("engine", [Fused(compile=True), Fused(kernel="mlp_adapt")])
def test_operators_refuse_them_in_one_line(engine: Any) -> None:
    network, tasks = small()
    with pytest.raises(NotImplementedError, match=r"^Engine 'fused' cannot run this: [^\n]*tasks have weights"):
        meta_loss(network, maml(LR, STEPS), tasks, loss="mse", engine=engine)
    meta_loss(network, maml(LR, STEPS), without(tasks), loss="mse", engine=engine)


def test_graphed_leaves_them_to_its_engine() -> None:
    network, tasks = small()
    with pytest.raises(NotImplementedError, match="the device is cpu"):  # and nothing else is in its way
        meta_loss(network, maml(LR, STEPS), tasks, loss="mse", engine=Graphed(Batched()))
