"""First-order MAML: the inner gradients are taken as constants (Finn et al. 2017, section 5.2)."""

from dataclasses import dataclass

from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class FirstOrder:
    """``mean_t dL_query/dphi`` at ``phi_m``: every ``dphi_(k+1)/dphi_k`` is the identity."""

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.unroll(order=1))
