"""Per-task metrics, and the mean over tasks with its interval, in one process and in several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_maml.metrics import TaskMean, accuracy, mse, resolve_metric


def reference(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    array = values.double().numpy()
    return array.mean(0), 1.96 * array.std(0, ddof=1) / np.sqrt(len(array))


def check(metric: TaskMean, values: torch.Tensor, rtol: float = 1e-12) -> None:
    mean, ci95 = reference(values)
    result = metric.compute()
    np.testing.assert_allclose(result.mean.reshape(-1), mean, rtol=rtol)
    np.testing.assert_allclose(result.ci95.reshape(-1), ci95, rtol=rtol)
    np.testing.assert_array_equal(result.median.reshape(-1), np.median(values.double().numpy(), 0))
    assert int(result.tasks) == len(values)


def test_accuracy_of_each_task():
    scores = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    labels = torch.tensor([[0, 1], [0, 1], [0, 0]])
    assert accuracy(scores, labels).tolist() == [1.0, 0.5, 0.0]


def test_mse_of_each_task():
    predictions = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    assert mse(predictions, torch.zeros(2, 1, 2)).tolist() == [2.5, 0.0]


def test_metrics_reject_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"same shape but got \[2, 5, 1\] and \[2, 5\]"):
        mse(torch.zeros(2, 5, 1), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"\[T, N, C\] and `targets` of shape \[T, N\] but got \[2, 5\] and \[2, 5\]"):
        accuracy(torch.zeros(2, 5), torch.zeros(2, 5))


def test_resolve_metric():
    def median_error(predictions, targets):
        return (predictions - targets).abs().flatten(1).median(1).values

    assert resolve_metric("mse", "cross_entropy") == ("mse", mse)
    assert resolve_metric(None, "cross_entropy") == ("accuracy", accuracy)
    assert resolve_metric(None, "mse") is None
    assert resolve_metric(median_error, "mse") == ("median_error", median_error)
    with pytest.raises(ValueError, match=r"one of \['accuracy', 'mse'\].* but got 'acuracy'"):
        resolve_metric("acuracy", "mse")
    with pytest.raises(ValueError, match="to have another name than 'loss'"):
        resolve_metric(named("loss"), "mse")


def named(name):
    def function(predictions, targets):
        return targets

    function.__name__ = name
    return function


@pytest.mark.parametrize("sizes", [[7], [1, 1, 1], [5, 1, 30], [2, 0, 3]])
def test_mean_and_interval_over_batches(sizes):
    torch.manual_seed(0)
    metric, values = TaskMean(size=3), torch.randn(sum(sizes), 3)
    for part in values.split(sizes):
        metric.update(part)
    check(metric, values)


def test_one_value_a_task():
    metric, values = TaskMean(), torch.rand(6)
    metric.update(values)
    check(metric, values[:, None])


def test_a_mean_far_from_zero_costs_no_digits():
    torch.manual_seed(0)
    values = torch.randn(600, 2, dtype=torch.float64) + 1e8  # the sum of squares would leave nothing of the deviation
    metric = TaskMean(size=2)
    for part in values.split(25):
        metric.update(part)
    check(metric, values, rtol=1e-6)


@pytest.mark.parametrize("sizes", [[4, 9], [5, 0], [0, 0, 7], [1, 1]])
def test_split_over_processes(sizes):
    # Torchmetrics' own way: every process gathers the states of all, stacks them and reduces. Only gathering is played.
    torch.manual_seed(0)
    values, states = torch.randn(sum(sizes), 2), []
    processes = [
        TaskMean(size=2, dist_sync_fn=lambda state, group: states, distributed_available_fn=lambda: True) for _ in sizes
    ]
    for metric, part in zip(processes, values.split(sizes), strict=True):
        metric.update(part)
        states.append(metric._all())
    for metric in processes:
        check(metric, values)


def test_the_median_of_values_that_are_not_finite():
    """They are the worst of all: behind the others, whichever sign a NaN has."""
    nan, inf = float("nan"), float("inf")
    metric = TaskMean(size=3)
    metric.update(torch.tensor([[nan, 1.0, -nan], [3.0, inf, 2.0], [1.0, nan, nan], [2.0, 4.0, 1.0]]))
    assert metric.compute().median.tolist()[:1] == [2.5]
    metric.update(torch.tensor([[1.0, 2.0, nan]]))
    result = metric.compute()
    assert result.median.tolist()[:2] == [2.0, 4.0]
    assert result.median[2].isnan()
    assert result.mean.isnan().all()


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ([1.0] * 19 + [20.0], 1.0),  # more than all others together
        ([1.0] * 19 + [18.0], None),
        ([1.0] * 19 + [float("inf")], 1.0),
        ([1.0] * 19 + [float("nan")], 1.0),
        ([1.0] * 18 + [float("nan")] * 2, None),  # not one task
        ([1.0, -1.0] * 9 + [1.0, -20.0], 1 / 19),  # the largest in magnitude, whatever its sign
        ([0.0] * 20, None),
        ([0.0] * 19 + [1.0], 0.0),
    ],
)
@pytest.mark.parametrize("where", [0, 7])
def test_the_mean_without_the_one_task_that_makes_it(values, others, where):
    metric = TaskMean()
    for part in torch.tensor(values).roll(where).split(6):
        metric.update(part)
    found = metric.compute().of_others.item()
    assert found == pytest.approx(others) if others is not None else np.isnan(found)


def test_too_few_tasks_have_no_interval():
    metric = TaskMean(size=2)
    metric.update(torch.tensor([[1.0, 2.0]]))
    result = metric.compute()
    assert result.mean.tolist() == [1.0, 2.0]
    assert result.ci95.isnan().all()
    metric.reset()
    metric.update(torch.zeros(0, 2))
    assert metric.compute().mean.isnan().all()
    assert int(metric.compute().tasks) == 0


def test_reset_forgets():
    metric = TaskMean()
    metric.update(torch.tensor([100.0, 200.0]))
    metric.reset()
    metric.update(torch.tensor([1.0, 3.0]))
    assert metric.compute().mean.item() == 2.0


def test_stays_exact_in_a_module_of_another_precision():
    module = nn.ModuleDict({"mean": TaskMean()}).to(torch.bfloat16)
    for _ in range(1000):  # bfloat16 cannot count beyond 256
        module["mean"].update(torch.tensor([1.0, 2.0]))
    result = module["mean"].compute()
    assert int(result.tasks) == 2000
    assert result.mean.item() == 1.5


@pytest.mark.parametrize("values", [torch.zeros(4), torch.zeros(4, 3), torch.zeros(4, 2, 1)])
def test_rejects_another_shape(values):
    with pytest.raises(ValueError, match=r"`values` of shape \[T, 2\] but got"):
        TaskMean(size=2).update(values)


def test_rejects_a_size():
    with pytest.raises(ValueError, match="`size` to be a whole number of at least 1 but got 0"):
        TaskMean(size=0)
