"""The operator ``sgd_update``: an inner step of all parameters of all tasks in one launch, on any network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lightning_maml.coverage import SGD_UPDATE, refused
from lightning_maml.engine.base import Problem
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.inner import Parameters, Slope, State, norms
from lightning_maml.tasks import Set

ROW = "row"


def flat_loop_refuses(problem: Problem, *sets: Set) -> str | None:
    """Why :class:`FlatLoop` does not run a problem, or None."""
    if (what := refused(problem.needs(*sets), SGD_UPDATE)) is not None:
        return f"{what}. Use engine='batched'."
    on_gpu = sets[0][0].device.type == "cuda"
    return "on a GPU it needs Triton, which is not installed." if on_gpu and find_spec("triton") is None else None


class FlatLoop(TaskLoop):
    """:class:`TaskLoop` that steps on one row of numbers a task, ``{ROW: [T, P]}``: parameters are views of it."""

    def start(self) -> Parameters:
        row = torch.cat([value.flatten() for value in self.theta.values()])
        return {ROW: row.expand(self.tasks, -1)}

    def _path(self, order: int) -> Iterator[Parameters]:
        return map(self._named, super()._path(order))

    def _named(self, phi: Parameters) -> Parameters:
        parts = phi[ROW].split([value.numel() for value in self.theta.values()], dim=1)
        named = zip(self.theta.items(), parts, strict=True)
        return {name: part.view(len(part), *value.shape) for (name, value), part in named}

    def predict(self, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        return super().predict(self._named(phi) if ROW in phi else phi, inputs, step)

    def advance(self, phi: Parameters, slope: Slope, state: State, step: int, order: int) -> tuple[Parameters, State]:
        from lightning_maml.kernels.sgd_update import sgd_update

        gradient = slope(phi)
        parts = self.inner.parts
        settings: dict[str, Any] = {}
        for part in (*parts.chain, *parts.memory):
            settings |= {name: getattr(part, name) for name in ("factors", "factor", "mu") if hasattr(part, name)}
        factors = settings["factors"](norms(gradient)) if "factors" in settings else None
        rows, buffer = phi[ROW], state if isinstance(state, Tensor) else None
        decay = settings.get("factor", 0.0)
        known = rows.detach() if order == 1 and decay else rows  # what decays is a constant then, as the gradient is
        following, after = sgd_update(
            known,
            gradient[ROW],
            self._rate(step, rows),
            factors,
            decay,
            buffer,
            settings.get("mu", 0.0),
        )
        if known is not rows:
            following = following + (rows - known)
        return {ROW: following}, () if after is None else after

    def _rate(self, step: int, like: Tensor) -> Tensor:
        """The rate of a step, ``[]`` where all parameters share it, or ``[P]``."""
        if self.inner.shared_rates:
            rate = self.inner.rate(next(iter(self.theta)), step)
            return torch.as_tensor(rate, dtype=like.dtype, device=like.device).reshape(())
        rates = [self.inner.rate(name, step) for name in self.theta]
        each = zip(rates, self.theta.values(), strict=True)
        return torch.cat([rate.to(like.dtype).expand(value.shape).flatten() for rate, value in each])  # type: ignore[union-attr]
