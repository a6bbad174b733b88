"""Losses of one task, evaluated for all tasks of a batch at once."""

from collections.abc import Callable, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.inner import Holder, holders_in

Loss = str | Callable[[Tensor, Tensor], Tensor]
"""``"mse"``, ``"cross_entropy"``, or a callable ``(predictions [N, ...], targets [N, ...]) -> scalar`` of one task."""


class TaskLoss:
    """The mean loss of each task: ``(predictions [T, N, ...], targets [T, N, ...]) -> [T]``."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], name: str = "loss") -> None:
        self.function, self.name = function, name

    @cached_property
    def holders(self) -> tuple[Holder, ...]:
        """The tensors and modules that it computes with, which may ask for a gradient."""
        return tuple(holders_in(self.function))

    @property
    def kind(self) -> Any:
        """What an engine has to know: the name of a loss that has one, else the function or the class."""
        if type(self) is not TaskLoss:
            return {MeanSquaredError: "mse", CrossEntropy: "cross_entropy"}.get(type(self), type(self))
        if self.function is F.binary_cross_entropy_with_logits:
            return "bce"
        return self.function if isinstance(self.function, FunctionType) else type(self.function)

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The losses ``[T]``."""
        if len(predictions) == 1:  # as the function is written: vmap refuses some
            loss = self.function(predictions[0], targets[0])
            if not isinstance(loss, Tensor):
                got = f"{type(loss).__name__}: compute it by torch, without .item()"
                raise TypeError(f"Expected `loss` to return a scalar tensor for each task but got {got}.")
            losses = loss.unsqueeze(0)
        else:
            losses = torch.func.vmap(self.function, randomness="different")(predictions, targets)
        if losses.shape != predictions.shape[:1]:
            got = f"shape {list(losses.shape[1:])} for predictions of shape {list(predictions.shape[1:])}"
            raise ValueError(f"Expected `{self.name}` to return one scalar for each task but got {got}.")
        return losses

    def check_shapes(self, predictions: Sequence[int], targets: Tensor) -> None:
        """Raise ValueError where predictions of a shape ``[T, N, ...]`` and targets do not fit each other."""

    def check_values(self, classes: int, targets: Tensor) -> None:
        """Raise ValueError where targets are out of range; ``classes`` is the last dimension of the predictions."""


class MeanSquaredError(TaskLoss):
    """Mean squared error over the rows and outputs of a task."""

    def __init__(self, name: str = "loss") -> None:
        super().__init__(F.mse_loss, name)

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).square().flatten(1).mean(1)

    def check_shapes(self, predictions: Sequence[int], targets: Tensor) -> None:
        if tuple(predictions) != targets.shape:  # [N, 1] would broadcast against [N], and train on the wrong thing
            got = f"targets {list(targets.shape)} and predictions {list(predictions)} ([tasks, rows, ...])"
            if targets.ndim == 2 and len(predictions) == 3:
                labels = f"class labels need `{self.name}='cross_entropy'`"
                got += f": {'use targets.unsqueeze(-1)' if targets.is_floating_point() else labels}"
            wanted = f"targets of the predictions' shape for `{self.name}='mse'`"
            raise ValueError(f"Expected {wanted} but got {got}.")


class CrossEntropy(TaskLoss):
    """Mean cross-entropy over the rows of a task, from logits ``[T, N, C]`` and labels ``[T, N]``."""

    def __init__(self, name: str = "loss") -> None:
        super().__init__(F.cross_entropy, name)

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(1)

    def check_shapes(self, predictions: Sequence[int], targets: Tensor) -> None:
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise ValueError(
                f"Expected integer class labels for `{self.name}='cross_entropy'` but got {targets.dtype}: convert "
                f"labels by .long(), and of numbers use `{self.name}='mse'`."
            )
        if len(predictions) != 3 or targets.shape != tuple(predictions[:2]):
            wanted = f"logits [tasks, rows, classes] and labels [tasks, rows] for `{self.name}='cross_entropy'`"
            raise ValueError(f"Expected {wanted} but got {list(predictions)} and {list(targets.shape)}.")

    def check_values(self, classes: int, targets: Tensor) -> None:
        if targets.device.type != "cpu":  # would wait for the device; torch asserts there by itself
            return
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            wanted = f"labels from 0 to {classes - 1}, as the network has {classes} outputs,"
            raise ValueError(f"Expected {wanted} but got labels from {low} to {high}.")


def task_loss(loss: Loss, name: str = "loss") -> TaskLoss:
    """The loss of a name, or of a callable, for all tasks at once; ``name`` is the argument's, for messages.

    ``F.mse_loss`` and ``F.cross_entropy`` are taken as the names they stand for; any other callable runs under
    :func:`torch.func.vmap`. ValueError where a name is unknown, TypeError where ``loss`` is neither, or a class.

    Example:
        >>> task_loss("mse")(torch.zeros(3, 10, 1), torch.full((3, 10, 1), 2.0))
        tensor([4., 4., 4.])
    """
    if isinstance(loss, TaskLoss):
        return loss
    if loss == "mse" or loss is F.mse_loss:
        return MeanSquaredError(name)
    if loss == "cross_entropy" or loss is F.cross_entropy:
        return CrossEntropy(name)
    if isinstance(loss, str) or not callable(loss):
        error = ValueError if isinstance(loss, str) else TypeError
        raise error(f"Expected `{name}` to be one of ['cross_entropy', 'mse'] or a callable but got {loss!r}.")
    if isinstance(loss, type):
        raise TypeError(f"Expected `{name}` to be a function or module but got a class: make one, {loss.__name__}().")
    return TaskLoss(loss, name)


def query_task_loss(loss: Loss | None) -> TaskLoss | None:
    """As :func:`task_loss`, what query sets are judged by; None where that is what tasks adapt by."""
    return None if loss is None else task_loss(loss, "query_loss")
