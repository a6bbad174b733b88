"""What draws the parameters back to where they started from."""

from dataclasses import dataclass

from torch import Tensor

from lightning_maml.inner.base import At, Parameters, State, norms, scaled


@dataclass(frozen=True)
class Nothing:
    """Nothing does."""

    def __call__(self, gradients: Parameters, phi: Parameters, origin: Parameters) -> Parameters:
        return gradients

    def height(self, phi: Parameters, origin: Parameters) -> float:
        """What it adds to the losses."""
        return 0.0


@dataclass(frozen=True)
class Proximal:
    r"""The gradient of :math:`\tfrac\lambda2 |\phi - \theta|^2`, added to that of the loss (Rajeswaran et al. 2019)."""

    strength: float | Tensor

    def __call__(self, gradients: Parameters, phi: Parameters, origin: Parameters) -> Parameters:
        return {name: g + self.strength * (phi[name] - origin[name]) for name, g in gradients.items()}

    def height(self, phi: Parameters, origin: Parameters) -> Tensor:
        """What it adds to the losses, ``[T]``: what its gradient is of."""
        return self.strength / 2 * norms({name: value - origin[name] for name, value in phi.items()}).square()


@dataclass(frozen=True)
class Tolerance:
    """A task whose gradient has this norm, or a smaller one, stays where it is."""

    norm: float

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        lengths = norms(gradients).detach()
        return scaled(gradients, (lengths > self.norm).to(lengths.dtype)), state
