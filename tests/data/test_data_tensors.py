"""Rows of tensors as tasks: which rows, unequal numbers of them, the split, training, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_maml import MetaModule, TaskBatch, maml
from lightning_maml.data import TensorTasks
from lightning_maml.tasks import UnequalTasks

EQUAL = torch.arange(60) % 10
UNEQUAL = torch.cat([EQUAL, EQUAL[EQUAL % 3 == 0]])


def tasks_of(task_index: Tensor, **options: Any) -> TensorTasks:
    """Inputs that are the number of their row, and targets that are that of their task."""
    rows = torch.arange(len(task_index), dtype=torch.float64).unsqueeze(1)
    targets = task_index.double().unsqueeze(1)
    return TensorTasks(
        rows, targets, task_index, **{"shots": 2, "tasks_per_batch": 4, "split": (0.6, 0.2, 0.2), **options}
    )


def groups(batch: TaskBatch | UnequalTasks) -> list[TaskBatch]:
    return batch.groups if isinstance(batch, UnequalTasks) else [batch]


@pytest.mark.parametrize("task_index", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_each_row_of_a_task_is_support_or_query(task_index: Tensor) -> None:
    stream, supports = tasks_of(task_index), []
    for position in range(3):
        batch = stream.sample("train", position)
        assert len(batch) == 4
        for group in groups(batch):
            assert group.support_inputs.shape[1:] == (2, 1)
            rows = torch.cat([group.support_inputs, group.query_inputs], 1).squeeze(-1).long()
            names = torch.cat([group.support_targets, group.query_targets], 1).squeeze(-1).long()
            assert torch.equal(task_index[rows], names)
            for of_task, name in zip(rows, names[:, 0], strict=True):
                assert of_task.sort().values.tolist() == (task_index == name).nonzero().flatten().tolist()
            supports += group.support_inputs.flatten(1).tolist()
    assert len({tuple(support) for support in supports}) > 6  # drawn anew


def test_stages_have_tasks_of_their_own_by_seed() -> None:
    names = {}
    for seed in (0, 1):
        stream = tasks_of(EQUAL, seed=seed, tasks_per_batch=6)
        names[seed] = {
            stage: {int(name) for group in groups(stream.sample(stage, 0)) for name in group.query_targets.flatten()}
            for stage in ("train", "val", "test")
        }
        assert [len(own) for own in names[seed].values()] == [6, 2, 2]
        assert set.union(*names[seed].values()) == set(range(10))
    assert names[0] != names[1]


def test_training_test_and_prediction() -> None:
    stream = tasks_of(EQUAL, shots=3)
    one = MetaModule(nn.Linear(1, 1, dtype=torch.float64), maml(lr=1e-5, steps=2), engine="batched")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_steps=2, precision="64-true", **quiet)
    trainer.fit(one, stream)
    assert trainer.global_step == 2
    outputs = trainer.predict(one, stream)
    assert sum(len(part) for batch in outputs or [] for part in (batch if isinstance(batch, list) else [batch])) == 2


X, Y = torch.zeros(60, 1), torch.zeros(60)
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no tensor": (([1, 2], Y, EQUAL), {}, "Expected `inputs` to be a tensor but got list."),
    "rows": (
        (X, Y[:59], EQUAL),
        {},
        "Expected as many rows in each tensor but got {'inputs': [60, 1], 'targets': [59], 'task_index': [60]}.",
    ),
    "index": (
        (X, Y, EQUAL.float()),
        {},
        "Expected `task_index` to be [M], a whole number (int64) for each row, but got torch.float32 [60].",
    ),
    "few": (
        (X, Y, EQUAL),
        {"shots": 6},
        "Expected more than `shots` = 6 rows of each task but got 6 of task 0: lower `shots`, or leave the task out.",
    ),
    "split": (
        (X, Y, EQUAL),
        {"shots": 1, "split": (1, 1, 1)},
        "Expected `split` to be three shares that add up to 1, as [0.7, 0.15, 0.15], but got [1, 1, 1].",
    ),
    "nothing to train on": (
        (X, Y, EQUAL),
        {"shots": 1, "split": (0.04, 0.48, 0.48)},
        "Expected tasks for training by the `split` [0.04, 0.48, 0.48] but there are 10 tasks.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_tensors_are_refused_in_one_line(case: str) -> None:
    tensors, options, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        TensorTasks(*tensors, **options)
