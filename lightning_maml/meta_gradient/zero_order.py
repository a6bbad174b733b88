"""Zeroth-order MAML: a meta-gradient of losses alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lightning_maml.checks import check_positive, check_seed, check_whole
from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class ZeroOrder:
    r"""Evolution strategies in the place of derivatives, with pairs of opposite directions (ES-MAML, algorithm 4).

    .. math:: \frac{1}{2 \sigma k} \sum_{i=1}^{k} \big(L_t(\theta + \sigma z_i) - L_t(\theta - \sigma z_i)\big) z_i,
              \quad z_i \sim N(0, I),

    where :math:`L_t` is the query loss of a task after its inner steps from there. It holds no graph, however many
    steps there are, and every inner loop will do, but it varies: as :math:`P / k`, of P parameters that adapt. Those
    that do not, and learned rates, get zeros. Song, Gao, Yang, Choromanski, Pacchiano, Tang 2020
    (https://arxiv.org/abs/1910.01215).

    Args:
        directions: k; each costs two adaptations.
        sigma: the length of a direction, against the parameters'.
        seed: of the directions, which are drawn anew in each meta-update.
        update: the number of the meta-update, counted from 0; ``Algorithm.at`` puts it here.

    Example:
        >>> from lightning_maml import SGD, Algorithm, ZeroOrder
        >>> Algorithm(SGD(0.1, 5), ZeroOrder(directions=32)).at(7).meta_gradient.update
        7
    """

    directions: int = 16
    sigma: float = 0.01
    seed: int = 0
    update: int = 0

    def __post_init__(self) -> None:
        check_whole(1, directions=self.directions)
        check_positive(sigma=self.sigma)
        check_seed(seed=self.seed)

    def at(self, update: int) -> ZeroOrder:
        return replace(self, update=update)

    def __call__(self, loop: Loop) -> Query:
        generator = torch.Generator().manual_seed((self.seed << 32) + self.update)
        theta, along = loop.initial(), []
        for _ in range(self.directions):
            z = {name: torch.randn(value.shape[1:], generator=generator).to(value) for name, value in theta.items()}
            forth, back = (
                _after(loop.elsewhere({name: value.detach()[0] + length * z[name] for name, value in theta.items()}))
                for length in (self.sigma, -self.sigma)
            )
            slope = (forth.task_losses - back.task_losses) / (2 * self.sigma)
            along.append(slope * sum((value * z[name]).flatten(1).sum(1) for name, value in theta.items()))
        query, towards = _after(loop), loop.mean(torch.stack(along).mean(0))
        return query._replace(loss=query.loss + towards - towards.detach())


def _after(loop: Loop) -> Query:
    """The query sets after the inner steps, without a graph."""
    phi = loop.unroll(order=1)
    with torch.no_grad():
        return loop.query({name: value.detach() for name, value in phi.items()})
