"""Numbers of the training steps since the last logged one."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Keeps what training steps report, and makes no number of it until it is asked."""

    def __init__(self) -> None:
        self.training_steps, self.warned, self.collected_at = 0, False, 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets all but the number of training steps."""
        lists: tuple[list[Tensor], ...] = ([], [], [], [])
        self.losses, self.support_losses, self.metrics, self.gradient_norms = lists
        self.diverged = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begins to measure speed anew, after something that is no training."""
        self.tasks, self.since = 0, time.monotonic()

    def add(self, tasks: int, losses: Tensor, support_losses: Tensor, metric: Tensor | None) -> None:
        """Adds a meta-update of ``tasks``: of the finite ones losses, support losses ``[T', steps + 1]``, metric."""
        self.tasks += tasks
        self.diverged += tasks - len(losses)
        if len(losses):
            self.losses.append(losses)
            self.support_losses.append(support_losses)
            if metric is not None:
                self.metrics.append(metric)

    def show_due(self) -> bool:
        """Whether the progress bar, which shows what is collected, should get numbers again, and there are some."""
        return bool(self.losses) and time.monotonic() - self.collected_at > 0.5

    def collect(self, names: Iterable[str], sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> Any:
        """``{name: value}``: means over the finite tasks, of this process or of all."""
        self.collected_at = time.monotonic()
        speed = self.tasks / max(self.collected_at - self.since, 1e-9)
        sums = torch.tensor([0, 0, 0, 0, sum(map(len, self.losses)), self.diverged, speed], dtype=torch.float64)
        if self.losses:
            parts = [torch.cat(self.losses).sum(), *torch.cat(self.support_losses)[:, [0, -1]].sum(0)]
            parts += [torch.cat(self.metrics).sum()] if self.metrics else []
            sums[: len(parts)] = torch.stack(parts).double().cpu()
        if sum_over_processes is not None:
            sums = sum_over_processes(sums)
        loss, before, after, metric = sums[:4] / sums[4]
        values = dict(zip(names, (loss, metric), strict=False))
        values |= {"support_loss_before": before, "support_loss_after": after, "diverged_tasks": sums[5]}
        if self.gradient_norms:
            values["meta_gradient_norm"] = torch.stack(self.gradient_norms).mean()
        values["tasks_per_second"] = sums[6]
        return values
