"""Reptile: towards where the tasks went (Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999)."""

from dataclasses import dataclass

import torch

from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class Reptile:
    r"""``mean_t (theta - phi_m)`` in the place of a gradient: no query set, and no derivative of the inner loop.

    Plain SGD of rate epsilon outside makes of it the paper's
    :math:`\theta \leftarrow \theta + \epsilon \tfrac1T \sum_t (\phi_m - \theta)`. The query sets are only looked at:
    their losses are what is logged. Parameters that do not adapt, and learned rates, get zeros.
    """

    def __call__(self, loop: Loop) -> Query:
        theta = loop.initial()
        phi = {name: value.detach() for name, value in loop.unroll(order=1).items()}
        with torch.no_grad():
            query = loop.query(phi)
        products = [((value - phi[name]).detach() * value).sum() for name, value in theta.items()]
        along = torch.stack(products).sum() / len(query.task_losses)  # its gradient is theta - phi
        return query._replace(loss=query.loss.detach() + along - along.detach())
