"""The operator on the CPU, compiled: calls ``native.c`` or ``wide.c``."""

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, room
from lightning_maml.kernels.compiler import Problem, addresses, failure, library_of, why_unavailable
from lightning_maml.kernels.mlp_adapt.layout import LOSSES, ON_CPU, Kind, size

ACTIVATIONS, MOST_LAYERS = ON_CPU.activations, ON_CPU.hidden + 1

SOURCE = Path(__file__).with_name("native.c")
"""A task in each lane of a vector."""
WIDE = Path(__file__).with_name("wide.c")
"""A task's products at a time."""


class _Problem(Problem):
    constants: ClassVar = {"LAYERS": MOST_LAYERS, "ACTIVATIONS": ACTIVATIONS, "LOSSES": LOSSES}
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("tasks", "rows", "queries", "steps", "loss", "order")),
        *((name, ctypes.c_int64) for name in ("rates_grad", "rate_columns", "threads", "layers", "activation")),
        ("widths", ctypes.c_int64 * (MOST_LAYERS + 1)),
        ("frequencies", ctypes.c_double * MOST_LAYERS),
        *((name, ctypes.c_void_p) for name in ("theta", "rates", "support_inputs", "query_inputs")),
        *((name, ctypes.c_void_p) for name in ("support_targets", "query_targets", *Adaptation._fields)),
    ]


def adapt(
    theta: Tensor,
    rates: Tensor,
    *batch: Any,
    kind: Kind,
    frequencies: Sequence[float] = (),
    source: Path | None = None,
) -> Adaptation:
    """As :func:`lightning_maml.kernels.mlp_adapt.recursion.adapt`, by a ``source``, or the one that is faster.

    RuntimeError where there is no compiler, or it fails, or a label is out of range; MemoryError where there is no
    memory for the tasks of a thread.
    """
    support_inputs, support_targets, query_inputs, query_targets = batch
    widths, activation, loss, order, rates_grad = kind
    (tasks, rows), steps, out = support_inputs.shape[:2], len(rates), widths[-1]
    queries = 0 if query_inputs is None else query_inputs.shape[1]
    mean_rows = (rows + queries) / (2 if queries else 1)
    library = library_of(source or faster(tuple(widths), tasks, mean_rows, theta.dtype), theta.dtype, _Problem)
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
        *((ctypes.c_int64 * (MOST_LAYERS + 1))(*widths), (ctypes.c_double * MOST_LAYERS)(*frequencies)),
        *addresses([*given, *result]),
    )
    if failed := library.adapt(ctypes.byref(problem)):
        raise failure(
            failed,
            f"Class values must be smaller than num_classes: expected labels from 0 to {out - 1}.",
            f"No memory for {steps} steps of a network of {size(widths)} parameters.",
        )
    return result


@lru_cache(256)
def faster(widths: tuple[int, ...], tasks: int, rows: float, dtype: torch.dtype) -> Path:
    """The source that runs a problem in less time, by what was measured (README.md); ``rows`` are a set's.

    It does not look at the number of threads: the bits of a result do not depend on it.
    """
    lanes = library_of(SOURCE, dtype, _Problem).lanes()
    filled = size(widths) / sum(math.ceil(out / lanes) * lanes for out in widths[1:])
    equal = math.sqrt(filled * rows / 10)  # so many tasks of wide.c take as long as the lanes of native.c
    return WIDE if tasks < math.ceil(tasks / lanes) * equal else SOURCE


def unavailable(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the operator cannot be compiled on this machine, or None; compiles it where that was not done before."""
    return why_unavailable(SOURCE, dtype, _Problem) or why_unavailable(WIDE, dtype, _Problem)
