"""Whole inner loops as one operator, and inner steps as one launch: Triton on a GPU, C or plain torch on the CPU."""

from lightning_maml.engine.fused.engine import Fused
from lightning_maml.engine.fused.first_call import KernelError

__all__ = ["Fused", "KernelError"]
