"""What the operators of whole inner loops give, and how they are registered."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Adaptation(NamedTuple):
    """A batch of adaptations and their meta-gradient; what was not asked for has no elements."""

    task_losses: Tensor
    """``[T]``: each task's query loss after adaptation."""
    predictions: Tensor
    """``[T, Nq, out]``, of the query inputs."""
    support_losses: Tensor
    """``[T, m + 1]``: before each inner step and after the last."""
    of_theta: Tensor
    """``[P]``: the gradient of the mean query loss."""
    of_rates: Tensor
    """``[m, 1]`` or ``[m, P]``."""
    trajectory: Tensor
    """``[T, m, P]``: the parameters after each inner step."""


def room(
    theta: Tensor, rates: Tensor, support_inputs: Tensor, query_inputs: Tensor | None, out: int, rates_grad: bool
) -> Adaptation:
    """What an adaptation is written into; without a query set, the trajectory and the support losses alone."""
    new, tasks, steps = theta.new_empty, support_inputs.shape[0], rates.shape[0]
    support_losses, nothing = new(tasks, steps + 1), new(0)
    if query_inputs is None:
        return Adaptation(nothing, nothing, support_losses, nothing, nothing, new(tasks, steps, theta.shape[0]))
    outputs = new(tasks), new(tasks, query_inputs.shape[1], out)
    of_rates = new(rates.shape) if rates_grad else nothing
    return Adaptation(*outputs, support_losses, new(theta.shape[0]), of_rates, nothing)


def operators(
    name: str, kind: str, how: str, run: Callable[..., Adaptation], devices: tuple[str, ...]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Register ``lightning_maml::{name}_adapt`` and ``lightning_maml::{name}_trajectory``.

    The first owns the adaptation *and* its meta-gradient, which it returns as outputs. They have no backward, so that
    differentiating an output raises: nothing can be first order without a word.

    Args:
        kind: arguments in a schema's words, first sizes of the network of which the last are its outputs.
        how: arguments that stand behind all others.
        run: called with theta, rates, both sets (for a trajectory None as the second), ``kind``, the order, whether the
            gradient of the rates is wanted, and ``how``.
    """
    known = len(kind.split(","))
    sets = "Tensor theta, Tensor rates, Tensor support_inputs, Tensor support_targets"
    queries, five = "Tensor query_inputs, Tensor query_targets", ", ".join(["Tensor"] * 5)

    def register(operator: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        name_of = f"lightning_maml::{name}_{operator}"
        made = torch.library.custom_op(name_of, function, mutates_args=(), device_types=devices, schema=schema)
        made.register_fake(fake)
        return made

    of_trajectory = attrgetter("trajectory", "support_losses")

    def trajectory(*arguments: Any) -> tuple[Tensor, Tensor]:
        batch, of_kind, others = arguments[:4], arguments[4 : 4 + known], arguments[4 + known :]
        return of_trajectory(run(*batch, None, None, *of_kind, 1, False, *others))

    def adapt_fake(theta: Tensor, rates: Tensor, inputs: Tensor, *others: Any) -> tuple[Tensor, ...]:
        _, asked, _, sizes, *kind_and_how = others
        return room(theta, rates, inputs, asked, sizes[-1], kind_and_how[known])[:5]

    return (
        register(
            "adapt",
            f"({sets}, {queries}, {kind}, int order, bool rates_grad{how}) -> ({five})",
            lambda *arguments: run(*arguments)[:5],
            adapt_fake,
        ),
        register(
            "trajectory",
            f"({sets}, {kind}{how}) -> (Tensor, Tensor)",
            trajectory,
            lambda theta, rates, inputs, *_: of_trajectory(room(theta, rates, inputs, None, 0, False)),
        ),
    )
