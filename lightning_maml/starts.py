"""The old place of :mod:`lightning_maml.inner.start`, which checkpoints and configurations may name."""

from lightning_maml.inner.start import Prototypes, Zeros

__all__ = ["Prototypes", "Zeros"]
