"""The operator on the CPU: calls ``native.c``."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.compiler import Problem, failure, load
from lightning_maml.kernels.conv_adapt.layout import MOST_BLOCKS, Network, places_of

__all__ = ["adapt", "unavailable"]

SOURCE = Path(__file__).with_name("native.c")
LOSSES = ("mse", "cross_entropy")


class _Problem(Problem):
    constants: ClassVar = {"LAYERS": MOST_BLOCKS, "LOSSES": LOSSES}
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("tasks", "rows", "queries", "layers", "steps", "loss", "order")),
        *((name, ctypes.c_int64) for name in ("rates_grad", "rate_columns", "threads")),
        *((name, ctypes.c_int64) for name in ("channels", "height", "width", "hidden", "stride", "pool", "norm")),
        *((name, ctypes.c_int64) for name in ("flat", "ways")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("theta", "rates", "support_inputs", "query_inputs")),
        *((name, ctypes.c_void_p) for name in ("support_targets", "query_targets", *Adaptation._fields)),
    ]


def adapt(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor | None,
    query_targets: Tensor | None,
    network: Network,
    loss: str,
    order: int,
    rates_grad: bool,
) -> Adaptation:
    """As the operator (``op.py``); without a query set, the trajectory ``[T, m, P]`` and the support losses alone.

    Raises:
        RuntimeError: there is no compiler, or it fails, or a label is out of range.
        MemoryError: no memory for the tasks of a thread.
    """
    library = load(SOURCE, theta.dtype, _Problem)
    if isinstance(library, str):
        raise RuntimeError(f"Expected to compile `conv_adapt` but {library}.")
    there, back = places_of(network, library.block())
    tasks, steps, shared, original = len(support_inputs), len(rates), rates.shape[1] == 1, theta
    # what native.c has weights for and the network has not stays as it is, by a rate of 0
    elementwise = not shared or not (network.affine if network.norm else network.bias)
    theta = _behind(theta, 0, 1)[there]
    if elementwise:
        rates = _behind(rates.expand(steps, network.size), 0, 0)[:, there]
    support_inputs, support_targets = _channels_last(support_inputs), support_targets.contiguous()
    nothing = theta.new_empty(0)
    support_losses = theta.new_empty(tasks, steps + 1)
    queries = 0
    if query_inputs is None or query_targets is None:
        trajectory = theta.new_empty(tasks, steps, len(theta))
        result = Adaptation(nothing, nothing, support_losses, nothing, nothing, trajectory)
    else:
        queries = query_inputs.shape[1]
        query_inputs, query_targets = _channels_last(query_inputs), query_targets.contiguous()
        outputs = theta.new_empty(tasks), theta.new_empty(tasks, queries, network.ways)
        of_rates = torch.empty_like(rates) if rates_grad else nothing
        result = Adaptation(*outputs, support_losses, torch.empty_like(theta), of_rates, nothing)
    rates = rates.contiguous()
    pointers = [
        None if value is None else value.data_ptr()
        for value in (theta, rates, support_inputs, query_inputs, support_targets, query_targets)
    ]
    problem = _Problem(
        *(tasks, support_inputs.shape[1], queries, network.blocks, steps, LOSSES.index(loss), order),
        *(rates_grad, rates.shape[1], torch.get_num_threads()),
        *(network.channels, network.height, network.width, network.filters, network.stride, network.pool, network.norm),
        *(network.flat, network.ways, network.eps, *pointers, *(value.data_ptr() for value in result)),
    )
    if not tasks:
        result = Adaptation(*(value.zero_() for value in result))
    elif failed := library.adapt(ctypes.byref(problem)):
        raise failure(
            failed,
            f"Class values must be smaller than num_classes: labels from 0 to {network.ways - 1}.",
            f"No memory for {steps} steps of a network of {network.size} parameters.",
        )
    if queries:
        of_rates = result.of_rates
        if rates_grad and elementwise:
            of_rates = _behind(of_rates, 0)[:, back]
            of_rates = of_rates.sum(1, keepdim=True) if shared else of_rates
        return result._replace(of_theta=_behind(result.of_theta, 0)[back], of_rates=of_rates)
    stays = back == len(there)  # the biases that batch-norm takes away
    return result._replace(trajectory=torch.where(stays, original, _behind(result.trajectory, 0)[..., back]))


def unavailable(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the operator cannot be compiled on this machine, or None; compiles it where that was not done before."""
    library = load(SOURCE, dtype, _Problem)
    return library if isinstance(library, str) else None


def _behind(values: Tensor, *numbers: int) -> Tensor:
    """``[..., n]`` -> ``[..., n + len(numbers)]``."""
    return torch.cat([values, values.new_tensor(numbers, dtype=values.dtype).expand(*values.shape[:-1], -1)], -1)


def _channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 1, 3, 4, 2).contiguous()
