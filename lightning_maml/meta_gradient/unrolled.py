"""The exact meta-gradient, through every inner step (MAML, Finn et al. 2017, equation 1)."""

from dataclasses import dataclass

from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class Unrolled:
    """``d/dtheta mean_t L_query(phi_m(theta))``, second-order terms included."""

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.unroll(order=2))
