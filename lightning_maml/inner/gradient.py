"""What the arguments of :class:`SGD` and :class:`Adam` make of the gradient, in the order in which a step does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_maml.inner.base import At, Parameters, State, norms, scaled


@dataclass(frozen=True)
class Nothing:
    """Nothing draws the parameters back to where they started from."""

    def __call__(self, gradients: Parameters, phi: Parameters, origin: Parameters) -> Parameters:
        return gradients


@dataclass(frozen=True)
class Proximal:
    r"""The gradient of :math:`\tfrac\lambda2 |\phi - \theta|^2`, added to that of the loss (Rajeswaran et al. 2019)."""

    strength: float | Tensor

    def __call__(self, gradients: Parameters, phi: Parameters, origin: Parameters) -> Parameters:
        return {name: g + self.strength * (phi[name] - origin[name]) for name, g in gradients.items()}


@dataclass(frozen=True)
class Tolerance:
    """A task whose gradient has this norm, or a smaller one, stays where it is."""

    norm: float

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        lengths = norms(gradients).detach()
        return scaled(gradients, (lengths > self.norm).to(lengths.dtype)), state


@dataclass(frozen=True)
class ClipByNorm:
    """A gradient that is longer is shortened to this norm, all parameters together; the meta-gradient sees how."""

    max_norm: float

    def factors(self, lengths: Tensor) -> Tensor:
        """What gradients of norms ``[T]`` are multiplied by, ``[T]``, as ``clip_grad_norm_`` does."""
        return (self.max_norm / (lengths + 1e-6)).clamp(max=1.0)

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return scaled(gradients, self.factors(norms(gradients))), state


@dataclass(frozen=True)
class AddDecayed:
    """The parameters themselves, times a factor, are added to their gradient."""

    factor: float

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return {name: gradient + self.factor * at.phi[name] for name, gradient in gradients.items()}, state


@dataclass(frozen=True)
class Momentum:
    r"""As in ``torch.optim.SGD``: :math:`b_k = \mu b_{k-1} + g_k`, from :math:`b_0 = g_0`, in the gradient's place."""

    mu: float

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        if state:
            gradients = {name: self.mu * state[name] + gradient for name, gradient in gradients.items()}
        return gradients, gradients


@dataclass(frozen=True)
class SecondMoment:
    """The division by a running root of squared gradients, see :class:`~lightning_maml.inner.Adam`."""

    beta2: float = 0.999
    eps: float = 1e-8
    second_order: ClassVar[bool] = False
    counts_steps: ClassVar[bool] = True

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        moments = {name: (1 - self.beta2) * gradient.square() for name, gradient in gradients.items()}
        if state:
            moments = {name: self.beta2 * state[name] + fresh for name, fresh in moments.items()}
        correction = 1 - self.beta2 ** (at.step + 1)
        made = {name: g / ((moments[name] / correction).sqrt() + self.eps) for name, g in gradients.items()}
        return made, moments
