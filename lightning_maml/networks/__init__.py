"""The networks of the papers, and what some algorithms put into one: any other ``nn.Module`` does as well."""

from lightning_maml.networks.conv4 import Conv4
from lightning_maml.networks.layers import Context
from lightning_maml.networks.lora import LowRank, add_lora
from lightning_maml.networks.mlp import MLP
from lightning_maml.networks.resnet12 import ResNet12
from lightning_maml.networks.sine import Sine
from lightning_maml.networks.step_norm import StepBatchNorm2d, step_batch_norm

__all__ = ["MLP", "Context", "Conv4", "LowRank", "ResNet12", "Sine", "StepBatchNorm2d", "add_lora", "step_batch_norm"]
