"""MAML++'s meta-gradient: a loss at every inner step, and an order of derivatives, that change as training goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch

from lightning_maml.checks import check_not_negative
from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class MultiStep:
    r"""``d/dtheta mean_t sum_k w_k L_query(phi_k(theta))`` over the parameters after inner steps k = 1 .. m.

    .. math:: w_k = \tfrac{1 - p}{m} \; (k < m), \quad w_m = \tfrac{1 + (m - 1) p}{m}, \quad
              p = \min(1, \text{update} / \text{multi\_step\_updates})

    The weights start equal and end at the last step alone, where the rule is :class:`Unrolled` (Antoniou, Edwards,
    Storkey 2019, section 4; the authors' code keeps a floor of 0.03 / m under the early ones while it anneals).

    Args:
        multi_step_updates: the meta-updates that this takes; 0 switches the multi-step loss off, None never anneals it.
        first_order_updates: the meta-updates at the beginning that are of :class:`FirstOrder`.
        update: the number of the meta-update, counted from 0; ``Algorithm.at`` puts it here.

    Example:
        >>> MultiStep(multi_step_updates=10).at(5).weights(steps=4)
        [0.125, 0.125, 0.125, 0.625]
    """

    multi_step_updates: int | None = 0
    first_order_updates: int = 0
    update: int = 0

    def __post_init__(self) -> None:
        check_not_negative(first_order_updates=self.first_order_updates, update=self.update)
        check_not_negative(multi_step_updates=self.multi_step_updates or 0)

    def at(self, update: int) -> MultiStep:
        return replace(self, update=update)

    @property
    def order(self) -> Literal[1, 2]:
        """1 where inner gradients are taken as constants, 2 where they are differentiated."""
        return 1 if self.update < self.first_order_updates else 2

    def weights(self, steps: int) -> list[float]:
        """The weights of the query losses after inner steps 1 to ``steps``; they sum to 1."""
        until = inf if self.multi_step_updates is None else self.multi_step_updates
        progress = min(1.0, self.update / until) if until else 1.0
        return [(1 - progress) / steps] * (steps - 1) + [(1 + (steps - 1) * progress) / steps]

    def __call__(self, loop: Loop) -> Query:
        if self.multi_step_updates is not None and self.update >= self.multi_step_updates:
            return loop.query(loop.unroll(self.order))
        start, *path = loop.path(self.order)
        if not path:
            return loop.query(start)
        queries = [loop.query_after(phi, step) for step, phi in enumerate(path, start=1)]
        weighted = [weight * query.loss for weight, query in zip(self.weights(len(path)), queries, strict=True)]
        return queries[-1]._replace(loss=torch.stack(weighted).sum())
