"""The whole inner loop of a convolutional network and its exact meta-gradient, for all tasks at once."""

from lightning_maml.kernels.conv_adapt.layout import MOST_BLOCKS, Network, parameters_of
from lightning_maml.kernels.conv_adapt.native import predict
from lightning_maml.kernels.conv_adapt.op import LOSSES, MOST_WAYS, PRECISIONS, conv_adapt, conv_trajectory

__all__ = [
    "LOSSES",
    "MOST_BLOCKS",
    "MOST_WAYS",
    "PRECISIONS",
    "Network",
    "conv_adapt",
    "conv_trajectory",
    "parameters_of",
    "predict",
]
