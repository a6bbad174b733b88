"""The gradient of a policy-gradient loss for all tasks' perceptrons, differentiable once: on the CPU, compiled."""

from lightning_maml.kernels.policy_gradient.native import DISTRIBUTIONS, KINDS
from lightning_maml.kernels.policy_gradient.op import LIMITS, policy_gradient
