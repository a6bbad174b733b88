"""The whole inner loop of a multilayer perceptron and its exact meta-gradient, for all tasks at once."""

from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.mlp_adapt.layout import (
    ACTIVATIONS,
    LOSSES,
    MOST_HIDDEN,
    ON_CPU,
    ON_GPU,
    ON_NVIDIA,
    Limits,
    parameters_of,
    size,
)
from lightning_maml.kernels.mlp_adapt.op import PRECISIONS, limits, mlp_adapt, mlp_trajectory
