"""The networks of the paper, as plain ``nn.Sequential``: any other ``nn.Module`` does as well."""

from lightning_maml.networks.conv4 import Conv4
from lightning_maml.networks.mlp import MLP

__all__ = ["MLP", "Conv4"]
