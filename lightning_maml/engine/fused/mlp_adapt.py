"""The operator ``mlp_adapt``: perceptrons, on the CPU in plain torch or compiled from C, on a GPU in CUDA or Triton."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_maml.engine.base import Problem
from lightning_maml.engine.coverage import ADAPTATION
from lightning_maml.engine.fused import operator
from lightning_maml.engine.fused.operator import NEEDS_COMPILER, OperatorLoop, Recognised, UnrecognisedError
from lightning_maml.networks.sine import Sine
from lightning_maml.tasks import Set

if TYPE_CHECKING:
    from lightning_maml.kernels.mlp_adapt import Limits

Precision = Literal["ieee", "tf32", "bf16", "tf32x3"]
"""Files of before name the last, which is ``"ieee"`` today: tensor cores made it five times as wrong, hardly faster."""

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.GELU: "gelu", nn.SiLU: "silu"}
_ACTIVATIONS |= {Sine: "sine"}


@dataclass(frozen=True, eq=False)
class Perceptron(Recognised):
    """Linear layers with one kind of activation between them."""

    widths: list[int]
    """``[in, hidden ..., out]``."""
    activation: str
    frequencies: list[float]
    """Of a sine behind each hidden layer; else none."""


@dataclass(frozen=True)
class MlpAdapt(operator.Operator):
    """See :class:`~lightning_maml.Fused` for its arguments."""

    precision: Precision = "ieee"
    compile: bool = False
    name = "mlp_adapt"
    runs = ADAPTATION

    def recognise(self, problem: Problem, *sets: Set) -> Perceptron:
        from lightning_maml.kernels.mlp_adapt import ON_CPU, ON_NVIDIA, limits

        device, loss = sets[0][0].device, str(problem.loss.kind)
        found = recognise(problem.network, ON_CPU if device.type == "cpu" else ON_NVIDIA)
        if not sets[0][0].is_cpu and next(iter(problem.parameters.values())).dtype != torch.float32:
            raise UnrecognisedError("on a GPU it computes in float32 alone")
        for inputs, targets in sets:
            if inputs.ndim != 3 or inputs.shape[2] != found.widths[0]:
                raise UnrecognisedError(f"the inputs {list(inputs.shape)} are not [tasks, rows, {found.widths[0]}]")
            if loss == "bce" and targets.shape != (*inputs.shape[:2], found.outputs):
                raise UnrecognisedError(f"the targets {list(targets.shape)} are not [tasks, rows, {found.outputs}]")
        if device.type == "cpu":
            return found
        rows = [inputs.shape[1] for inputs, _ in sets]
        kind = found.widths, found.activation, found.frequencies, loss
        most = limits(device, self.precision, *kind, *rows, *[0] * (2 - len(rows)))
        if found.activation not in most.activations:
            raise UnrecognisedError(
                f"Triton's kernels have no {found.activation!r}, only {list(most.activations)}, and CUDA's does not "
                f"take widths {found.widths}, rows {rows} and precision={self.precision!r} on {device}"
            )
        check_widths(found.widths, most)
        if most.rows is not None and max(rows) > most.rows:
            raise UnrecognisedError(f"a task has {max(rows)} rows, more than {most.rows}")
        # a kernel of a GPU is compiled for its frequencies and its rows, too
        return replace(found, variant=(*found.variant, *found.frequencies, *rows))

    def unavailable(self, like: Tensor) -> str | None:
        if not like.is_cpu:
            return operator.unavailable_on_a_gpu(self.precision)
        if not self.compile:
            return None
        from lightning_maml.kernels.mlp_adapt import native

        return (reason := native.unavailable(like.dtype)) and NEEDS_COMPILER.format(reason)

    def adapt(self, loop: OperatorLoop, rates: Tensor, order: int) -> Any:
        from lightning_maml.kernels.mlp_adapt import mlp_adapt, native

        kind = (loop.found.widths, loop.found.activation, loop.loss.kind, order, rates.requires_grad)
        if self.compile and loop.theta.is_cpu:
            # past torch's dispatcher, which costs a tenth of a small meta-batch: what it checks is known by now
            return native.adapt(loop.theta, rates, *loop.batch, kind=kind, frequencies=loop.found.frequencies)
        return mlp_adapt(
            loop.theta, rates.detach(), *loop.batch, *kind, self.precision, self.compile, loop.found.frequencies
        )

    def trajectory(self, loop: OperatorLoop, rates: Tensor) -> tuple[Tensor, Tensor]:
        from lightning_maml.kernels.mlp_adapt import mlp_trajectory

        kind = (loop.found.widths, loop.found.activation, loop.loss.kind)
        return mlp_trajectory(
            loop.theta, rates, *loop.batch, *kind, self.precision, self.compile, loop.found.frequencies
        )


def recognise(network: nn.Module, limits: Limits) -> Perceptron:
    """The perceptron that a network is, by its structure and never by its name; UnrecognisedError where it is none.

    Example:
        >>> from lightning_maml.kernels.mlp_adapt import ON_GPU
        >>> recognise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), ON_GPU).widths
        [3, 8, 2]
        >>> recognise(nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2)), ON_GPU)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_maml...UnrecognisedError: layer '1' is a Dropout, none of ['GELU', 'Linear', 'ReLU', 'SiLU', 'Tanh']
    """
    widths: list[int] = []  # of the inputs, and of every linear layer up to here
    between: list[str] = []
    frequencies: list[float] = []
    known: set[type[nn.Module]] = {kind for kind, name in _ACTIVATIONS.items() if name in limits.activations}
    layers, shapes = operator.known_layers(network, known | {nn.Linear})
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
            if isinstance(module, Sine):
                frequencies.append(module.frequency)
            between.append(_ACTIVATIONS[type(module)])
        else:
            raise UnrecognisedError(f"layer {name!r} does not stand between two linear layers")
    if len(widths) != len(between) + 2:
        raise UnrecognisedError("its last layer is not linear")
    if len(set(between)) > 1:
        raise UnrecognisedError(f"its activations differ: {between}")
    check_widths(widths, limits)
    activation = between[0] if between else "identity"
    return Perceptron(shapes, widths[-1], (activation, *widths), widths, activation, frequencies)


def check_widths(widths: list[int], limits: Limits) -> None:
    """UnrecognisedError where there are more hidden layers, or wider ones, than something runs."""
    if len(widths) - 2 > limits.hidden or max(widths) > limits.width:
        raise UnrecognisedError(f"its widths {widths} exceed {limits.hidden} hidden layers or {limits.width} units")
