"""Tests under several orders of a task's classes."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_maml import (
    MLP,
    Algorithm,
    MetaModule,
    TaskBatch,
    UnequalTasks,
    evaluate,
    fomaml,
    maml,
    proto_maml,
    unicorn_maml,
)
from lightning_maml.metrics import accuracy
from lightning_maml.training.class_orders import in_class_orders

WAYS = 4


def tasks_of(number: int, seed: int = 0, ways: int = WAYS) -> TaskBatch:
    """Tasks of points around a place for each class, in float64."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(number, ways, 1, 3, dtype=torch.float64, generator=generator)
    points = places + 0.7 * torch.randn(number, ways, 5, 3, dtype=torch.float64, generator=generator)
    labels = torch.arange(ways)[:, None].expand(number, ways, 5)
    sets = points[:, :, :2], labels[:, :, :2], points[:, :, 2:], labels[:, :, 2:]
    return TaskBatch(*(part.flatten(1, 2) for part in sets))


def results_of(
    tmp_path: Path, algorithm: Algorithm, batches: list[Any], **options: Any
) -> tuple[dict[str, float], Any]:
    """What a test logs, and what it writes."""
    torch.manual_seed(0)
    module = MetaModule(MLP(3, [8], WAYS, init="default").double(), algorithm, loss="cross_entropy", **options)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **quiet)
    (found,) = trainer.test(module, DataLoader(batches, batch_size=None))
    return dict(found), json.loads((tmp_path / "metrics.json").read_text())


def by_hand(algorithm: Algorithm, tasks: TaskBatch) -> Tensor:
    """The accuracy of each task after each inner step in each order of its classes, ``[orders, T, steps + 1]``."""
    torch.manual_seed(0)
    network = MLP(3, [8], WAYS, init="default").double()
    found = []
    for order in map(torch.tensor, permutations(range(WAYS))):
        ordered = TaskBatch(
            tasks.support_inputs, order[tasks.support_targets], tasks.query_inputs, order[tasks.query_targets]
        )
        predictions = evaluate(network, algorithm, ordered, loss="cross_entropy").predictions.unbind(1)
        found.append(torch.stack([accuracy(each, ordered.query_targets) for each in predictions], 1))
    return torch.stack(found).double()


def test_one_order_is_the_one_a_task_comes_in(tmp_path: Path) -> None:
    tasks = tasks_of(6)
    assert in_class_orders(tasks, 1) == [tasks]
    plain, _ = results_of(tmp_path, maml(0.5, 2), [tasks])
    one, content = results_of(tmp_path, maml(0.5, 2), [tasks], test_class_orders=1)
    assert one == plain
    assert content["class_orders"] == 1
    (first, *_) = in_class_orders(tasks, 3)
    assert torch.equal(first.support_targets, tasks.support_targets)
    assert torch.equal(first.query_targets, tasks.query_targets)


