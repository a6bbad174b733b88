"""How a task adapts: an inner loop and the parts it is made of."""

from lightning_maml.inner.adapts import Adapts, Everything, Matching, Part, Where, head_names
from lightning_maml.inner.base import (
    At,
    Holder,
    Parameters,
    Slope,
    State,
    Transformation,
    holders_in,
    norms,
    scaled,
    tensors_of,
)
from lightning_maml.inner.clip import ClipByNorm
from lightning_maml.inner.curvature import Curvature
from lightning_maml.inner.decay import AddDecayed
from lightning_maml.inner.loop import SGD, Adam, InnerLoop, Parts
from lightning_maml.inner.momentum import Momentum
from lightning_maml.inner.pull import Nothing, Proximal, Tolerance
from lightning_maml.inner.rates import LearnedRate, Rates, Scale, of_step
from lightning_maml.inner.rows import AllRows, MiniBatches
from lightning_maml.inner.second_moment import SecondMoment
from lightning_maml.inner.sharpness import SharpnessAware
from lightning_maml.inner.sign import Sign
from lightning_maml.inner.start import FromMeta, Prototypes, Start, Zeros

__all__ = [
    "SGD",
    "Adam",
    "Adapts",
    "AddDecayed",
    "AllRows",
    "At",
    "ClipByNorm",
    "Curvature",
    "Everything",
    "FromMeta",
    "Holder",
    "InnerLoop",
    "LearnedRate",
    "Matching",
    "MiniBatches",
    "Momentum",
    "Nothing",
    "Parameters",
    "Part",
    "Parts",
    "Prototypes",
    "Proximal",
    "Rates",
    "Scale",
    "SecondMoment",
    "SharpnessAware",
    "Sign",
    "Slope",
    "Start",
    "State",
    "Tolerance",
    "Transformation",
    "Where",
    "Zeros",
    "head_names",
    "holders_in",
    "norms",
    "of_step",
    "scaled",
    "tensors_of",
]
