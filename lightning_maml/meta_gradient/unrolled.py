"""The rules that ask for the query sets once: after the inner steps (Finn et al. 2017), or without any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class Unrolled:
    """The exact ``d/dtheta mean_t L_query(phi_m(theta))``, second-order terms included (MAML's equation 1)."""

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.unroll(order=2))


@dataclass(frozen=True)
class FirstOrder:
    """``mean_t dL_query/dphi`` at ``phi_m`` (section 5.2): every ``dphi_(k+1)/dphi_k`` is the identity."""

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.unroll(order=1))


@dataclass(frozen=True)
class Joint:
    """``d/dtheta mean_t L_query(theta)``: the tasks share one network while training, and fine-tune it at test."""

    training_steps: ClassVar[int] = 0

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.initial())
