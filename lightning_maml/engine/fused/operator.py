"""What the engine fused asks of an operator that runs whole adaptations, and the loop that a rule gets to see of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from lightning_maml.engine.base import Problem
from lightning_maml.engine.coverage import Runs
from lightning_maml.engine.functional.structure import layers_of
from lightning_maml.engine.loops.loop import TaskLoop
from lightning_maml.inner import InnerLoop, Parameters
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import Set

Named = list[tuple[str, Any]]  # modules
NEEDS_COMPILER = "compile=True needs a C compiler, but {}. Use compile=False."


class UnrecognisedError(ValueError):
    """Why a network, or the data it is to run on, is none that an operator runs."""


def require(met: bool, reason: str) -> None:
    if not met:
        raise UnrecognisedError(reason)


def unavailable_on_a_gpu(precision: str) -> str | None:
    """Why no kernel of a precision runs on this machine's GPU, or None."""
    if torch.version.hip is not None and precision == "tf32":
        return f"AMD's GPUs have no products of {precision!r}. Use precision='ieee' or 'bf16'."
    return without_triton()


def without_triton() -> str | None:
    return "on a GPU it needs Triton, which is not installed." if find_spec("triton") is None else None


@dataclass(frozen=True, eq=False)
class Recognised:
    """A network as an operator takes it: all its parameters in one row of ``P`` numbers."""

    shapes: dict[str, torch.Size]
    """Of the parameters, by name, in the order in which they lie in the row."""
    outputs: int
    """The size of a prediction."""
    variant: tuple[Any, ...]
    """What of it a kernel is compiled for."""


def unpack_tasks(flat: Tensor, shapes: Mapping[str, torch.Size]) -> Parameters:
    """``[..., P]`` -> ``{name: [..., *shape]}``, as views."""
    parts = zip(shapes.items(), flat.split([shape.numel() for shape in shapes.values()], dim=-1), strict=True)
    return {name: part.view(*flat.shape[:-1], *shape) for (name, shape), part in parts}


