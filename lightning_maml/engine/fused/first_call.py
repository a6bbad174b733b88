"""A kernel's first launch on a GPU, beside ``batched`` on the same tasks."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

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


Kind = tuple[Sequence[Tensor], float]
"""Tensors of a common scale, and what rounding leaves of any difference: a small step on large parameters."""


class KernelError(RuntimeError):
    """A kernel's numbers are not those of ``batched``."""


_agreed: set[Any] = set()
_differed: set[Any] = set()


def meta_gradient(engine: Engine, problem: Problem, *sets: Set) -> list[Kind]:
    """What a meta-gradient consists of."""
    output = engine.meta_loss(problem, TaskBatch(*(value for pair in sets for value in pair)))
    values = [output.task_losses], [output.predictions], [output.support_losses], output.gradients
    return [(each, 0.0) for each in values]


def adaptation(engine: Engine, problem: Problem, support: Set) -> list[Kind]:
    """What an adaptation consists of: support losses, and how far each step goes."""
    path = [*engine.trajectory(replace(problem, safeguard=False), support)]  # which would decide by the last bit
    kinds: list[Kind] = [([torch.stack([losses for _, losses in path])], 0.0)]
    for (before, _), (after, _) in pairwise(path):
        size = max((_largest(value) * torch.finfo(value.dtype).eps for value in after.values()), default=0.0)
        kinds.append(([after[name] - before[name] for name in after], 4 * size))
    return kinds


def agrees(
    variant: Any, precision: str, numbers: Callable[..., list[Kind]], engine: Engine, problem: Problem, *sets: Set
) -> bool:
    """Whether ``engine``'s kernel of a variant may run this call; where not, ``batched`` runs it, for once.

    A variant is compared once in a process, on the first tasks whose ``numbers`` are finite. A unit of ReLU whose sum
    is almost nought may be on in one and off in the other, so that a first difference decides nothing: it is told,
    ``batched`` runs that call, and the next one is compared again. A second one raises KernelError.
    """
    device = sets[0][0].device
    known = device, variant, numbers
    # a CUDA graph that is being recorded holds no comparison; its warm-up has had one
    if known in _agreed or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return True
    few = tuple((inputs[:TASKS], targets[:TASKS]) for inputs, targets in sets)
    nudged = tuple((_nudged(inputs), targets) for inputs, targets in few)
    back, found = way_back(device), []
    for one, data in ((engine, few), (Batched(), few), (Batched(), nudged)):
        found.append(numbers(one, problem, *data))
        back()
    ours, theirs, others = found
    if not all(_finite(values) for values, _ in (*theirs, *others)):
        return True
    allowed = [max(LIMITS[precision], AMPLIFIED * one) for one in map(_difference, others, theirs)]
    differences = zip(map(_difference, ours, theirs), allowed, strict=True)
    worst, most = max(differences, key=lambda pair: pair[0] / pair[1])
    if worst <= most:
        _agreed.add(known)
        return True
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    what = (
        f"a kernel of {engine!r} on {card} with torch {torch.__version__} is {worst:.1e} off "
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
    """The largest difference over the largest number; infinite where one of ``ours`` is not finite."""
    (values, _), (others, rounding) = ours, theirs
    if not _finite(values):
        return math.inf
    worst = max((_largest(one - other) for one, other in zip(values, others, strict=True)), default=0.0)
    return max(worst - rounding, 0.0) / (max(map(_largest, others), default=0.0) or 1.0)


def _finite(values: Sequence[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)
