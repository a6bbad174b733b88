"""MetaModule on tasks with inputs of several tensors, a query loss and weights, beside a bare loop over meta_loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_maml import MetaModule, TaskBatch, adapt, evaluate, maml, meta_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*have no .val_dataloader"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:DeprecationWarning"),
]


class Gated(nn.Module):
    """A linear layer of what a mask leaves, of a dictionary or a tuple: ``[N, 3]`` and ``[N, 3]`` to ``[N, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, inputs: Any) -> Tensor:
        x, mask = inputs.values() if isinstance(inputs, dict) else inputs
        return self.head(torch.where(mask, x, 0.0))


def batches(structure: type, number: int = 4, tasks: int = 5) -> list[TaskBatch]:
    made = []
    for _ in range(number):
        x, slopes = torch.randn(tasks, 10, 3), torch.randn(tasks, 3, 1)
        mask, y = torch.rand(tasks, 10, 3) > 0.3, x @ slopes
        parts = [{"x": x, "mask": mask} if structure is dict else (x, mask)]
        support, query = (
            {name: value[:, rows] for name, value in parts[0].items()}
            if structure is dict
            else tuple(value[:, rows] for value in parts[0])
            for rows in (slice(5), slice(5, 10))
        )
        made.append(TaskBatch(support, y[:, :5], query, y[:, 5:]))
    return made


