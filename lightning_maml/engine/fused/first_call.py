"""A kernel's first launch on a GPU, beside ``batched`` on the same tasks."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_maml.engine.base import Engine, Problem
from lightning_maml.engine.generators import way_back
from lightning_maml.engine.loops.batched import Batched
from lightning_maml.tasks import Set, TaskBatch

CHECKED_ON = {"cuda"}
"""Kinds of devices of which no test has seen every model and driver."""
TASKS = 8
"""How many tasks of a meta-batch are compared: enough to tell, and little beside a meta-batch that fills a GPU."""
LIMITS = {"ieee": 1e-3, "tf32": 0.5, "bf16": 1.0}
"""The largest difference by precision, relative to the largest number of its kind. Where products have 11 or 8 bits,
what is right is up to 0.09 and 0.3 off on the sinusoid, and only what is wholly wrong is noticed."""
NUDGE, AMPLIFIED = 1e-6, 10.0
"""Where a relative change of the inputs by NUDGE makes a larger one, a kernel may differ by AMPLIFIED times that."""


class Kind(NamedTuple):
    """Tensors of a common scale."""

    values: Sequence[Tensor]
    rounding: float = 0.0
    """What is left of any difference: of a small step on large parameters, their last bits."""


class KernelError(RuntimeError):
    """A kernel's numbers are not those of ``batched``."""


_agreed: set[Any] = set()
_differed: set[Any] = set()


def meta_gradient(engine: Engine, problem: Problem, *sets: Set) -> list[Kind]:
    """What a meta-gradient consists of."""
    output = engine.meta_loss(problem, TaskBatch(*(value for pair in sets for value in pair)))
    values = [output.task_losses], [output.predictions], [output.support_losses], output.gradients
    return [Kind(each) for each in values]


def adaptation(engine: Engine, problem: Problem, support: Set) -> list[Kind]:
    """What an adaptation consists of: support losses, and how far each step goes."""
    path = [*engine.trajectory(replace(problem, safeguard=False), support)]  # which would decide by the last bit
    kinds = [Kind([torch.stack([losses for _, losses in path])])]
    for (before, _), (after, _) in pairwise(path):
        size = max((_largest(value) * torch.finfo(value.dtype).eps for value in after.values()), default=0.0)
        kinds.append(Kind([after[name] - before[name] for name in after], 4 * size))
    return kinds


def agrees(
    variant: Any, precision: str, numbers: Callable[..., list[Kind]], engine: Engine, problem: Problem, *sets: Set
) -> bool:
    """Whether this call is the kernel's to run; where not, ``batched`` runs it, for once.

    A variant is compared once in a process, on the first tasks whose numbers are finite. A unit of ReLU whose sum is
    almost nought may be on in one and off in the other, so that a first difference decides nothing: it is told,
    ``batched`` runs that call, and the next one is compared again.

    Args:
        variant: what the kernel was compiled for.
        precision: of its products, see :data:`LIMITS`.
        numbers: :func:`meta_gradient` or :func:`adaptation`.
        engine: the one that launches the kernel, without this check.
        problem, sets: what it is to run.

    Raises:
        KernelError: it differs for the second time.
    """
    device = sets[0][0].device
    known = device, variant, numbers
    if device.type not in CHECKED_ON or known in _agreed or _is_recording(device):
        return True
    few = tuple((inputs[:TASKS], targets[:TASKS]) for inputs, targets in sets)
    nudged = tuple((_nudged(inputs), targets) for inputs, targets in few)
    back, found = way_back(device), []
    for one, data in ((engine, few), (Batched(), few), (Batched(), nudged)):
        found.append(numbers(one, problem, *data))
        back()
    ours, theirs, others = found
    if not all(bool(value.isfinite().all()) for kinds in (theirs, others) for kind in kinds for value in kind.values):
        return True
    allowed = [
        max(LIMITS[precision], AMPLIFIED * _difference(one, two)) for one, two in zip(others, theirs, strict=True)
    ]
    excess, most, worst = max(
        (difference / most, most, difference)
        for difference, most in zip(map(_difference, ours, theirs), allowed, strict=True)
    )
    if excess <= 1:
        _agreed.add(known)
        return True
    what = (
        f"a kernel of {engine!r} on {_name(device)} with torch {torch.__version__} is {worst:.1e} off "
        f"engine='batched', relative to the largest number of its kind, where {most:.0e} is allowed: {variant}"
    )
    if known in _differed:
        raise KernelError(
            f"{what[0].upper()}{what[1:]}. engine='batched' runs this problem. Please report this line to the "
            "project's issues. `verify=False` of the engine leaves the comparison out."
        )
    _differed.add(known)
    warnings.warn(f"Engine='batched' ran this call, since {what}. The next call is compared again.", stacklevel=2)
    return False


def _nudged(inputs: Tensor) -> Tensor:
    """Every other number a little larger; whole numbers as they are."""
    if not inputs.is_floating_point():
        return inputs
    signs = torch.arange(inputs[0].numel(), device=inputs.device).view(inputs.shape[1:]) % 2
    return inputs * (1 + NUDGE * signs).to(inputs.dtype)


def _largest(value: Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _difference(ours: Kind, theirs: Kind) -> float:
    """The largest difference over the largest number; infinite where one is not finite."""
    pairs = [*zip(ours.values, theirs.values, strict=True)]
    if not all(bool(one.isfinite().all()) for one, _ in pairs):
        return float("inf")
    worst = max((_largest(one - other) for one, other in pairs), default=0.0) - theirs.rounding
    return max(worst, 0.0) / (max(map(_largest, theirs.values), default=0.0) or 1.0)


def _is_recording(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded, which holds no comparison; its warm-up has had one."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
