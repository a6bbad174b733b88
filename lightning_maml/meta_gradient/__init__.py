"""How the outer gradient is formed. A rule receives the inner loop, and never imports it."""

from lightning_maml.meta_gradient.base import Annealed, Loop, MetaGradient, Query, training_steps
from lightning_maml.meta_gradient.implicit import Implicit
from lightning_maml.meta_gradient.multi_step import MultiStep
from lightning_maml.meta_gradient.unrolled import FirstOrder, Joint, Reptile, Unrolled
from lightning_maml.meta_gradient.zero_order import ZeroOrder

__all__ = [
    "Annealed",
    "FirstOrder",
    "Implicit",
    "Joint",
    "Loop",
    "MetaGradient",
    "MultiStep",
    "Query",
    "Reptile",
    "Unrolled",
    "ZeroOrder",
    "training_steps",
]
