"""Momentum."""

from dataclasses import dataclass

from lightning_maml.inner.base import At, Parameters, State


@dataclass(frozen=True)
class Momentum:
    r"""As in ``torch.optim.SGD``: :math:`b_k = \mu b_{k-1} + g_k`, from :math:`b_0 = g_0`, in the gradient's place."""

    mu: float

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        if state:
            gradients = {name: self.mu * state[name] + gradient for name, gradient in gradients.items()}
        return gradients, gradients
