"""Sharpness-aware steps: the gradient is taken uphill from where the task is."""

from dataclasses import dataclass

from lightning_maml.inner.base import At, Parameters, State, norms, scaled


@dataclass(frozen=True)
class SharpnessAware:
    r""":math:`g(\phi + \rho \, g(\phi) / |g(\phi)|)`, each task's norm over all of its parameters.

    Args:
        rho: how far uphill.

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
        ICLR 2021, equation 2.

    Example:
        >>> from lightning_maml import maml
        >>> maml(lr=0.1, steps=5).with_inner(transformations=(SharpnessAware(0.05),)).inner.transformations
        (SharpnessAware(rho=0.05),)
    """

    rho: float = 0.05

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        assert at.slope is not None  # a loop's own steps have one
        uphill = scaled(gradients, self.rho / (norms(gradients) + 1e-12))
        return at.slope({name: value + uphill[name] for name, value in at.phi.items()}), state
