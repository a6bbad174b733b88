"""What the engine fused asks of an operator that runs whole adaptations, and the loop that a rule gets to see of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from lightning_maml.coverage import Runs
from lightning_maml.engine.base import Problem
from lightning_maml.engine.structure import changed, is_sequence
from lightning_maml.inner import InnerLoop, Parameters
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import Set

Named = list[tuple[str, Any]]  # modules


class UnrecognisedError(Exception):
    """Why a network is none that an operator runs."""


@dataclass(frozen=True, eq=False)
class Recognised:
    """A network as an operator takes it: all its parameters in one row of ``P`` numbers."""

    shapes: dict[str, torch.Size]
    """Of the parameters, by name, in the order in which they lie in the row."""
    outputs: int
    """The size of a prediction."""

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """``{name: [*shape]}`` -> ``[P]``."""
        return _flatten_dense_tensors([values[name] for name in self.shapes])  # one call for all

    def unpack(self, flat: Tensor, like: Mapping[str, Tensor]) -> list[Tensor]:
        """``[P]`` -> the parameters in turn, in the shapes of those of ``like {name: [*shape]}``, as views."""
        return _unflatten_dense_tensors(flat, [like[name] for name in self.shapes])

    def unpack_tasks(self, flat: Tensor) -> Parameters:
        """``[..., P]`` -> ``{name: [..., *shape]}``, as views."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        tasks = flat.shape[:-1]
        return {name: part.view(*tasks, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


class Operator(ABC):
    """An operator that owns the adaptation of all tasks and its meta-gradient."""

    name: str

    @property
    @abstractmethod
    def runs(self) -> Runs:
        """What it runs, see :mod:`lightning_maml.coverage`."""

    @abstractmethod
    def recognise(self, network: nn.Module) -> Any:
        """The :class:`Recognised` network, by its structure and never by its name.

        Raises:
            UnrecognisedError: it is none that the operator runs.
        """

    @abstractmethod
    def refuse(self, found: Any, problem: Problem, *sets: Set) -> str | None:
        """Why problem or data are not for it, beyond what :attr:`runs` says, or None."""

    @abstractmethod
    def unavailable(self, like: Tensor) -> str | None:
        """Why it cannot run on the device of a tensor in its dtype, or None; compiles it where that has to be done."""

    @abstractmethod
    def adapt(self, found: Any, theta: Tensor, rates: Tensor, sets: Sequence[Set], loss: str, order: int) -> Any:
        """The kernels' ``Adaptation`` of ``theta [P]`` by ``rates [m, 1]`` or ``[m, P]``."""

    @abstractmethod
    def trajectory(self, found: Any, theta: Tensor, rates: Tensor, support: Set, loss: str) -> tuple[Tensor, Tensor]:
        """The parameters ``[T, m, P]`` after each inner step, and the support losses ``[T, m + 1]``."""


class _Asked(NamedTuple):
    """What a rule asked for in the place of parameters: the operator finds them itself."""

    steps: int
    order: int


class OperatorLoop:
    """A :class:`~lightning_maml.meta_gradient.Loop` for rules that ask once for query sets, after all or no steps."""

    def __init__(self, problem: Problem, operator: Operator, found: Recognised, support: Set, query: Set) -> None:
        self.problem, self.operator, self.found, self.sets = problem, operator, found, (support, query)
        check_sets(problem, found, *self.sets)

    @property
    def inner(self) -> InnerLoop:
        return self.problem.inner

    def initial(self) -> Any:
        return _Asked(0, 1)

    def unroll(self, order: int) -> Any:
        return _Asked(self.inner.steps, order)

    def query(self, asked: Any) -> Query:
        self.rates = rates_of(self.problem, self.found, asked.steps)
        with torch.no_grad():
            theta = self.found.pack(self.problem.parameters)
        output = self.operator.adapt(self.found, theta, self.rates, self.sets, self.problem.loss.kind, asked.order)
        self.output = output
        return Query(output.task_losses.mean(), output.task_losses, output.predictions)

    def gradients(self, query: Query, weight: float, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of the query loss; all tasks run at once, so that ``weight`` is 1."""
        assert weight == 1
        found, output, parameters = self.found, self.output, self.problem.parameters
        parts = found.unpack(output.of_theta, parameters)
        gradients = {id(parameters[name]): part for name, part in zip(found.names, parts, strict=True)}
        if learned := [leaf for leaf in leaves if id(leaf) not in gradients]:
            pulled: Any = [torch.zeros_like(leaf) for leaf in learned]
            if self.rates.requires_grad:
                pulled = torch.autograd.grad(self.rates, learned, output.of_rates, materialize_grads=True)
            gradients.update({id(leaf): part for leaf, part in zip(learned, pulled, strict=True)})
        return [gradients[id(leaf)] for leaf in leaves]

    def support_history(self) -> Tensor:
        return self.output.support_losses


def check_sets(problem: Problem, found: Recognised, *sets: Set) -> None:
    """Raise ValueError where shapes or labels of the sets are not for the network's predictions."""
    for inputs, targets in sets:
        problem.loss.check_shapes((*inputs.shape[:2], found.outputs), targets)
        problem.loss.check_values(found.outputs, targets)


def rates_of(problem: Problem, found: Recognised, steps: int) -> Tensor:
    """The rates ``[steps, 1]`` where all parameters share one, or ``[steps, P]``, 0 for parameters that do not adapt.

    Differentiable with respect to learned ones.
    """
    inner, names, adapted = problem.inner, found.names, set(problem.adapted)
    like = problem.parameters[names[0]]
    if adapted == set(names) and inner.shared_rates:
        if isinstance(inner.lr, int | float):
            return like.new_full((steps, 1), float(inner.lr))
        alphas = [inner.rate(names[0], step) for step in range(steps)]
        rows = [torch.as_tensor(alpha, dtype=like.dtype, device=like.device).reshape(1) for alpha in alphas]
    else:

        def full(name: str, step: int) -> Tensor:
            parameter = problem.parameters[name].detach()
            if name not in adapted:
                return torch.zeros_like(parameter)
            return torch.as_tensor(inner.rate(name, step), dtype=like.dtype, device=like.device).expand(parameter.shape)

        rows = [found.pack({name: full(name, step) for name in names}) for step in range(steps)]
    return torch.stack(rows).to(like) if rows else like.new_empty(0, 1)


def layers_of(module: nn.Module, known: set[type[nn.Module]], name: str = "") -> Named:
    """The layers of nested ``nn.Sequential`` with their names, but for identities.

    Raises:
        UnrecognisedError: it is made of others than those of the exact classes ``known``, or something was changed.
    """
    if (what := changed(module)) is not None:
        raise UnrecognisedError(f"layer {name!r} has {what}")
    if type(module) in known:
        return [(name, module)]
    if type(module) is nn.Identity:
        return []
    if not is_sequence(module):
        names = sorted(kind.__name__ for kind in known)
        raise UnrecognisedError(f"layer {name!r} is a {type(module).__name__}, none of {names}")
    found: Named = []
    for child, layer in module._modules.items():
        assert layer is not None
        found += layers_of(layer, known, f"{name}.{child}" if name else child)
    return found


def needs_compiler(reason: str | None) -> str | None:
    """Why a kernel of C cannot be had, as a sentence."""
    return None if reason is None else f"compile=True needs a C compiler, but {reason}. Use compile=False."


def other_labels(problem: Problem, targets: Tensor) -> str | None:
    """Why labels are not for an operator, or None: the cross-entropy's are read as whole numbers of 64 bits."""
    wrong = problem.loss.kind == "cross_entropy" and targets.dtype != torch.int64
    return f"the labels are of {targets.dtype}, and not of torch.int64" if wrong else None


def shapes_of(name: str, layer: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a layer's own parameters, by name."""
    return {f"{name}.{key}" if name else key: v.shape for key, v in layer._parameters.items() if v is not None}
