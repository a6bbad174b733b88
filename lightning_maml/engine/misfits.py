"""Says what of network, tasks and loss does not fit together, once an engine has ended with an error."""

import contextlib
import traceback
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_maml.engine.base import Problem
from lightning_maml.engine.choice import first_sentence, of_torch, on_purpose
from lightning_maml.engine.functional.statistics import training_is
from lightning_maml.losses import TaskLoss


def misfit(problem: Problem, sets: tuple[Any, ...], error: Exception) -> Exception | None:
    """An error that says what to change, in the place of one that an engine ended with; None where that one stands.

    Network and loss are called once more, as they are written and for one task: where all is well nothing is checked.

    Args:
        problem: what ran.
        sets: inputs and targets ``[T, N, ...]`` of each set that it ran on; the targets are None in a prediction.
        error: what was raised.
    """
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or on_purpose(error):
        return None
    if "more than 1 value per channel" in str(error):
        return _too_few_rows(problem, sets)
    of_sets = zip(("", "query "), (problem.loss, problem.judge), sets, strict=False)
    # suppressed is what code raises that is neither ours nor torch's, which has said it already
    with contextlib.suppress(Exception), torch.enable_grad(), training_is(False, problem.modules):
        for name, loss, (inputs, targets) in of_sets:
            one = tree_map(itemgetter(0), inputs)
            found = _of_network(problem.network, one, name)
            if found is None and targets is not None:
                found = _of_loss(loss, problem.network, one, targets[0], error)
            if found is not None:
                return found
    return None


def _too_few_rows(problem: Problem, sets: tuple[Any, ...]) -> ValueError:
    inputs, targets = sets[0]
    rows = tree_leaves(inputs)[0].shape[1]
    is_query = targets is None or min(rows, problem.inner.batch_size or rows) > 1
    set_name, mode = ("query", "'support' or 'running'") if is_query else ("support", "'running'")
    return ValueError(
        f"Expected two {set_name} rows or more at once for the batch-norm layers of {type(problem.network).__name__}, "
        f"which go by the rows that they see, but got 1: use more rows, the algorithm's batch_norm={mode}, or another "
        "norm, such as nn.GroupNorm."
    )


def _of_network(network: nn.Module, inputs: Any, of_set: str) -> Exception | None:
    name = type(network).__name__
    if (refusal := _refusal(network, inputs)) is None:
        predictions = network(inputs)
        if isinstance(predictions, Tensor):
            return None
        return TypeError(
            f"Expected a network that returns its predictions [rows, ...] in one tensor but {name} returns a "
            f"{type(predictions).__name__}: wrap it in a module whose `forward` returns the predictions alone."
        )
    own = next((value.dtype for value in network.parameters() if value.is_floating_point()), None)
    others = {value.dtype for value in tree_leaves(inputs)} - {own}
    others = {dtype for dtype in others if dtype.is_floating_point} or others
    if own is not None and others:
        converted = tree_map(lambda value: value.to(own) if value.dtype in others else value, inputs)
        if _refusal(network, converted) is None:
            got = " and ".join(sorted(map(str, others)))
            return ValueError(
                f"Expected {of_set}inputs of {own}, as the parameters of {name} are, but got {got}: convert them by "
                f".to({own})."
            )
    return ValueError(
        f"Expected a network that takes {of_set}inputs {_rows(inputs)}, as the tasks have, but got {name}"
        f"{_innermost(network, refusal)} ({first_sentence(refusal)}): change the network or the tasks."
    )


def _of_loss(loss: TaskLoss, network: nn.Module, inputs: Any, targets: Tensor, error: Exception) -> Exception | None:
    predictions, function = network(inputs), loss.function
    own = getattr(function, "__name__", type(function).__name__)
    if "does not require grad" in str(error):
        if not predictions.requires_grad:
            return ValueError(
                f"Expected predictions with a gradient but those of {type(network).__name__} have none: its `forward` "
                "detaches them, or runs under `torch.no_grad()`."
            )
        return ValueError(
            f"Expected a `{loss.name}` with a gradient but that of {own} has none: compute it by torch from the "
            "predictions, without .item(), .detach() and `torch.no_grad()`."
        )
    if (refusal := _refusal(function, predictions, targets)) is None:
        return None
    return ValueError(
        f"Expected a `{loss.name}` that takes predictions {_rows(predictions)} of {predictions.dtype} and targets "
        f"{_rows(targets)} of {targets.dtype}, as the tasks have, but got {own} ({first_sentence(refusal)}): change "
        "the loss or the tasks."
    )


def _refusal(function: Callable[..., Any], *args: Any) -> Exception | None:
    """What torch, or the call itself, has against these arguments; what other code raises goes through."""
    try:
        function(*args)
    except Exception as error:
        frames = [*traceback.walk_tb(error.__traceback__)]
        if not of_torch(error) and not (isinstance(error, TypeError) and len(frames) == 1):
            raise
        return error
    return None


def _rows(values: Any) -> Any:
    """The shapes of one task's rows, ``[rows, ...]``."""
    return tree_map(lambda value: f"[{', '.join(['rows', *map(str, value.shape[1:])])}]", values)


def _innermost(network: nn.Module, refusal: Exception) -> str:
    """The layer whose forward raised, and what it was called with."""
    for frame, _ in reversed([*traceback.walk_tb(refusal.__traceback__)]):
        layer, arguments = frame.f_locals.get("self"), frame.f_code.co_varnames
        if frame.f_code.co_name != "forward" or not isinstance(layer, nn.Module):
            continue
        name = next((name for name, module in network.named_modules() if module is layer), "")
        got = frame.f_locals.get(arguments[1]) if len(arguments) > 1 else None
        shape = f" {list(got.shape)}" if isinstance(got, Tensor) else ""
        what = type(layer).__name__ if [*layer.children()] else str(layer)
        return f", whose layer `{name}`, {what}, refuses{shape}" if name else ""
    return ""
