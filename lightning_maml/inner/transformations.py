"""What is made of each task's gradient before the step. One of your own is a class like these, in any file."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_maml.inner.base import At, Parameters, State, norms, scaled


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
    """The parameters themselves, times a factor, are added to their gradient: weight decay."""

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
    r"""Adam's :math:`g_k / (\sqrt{v_k / (1 - \beta_2^k)} + \epsilon)`, of second moments v; it has no second order."""

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


@dataclass(frozen=True)
class SharpnessAware:
    r"""The gradient uphill of the task, :math:`g(\phi + \rho \, g(\phi) / |g(\phi)|)`, the norm over all parameters.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, equation 2.

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


@dataclass(frozen=True)
class Sign:
    r""":math:`\operatorname{sign}(g)`, whose own derivative is 0: a second-order meta-gradient is that of first order.

    Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", 2018.
    """

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return {name: gradient.sign() for name, gradient in gradients.items()}, state
