"""The operator on the CPU, compiled: calls ``native.c``."""

import ctypes
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, room
from lightning_maml.kernels.compiler import Problem, addresses, failure, library_of, why_unavailable
from lightning_maml.kernels.mlp_adapt.layout import ACTIVATIONS, LOSSES, MOST_HIDDEN, Kind, size

SOURCE = Path(__file__).with_name("native.c")


class _Problem(Problem):
    constants: ClassVar = {"LAYERS": MOST_HIDDEN + 1, "ACTIVATIONS": ACTIVATIONS, "LOSSES": LOSSES}
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("tasks", "rows", "queries", "steps", "loss", "order")),
        *((name, ctypes.c_int64) for name in ("rates_grad", "rate_columns", "threads", "layers", "activation")),
        ("widths", ctypes.c_int64 * (MOST_HIDDEN + 2)),
        *((name, ctypes.c_void_p) for name in ("theta", "rates", "support_inputs", "query_inputs")),
        *((name, ctypes.c_void_p) for name in ("support_targets", "query_targets", *Adaptation._fields)),
    ]


def adapt(theta: Tensor, rates: Tensor, *batch: Any, kind: Kind) -> Adaptation:
    """As :func:`lightning_maml.kernels.mlp_adapt.recursion.adapt`.

    RuntimeError where there is no compiler, or it fails, or a label is out of range; MemoryError where there is no
    memory for the tasks of a thread.
    """
    support_inputs, support_targets, query_inputs, query_targets = batch
    widths, activation, loss, order, rates_grad = kind
    library = library_of(SOURCE, theta.dtype, _Problem)
    (tasks, rows), steps, out = support_inputs.shape[:2], len(rates), widths[-1]
    queries = 0 if query_inputs is None else query_inputs.shape[1]
    given = [
        None if value is None else value.contiguous()
        for value in (theta, rates, support_inputs, query_inputs, support_targets, query_targets)
    ]
    result = room(theta, rates, support_inputs, query_inputs, out, rates_grad)
    if not tasks:
        return Adaptation(*(value.zero_() for value in result))
    problem = _Problem(
        *(tasks, rows, queries, steps, LOSSES.index(loss), order, rates_grad, rates.shape[1]),
        *(torch.get_num_threads(), len(widths) - 1, ACTIVATIONS.index(activation)),
        (ctypes.c_int64 * (MOST_HIDDEN + 2))(*widths),
        *addresses([*given, *result]),
    )
    if failed := library.adapt(ctypes.byref(problem)):
        raise failure(
            failed,
            f"Class values must be smaller than num_classes: expected labels from 0 to {out - 1}.",
            f"No memory for {steps} steps of a network of {size(widths)} parameters.",
        )
    return result


def unavailable(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the operator cannot be compiled on this machine, or None; compiles it where that was not done before."""
    return why_unavailable(SOURCE, dtype, _Problem)
