"""Rules of one line: through every inner step, past all of them, or with none; and Reptile, towards where they led."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class Unrolled:
    """``d/dtheta mean_t L_query(phi_m(theta))``, second-order terms included (MAML, Finn et al. 2017, equation 1)."""

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.unroll(order=2))


@dataclass(frozen=True)
class FirstOrder:
    """``mean_t dL_query/dphi`` at ``phi_m``: every ``dphi_(k+1)/dphi_k`` is the identity (the same, section 5.2)."""

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.unroll(order=1))


@dataclass(frozen=True)
class Joint:
    """``d/dtheta mean_t L_query(theta)``: the tasks share one network while training, and fine-tune it at test."""

    training_steps: ClassVar[int] = 0

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.initial())


@dataclass(frozen=True)
class Reptile:
    r"""``mean_t (theta - phi_m)`` in the place of a gradient: no query set, and no derivative of the inner loop.

    Plain SGD of rate epsilon outside makes of it the :math:`\theta + \epsilon \tfrac1T \sum_t (\phi_m - \theta)` of
    Nichol, Achiam, Schulman (2018, https://arxiv.org/abs/1803.02999). The query sets' losses are only logged.
    Parameters that do not adapt, and learned rates, get zeros.
    """

    def __call__(self, loop: Loop) -> Query:
        theta = loop.initial()
        phi = {name: value.detach() for name, value in loop.unroll(order=1).items()}
        with torch.no_grad():
            query = loop.query(phi)
        moved = ((value - phi[name]).detach() * value for name, value in theta.items())
        products = [each.reshape(len(each), -1).sum(1) for each in moved]
        along = loop.mean(torch.stack(products).sum(0))  # its gradient is theta - phi
        return query._replace(loss=query.loss.detach() + along - along.detach())