class Operator(ABC):
    """An operator that owns the adaptation of all tasks and its meta-gradient."""

    name: str
    runs: Runs
    only_compiled: ClassVar[bool] = False
    """Whether a CPU runs it with ``compile=True`` alone."""

    @abstractmethod
    def recognise(self, problem: Problem, *sets: Set) -> Any:
        """The :class:`Recognised` network; ValueError: network or data are not for it, beyond what ``runs`` says."""

    @abstractmethod
    def unavailable(self, like: Tensor) -> str | None:
        """Why it cannot run on the device of a tensor in its dtype, or None; compiles it where that has to be done."""

    @abstractmethod
    def adapt(self, loop: OperatorLoop, rates: Tensor, order: int) -> Any:
        """The kernels' ``Adaptation`` of ``loop.theta [P]`` by ``rates [m, 1]`` or ``[m, P]``."""

    @abstractmethod
    def trajectory(self, loop: OperatorLoop, rates: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters ``[T, m, P]`` after each inner step, and the support losses ``[T, m + 1]``."""

    def predict(self, found: Any, phi: Tensor, inputs: Tensor) -> Tensor | None:
        """Predictions ``[T, N, ...]`` of the tasks' own parameters ``[T, P]``; None where it runs no such."""
        return None


class OperatorLoop:
    """A :class:`~lightning_maml.meta_gradient.Loop` for rules that ask once for query sets, after all or no steps.

    In the place of parameters a rule gets the number of steps and the order: the operator finds them itself.
    """

    def __init__(self, problem: Problem, operator: Operator, found: Any, *sets: Set) -> None:
        self.problem, self.operator, self.found = problem, operator, found
        self.inner, self.loss = problem.inner, problem.loss
        self.take(*sets)
        self.parameters = {name: problem.parameters[name] for name in found.shapes}
        self.starts = self._starts()
        self.theta = self._row(self.starts)

    def take(self, *sets: Set) -> None:
        """Has the loop run on these sets; ValueError where their targets are not what the loss takes."""
        outputs: int = self.found.outputs
        for inputs, targets in sets:
            self.loss.check_shapes((*inputs.shape[:2], outputs), targets)
            self.loss.check_values(outputs, targets)
        self.batch = [value for pair in sets for value in pair]

    def _starts(self) -> Parameters:
        """What all tasks start from: coverage.py allows no start that looks at a task."""
        start = self.inner.parts.start
        if getattr(start, "stays", False):
            return self.parameters
        theta = {name: value.unsqueeze(0) for name, value in self.parameters.items() if name in self.problem.adapted}
        with torch.enable_grad():
            phi = start(theta, _no_predictions, self.batch[1])
        return self.parameters | {name: value.squeeze(0) for name, value in phi.items()}

    @staticmethod
    @torch.no_grad()
    def _row(parameters: Parameters) -> Tensor:
        return _flatten_dense_tensors([*parameters.values()])  # one call for all

    def initial(self) -> Any:
        return 0, 1, self.parameters

    def unroll(self, order: int) -> Any:
        return self.inner.steps, order, self.starts

    def query(self, asked: Any) -> Query:
        steps, order, starts = asked
        if starts is not self.starts:
            self.starts, self.theta = starts, self._row(starts)
        self.rates = self._rates(steps)
        self.output = self.operator.adapt(self, self.rates, order)
        return Query(self.output.task_losses.mean(), self.output.task_losses, self.output.predictions)

    def gradients(self, query: Query, weight: float, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of the query loss; all tasks run at once, so that ``weight`` is 1."""
        assert weight == 1
        parameters = [*self.parameters.values()]
        parts = _unflatten_dense_tensors(self.output.of_theta, parameters)
        if self.starts is not self.parameters:
            starts = [value for value in self.starts.values() if value.requires_grad]
            known = [part for value, part in zip(self.starts.values(), parts, strict=True) if value.requires_grad]
            parts = torch.autograd.grad(starts, parameters, known, materialize_grads=True)
        gradients = dict(zip(map(id, parameters), parts, strict=True))
        learned = [leaf for leaf in leaves if id(leaf) not in gradients]
        if learned and self.rates.requires_grad:
            pulled = torch.autograd.grad(self.rates, learned, self.output.of_rates, materialize_grads=True)
            gradients |= zip(map(id, learned), pulled, strict=True)
        return [gradients[id(leaf)] if id(leaf) in gradients else torch.zeros_like(leaf) for leaf in leaves]

    def support_history(self) -> Tensor:
        return self.output.support_losses

    def trajectory(self) -> Iterator[tuple[Parameters, Tensor]]:
        """Detached parameters and support losses ``[T]`` before and after each inner step."""
        path, losses = self.operator.trajectory(self, self._rates(self.inner.steps).detach())
        again: Any = None
        if self.problem.safeguard:  # the tasks that some step does not bring lower run again, step by step
            stumbling = (~(losses[:, 1:] < losses[:, :-1])).any(1).nonzero().flatten()
            if len(stumbling):
                inputs, targets = self.batch[:2]
                again = TaskLoop(self.problem, (inputs[stumbling], targets[stumbling])).trajectory()
        rows = (self.theta.expand(len(losses), -1), *path.unbind(1))
        for row, step_losses in zip(rows, losses.unbind(1), strict=True):
            named = unpack_tasks(row, self.found.shapes)
            phi = {name: named[name] for name in self.problem.adapted}
            if again is not None:
                own, own_losses = next(again)
                phi = {name: value.index_copy(0, stumbling, own[name]) for name, value in phi.items()}
                step_losses = step_losses.index_copy(0, stumbling, own_losses)
            yield phi, step_losses

    def _rates(self, steps: int) -> Tensor:
        """The rates of all steps, ``[steps, 1]`` or ``[steps, P]``, see :func:`rate_of`."""
        adapted = set(self.problem.adapted)
        if isinstance(self.inner.lr, int | float) and self.parameters.keys() <= adapted:
            return self.theta.new_full((steps, 1), float(self.inner.lr))
        rows = [rate_of(self.inner, step, self.parameters, adapted) for step in range(steps)]
        return torch.stack(rows) if rows else self.theta.new_empty(0, 1)


def _no_predictions(phi: Parameters) -> Tensor:
    raise NotImplementedError("Expected a start that looks at no task.")


def rate_of(inner: InnerLoop, step: int, parameters: Parameters, adapted: AbstractSet[str]) -> Tensor:
    """The rate of a step, ``[1]`` where all share it, or ``[P]``, 0 for what does not adapt; differentiable."""
    first, like = next(iter(parameters.items()))

    def rate(name: str) -> Tensor:
        value = inner.rate(name, step) if name in adapted else 0.0
        return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)

    if inner.shared_rates and parameters.keys() <= adapted:
        return rate(first).reshape(1)
    return torch.cat([rate(name).expand(value.shape).flatten() for name, value in parameters.items()])


def known_layers(network: nn.Module, known: set[type[nn.Module]]) -> tuple[Named, dict[str, torch.Size]]:
    """The layers of nested ``nn.Sequential`` with their names, but for identities; and their parameters' shapes.

    Raises:
        UnrecognisedError: a layer is of another class than ``known``, or was changed, or parameters are tied.
    """
    layers: Named = []
    for name, layer, what in layers_of(network):
        if what is not None:
            raise UnrecognisedError(f"layer {name!r} has {what}")
        if type(layer) in known:
            layers.append((name, layer))
        elif type(layer) is not nn.Identity:
            names = sorted(kind.__name__ for kind in known)
            raise UnrecognisedError(f"layer {name!r} is a {type(layer).__name__}, none of {names}")
    every = [(f"{name}.{key}" if name else key, v) for name, layer in layers for key, v in layer._parameters.items()]
    own = {name: value for name, value in every if value is not None}
    if len({*map(id, own.values())}) < len(own):
        raise UnrecognisedError("some of its parameters are tied")
    return layers, {name: value.shape for name, value in own.items()}
