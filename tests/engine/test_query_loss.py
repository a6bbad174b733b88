"""Adapted by one loss, judged by another: every engine against one task after another."""

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
from one_after_another import ENGINES, LR, STEPS, Masked, assert_equal, oracle, tasks_of
from problems import meta_gradient, relative_error

LOOPS = ENGINES | {"sgd_update": Fused(kernel="sgd_update")}


def small(labels: bool = False) -> tuple[nn.Module, TaskBatch]:
    """A perceptron, support targets that are values, and query targets that are values or class labels."""
    support, query = torch.randn(5, 4, 3).double(), torch.randn(5, 6, 3).double()
    judged = torch.randint(2, (5, 6)) if labels else torch.randn(5, 6, 2).double()
    return MLP(3, [4], 2, activation="tanh").double(), TaskBatch(support, torch.randn(5, 4, 2).double(), query, judged)


@pytest.mark.parametrize("engine", LOOPS)
@pytest.mark.parametrize("order", [1, 2])
def test_adapted_by_mse_and_judged_by_another_loss(engine: str, order: int) -> None:
    algorithm = (maml if order == 2 else fomaml)(LR, STEPS)
    for labels, given, written in (
        (False, F.huber_loss, F.huber_loss),
        (False, nn.L1Loss(), F.l1_loss),
        (True, "cross_entropy", F.cross_entropy),
    ):
        network, tasks = small(labels)
        output = meta_loss(network, algorithm, tasks, loss="mse", query_loss=given, engine=LOOPS[engine])
        assert_equal(network, output, oracle(network, tasks, order, query_loss=written))


def test_compiled_graphs_are_those_of_both_losses() -> None:
    network, tasks = small()
    for query_loss, written in ((F.huber_loss, F.huber_loss), (None, F.mse_loss)):
        output = meta_loss(
            network, maml(LR, STEPS), tasks, loss="mse", query_loss=query_loss, engine=Batched(compile=True)
        )
        assert_equal(network, output, oracle(network, tasks, query_loss=written))


@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_with_several_inputs_too(structure: str) -> None:
    network, tasks = Masked().double(), tasks_of(structure)
    for engine in ENGINES.values():
        output = meta_loss(network, maml(LR, STEPS), tasks, loss=F.l1_loss, query_loss="mse", engine=engine)
        assert_equal(network, output, oracle(network, tasks, loss=F.l1_loss))


class Scaled(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (self.scale * predictions - targets).square().mean()


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_of_a_query_loss_are_meta_learned(engine: str) -> None:
    network, tasks = small()
    loss, query_loss = Scaled(), Scaled()
    with torch.no_grad():
        loss.scale.fill_(0.7)
    leaves = loss.scale, query_loss.scale
    expected = oracle(network, tasks, loss=loss, query_loss=query_loss, leaves=leaves)[0]
    for leaf in leaves:
        leaf.grad = None
    output = meta_loss(network, maml(LR, STEPS), tasks, loss=loss, query_loss=query_loss, engine=ENGINES[engine])
    ours = [*meta_gradient(network, output), *(leaf.grad for leaf in leaves)]
    assert relative_error(ours, expected) < 1e-10


def test_evaluation_judges_by_it_at_every_step() -> None:
    adapts_by_one_loss = Fused(kernel="mlp_adapt")
    for labels, engine in ((True, "eager"), (True, "batched"), (True, "auto"), (False, adapts_by_one_loss)):
        network, tasks = small(labels)
        given, written = ("cross_entropy", F.cross_entropy) if labels else (F.huber_loss, F.huber_loss)
        result = evaluate(network, maml(LR, STEPS), tasks, loss="mse", query_loss=given, engine=engine)
        for steps in range(STEPS + 1):
            _, losses, _ = oracle(network, tasks, steps=steps, query_loss=written)
            torch.testing.assert_close(result.query_losses[:, steps], losses, rtol=1e-10, atol=1e-12)


def test_every_rule_reads_it_as_its_own_formula_says() -> None:
    network, tasks = small()
    given = {"loss": "mse", "query_loss": F.huber_loss}
    joint = meta_loss(network, pretrained(LR, STEPS), tasks, **given)
    assert_equal(network, joint, oracle(network, tasks, steps=0, query_loss=F.huber_loss))
    several = meta_loss(network, maml_pp(LR, 1, learn_lr=None), tasks, **given)  # after one step its last loss is all
    assert_equal(network, several, oracle(network, tasks, steps=1, query_loss=F.huber_loss))
    by, without = (
        meta_loss(network, reptile(LR, STEPS), tasks, loss="mse", query_loss=q) for q in (F.huber_loss, None)
    )
    assert relative_error([*by.gradients], [*without.gradients]) == 0  # it looks at no query set
    assert not torch.equal(by.task_losses, without.task_losses)
    # implicit: the query gradient is the query loss's, the curvature that of the support loss
    algorithm = imaml(LR, 200, proximal=2.0, cg_steps=40, damping=0.0)
    ours, theirs = (meta_loss(network, algorithm, tasks, engine=engine, **given) for engine in ("batched", "eager"))
    assert relative_error([*ours.gradients], [*theirs.gradients]) < 1e-10
    unrolled = maml(LR, 200).with_inner(proximal=2.0)
    assert relative_error([*ours.gradients], [*meta_loss(network, unrolled, tasks, **given).gradients]) < 1e-5


@pytest.mark.parametrize("engine", [Fused(compile=True), Fused(kernel="mlp_adapt")])
def test_operators_refuse_it_in_one_line(engine: Any) -> None:
    network, tasks = small()
    said = r"^Engine 'fused' cannot run this: [^\n]*the query sets have a loss of their own, huber_loss"
    with pytest.raises(NotImplementedError, match=said):
        meta_loss(network, maml(LR, STEPS), tasks, loss="mse", query_loss=F.huber_loss, engine=engine)
    meta_loss(network, maml(LR, STEPS), tasks, loss="mse", query_loss=None, engine=engine)


def test_graphed_leaves_it_to_its_engine() -> None:
    network, tasks = small()
    with pytest.raises(NotImplementedError, match="the device is cpu"):  # and nothing else is in its way
        meta_loss(network, maml(LR, STEPS), tasks, loss="mse", query_loss=F.huber_loss, engine=Graphed(Batched()))


@pytest.mark.parametrize("engine", [Eager(), Batched(), Batched(compile=True), "auto"])
def test_messages_name_the_query_loss(engine: Any) -> None:
    network, tasks = small()
    run = lambda loss: meta_loss(network, maml(LR, 1), tasks, loss="mse", query_loss=loss, engine=engine)  # noqa: E731
    with pytest.raises(ValueError, match=r"^Expected `query_loss` to be one of .* but got 'mae'"):
        run("mae")
    with pytest.raises(TypeError, match=r"^Expected `query_loss` to be one of .* or a callable but got 3"):
        run(3)
    with pytest.raises(ValueError, match=r"^Expected integer class labels for `query_loss='cross_entropy'`"):
        run("cross_entropy")
    with pytest.raises(ValueError, match=r"^Expected `query_loss` to return one scalar for each task"):
        run(lambda predictions, targets: (predictions - targets).square())
    flat = TaskBatch(*tasks.sets[0], tasks.query_inputs, tasks.query_targets[..., 0])
    with pytest.raises(ValueError, match=r"^Expected targets of the predictions' shape for `loss='mse'`"):
        meta_loss(network, maml(LR, 1), flat, loss="mse", engine=engine)
