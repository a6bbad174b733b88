"""What a task is judged by, and its mean over tasks with a 95% confidence interval."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

TaskMetric = Callable[[Tensor, Tensor], Tensor]


def accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """The share of rows of each task whose largest score is the target's class: scores ``[T, N, C]`` and class labels
    ``[T, N]`` to ``[T]``, between 0 and 1.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> accuracy(torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1, 2], [0, 0, 0]]))
        tensor([1.0000, 0.3333])
    """
    if predictions.ndim != 3 or predictions.shape[:2] != targets.shape:
        raise ValueError(
            "Expected `predictions` of shape [T, N, C] and `targets` of shape [T, N] but got "
            f"{list(predictions.shape)} and {list(targets.shape)}."
        )
    return (predictions.argmax(-1) == targets).mean(-1, dtype=torch.get_default_dtype())


def mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each task: ``[T, N, ...]`` and ``[T, N, ...]`` to ``[T]``.

    Raises:
        ValueError: the shapes differ (they would broadcast in silence).

    Example:
        >>> mse(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))
        tensor([1., 1.])
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            "Expected `predictions` and `targets` of the same shape but got "
            f"{list(predictions.shape)} and {list(targets.shape)}."
        )
    return (predictions - targets).square().flatten(1).mean(-1)


METRICS: dict[str, TaskMetric] = {"accuracy": accuracy, "mse": mse}


def resolve_metric(metric: str | TaskMetric | None, loss: Any) -> tuple[str, TaskMetric] | None:
    """The name and the function of a metric; ``None`` asks for the one that goes with the loss.

    Raises:
        ValueError: the name is unknown, or ``metric`` is no function.
    """
    if metric is None:
        return ("accuracy", accuracy) if loss == "cross_entropy" else None
    if isinstance(metric, str) and metric in METRICS:
        return metric, METRICS[metric]
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__).strip("<>")  # a lambda's is <lambda>
        if name == "loss":
            raise ValueError("Expected `metric` to have another name than 'loss', which the loss is logged under.")
        return name, metric
    raise ValueError(
        f"Expected `metric` to be one of {sorted(METRICS)}, a function (predictions [T, N, ...], targets [T, N, ...]) "
        f"-> [T], or None, but got {metric!r}."
    )


class Interval(NamedTuple):
    """A mean over tasks, the half-width of its 95% confidence interval, and how many tasks it was taken over."""

    mean: Tensor
    ci95: Tensor
    tasks: Tensor


class TaskMean(Metric):
    """Mean over tasks with the 95% interval ``1.96 * s / sqrt(T)``, ``s`` the sample deviation, as the papers report.

    Each task gives ``size`` values (one for each inner step, say), each of which has its own mean and interval.
    Kept as count, mean and sum of squared deviations in float64 and merged by the formula of Chan et al. (1979), so
    that neither many tasks nor a mean far from zero costs digits, and so that tasks split unevenly over processes
    (some with none) give what one process would have given.

    Raises:
        ValueError: ``size`` is not positive, or ``update`` gets anything but ``[T, size]``.

    Example:
        >>> mean = TaskMean(size=2)
        >>> mean.update(torch.tensor([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0]]))
        >>> mean.compute().mean
        tensor([ 2., 10.], dtype=torch.float64)
        >>> mean.compute().ci95
        tensor([1.1316, 0.0000], dtype=torch.float64)
    """

    full_state_update = False
    moments: Tensor

    def __init__(self, size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"Expected `size` to be a positive integer but got {size!r}.")
        self.size = size
        # One state for all three, as merging any of them needs the others.
        self.add_state("moments", torch.zeros(3, size, dtype=torch.float64), dist_reduce_fx=merge_moments)

    def update(self, values: Tensor) -> None:
        """Adds tasks: ``values`` of shape ``[T, size]``, or ``[T]`` where ``size`` is 1."""
        if values.ndim == 1 and self.size == 1:
            values = values.unsqueeze(1)
        if values.ndim != 2 or values.shape[1] != self.size:
            raise ValueError(f"Expected `values` of shape [T, {self.size}] but got {list(values.shape)}.")
        if len(values):
            values = values.detach().to(self.moments)  # float64 (see _apply), whatever the network's precision
            mean = values.mean(0)
            count = torch.full_like(mean, len(values))
            squares = (values - mean).square().sum(0)
            self.moments = merge_moments(torch.stack([self.moments, torch.stack([count, mean, squares])]))

    def compute(self) -> Interval:
        """Mean and interval, each ``[size]`` (a scalar where ``size`` is 1), in float64; NaN where there is too
        little to tell: no mean of no tasks, no interval of fewer than two.
        """
        count, mean, squares = self.moments
        deviation = (squares / (count - 1)).sqrt()  # of one task 0 / 0, and of none it is divided by 0 below
        return Interval(mean.where(count > 0, torch.nan), 1.96 * deviation / count.sqrt(), count[0].long())

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # A module moved to Apple's GPU (no float64) or converted to bfloat16 takes its metrics with it: pass through
        # float32 and come back where that is possible.
        self._to_dtype(torch.float32)
        super()._apply(fn, *args, **kwargs)
        self._to_dtype(torch.float32 if self.moments.device.type == "mps" else torch.float64)
        return self

    def _to_dtype(self, dtype: torch.dtype) -> None:
        self.moments = self.moments.to(dtype)
        self._defaults["moments"] = self._defaults["moments"].to(dtype)  # type: ignore[union-attr]


def merge_moments(parts: Tensor) -> Tensor:
    """Counts, means and sums of squared deviations: of disjoint parts, ``[P, 3, size]``, to all, ``[3, size]``."""
    counts, means, squares = parts.unbind(1)
    count = counts.sum(0)
    # A part of no tasks has weight 0; the clamp keeps 0 / 0 away when all are such.
    mean = (counts * means).sum(0) / count.clamp(min=1)
    return torch.stack([count, mean, (squares + counts * (means - mean).square()).sum(0)])
