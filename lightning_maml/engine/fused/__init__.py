"""Whole inner loops as one operator, and inner steps as one launch: Triton on a GPU, C or plain torch on the CPU."""

from lightning_maml.engine.fused.engine import Fused

__all__ = ["Fused"]
