"""What a task is judged by, and its mean over tasks with a 95% confidence interval."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_maml.checks import check_whole
from lightning_maml.tasks import exact

TaskMetric = Callable[[Tensor, Tensor], Tensor]


def accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """The share of each task's rows whose largest score is the target's, ``[T]``.

    From scores ``[T, N, C]`` and class labels ``[T, N]``; ValueError where these shapes do not fit.

    Example:
        >>> accuracy(torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1, 2], [0, 0, 0]]))
        tensor([1.0000, 0.3333])
    """
    if predictions.ndim != 3 or predictions.shape[:2] != targets.shape:
        shapes = f"{list(predictions.shape)} and {list(targets.shape)}"
        raise ValueError(f"Expected `predictions` of shape [T, N, C] and `targets` of shape [T, N] but got {shapes}.")
    return (predictions.argmax(-1) == targets).mean(-1, dtype=torch.get_default_dtype())


def mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each task, ``[T]``, of two ``[T, N, ...]``; ValueError where these shapes differ.

    Example:
        >>> mse(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))
        tensor([1., 1.])
    """
    if predictions.shape != targets.shape:  # they would broadcast in silence
        shapes = f"{list(predictions.shape)} and {list(targets.shape)}"
        raise ValueError(f"Expected `predictions` and `targets` of the same shape but got {shapes}.")
    return (predictions - targets).square().flatten(1).mean(-1)


METRICS: dict[str, TaskMetric] = {"accuracy": accuracy, "mse": mse}


def resolve_metric(metric: str | TaskMetric | None, loss: Any) -> tuple[str, TaskMetric] | None:
    """The name and the function of a metric; ``None`` asks for the one that goes with the loss.

    ValueError where the name is unknown, or ``metric`` no function.
    """
    if metric is None:
        return ("accuracy", accuracy) if loss == "cross_entropy" else None
    if isinstance(metric, str) and metric in METRICS:
        return metric, METRICS[metric]
    if callable(metric) and not isinstance(metric, type):
        name = getattr(metric, "__name__", type(metric).__name__).strip("<>")  # a lambda's is <lambda>
        if name == "loss":
            raise ValueError("Expected `metric` to have another name than 'loss', which the loss is logged under.")
        return name, metric
    raise ValueError(
        f"Expected `metric` to be one of {sorted(METRICS)}, a function (predictions [T, N, ...], targets [T, N, ...]) "
        f"-> [T], or None, but got {metric!r}."
    )


def judged(metric: tuple[str, TaskMetric], predictions: Tensor, targets: Tensor) -> Tensor:
    """The values ``[T]`` of a metric and its name; ValueError where it returns anything else."""
    values = metric[1](predictions, targets)
    if not isinstance(values, Tensor) or values.shape != predictions.shape[:1]:
        got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        wanted = f"one value for each of {len(predictions)} tasks, [{len(predictions)}],"
        raise ValueError(f"Expected `metric` {metric[0]!r} to return {wanted} but got {got}.")
    return values


class Interval(NamedTuple):
    """A mean over tasks, the half-width of its 95% confidence interval, and what a mean may hide.

    ``of_others`` is the mean without one task, where that one is more than half of the sum of all magnitudes; else NaN.
    """

    mean: Tensor
    ci95: Tensor
    median: Tensor
    of_others: Tensor
    tasks: Tensor  # how many it was taken over


class TaskMean(Metric):
    """Mean over tasks with the 95% interval ``1.96 * s / sqrt(T)``, ``s`` the sample deviation, as the papers report.

    Each task gives ``size`` values (one for each inner step, say), each of which has its own mean, interval and median.
    All values are kept, in float64, so that tasks split unevenly over processes (some with none) give what one process
    would have given. In a median NaN counts as infinite.

    Example:
        >>> mean = TaskMean(size=2)
        >>> mean.update(torch.tensor([[1.0, 10.0], [2.0, 10.0], [9.0, 10.0]]))
        >>> mean, ci95, median, of_others, tasks = mean.compute()
        >>> mean.tolist(), median.tolist(), of_others.tolist()  # 9 of 12 are one task's
        ([4.0, 10.0], [2.0, 10.0], [1.5, nan])
        >>> ci95
        tensor([4.9326, 0.0000], dtype=torch.float64)
    """

    full_state_update = False
    values: list[Tensor] | Tensor

    def __init__(self, size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_whole(1, size=size)
        self.size = size
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Adds tasks: ``values [T, size]``, or ``[T]`` where ``size`` is 1; ValueError where they are anything else."""
        if values.ndim == 1 and self.size == 1:
            values = values.unsqueeze(1)
        if values.ndim != 2 or values.shape[1] != self.size:
            raise ValueError(f"Expected `values` of shape [T, {self.size}] but got {list(values.shape)}.")
        assert isinstance(self.values, list)  # a tensor only while processes are put together
        self.values.append(values.detach().to(exact(values.device)))

    def compute(self) -> Interval:
        """Each ``[size]``, in float64; NaN where there is too little to tell: no task, or one alone for an interval."""
        values = self._all()
        tasks, nothing = len(values), values.new_full((self.size,), torch.nan)
        if tasks == 0:
            return Interval(nothing, nothing, nothing, nothing, torch.tensor(0))
        mean = values.mean(0)
        spread = (values - mean).square().sum(0)
        ci95 = 1.96 * (spread / (tasks - 1) / tasks).sqrt() if tasks > 1 else nothing
        ordered = values.sort(0).values  # NaN behind all others
        median = (ordered[(tasks - 1) // 2] + ordered[tasks // 2]) / 2
        magnitudes = values.abs().nan_to_num(torch.inf, torch.inf)
        largest = magnitudes.argmax(0, keepdim=True)
        others = values.scatter(0, largest, 0.0)
        alone = magnitudes.gather(0, largest)[0] > others.abs().sum(0)
        return Interval(mean, ci95, median, (others.sum(0) / (tasks - 1)).where(alone, torch.nan), torch.tensor(tasks))

    def _all(self) -> Tensor:
        """The values of all tasks, ``[T, size]``."""
        empty = torch.empty(0, self.size, dtype=exact(self.device), device=self.device)
        return torch.cat([empty, *([self.values] if isinstance(self.values, Tensor) else self.values)])

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        self.values = [self._all()]  # what a process without tasks brings has a shape, too
        super()._sync_dist(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # a module that moves to Apple's GPU takes its metrics with it
        self.values = [value.float() for value in self.values]
        super()._apply(fn, *args, **kwargs)
        self.values = [value.to(exact(value.device)) for value in self.values]
        return self
