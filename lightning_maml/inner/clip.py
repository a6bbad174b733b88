"""Clipping of each task's gradient by its norm."""

from dataclasses import dataclass

from torch import Tensor

from lightning_maml.inner.base import At, Parameters, State, norms, scaled


@dataclass(frozen=True)
class ClipByNorm:
    """A gradient that is longer is shortened to this norm, all parameters together; the meta-gradient sees how."""

    max_norm: float

    def factors(self, lengths: Tensor) -> Tensor:
        """What gradients of norms ``[T]`` are multiplied by, ``[T]``, as ``clip_grad_norm_`` does."""
        return (self.max_norm / (lengths + 1e-6)).clamp(max=1.0)

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return scaled(gradients, self.factors(norms(gradients))), state
