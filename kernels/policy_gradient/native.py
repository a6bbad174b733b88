"""The operator on the CPU: calls ``native.c``."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lightning_maml.kernels.compiler import Problem, addresses, failure, library_of, why_unavailable
from lightning_maml.kernels.mlp_adapt.layout import MOST_HIDDEN, ON_CPU

SOURCE = Path(__file__).with_name("native.c")
ACTIVATIONS = ON_CPU.activations
"""``lanes.h`` has a case for each; the operator has those without frequencies."""
DISTRIBUTIONS = ("gaussian", "categorical")
KINDS = ("log_probability", "ratio")


class _Problem(Problem):
    constants: ClassVar = {
        "LAYERS": MOST_HIDDEN + 1,
        "ACTIVATIONS": ACTIVATIONS,
        "DISTRIBUTIONS": DISTRIBUTIONS,
        "KINDS": KINDS,
    }
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("tasks", "rows", "distribution", "kind", "threads")),
        *((name, ctypes.c_int64) for name in ("layers", "activation")),
        ("widths", ctypes.c_int64 * (MOST_HIDDEN + 2)),
        ("frequencies", ctypes.c_double * (MOST_HIDDEN + 1)),
        *((name, ctypes.c_void_p) for name in ("phi", "direction", "observations", "weights", "old_log_probs")),
        *((name, ctypes.c_void_p) for name in ("actions", "result")),
    ]


def run(
    phi: Tensor,
    direction: Tensor | None,
    observations: Tensor,
    actions: Tensor,
    weights: Tensor,
    old_log_probs: Tensor,
    widths: Sequence[int],
    activation: str,
    distribution: str,
    kind: str,
) -> Tensor:
    """The gradient ``[T, P]``; with a ``direction [T, P]`` the product of each task's Hessian and direction.

    RuntimeError where there is no compiler, or it fails, or an action is out of range; MemoryError where there is no
    memory for the tasks.
    """
    library = library_of(SOURCE, phi.dtype, _Problem)
    result = torch.empty_like(phi, memory_format=torch.contiguous_format)
    if not len(phi):
        return result
    values = [
        None if value is None else value.contiguous()
        for value in (phi, direction, observations, weights, old_log_probs, actions)
    ]
    problem = _Problem(
        *(*weights.shape, DISTRIBUTIONS.index(distribution), KINDS.index(kind), torch.get_num_threads()),
        *(len(widths) - 1, ACTIVATIONS.index(activation), (ctypes.c_int64 * (MOST_HIDDEN + 2))(*widths)),
        (ctypes.c_double * (MOST_HIDDEN + 1))(),
        *addresses([*values, result]),
    )
    if failed := library.adapt(ctypes.byref(problem)):
        raise failure(
            failed,
            f"Expected actions from 0 to {widths[-1] - 1} but some are out of range.",
            f"No memory for {len(phi)} tasks of {phi.shape[1]} parameters.",
        )
    return result


def unavailable(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the operator cannot be compiled on this machine, or None; compiles it where that was not done before."""
    return why_unavailable(SOURCE, dtype, _Problem)


def lanes(dtype: torch.dtype = torch.float32) -> int:
    """How many tasks run at once, where the operator is available: fewer take as long."""
    return int(library_of(SOURCE, dtype, _Problem).lanes())
