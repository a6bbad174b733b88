"""What the parts of an inner loop are given, and what they return."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from types import FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Parameters = dict[str, Tensor]
"""Named parameters: of one network ``{name: [*shape]}``, or of one network a task ``{name: [T, *shape]}``."""

State = Any
"""What a part remembers from step to step: tensors in nested tuples, lists and dictionaries; ``{}`` before step 0."""

Slope = Callable[[Parameters], Parameters]


@dataclass(frozen=True, eq=False)
class At:
    """Where an inner step is taken.

    Args:
        step: its number, from 0.
        phi: the parameters ``{name: [T, *shape]}`` before it; constants where the meta-gradient is of first order.
        slope: the gradients of what the loop descends, at any parameters: one more way back.
    """

    step: int
    phi: Parameters = field(default_factory=dict)
    slope: Slope | None = None


@runtime_checkable
class Transformation(Protocol):
    """What is made of the gradient before the step: a frozen dataclass that can be called.

    A class ``second_order = False`` says that it has no second derivative; one without is differentiated as it is.
    """

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        """The gradients ``{name: [T, *shape]}`` of some of the tasks made into others, and the next step's state."""


def norms(gradients: Parameters) -> Tensor:
    """The norm of each task's gradient, all parameters together, ``[T]``."""
    flat = [gradient.reshape(len(gradient), -1) for gradient in gradients.values()]
    return torch.linalg.vector_norm(torch.cat(flat, 1), dim=1)


def scaled(gradients: Parameters, factors: Tensor) -> Parameters:
    """The gradients, each task's times its factor ``[T]``."""
    return {name: gradient * factors.view(-1, *[1] * (gradient.ndim - 1)) for name, gradient in gradients.items()}


Holder = Tensor | nn.Module


def tensors_of(holders: Iterable[Holder]) -> Iterator[Tensor]:
    """The tensors themselves, parameters, and buffers of what :func:`holders_in` found, each once."""
    found: dict[int, Tensor] = {}
    for held in holders:
        every = (*held.parameters(), *held.buffers()) if isinstance(held, nn.Module) else (held,)
        found |= {id(value): value for value in every}
    yield from found.values()


def holders_in(value: Any, depth: int = 4) -> Iterator[Holder]:
    """The tensors and modules that a part, a rule or a loss computes with: in its fields, or closed over."""
    if isinstance(value, Tensor | nn.Module):
        yield value
    elif depth:
        for inside in _inside(value):
            yield from holders_in(inside, depth - 1)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, FunctionType):
        return inspect.getclosurevars(value).nonlocals.values() if value.__closure__ else ()
    if is_dataclass(value) or (callable(value) and not isinstance(value, type)):
        return getattr(value, "__dict__", {}).values()
    return ()