def trainer(tmp_path: Any, **arguments: Any) -> Trainer:
    defaults = {"accelerator": "cpu", "default_root_dir": tmp_path, "enable_progress_bar": False, "max_epochs": 1}
    quiet = {"enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return Trainer(**(defaults | quiet | arguments))


def by_hand(network: nn.Module, data: list[TaskBatch], **arguments: Any) -> list[Tensor]:
    """The parameters after a bare loop over meta_loss with Adam."""
    loss = arguments.get("query_loss")
    trained = [*network.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    optimizer = torch.optim.Adam(trained)
    for tasks in data:
        optimizer.zero_grad()
        meta_loss(network, maml(0.1, 2), tasks, **({"loss": "mse"} | arguments)).surrogate.backward()
        optimizer.step()
    return [value.detach() for value in trained]


def assert_close(module: MetaModule, expected: list[Tensor]) -> None:
    for ours, theirs in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("structure", [dict, tuple])
@pytest.mark.parametrize("updates", [1, 2])
def test_fit_and_predict_with_several_inputs(tmp_path: Any, structure: type, updates: int) -> None:
    data, network = batches(structure), Gated()
    expected = by_hand(copy.deepcopy(network), data)
    module = MetaModule(network, maml(0.1, 2), updates_per_step=updates, accumulate_tasks=2)
    steps = data if updates == 1 else [tuple(data[start : start + updates]) for start in range(0, 4, updates)]
    run = trainer(tmp_path)
    run.fit(module, DataLoader(steps, batch_size=None), DataLoader(data[:1], batch_size=None))
    assert_close(module, expected)
    run.test(module, DataLoader(data[:1], batch_size=None), verbose=False)
    (predicted,) = run.predict(module, DataLoader(data[:1], batch_size=None))
    adapted = adapt(network, maml(0.1, 2), *data[0].sets[0], loss="mse")
    torch.testing.assert_close(predicted, adapted.predict(data[0].query_inputs))


class Tasks(Dataset):
    """One task an item, its inputs and targets in a tuple, as :class:`DataLoader` stacks them."""

    def __init__(self, whole: TaskBatch, parts: int) -> None:
        self.whole, self.parts = whole, parts

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, task: int) -> tuple[Any, ...]:
        if task >= len(self):
            raise IndexError
        one = self.whole.each(lambda value: value[task])
        return (*one.sets[0], *one.sets[1])[: self.parts]


@pytest.mark.parametrize("structure", [dict, tuple])
def test_a_data_loader_stacks_tasks_of_several_inputs(tmp_path: Any, structure: type) -> None:
    (tasks,), network = batches(structure, 1, tasks=6), Gated()
    expected = by_hand(copy.deepcopy(network), [tasks[:3], tasks[3:]])
    module = MetaModule(network, maml(0.1, 2))
    trainer(tmp_path).fit(module, DataLoader(Tasks(tasks, 4), batch_size=3))
    assert_close(module, expected)
    (predicted,) = trainer(tmp_path).predict(module, DataLoader(Tasks(tasks, 3), batch_size=6))
    adapted = adapt(network, maml(0.1, 2), *tasks.sets[0], loss="mse")
    torch.testing.assert_close(predicted, adapted.predict(tasks.query_inputs))


def test_a_precision_converts_floating_inputs_alone(tmp_path: Any) -> None:
    module = MetaModule(Gated(), maml(0.1, 2))
    trainer(tmp_path, precision="64-true").fit(module, DataLoader(batches(dict), batch_size=None))
    assert module.network.head.weight.dtype == torch.float64


def test_a_task_with_several_inputs_that_diverges_is_left_out(tmp_path: Any) -> None:
    (tasks,), network = batches(dict, 1, tasks=5), Gated()
    tasks.query_targets[2] = 1e30
    rest = tasks.each(lambda value: value[[0, 1, 3, 4]])
    expected = by_hand(copy.deepcopy(network), [rest])
    module = MetaModule(network, maml(0.1, 2))
    with pytest.warns(UserWarning, match="1 of the 5 tasks of meta-update 0 diverged"):
        trainer(tmp_path).fit(module, DataLoader([tasks], batch_size=None))
    assert_close(module, expected)


def test_inputs_that_do_not_fit_are_named(tmp_path: Any) -> None:
    (tasks,) = batches(dict, 1)
    narrow = tasks.each(lambda value: value[..., :2])
    with pytest.raises(
        ValueError, match=r"takes inputs \{'x': '\[rows, 2\]', 'mask': '\[rows, 2\]'\}, as the tasks have"
    ):
        trainer(tmp_path).fit(MetaModule(Gated(), maml(0.1, 2)), DataLoader([narrow], batch_size=None))


class Scaled(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (self.scale * predictions - targets).abs().mean()


@pytest.mark.parametrize("accumulate", [None, 2])
def test_a_query_loss_is_trained_and_judged_by(tmp_path: Any, accumulate: int | None) -> None:
    data, network, loss = batches(dict), Gated(), Scaled()
    expected = by_hand(copy.deepcopy(network), data, query_loss=(judge := copy.deepcopy(loss)))
    module = MetaModule(network, maml(0.1, 2), query_loss=loss, accumulate_tasks=accumulate)
    run = trainer(tmp_path)
    run.fit(module, DataLoader(data, batch_size=None))
    assert_close(module, expected)
    assert "query_loss.scale" in module.state_dict()
    (validated,) = run.validate(module, DataLoader(data[:1], batch_size=None), verbose=False)
    result = evaluate(network, maml(0.1, 2), data[0], loss="mse", query_loss=judge)
    assert validated["val/loss"] == pytest.approx(result.query_losses[:, -1].mean().item(), rel=1e-5)


def test_the_metric_goes_with_the_query_loss(tmp_path: Any) -> None:
    x, y = torch.randn(5, 4, 3), torch.randn(5, 4, 2)
    tasks = TaskBatch(x, y, x, torch.randint(2, (5, 4)))
    module = MetaModule(nn.Linear(3, 2), maml(0.1, 2), loss="mse", query_loss="cross_entropy")
    run = trainer(tmp_path)
    run.fit(module, DataLoader([tasks], batch_size=None))
    assert 0 <= run.callback_metrics["train/accuracy"] <= 1
    with pytest.raises(ValueError, match="^Expected `query_loss` to be one of"):
        MetaModule(nn.Linear(3, 2), maml(0.1, 2), query_loss="mae")


@pytest.mark.parametrize("accumulate", [None, 2])
def test_weights_of_tasks_train_and_are_not_logged(tmp_path: Any, accumulate: int | None) -> None:
    data, network = batches(dict), Gated()
    for tasks in data:
        tasks.task_weights = torch.tensor([0.5, 3.0, 0.0, 1.0, 0.25])
    expected = by_hand(copy.deepcopy(network), data)
    plain = by_hand(copy.deepcopy(network), [TaskBatch(*tasks.sets[0], *tasks.sets[1]) for tasks in data])
    assert not torch.allclose(expected[0], plain[0])
    module = MetaModule(network, maml(0.1, 2), accumulate_tasks=accumulate)
    run = trainer(tmp_path)
    run.fit(module, DataLoader(data, batch_size=None))
    assert_close(module, expected)
    (validated,) = run.validate(module, DataLoader(data[:1], batch_size=None), verbose=False)
    losses = evaluate(network, maml(0.1, 2), data[0], loss="mse").query_losses
    assert validated["val/loss"] == pytest.approx(losses[:, -1].mean().item(), rel=1e-5)


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_task_that_diverges_takes_its_weight_along_or_not(tmp_path: Any, policy: str) -> None:
    (tasks,), network = batches(dict, 1), Gated()
    tasks.task_weights = torch.tensor([0.5, 3.0, 0.0, 1.0, 0.25])
    rest = tasks.each(lambda value: value[[0, 2, 3, 4]])
    output = meta_loss(network, maml(0.1, 2), rest, loss="mse")
    expected = [gradient * (1.75 / 4.75 if policy == "zero" else 1.0) for gradient in output.gradients]
    tasks.query_targets[1] = 1e30
    before = [value.detach().clone() for value in network.parameters()]
    module = MetaModule(
        network, maml(0.1, 2), on_divergence=policy, optimizer=lambda given: torch.optim.SGD(given, 1.0)
    )
    with pytest.warns(UserWarning, match="1 of the 5 tasks of meta-update 0 diverged"):
        trainer(tmp_path).fit(module, DataLoader([tasks], batch_size=None))
    for was, ours, gradient in zip(before, network.parameters(), expected, strict=True):
        torch.testing.assert_close(was - ours.detach(), gradient, rtol=1e-4, atol=1e-6)