@pytest.mark.parametrize("number", ["all", math.factorial(WAYS), 1000])
def test_all_orders_are_what_a_loop_over_them_gives(
    number: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, algorithm = tasks_of(6), maml(0.5, 2)
    found, content = results_of(tmp_path, algorithm, [tasks[:4], tasks[4:]], test_class_orders=number)
    expected = by_hand(algorithm, tasks)
    means = expected.mean(0)
    assert content["class_orders"] == len(expected) == 24
    assert content["tasks"] == 6
    assert content["accuracy"]["mean"] == pytest.approx(means.mean(0).tolist(), abs=1e-7)
    assert found["test/accuracy_step_2"] == pytest.approx(means.mean(0)[2].item(), abs=1e-6)
    assert content["accuracy"]["ci95"] == pytest.approx((1.96 * means.std(0) / 6**0.5).tolist(), abs=1e-7)
    assert "Test of maml on 6 tasks, each in 24 orders of its classes, mean ± 95% interval:" in capsys.readouterr().out


def test_the_order_matters_where_each_class_has_a_row_of_its_own() -> None:
    tasks = tasks_of(20)
    for algorithm in (maml(0.5, 3), fomaml(0.5, 3)):
        assert by_hand(algorithm, tasks).std(0).max() > 0.01
    for algorithm in (unicorn_maml(0.5, 3), unicorn_maml(0.5, 3, first_order=False), proto_maml(0.5, 3)):
        for each in by_hand(algorithm, tasks)[1:]:
            assert torch.equal(each[:, 1:], by_hand(algorithm, tasks)[0][:, 1:])


def test_an_invariant_algorithm_tests_alike_under_orders(tmp_path: Path) -> None:
    tasks = tasks_of(8)
    one, _ = results_of(tmp_path, proto_maml(0.5, 3), [tasks])
    several, _ = results_of(tmp_path, proto_maml(0.5, 3), [tasks], test_class_orders=5)
    assert several == pytest.approx(one, abs=1e-6)


def labels_of(batches: list[TaskBatch], task: int) -> list[list[int]]:
    return [batch.support_targets[task].tolist() for batch in batches]


def test_a_task_has_its_own_orders_wherever_it_is() -> None:
    tasks = tasks_of(6)
    together = in_class_orders(tasks, 5)
    for task in range(6):
        assert labels_of(in_class_orders(tasks[task : task + 1], 5), 0) == labels_of(together, task)
        assert len({tuple(labels) for labels in labels_of(together, task)}) == 5
    assert labels_of(in_class_orders(tasks, 3), 0) == labels_of(together, 0)[:3]
    others = {str(labels_of(together, task)) for task in range(6)}
    assert len(others) == 6
    for batch in together:  # classes stay classes, alike in both sets
        for task in range(6):
            pairs = {
                (old, new)
                for before, after in zip(tasks.sets, batch.sets, strict=True)
                for old, new in zip(before[1][task].tolist(), after[1][task].tolist(), strict=True)
            }
            assert len(pairs) == len(dict(pairs)) == len({new for _, new in pairs}) == WAYS


def test_tasks_of_different_sizes(tmp_path: Path) -> None:
    both = UnequalTasks([tasks_of(3), tasks_of(2, seed=1, ways=3)])
    _, content = results_of(tmp_path, maml(0.5, 1), [both], test_class_orders=4)
    assert (content["tasks"], content["class_orders"]) == (5, 4)


def test_validation_has_one_order(tmp_path: Path) -> None:
    results = []
    for number in (1, 3):
        torch.manual_seed(0)
        network = MLP(3, [8], WAYS, init="default").double()
        module = MetaModule(network, maml(0.5, 2), loss="cross_entropy", test_class_orders=number)
        quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **quiet)
        results.append(trainer.validate(module, DataLoader([tasks_of(6)], batch_size=None), verbose=False))
    assert results[0] == results[1]


@pytest.mark.parametrize("number", [0, -1, True, 2.0, "some", None])
def test_numbers_that_are_none(number: Any) -> None:
    with pytest.raises(ValueError, match=r"`test_class_orders` to be a whole number of at least 1, or 'all', but got"):
        MetaModule(MLP(3, [8], WAYS), maml(), loss="cross_entropy", test_class_orders=number)


def test_tasks_without_classes_have_no_orders() -> None:
    x = torch.randn(2, 3, 1)
    with pytest.raises(ValueError, match=r"Expected class labels \[tasks, rows\] for test_class_orders=2 but got"):
        in_class_orders(TaskBatch(x, x, x, x), 2)
    labels = torch.arange(20).expand(2, 20)
    many = TaskBatch(torch.zeros(2, 20, 1), labels, torch.zeros(2, 20, 1), labels)
    with pytest.raises(ValueError, match="a number for tasks of 20 classes but got 'all', which are 2,432,902,"):
        in_class_orders(many, "all")
    assert len(in_class_orders(many, 3)) == 3
