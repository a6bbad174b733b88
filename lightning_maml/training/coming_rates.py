"""The learning rates of the steps to come, which a recording of several of them takes along."""

from copy import deepcopy
from typing import Any

from torch.optim import Optimizer, lr_scheduler

SCHEDULERS = {
    lr_scheduler.ChainedScheduler,
    lr_scheduler.ConstantLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
    lr_scheduler.ExponentialLR,
    lr_scheduler.LambdaLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.SequentialLR,
    lr_scheduler.StepLR,
}
"""Those that change rates and nothing else of an optimiser, by how many steps there were."""


def coming_rates(optimizer: Optimizer, scheduler: Any, steps: int) -> list[list[float]] | None:
    """The rates of the next steps, ``[steps][groups]``, with optimiser and scheduler left as they are.

    None where the scheduler, or one inside of it, is none of :data:`SCHEDULERS`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))], lr=1.0)
        >>> scheduler = lr_scheduler.StepLR(optimizer, 2, 0.5)
        >>> optimizer.step()
        >>> coming_rates(optimizer, scheduler, 4)
        [[1.0], [1.0], [0.5], [0.5]]
        >>> optimizer.param_groups[0]["lr"]
        1.0
    """
    now = [group["lr"] for group in optimizer.param_groups]
    if scheduler is None:
        return [now] * steps
    if not _known(scheduler):
        return None
    before, rates = deepcopy(scheduler.state_dict()), [now]
    try:
        for _ in range(steps - 1):
            scheduler.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
    finally:
        scheduler.load_state_dict(before)
        for group, rate in zip(optimizer.param_groups, now, strict=True):
            group["lr"] = rate
    return rates


def _known(scheduler: Any) -> bool:
    return type(scheduler) in SCHEDULERS and all(map(_known, getattr(scheduler, "_schedulers", ())))
