"""Weight decay."""

from dataclasses import dataclass

from lightning_maml.inner.base import At, Parameters, State


@dataclass(frozen=True)
class AddDecayed:
    """The parameters themselves, times a factor, are added to their gradient."""

    factor: float

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return {name: gradient + self.factor * at.phi[name] for name, gradient in gradients.items()}, state
