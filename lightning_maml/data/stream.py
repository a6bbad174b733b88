"""Seeded streams of tasks: the data loaders hand out positions, the tasks are drawn on the training device."""

import hashlib
import math
from collections import UserList
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_maml import saving
from lightning_maml.checks import check_one_of, check_whole
from lightning_maml.tasks import TaskBatch

Stage = Literal["train", "val", "test", "predict"]


class Positions(NamedTuple):
    """Which training batches of a stream a step is to see: what the data loaders yield in place of tensors."""

    positions: tuple[int, ...]


class Evaluated(NamedTuple):
    """Which tasks of a fixed list a step of this process is to see: from ``first`` up to, but without, ``last``."""

    stage: Stage
    first: int
    last: int


class TaskStream(LightningDataModule):
    """A stream of tasks for any :class:`~lightning.pytorch.Trainer`; :meth:`sample` is a pure function of the seed.

    A subclass draws random numbers (:meth:`draw`, on the CPU: every device sees the same tasks) and makes tasks of them
    (:meth:`build`, on the device).

    - Training goes through positions 0, 1, 2, ... of the stream, from the number of meta-batches the trainer has
      completed, which every checkpoint holds: a resumed run, mid-epoch as well, sees the tasks a never-stopped one
      would. A module with ``updates_per_step = K > 1`` gets tuples of ``K`` task batches, for ``K`` optimiser steps.
    - Validation, test and prediction (of the test tasks, mostly) go by fixed lists, whatever ``tasks_per_batch`` is.
    - Under several processes each has its share of every training batch and of the fixed lists, to a task: each task
      comes exactly once, and all processes make as many steps.

    Args:
        tasks_per_batch: ``T``, tasks of a meta-batch, over all processes.
        batches_per_epoch: meta-batches that Lightning calls an epoch; the stream itself never ends.
        val_tasks: the number of validation tasks; 0 for no validation.
        test_tasks: the number of test tasks; 0 for no test.
        seed: makes the stream: same seed, same tasks.

    Example:
        >>> from lightning_maml.data import SinusoidTasks
        >>> stream = SinusoidTasks(tasks_per_batch=4, seed=1)
        >>> tasks, again = stream.sample("train", 7), stream.sample("train", 7)
        >>> len(tasks), torch.equal(tasks.query_inputs, again.query_inputs)
        (4, True)
    """

    def __init__(
        self,
        tasks_per_batch: int,
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_whole(1, tasks_per_batch=tasks_per_batch, batches_per_epoch=batches_per_epoch)
        check_whole(0, val_tasks=val_tasks, test_tasks=test_tasks, seed=seed)
        self.tasks_per_batch, self.batches_per_epoch = tasks_per_batch, batches_per_epoch
        self.val_tasks, self.test_tasks, self.seed = val_tasks, test_tasks, seed
        if val_tasks == 0:
            # as if there were no such method: Lightning then says that it skips validation, and does
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        *,
        allow: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The data of a checkpoint, where a subclass has saved its arguments; ``allow`` as of ``MetaModule``."""
        content = saving.read_checkpoint(checkpoint_path, map_location, weights_only is not False)
        config = saving.hyper_parameters(content, "datamodule_hyper_parameters", hparams_file)
        stream = saving.build(cls, config, kwargs, allow)
        if cls.__qualname__ in content:
            stream.load_state_dict(content[cls.__qualname__])
        return stream

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The random numbers that ``tasks`` tasks are made of, on the CPU: tensors ``[tasks, ...]``."""
        raise NotImplementedError

    def build(self, stage: Stage, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        """The tasks on ``device`` that :meth:`draw`, or a part of what it returned, stands for."""
        raise NotImplementedError

    def sample(
        self, stage: Stage, position: int, device: torch.device | str = "cpu", *, rank: int = 0, world_size: int = 1
    ) -> TaskBatch:
        """The meta-batch at ``position`` on ``device``, or the share of it that process ``rank`` of ``world_size`` has.

        A stage is ``"train"``, ``"val"`` or ``"test"``. Positions are 0, 1, 2, ...: in training without
        end, otherwise up to the last batch of the fixed list, which may be smaller than ``tasks_per_batch``.

        Raises:
            ValueError: ``stage``, ``position`` or ``rank`` is out of range.
        """
        if stage == "train":
            if position < 0:
                raise ValueError(f"Expected `position` to be 0 or more but got {position}.")
            start, stop = _share(self.tasks_per_batch, rank, world_size)
            drawn = self.draw(stage, self.tasks_per_batch, self._generator(stage, position))
            if world_size > 1:
                drawn = tuple(part[start:stop] for part in drawn)
            return self.build(stage, drawn, torch.device(device))
        check_one_of(("train", "val", "test"), stage=stage)
        tasks = self.val_tasks if stage == "val" else self.test_tasks
        batches = range(0, tasks, self.tasks_per_batch)
        if not 0 <= position < len(batches):
            raise ValueError(f"Expected `position` to be one of the {len(batches)} {stage} batches but got {position}.")
        first = batches[position]
        start, stop = _share(min(self.tasks_per_batch, tasks - first), rank, world_size)
        return self._evaluation_batch(Evaluated(stage, first + start, first + stop), device)

    def _evaluation_batch(self, tasks: Evaluated, device: torch.device | str) -> TaskBatch:
        stage, first, last = tasks
        # each task from a generator of its own: the list stays the same for every size of batch
        each = [self.draw(stage, 1, self._generator(stage, task)) for task in range(first, last)]
        return self.build(stage, tuple(torch.cat(parts) for parts in zip(*each, strict=True)), torch.device(device))

    def _generator(self, stage: Stage, position: int) -> torch.Generator:
        # The Mersenne Twister takes 32 bits of seed. Stepping through them by an odd number cannot repeat itself within
        # 2^32 positions, where hashed seeds would from some 60,000 on.
        digest = hashlib.blake2b(f"{self.seed}/{stage}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed((int.from_bytes(digest) + position * 0x9E3779B1) % 2**32)

    # What Lightning asks for

    def train_dataloader(self) -> Any:
        """Positions of the stream, ``updates_per_step`` of them in each training step."""
        self.check_processes(self._processes[1])
        return _TrainingSteps(self)

    def check_processes(self, number: int) -> None:
        """Raise ValueError where there are fewer tasks in a meta-batch than processes, of which each needs one."""
        if self.tasks_per_batch < number:
            least = f"at least the number of processes, {number}, of which each needs a task"
            raise ValueError(f"Expected `tasks_per_batch` to be {least}, but got {self.tasks_per_batch}.")

    def val_dataloader(self) -> Any:
        """Places in the fixed list of validation tasks."""
        return self._evaluation_steps("val", self.val_tasks)

    def test_dataloader(self) -> Any:
        """Places in the fixed list of test tasks, which are those of prediction, too."""
        return self._evaluation_steps("test", self.test_tasks)

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Draws the tasks at the positions that the data loader yielded, in the trainer's precision."""
        # Lightning converts what the data loader yields, before there are any tensors here.
        convert = self.trainer.precision_plugin.convert_input if self.trainer else lambda tasks: tasks
        if isinstance(batch, Evaluated):
            return convert(self._evaluation_batch(batch, device))
        if not isinstance(batch, Positions):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        rank, world_size = self._processes
        each = (self.sample("train", at, device, rank=rank, world_size=world_size) for at in batch.positions)
        tasks = tuple(map(convert, each))
        return tasks if self._updates_per_step > 1 else tasks[0]

    def _evaluation_steps(self, stage: Stage, tasks: int, size: int | None = None) -> Any:
        (rank, world_size), size = self._processes, size or self.tasks_per_batch
        if tasks == 0:
            raise ValueError(f"Expected some {stage} tasks to go through but this stream has none.")
        self.check_processes(world_size)
        if tasks < world_size:
            raise ValueError(f"Expected at least as many {stage} tasks as processes, {world_size}, but got {tasks}.")
        # As many steps on every process: in each, DDP sends the buffers of a network from one to all.
        at_once = size // world_size
        steps = min(math.ceil(math.ceil(tasks / world_size) / at_once), tasks // world_size)
        start, stop = _share(tasks, rank, world_size)
        bounds = [*range(start, stop, at_once), stop]
        if len(bounds) != steps + 1:
            bounds = [start + (stop - start) * step // steps for step in range(steps + 1)]
        # Lightning would take a bare list for a list of data loaders.
        return UserList(Evaluated(stage, first, last) for first, last in pairwise(bounds))

    @property
    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _updates_per_step(self) -> int:
        return getattr(self.trainer.lightning_module, "updates_per_step", 1) if self.trainer else 1


class _TrainingSteps:
    """One epoch of training steps, from where the trainer stands: there is nothing for a torch DataLoader to load."""

    def __init__(self, stream: TaskStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return math.ceil(self.stream.batches_per_epoch / self.stream._updates_per_step)

    def __iter__(self) -> Iterator[Positions]:
        # The counters are read at the first batch: at the call of iter() Lightning has yet to bring them in order.
        step, position, updates = 0, 0, self.stream._updates_per_step
        if trainer := self.stream.trainer:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            step = progress.current.completed
            # Manual optimisation counts its updates, even of a training step that max_steps cut short.
            position = progress.total.completed if updates == 1 else trainer.global_step
            if trainer.overfit_batches:  # type: ignore[attr-defined]
                position = step * updates
        for done in range(step * updates, self.stream.batches_per_epoch, updates):
            count = min(updates, self.stream.batches_per_epoch - done)
            yield Positions(tuple(range(position, position + count)))
            position += count

    # Lightning warns of loaders without these two, which cannot continue mid-epoch; here the trainer's counters do.

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def sizes_of_stages(**sizes: tuple[int, int | None]) -> dict[Stage, dict[str, int]]:
    """How large tasks are in each stage, from ``name=(in training, in validation and test; None for the same)``.

    Raises:
        ValueError: a size is not a whole number of at least 1.
    """
    training = {name: size for name, (size, _) in sizes.items()}
    test = {name: size if other is None else other for name, (size, other) in sizes.items()}
    check_whole(1, **training, **{f"test_{name}": size for name, size in test.items()})
    return {"train": training, "val": test, "test": test}


def _share(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of ``count`` tasks that process ``rank`` has: first and last + 1."""
    if not 0 <= rank < world_size:
        raise ValueError(f"Expected `rank` to be one of the {world_size} processes but got {rank}.")
    return count * rank // world_size, count * (rank + 1) // world_size
