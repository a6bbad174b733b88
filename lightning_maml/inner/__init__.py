"""How a task adapts: an inner loop and the parts it is made of."""

from lightning_maml.inner.adapts import Adapts, AllRows, ByName, MiniBatches, Part, head_names
from lightning_maml.inner.base import At, Holder, Parameters, Slope, State, Transformation, holders_in, tensors_of
from lightning_maml.inner.loop import SGD, Adam, InnerLoop, Parts
from lightning_maml.inner.rates import Curvature, LearnedRate, Rates, Scale, of_step
from lightning_maml.inner.start import FromMeta, Nothing, OneHead, Prototypes, Proximal, Start, Zeros
from lightning_maml.inner.transformations import (
    AddDecayed,
    ClipByNorm,
    Momentum,
    SecondMoment,
    SharpnessAware,
    Sign,
    Tolerance,
)

__all__ = [
    "SGD",
    "Adam",
    "Adapts",
    "AddDecayed",
    "AllRows",
    "At",
    "ByName",
    "ClipByNorm",
    "Curvature",
    "FromMeta",
    "Holder",
    "InnerLoop",
    "LearnedRate",
    "MiniBatches",
    "Momentum",
    "Nothing",
    "OneHead",
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
    "Zeros",
    "head_names",
    "holders_in",
    "of_step",
    "tensors_of",
]
