"""Argument checks shared by the operators."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_batch(batch: Sequence[Tensor], order: int) -> None:
    """Raise ValueError where there are other tasks in the query sets, ``batch[2:]``, or the order is not 1 or 2."""
    if order not in (1, 2):
        raise ValueError(f"Expected `order` to be 1 or 2 but got {order!r}.")
    if len({len(part) for part in batch[::2]}) > 1:
        raise ValueError(f"Expected as many query sets as support sets but got {len(batch[2])}.")


def check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    """Raise ValueError where an argument, ``name=(value, known)``, is none of those known."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise unknown(name, value, known)


def unknown(name: str, value: str, known: Sequence[str]) -> ValueError:
    """For an argument that is none of those known."""
    return ValueError(f"Expected `{name}` to be one of {known} but got {value!r}.")


def check_parameters(theta: Tensor, rates: Tensor, P: int, network: str) -> None:
    """Raise ValueError where ``theta`` is not ``[P]``, or ``rates`` neither ``[m, 1]`` nor ``[m, P]``."""
    if theta.shape != (P,) or rates.ndim != 2 or rates.shape[1] not in (1, P):
        raise ValueError(
            f"Expected `theta` [{P}] and `rates` [m, 1] or [m, {P}] for {network} but got {list(theta.shape)} and "
            f"{list(rates.shape)}."
        )


def check_targets(
    theta: Tensor, rates: Tensor, inputs: Tensor, targets: Tensor, outputs: int, loss: str, word: str
) -> None:
    """Raise ValueError where targets do not fit the inputs (``word``) ``[T, N, ...]``, or dtypes differ."""
    expected = tuple(inputs.shape[:2]) if loss == "cross_entropy" else (*inputs.shape[:2], outputs)
    if tuple(targets.shape) != expected:
        raise ValueError(
            f"Expected targets for {word} {list(inputs.shape)} and loss {loss!r} but got {list(targets.shape)}."
        )
    tensors = (theta, rates, inputs) if loss == "cross_entropy" else (theta, rates, inputs, targets)
    if len({tensor.dtype for tensor in tensors}) > 1 or theta.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Expected float32 or float64, the same everywhere, but got {[str(tensor.dtype) for tensor in tensors]}."
        )
    if loss == "cross_entropy" and targets.dtype != torch.int64:
        raise ValueError(f"Expected labels of torch.int64 but got {targets.dtype}.")
