"""The operator ``sgd_update``: an inner step of all parameters of all tasks in one launch, on any network."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_maml.engine.fused.operator import rate_of, unpack_tasks
from lightning_maml.engine.loops.loop import TaskLoop
from lightning_maml.inner import Parameters, Slope, State
from lightning_maml.inner.base import norms

ROW = "row"


class FlatLoop(TaskLoop):
    """:class:`TaskLoop` that steps on one row of numbers a task, ``{ROW: [T, P]}``: parameters are views of it."""

    def start(self) -> Parameters:
        return {ROW: torch.cat([value.flatten() for value in self.theta.values()]).expand(self.tasks, -1)}

    def _path(self, order: int) -> Iterator[Parameters]:
        return map(self._named, super()._path(order))

    def _named(self, phi: Parameters) -> Parameters:
        return unpack_tasks(phi[ROW], {name: value.shape for name, value in self.theta.items()})

    def predict(self, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        return super().predict(self._named(phi) if ROW in phi else phi, inputs, step)

    def advance(self, phi: Parameters, slope: Slope, state: State, step: int, order: int) -> tuple[Parameters, State]:
        from lightning_maml.kernels.sgd_update import sgd_update

        gradient = slope(phi)
        parts, names = (*self.inner.parts.chain, *self.inner.parts.memory), ("factors", "factor", "mu")
        settings = {name: getattr(part, name) for part in parts for name in names if hasattr(part, name)}
        factors = settings["factors"](norms(gradient)) if "factors" in settings else None
        rate, decay = rate_of(self.inner, step, self.theta, self.theta.keys()), settings.get("factor", 0.0)
        rows = phi[ROW]
        known = rows.detach() if order == 1 and decay else rows  # what decays is a constant then, as the gradient is
        following, after = sgd_update(
            known,
            gradient[ROW],
            rate.reshape(()) if self.inner.shared_rates else rate,
            factors,
            weight_decay=decay,
            buffer=state if isinstance(state, Tensor) else None,
            momentum=settings.get("mu", 0.0),
        )
        if known is not rows:
            following = following + (rows - known)
        return {ROW: following}, () if after is None else after
