"""Tasks that are rows of one table: a few of a task's rows, drawn anew each time, are its support."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_maml.checks import check_whole
from lightning_maml.data.stream import Evaluated, Stage, TaskStream
from lightning_maml.tasks import TaskBatch, UnequalTasks


class Rows(NamedTuple):
    """The rows of each task, of which there may be different numbers."""

    padded: Tensor  # [tasks, most], the rows of each, then zeros
    counts: Tensor  # [tasks]

    @classmethod
    def of(cls, tasks: Sequence[Tensor]) -> "Rows":
        """From the rows of each task."""
        padded = torch.nn.utils.rnn.pad_sequence(list(tasks), batch_first=True) if tasks else torch.empty(0, 0)
        return cls(padded.long(), torch.tensor([len(rows) for rows in tasks], dtype=torch.int64))


class RowTasks(TaskStream):
    """A stream of tasks that are rows of two tensors. Subclasses have the rows' :attr:`data`.

    ``shots`` of a task's rows are its support and its others queries; which, is drawn anew in each training batch, and
    fixed in validation and test. In prediction the rows with a target are the support, the others the queries. Tasks of
    a training batch are distinct, where there are as many. Where their numbers of rows differ, a batch is
    :class:`~lightning_maml.tasks.UnequalTasks`.

    Args:
        rows: the rows with a target of each task of ``"train"``, ``"val"`` and ``"test"``, more than ``shots`` of each.
        to_predict: the support rows and the rows to predict of each task that has any to predict.
        shots: support rows of a task.
        tasks_per_batch, batches_per_epoch, seed: as of :class:`~lightning_maml.data.TaskStream`.
    """

    def __init__(
        self,
        rows: Mapping[Stage, Sequence[Tensor]],
        to_predict: Sequence[tuple[Tensor, Tensor]],
        shots: int,
        tasks_per_batch: int,
        batches_per_epoch: int,
        seed: int,
    ) -> None:
        super().__init__(tasks_per_batch, batches_per_epoch, len(rows["val"]), len(rows["test"]), seed)
        check_whole(1, shots=shots)
        self.shots = shots
        self.rows = {stage: Rows.of(tasks) for stage, tasks in rows.items()}
        self.to_predict = list(to_predict)
        self._placed: tuple[Tensor, Tensor] | None = None  # the data, on the device that asked for it last

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs ``[M, ...]`` and targets ``[M, ...]`` of all rows; a row without a target has any."""
        raise NotImplementedError

    @property
    def predict_tasks(self) -> int:
        """The number of tasks with rows to predict."""
        return len(self.to_predict)

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Which tasks ``[T]``, and a number for each of their rows ``[T, most]``, by which these are ordered."""
        number, most = self.rows[stage].padded.shape
        chosen = torch.randperm(number, generator=generator)
        if tasks > number:
            chosen = torch.randint(number, (tasks,), generator=generator)
        return chosen[:tasks], torch.rand(tasks, most, generator=generator)

    def build(self, stage: Stage, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        """The rows of each task in the order drawn, the first ``shots`` of them as its support."""
        tasks, keys = drawn
        padded, counts = self.rows[stage]
        counts = counts[tasks]
        order = keys.masked_fill(torch.arange(keys.shape[1]) >= counts.unsqueeze(1), 2.0).argsort(1)
        picks = padded[tasks].gather(1, order)
        chosen = ((count, picks[counts == count]) for count in counts.unique().tolist())
        return self._gather(((rows[:, : self.shots], rows[:, self.shots : count]) for count, rows in chosen), device)

    def _gather(self, groups: Iterable[tuple[Tensor, Tensor]], device: torch.device | str) -> TaskBatch:
        """The tasks with these support and query rows, ``[T, Ns]`` and ``[T, Nq]`` of each group."""
        device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are one
        if self._placed is None or self._placed[0].device != device:
            self._placed = (self.data[0].to(device), self.data[1].to(device))
        inputs, targets = self._placed
        moved = (tuple(rows.to(device, non_blocking=True) for rows in group) for group in groups)
        made = [TaskBatch(inputs[s], targets[s], inputs[q], targets[q]) for s, q in moved]
        return made[0] if len(made) == 1 else UnequalTasks(made)  # type: ignore[return-value]

    def _evaluation_batch(self, tasks: Evaluated, device: torch.device | str) -> TaskBatch:
        stage, first, last = tasks
        if stage == "predict":
            return self._gather(self._groups(first, last), device)
        most = self.rows[stage].padded.shape[1]
        keys = [torch.rand(1, most, generator=self._generator(stage, task)) for task in range(first, last)]
        return self.build(stage, (torch.arange(first, last), torch.cat(keys)), torch.device(device))

    def _groups(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Support and query rows, ``[T, Ns]`` and ``[T, Nq]``, of tasks to predict: those of equal numbers together."""
        pairs = self.to_predict[first:last]
        for sizes in dict.fromkeys((len(support), len(query)) for support, query in pairs):
            alike = [pair for pair in pairs if (len(pair[0]), len(pair[1])) == sizes]
            yield torch.stack([support for support, _ in alike]), torch.stack([query for _, query in alike])

    def predicted_rows(self) -> Iterator[Tensor]:
        """The rows of each batch's predictions, ``[T, Nq]`` for each part of it, as ``predict_dataloader`` has them."""
        for batch in self.predict_dataloader():
            for _, query in self._groups(batch.first, batch.last):
                yield query

    def predict_dataloader(self) -> Any:
        """Positions of the tasks that have rows to predict."""
        return self._evaluation_steps("predict", self.predict_tasks)
