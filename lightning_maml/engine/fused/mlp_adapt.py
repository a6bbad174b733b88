"""The operator ``mlp_adapt``: perceptrons, on the CPU in plain torch or compiled from C, on a GPU in CUDA or Triton."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_maml.engine.base import Problem
from lightning_maml.engine.coverage import ADAPTATION, Runs
from lightning_maml.engine.fused import operator
from lightning_maml.engine.fused.operator import NEEDS_COMPILER, OperatorLoop, Recognised, UnrecognisedError
from lightning_maml.tasks import Set

Precision = Literal["ieee", "tf32", "bf16", "tf32x3"]
"""Files of before name the last, which is ``"ieee"`` today: tensor cores made it five times as wrong, hardly faster."""

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.GELU: "gelu", nn.SiLU: "silu"}
_KNOWN: set[type[nn.Module]] = {nn.Linear, *_ACTIVATIONS}


@dataclass(frozen=True, eq=False)
class Perceptron(Recognised):
    """Linear layers with one kind of activation between them."""

    widths: list[int]
    """``[in, hidden ..., out]``."""
    activation: str


@dataclass(frozen=True)
class MlpAdapt(operator.Operator):
    """See :class:`~lightning_maml.Fused` for its arguments."""

    precision: Precision = "ieee"
    compile: bool = False
    name = "mlp_adapt"

    @cached_property
    def runs(self) -> Runs:  # type: ignore[override]
        from lightning_maml.kernels.mlp_adapt import MOST_ROWS

        return ADAPTATION | {"rows of a set": range(1, MOST_ROWS + 1)}

    def recognise(self, problem: Problem, *sets: Set) -> Perceptron:
        found, loss = recognise(problem.network), problem.loss.kind
        if not sets[0][0].is_cpu and next(iter(problem.parameters.values())).dtype != torch.float32:
            raise UnrecognisedError("on a GPU it computes in float32 alone")
        for inputs, targets in sets:
            if inputs.ndim != 3 or inputs.shape[2] != found.widths[0]:
                raise UnrecognisedError(f"the inputs {list(inputs.shape)} are not [tasks, rows, {found.widths[0]}]")
            if loss == "bce" and targets.shape != (*inputs.shape[:2], found.outputs):
                raise UnrecognisedError(f"the targets {list(targets.shape)} are not [tasks, rows, {found.outputs}]")
        if sets[0][0].is_cpu:
            return found
        # a kernel of a GPU is compiled for its rows, too
        return replace(found, variant=(*found.variant, *(inputs.shape[1] for inputs, _ in sets)))

    def unavailable(self, like: Tensor) -> str | None:
        if torch.version.hip is not None and self.precision == "tf32" and not like.is_cpu:
            return f"AMD's GPUs have no products of {self.precision!r}. Use precision='ieee' or 'bf16'."
        if not (self.compile and like.is_cpu):
            return None if like.is_cpu else operator.without_triton()
        from lightning_maml.kernels.mlp_adapt import native

        return (reason := native.unavailable(like.dtype)) and NEEDS_COMPILER.format(reason)

    def adapt(self, loop: OperatorLoop, rates: Tensor, order: int) -> Any:
        from lightning_maml.kernels.mlp_adapt import mlp_adapt, native

        kind = (loop.found.widths, loop.found.activation, loop.loss.kind, order, rates.requires_grad)
        if self.compile and loop.theta.is_cpu:
            # past torch's dispatcher, which costs a tenth of a small meta-batch: what it checks is known by now
            return native.adapt(loop.theta, rates, *loop.batch, kind=kind)
        return mlp_adapt(loop.theta, rates.detach(), *loop.batch, *kind, self.precision)

    def trajectory(self, loop: OperatorLoop, rates: Tensor) -> tuple[Tensor, Tensor]:
        from lightning_maml.kernels.mlp_adapt import mlp_trajectory

        kind = (loop.found.widths, loop.found.activation, loop.loss.kind)
        return mlp_trajectory(loop.theta, rates, *loop.batch, *kind, precision=self.precision, compiled=self.compile)


def recognise(network: nn.Module) -> Perceptron:
    """The perceptron that a network is, by its structure and never by its name; UnrecognisedError where it is none.

    Example:
        >>> recognise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))).widths
        [3, 8, 2]
        >>> recognise(nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_maml...UnrecognisedError: layer '1' is a Dropout, none of ['GELU', 'Linear', 'ReLU', 'SiLU', 'Tanh']
    """
    from lightning_maml.kernels.mlp_adapt import MOST_HIDDEN, WIDEST

    widths: list[int] = []  # of the inputs, and of every linear layer up to here
    between: list[str] = []
    layers, shapes = operator.known_layers(network, _KNOWN)
    for name, module in layers:
        if type(module) is nn.Linear:
            if module._parameters.get("bias") is None:
                raise UnrecognisedError(f"layer {name!r} has no bias")
            outputs, inputs = module._parameters["weight"].shape  # type: ignore[union-attr]
            if len(widths) > len(between) + 1:
                between.append("identity")
            widths += [outputs] if widths else [inputs, outputs]
        elif len(widths) == len(between) + 2:
            if type(module) is nn.GELU and module.approximate != "none":
                raise UnrecognisedError(f"layer {name!r} is an approximate GELU")
            between.append(_ACTIVATIONS[type(module)])
        else:
            raise UnrecognisedError(f"layer {name!r} does not stand between two linear layers")
    if len(widths) != len(between) + 2:
        raise UnrecognisedError("its last layer is not linear")
    if len(set(between)) > 1:
        raise UnrecognisedError(f"its activations differ: {between}")
    if len(between) > MOST_HIDDEN or max(widths) > WIDEST:
        raise UnrecognisedError(f"its widths {widths} exceed {MOST_HIDDEN} hidden layers or {WIDEST} units")
    activation = between[0] if between else "identity"
    return Perceptron(shapes, widths[-1], (activation, *widths), widths, activation)
