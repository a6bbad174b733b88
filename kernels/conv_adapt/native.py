"""The operator on the CPU: calls ``native.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, room
from lightning_maml.kernels.compiler import Problem, addresses, failure, library_of, why_unavailable
from lightning_maml.kernels.conv_adapt.layout import MOST_BLOCKS, Network, in_row, in_rows, in_torchs_order

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

    RuntimeError without a compiler, or with a label out of range; MemoryError without memory for a thread's tasks.
    """
    library = library_of(SOURCE, theta.dtype, _Problem)
    (tasks, rows), steps, as_torch, block = support_inputs.shape[:2], len(rates), (theta, rates), library.block()
    queries = 0 if query_inputs is None else query_inputs.shape[1]
    theta, rates = in_rows(theta, rates, network, block)
    given = [
        None if value is None else value.contiguous()
        for value in (theta, rates, support_inputs, query_inputs, support_targets, query_targets)
    ]
    result = room(theta, rates, support_inputs, query_inputs, network.ways, rates_grad)
    kind = steps, LOSSES.index(loss), order, rates_grad, rates.shape[1]
    problem = _problem(network, (tasks, rows, queries), kind, [*given, *result])
    if not tasks:
        result = Adaptation(*(value.zero_() for value in result))
    elif failed := library.adapt(ctypes.byref(problem)):
        raise failure(
            failed,
            f"Class values must be smaller than num_classes: labels from 0 to {network.ways - 1}.",
            f"No memory for {steps} steps of a network of {network.size} parameters.",
        )
    return in_torchs_order(result, *as_torch, network, block)


def predict(phi: Tensor, inputs: Tensor, network: Network) -> Tensor:
    """Predictions ``[T, N, ways]`` of the tasks' own parameters ``[T, P]`` for images ``[T, N, C, H, W]``.

    Raises:
        RuntimeError, MemoryError: as :func:`adapt`.
    """
    library = library_of(SOURCE, phi.dtype, _Problem)
    given = in_row(phi, network, library.block()).contiguous(), inputs.contiguous()
    found = phi.new_empty(*inputs.shape[:2], network.ways)
    nothing = (None,) * (len(Adaptation._fields) - 2)
    arrays = [given[0], None, None, given[1], None, None, None, found, *nothing]
    problem = _problem(network, (len(phi), 0, inputs.shape[1]), (0, 0, 1, 0, 1), arrays)
    if len(phi) and (failed := library.predict(ctypes.byref(problem))):
        raise failure(failed, "", f"No memory for {inputs.shape[1]} images of a task.")
    return found


def _problem(network: Network, sizes: Sequence[int], kind: Sequence[int], arrays: Sequence[Tensor | None]) -> _Problem:
    steps, *others = kind
    return _Problem(
        *(*sizes, network.blocks, steps, *others, torch.get_num_threads()),
        *(network.channels, network.height, network.width, network.filters, network.stride, network.pool, network.norm),
        *(network.flat, network.ways, network.eps, *addresses(arrays)),
    )


def unavailable(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the operator cannot be compiled on this machine, or None; compiles it where that was not done before."""
    return why_unavailable(SOURCE, dtype, _Problem)
