"""How a task adapts: which parameters take part, by what step, how often."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

__all__ = ["SGD", "LearnedRate", "Parameters", "Rates"]

Parameters = dict[str, Tensor]
"""Named parameters: of one network ``{name: [*shape]}``, or of one network a task ``{name: [T, *shape]}``."""

LearnedRate = Literal["shared", "per_step", "per_parameter", "per_parameter_and_step", "per_element"]
"""What has a learned inner rate of its own. ``per_element`` is Meta-SGD's, ``per_parameter_and_step`` MAML++'s."""


class Rates(nn.Module):
    """Learned inner rates: parameters like any other, saved, logged and in the optimizer.

    Args:
        kind: what has a rate of its own, see :data:`LearnedRate`.
        lr: the initial value of all of them.
        steps: the number of inner steps; a later step (at test) uses the last one's rate.
        parameters: ``{name: tensor}``, the parameters that adapt.

    Example:
        >>> rates = Rates("per_parameter_and_step", 0.1, 5, dict(nn.Linear(3, 2).named_parameters()))
        >>> {name: tuple(rate.shape) for name, rate in rates.named_parameters()}
        {'weight': (5,), 'bias': (5,)}
    """

    def __init__(self, kind: LearnedRate, lr: float, steps: int, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.kind = kind
        first = next(iter(parameters.values()))
        names = [self._key(name) for name in parameters] if kind not in ("shared", "per_step") else [kind]
        for name, parameter in zip(names, parameters.values(), strict=False):
            shape: tuple[int, ...] = ()
            if kind in ("per_step", "per_parameter_and_step"):
                shape = (steps,)
            elif kind == "per_element":
                shape = tuple(parameter.shape)
            self.register_parameter(
                name, nn.Parameter(torch.full(shape, float(lr), dtype=first.dtype, device=first.device))
            )

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")  # torch allows no dots in the name of a parameter

    def at(self, name: str, step: int) -> Tensor:
        """The rate of parameter ``name`` at inner step ``step``: a scalar, or of the parameter's own shape."""
        rate = self.get_parameter(self.kind if self.kind in ("shared", "per_step") else self._key(name))
        return rate[min(step, len(rate) - 1)] if self.kind in ("per_step", "per_parameter_and_step") else rate


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent, ``phi <- phi - lr * dL_support/dphi``, the inner loop of MAML (Finn et al. 2017).

    Args:
        lr: the inner rate alpha: a number, a scalar tensor, or :class:`Rates`.
        steps: the number of inner steps m; 0 leaves the network as it is.
        learn_lr: what has a learned rate of its own, or None for a fixed one.
        adapts: which parameters adapt: None for all, a regular expression, or a predicate over their names.
            Parameters with ``requires_grad=False`` never do.

    Raises:
        ValueError: an argument is out of range.
    """

    lr: float | Tensor | Rates = 0.01
    steps: int = 5
    learn_lr: LearnedRate | None = None
    adapts: str | Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(
                f"Expected `steps` to be a whole number of inner steps, 0 or more, but got {self.steps!r}."
            )
        if isinstance(self.lr, Tensor):
            if self.lr.numel() != 1:
                raise ValueError(
                    f"Expected `lr` to be a number or a scalar tensor but got shape {list(self.lr.shape)}; "
                    "use `learn_lr` or `Rates` for a rate per step, parameter or element."
                )
        elif not isinstance(self.lr, Rates) and not 0 < float(self.lr) < float("inf"):
            raise ValueError(f"Expected `lr` to be positive and finite but got {self.lr!r}.")
        if self.learn_lr is not None and self.learn_lr not in get_args(LearnedRate):
            raise ValueError(
                f"Expected `learn_lr` to be one of {get_args(LearnedRate)} or None but got {self.learn_lr!r}."
            )

    def adapted(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """The names of those ``parameters {name: tensor}`` of a network that adapt.

        Raises:
            ValueError: there are none.
        """
        trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if isinstance(self.adapts, str):
            pattern = re.compile(self.adapts)
            chosen = [name for name in trainable if pattern.search(name)]
        else:
            chosen = [name for name in trainable if self.adapts is None or self.adapts(name)]
        if not chosen:
            raise ValueError(
                f"Expected at least one parameter to adapt but `adapts={self.adapts!r}` chooses none of the "
                f"trainable parameters {trainable}."
            )
        return chosen

    def rate(self, name: str, step: int) -> float | Tensor:
        """The rate of parameter ``name`` at inner step ``step``."""
        return self.lr.at(name, step) if isinstance(self.lr, Rates) else self.lr

    def rates(self, names: list[str], step: int) -> list[float | Tensor]:
        """The rates of all parameters at inner step ``step``, in the order of ``names``."""
        return [self.rate(name, step) for name in names]

    @staticmethod
    def update(phi: Parameters, gradients: Parameters, rates: Mapping[str, float | Tensor]) -> Parameters:
        """One step. ``phi`` and ``gradients`` ``{name: [T, *shape]}`` or of one task, ``{name: [*shape]}``."""
        return {name: value - rates[name] * gradients[name] for name, value in phi.items()}
