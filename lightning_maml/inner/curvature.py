"""Learned matrices that multiply the gradient."""

from dataclasses import dataclass

from lightning_maml.inner.base import At, Parameters, State
from lightning_maml.inner.rates import Rates


@dataclass(frozen=True)
class Curvature:
    """Meta-Curvature's matrices, which :class:`Rates` of the kind ``"curvature"`` hold (Park, Oliva 2019)."""

    rates: Rates

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return {name: self.rates.direction(name, gradient) for name, gradient in gradients.items()}, state
