"""Adam's division by a running root of squared gradients."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_maml.inner.base import At, Parameters, State


@dataclass(frozen=True)
class SecondMoment:
    r""":math:`g_k / (\sqrt{v_k / (1 - \beta_2^k)} + \epsilon)` with :math:`v_k = \beta_2 v_{k-1} + (1-\beta_2) g_k^2`.

    It has no second order: a root of a zero gradient has no slope.
    """

    beta2: float = 0.999
    eps: float = 1e-8
    second_order: ClassVar[bool] = False
    counts_steps: ClassVar[bool] = True

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        moments = {name: (1 - self.beta2) * gradient.square() for name, gradient in gradients.items()}
        if state:
            moments = {name: self.beta2 * state[name] + fresh for name, fresh in moments.items()}
        correction = 1 - self.beta2 ** (at.step + 1)
        made = {name: g / ((moments[name] / correction).sqrt() + self.eps) for name, g in gradients.items()}
        return made, moments
