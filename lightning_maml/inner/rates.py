"""Inner rates: numbers, one for each step, or learned ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_maml.inner.base import At, Parameters, State

LearnedRate = Literal["shared", "per_step", "per_parameter", "per_parameter_and_step", "per_element", "curvature"]
"""What has a learned inner rate of its own. ``per_element`` is Meta-SGD's, ``per_parameter_and_step`` MAML++'s.
``curvature`` is Meta-Curvature's: the rate stays, and learned matrices multiply the gradient, for its outputs, its
inputs and the places of a filter; a vector is multiplied element by element."""


def of_step(rates: Any, step: int) -> Any:
    """The rate of inner step ``step`` among ``rates``, a sequence or ``[steps]``: further steps have the last one."""
    return rates[min(step, len(rates) - 1)]


class Rates(nn.Module):
    """Learned inner rates: parameters like any other, saved, logged and in the optimizer.

    Args:
        kind: what has a rate of its own, see :data:`LearnedRate`.
        lr: the initial value of all of them, or, of the kinds that tell steps apart, of each step.
        steps: the number of inner steps; a later step (at test) uses the last one's rate.
        parameters: ``{name: tensor}``, the parameters that adapt.

    Example:
        >>> rates = Rates("per_parameter_and_step", 0.1, 5, dict(nn.Linear(3, 2).named_parameters()))
        >>> {name: tuple(rate.shape) for name, rate in rates.named_parameters()}
        {'weight': (5,), 'bias': (5,)}
    """

    def __init__(
        self, kind: LearnedRate, lr: float | Sequence[float], steps: int, parameters: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.kind, self.lr = kind, lr
        self._tells_steps_apart = kind in ("per_step", "per_parameter_and_step")
        if isinstance(lr, Sequence) and not self._tells_steps_apart:
            only = "only 'per_step' and 'per_parameter_and_step' can begin with one for each step"
            raise ValueError(f"Expected one initial rate for learned rates {kind!r} but got {list(lr)}: {only}.")
        initial = [of_step(lr, step) for step in range(steps)] if isinstance(lr, Sequence) else lr
        first = next(iter(parameters.values()))
        self._dims: dict[str, int] = {}
        for name, parameter in {kind: first}.items() if kind in ("shared", "per_step") else parameters.items():
            key = self._key(name)
            if kind == "curvature":
                self._dims[key] = parameter.ndim
                for part, identity in _identities(parameter).items():
                    self.register_parameter(f"{key}/{part}", nn.Parameter(identity))
            else:
                shape = (steps,) if self._tells_steps_apart else parameter.shape if kind == "per_element" else ()
                rate = torch.tensor(initial, dtype=first.dtype, device=first.device).expand(shape).clone()
                self.register_parameter(key, nn.Parameter(rate))

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")  # torch allows no dots in the name of a parameter

    def at(self, name: str, step: int) -> Tensor:
        """The rate of parameter ``name`` at inner step ``step``: a scalar, or of the parameter's own shape."""
        if self.kind == "curvature":
            number: Any = self.lr
            return next(self.parameters()).new_full((), number)  # made there: a copy from the host would be waited for
        rate = self.get_parameter(self.kind if self.kind in ("shared", "per_step") else self._key(name))
        return of_step(rate, step) if self._tells_steps_apart else rate

    def direction(self, name: str, gradient: Tensor) -> Tensor:
        """What the rate of parameter ``name`` multiplies, from its gradient ``[*shape]`` or ``[T, *shape]``."""
        if self.kind != "curvature":
            return gradient
        key, dims = self._key(name), self._dims[self._key(name)]
        if dims < 2:
            return gradient * self.get_parameter(f"{key}/elements")
        outputs, inputs = self.get_parameter(f"{key}/outputs"), self.get_parameter(f"{key}/inputs")
        if dims == 2:
            return outputs @ gradient @ inputs
        places = self.get_parameter(f"{key}/places")
        blocks = gradient.flatten(gradient.ndim - dims + 2)  # [..., outputs, inputs, places]
        return torch.einsum("ao,...oif,ib,cf->...abc", outputs, blocks, inputs, places).reshape(gradient.shape)


def _identities(parameter: Tensor) -> dict[str, Tensor]:
    """Meta-Curvature's matrices for a parameter, as the identity."""
    if parameter.ndim < 2:
        return {"elements": torch.ones_like(parameter)}
    sizes = {"outputs": parameter.shape[0], "inputs": parameter.shape[1]}
    sizes |= {"places": parameter[0, 0].numel()} if parameter.ndim > 2 else {}
    return {part: torch.eye(size, dtype=parameter.dtype, device=parameter.device) for part, size in sizes.items()}


@dataclass(frozen=True)
class Scale:
    """What a direction is multiplied by: the end of every chain of transformations."""

    lr: float | tuple[float, ...] | Tensor | Rates

    def at(self, name: str, step: int) -> float | Tensor:
        """The rate of parameter ``name`` at inner step ``step``."""
        if isinstance(self.lr, Rates):
            return self.lr.at(name, step)
        return of_step(self.lr, step) if isinstance(self.lr, tuple) else self.lr

    @property
    def modes(self) -> set[tuple[str, Any]]:
        """The kind of the rates, which an engine has to know beside the class."""
        if isinstance(self.lr, Rates):
            return {("rates", self.lr.kind if type(self.lr) is Rates else type(self.lr))}
        if isinstance(self.lr, Tensor):
            return {("rates", "tensor")}
        return {("rates", "of each step" if isinstance(self.lr, tuple) else "number")}


@dataclass(frozen=True)
class Curvature:
    """Meta-Curvature's matrices, which :class:`Rates` of the kind ``"curvature"`` hold, multiply the gradient."""

    rates: Rates

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return {name: self.rates.direction(name, gradient) for name, gradient in gradients.items()}, state
