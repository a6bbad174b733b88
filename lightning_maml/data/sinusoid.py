"""Sinusoid regression (Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.1)."""

import math

import torch
from torch import Tensor

from lightning_maml.data.stream import Stage, TaskStream, sizes_of_stages
from lightning_maml.tasks import TaskBatch


class SinusoidTasks(TaskStream):
    """Tasks ``y = A sin(x - phase)``, with ``A``, ``phase`` and ``x`` uniform in the paper's intervals.

    The paper trains with 10 shots and tests with 5: ``shots=10, test_shots=5``. Arguments that are not described here
    are those of :class:`~lightning_maml.data.TaskStream`.

    Args:
        shots: support points of a training task.
        queries: query points of a training task.
        amplitude: the interval of ``A``.
        phase: the interval of ``phase``.
        inputs: the interval of ``x``.
        test_shots: support points in validation and test; None for ``shots``.
        test_queries: query points in validation and test: more of them judge an adapted network more precisely.

    Example:
        >>> tasks = SinusoidTasks(shots=5, tasks_per_batch=25).sample("train", 0)
        >>> tasks.support_inputs.shape, tasks.query_targets.shape
        (torch.Size([25, 5, 1]), torch.Size([25, 10, 1]))
    """

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        tasks_per_batch: int = 25,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, math.pi),
        inputs: tuple[float, float] = (-5.0, 5.0),
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        test_shots: int | None = None,
        test_queries: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks_per_batch, batches_per_epoch, val_tasks, test_tasks, seed)
        self.sizes = sizes_of_stages(shots=(shots, test_shots), queries=(queries, test_queries))
        for name, interval in (("amplitude", amplitude), ("phase", phase), ("inputs", inputs)):
            pair = isinstance(interval, tuple | list) and len(interval) == 2
            if not pair or not -math.inf < interval[0] <= interval[1] < math.inf:
                raise ValueError(f"Expected `{name}` to be an interval (low, high) but got {interval!r}.")
        self.amplitude, self.phase, self.inputs = amplitude, phase, inputs

    def draw(self, stage: Stage, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Amplitudes ``[T, 1, 1]``, phases ``[T, 1, 1]`` and inputs ``[T, Ns + Nq, 1]``."""
        intervals = ((1, self.amplitude), (1, self.phase), (sum(self.sizes[stage].values()), self.inputs))
        return tuple(
            torch.rand(tasks, rows, 1, generator=generator).mul_(high - low).add_(low)
            for rows, (low, high) in intervals
        )

    def build(self, stage: Stage, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        """Inputs and targets ``[T, N, 1]``."""
        amplitude, phase, inputs = (part.to(device) for part in drawn)
        targets = (inputs - phase).sin_().mul_(amplitude)
        sizes = [*self.sizes[stage].values()]
        (support, query), (of_support, of_query) = inputs.split(sizes, 1), targets.split(sizes, 1)
        return TaskBatch(support, of_support, query, of_query)
