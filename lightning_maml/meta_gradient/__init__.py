"""How the outer gradient is formed. A rule receives the inner loop, and never imports it: one rule a file."""

from lightning_maml.meta_gradient.base import Loop, MetaGradient, Query
from lightning_maml.meta_gradient.first_order import FirstOrder
from lightning_maml.meta_gradient.joint import Joint
from lightning_maml.meta_gradient.unrolled import Unrolled

__all__ = ["FirstOrder", "Joint", "Loop", "MetaGradient", "Query", "Unrolled"]
