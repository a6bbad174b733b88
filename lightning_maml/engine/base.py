"""What every engine takes and gives."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_maml.engine.coverage import Needs
from lightning_maml.engine.functional.layers import POINTWISE
from lightning_maml.engine.functional.structure import fingerprint, have_backward_hooks, is_sequence
from lightning_maml.inner import InnerLoop, Parameters, tensors_of
from lightning_maml.learner import Algorithm, check_parts, per_step_names
from lightning_maml.losses import TaskLoss
from lightning_maml.tasks import Inputs, Set, TaskBatch, tensors_in


@dataclass(frozen=True, eq=False)
class LossAndGradient:
    """The meta-gradient of a mean query loss, waiting in ``surrogate``."""

    loss: Tensor
    """Scalar: the mean query loss over the tasks, by their weights where they have any, detached, for logging."""
    gradients: Sequence[Tensor]
    """The meta-gradient, one tensor for each of ``leaves``."""
    leaves: Sequence[Tensor]
    """Every tensor that gets a meta-gradient, see :meth:`Problem.leaves`."""

    @cached_property
    def surrogate(self) -> Tensor:
        """Scalar of the value of ``loss`` whose ``.backward()`` adds the meta-gradient to the leaves' ``.grad``."""
        with torch.enable_grad():
            return attach(self.loss, self.gradients, self.leaves)


@dataclass(frozen=True, eq=False)
class MetaOutput(LossAndGradient):
    """One meta-batch: its losses, and its meta-gradient."""

    task_losses: Tensor
    """``[T]``, detached: each task's query loss after adaptation."""
    predictions: Tensor
    """``[T, Nq, ...]``, detached."""
    support_losses: Tensor
    """``[T, steps + 1]``, detached: before each inner step and after the last."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, an algorithm and a loss: all that an engine needs besides the tasks."""

    network: nn.Module
    algorithm: Algorithm
    loss: TaskLoss
    query_loss: TaskLoss | None = None
    """What the query sets are judged by; None: by ``loss``."""
    safeguard: bool = False
    """Whether a trajectory takes a task's step only as far as it lowers the task's support loss."""
    weighted: bool = False
    """Whether the tasks have weights."""
    memo: dict[Any, Any] = field(default_factory=dict, init=False)
    """What engines have found out about it."""

    def __post_init__(self) -> None:
        check_parts(self.network, self.algorithm)
        if self.inner.learn_lr is not None and not isinstance(self.inner.lr, nn.Module):
            raise ValueError(
                f"Expected learned inner rates for `learn_lr={self.inner.learn_lr!r}` but the algorithm has the number "
                f"{self.inner.lr}: build them with rates = algorithm.initial_rates(network), put rates.parameters() "
                "into the optimizer, and pass algorithm.with_rates(rates). MetaModule does this by itself."
            )

    @cached_property
    def names(self) -> Parameters:
        """The network's parameters under all their names; a tied one has several."""
        if type(self.network).named_parameters is not nn.Module.named_parameters:
            return dict(self.network.named_parameters(remove_duplicate=False))
        every = [(prefix + n, v) for prefix, module in self._named_modules for n, v in module._parameters.items()]
        return {name: value for name, value in every if value is not None}

    @cached_property
    def parameters(self) -> Parameters:
        """The network's parameters, each under its first name."""
        first: dict[int, str] = {}
        return {name: value for name, value in self.names.items() if first.setdefault(id(value), name) == name}

    @cached_property
    def tied(self) -> dict[str, str] | None:
        """``{further name: first name}`` of the parameters that several modules share; None: each has one name.

        A module that itself has several names is one module, under its first.
        """
        if len(self.names) == len(self.parameters):
            return None
        first = {id(value): name for name, value in self.parameters.items()}
        modules = {name for name, _ in self.network.named_modules()}
        found = {name: first[id(value)] for name, value in self.names.items() if name.rpartition(".")[0] in modules}
        return {name: one for name, one in found.items() if name != one}

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """The network and all modules inside."""
        return tuple({id(module): module for _, module in self._named_modules}.values())

    @cached_property
    def _named_modules(self) -> list[tuple[str, nn.Module]]:
        """Every module under each of its names, with a dot behind it: torch's own walk takes several times as long."""
        found: list[tuple[str, nn.Module]] = []
        waiting = [("", self.network)]
        while waiting:
            prefix, module = waiting.pop()
            found.append((prefix, module))
            children = reversed(module._modules.items())
            waiting += [(f"{prefix}{name}.", child) for name, child in children if child is not None]
        return found

    @cached_property
    def plain(self) -> bool:
        """Whether the network is linear layers and activations alone, which know no modes of their own."""
        for one in self.modules:
            if type(one) is not nn.Linear and type(one) not in POINTWISE and not is_sequence(one):
                return False
        return True

    @cached_property
    def norms(self) -> dict[str, nn.Module]:
        """The batch-norm layers, under each of their names with the dot behind it."""
        named = () if self.plain else self._named_modules
        return {name: module for name, module in named if isinstance(module, nn.modules.batchnorm._BatchNorm)}

    @cached_property
    def per_step(self) -> set[str]:
        """The parameters that hold a value for every inner step."""
        return set() if self.plain else per_step_names(self.network)

    @property
    def judge(self) -> TaskLoss:
        """The loss of the query sets."""
        return self.loss if self.query_loss is None else self.query_loss

    @cached_property
    def held_by_losses(self) -> tuple[Tensor, ...]:
        """The tensors that the losses compute with."""
        own = () if self.query_loss is None else self.query_loss.holders
        return tuple(tensors_of((*self.loss.holders, *own)))

    @property
    def inner(self) -> InnerLoop:
        return self.algorithm.inner

    @cached_property
    def adapted(self) -> list[str]:
        """The names of the parameters that adapt."""
        return self.inner.adapted({name: value for name, value in self.parameters.items() if name not in self.per_step})

    def needs(self, *sets: Set) -> Needs:
        """What an engine has to run, as ``(kind, what)``: the algorithm's classes, and what the rest asks for."""
        loss, values = self.loss.kind, tensors_in(*sets)
        parameters = [*self.parameters.values()]
        # labels, of which the cross-entropy alone makes sense, need no dtype of their own
        data = [v for v in values if v.is_floating_point()] if loss == "cross_entropy" else values
        return self.algorithm.needs.union(
            [
                ("loss", loss),
                ("dtypes of what adapts", frozenset({self.parameters[name].dtype for name in self.adapted})),
                ("dtypes of everything", frozenset({value.dtype for value in parameters + data})),
                ("autocast", autocast_on(parameters[0].device)),
                ("gradient of data", True in [value.requires_grad for value in values]),
                ("gradient of the loss", True in [value.requires_grad for value in self.held_by_losses]),
                ("parameters of each step", bool(self.per_step)),
                ("backward hooks", have_backward_hooks(self.modules)),
            ],
            [("batch-norm", self.algorithm.batch_norm)] if self.norms else [],
            [("device", device.type) for device in {value.device for value in (*values, parameters[0])}],
            [("tensor class", kind) for kind in {*map(type, parameters), *map(type, values)}],
            [("rows of a set", targets.shape[1]) for _, targets in sets],
            [("query loss", self.query_loss.kind)] if self.query_loss is not None else [],
            [("inputs", "several tensors")] if len(values) > 2 * len(sets) else [],
            [("safeguard", True)] if self.safeguard else [],
            [("task weights", True)] if self.weighted else [],
        )

    def with_weights(self, weighted: bool) -> "Problem":
        """The same problem of tasks that have weights, or have none."""
        if weighted == self.weighted:
            return self
        return self.memo.get("other") or self.memo.setdefault("other", replace(self, weighted=weighted))

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """What its network and loss compute by, but for tensors' values."""
        device = next(iter(self.names.values())).device
        cast = autocast_on(device) and torch.get_autocast_dtype(device.type)
        # losses by what they compute: the named ones are made anew in each call
        losses = [(type(loss), loss.function) for loss in (self.loss, self.judge)]
        return *losses, cast, *map(fingerprint, self.modules)

    @cached_property
    def own_leaves(self) -> list[Tensor]:
        """Every tensor that gets a meta-gradient: parameters, learned rates, and whatever else asks for one."""
        held = (*tensors_of(self.algorithm.holders), *self.held_by_losses)
        every = {id(value): value for value in (*self.parameters.values(), *held)}
        return [value for value in every.values() if value.requires_grad]

    def leaves(self, *sets: Set) -> list[Tensor]:
        """:attr:`own_leaves`, and those of the tasks' tensors that ask for a gradient."""
        known = {id(value) for value in self.own_leaves}
        asking = {id(value): value for value in tensors_in(*sets) if value.requires_grad}
        return [*self.own_leaves, *(value for key, value in asking.items() if key not in known)]


def autocast_on(device: torch.device) -> bool:
    """Whether autocast is on there."""
    return _knows_autocast(device.type) and torch.is_autocast_enabled(device.type)


_knows_autocast = cache(torch.amp.is_autocast_available)


class Engine(ABC):
    """How the tasks of a batch run: the same numbers on every engine, to rounding."""

    name: str

    @abstractmethod
    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        """Why this engine cannot run the problem on sets of inputs and targets ``[T, N, ...]``; None: it can."""

    @abstractmethod
    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        """The query losses after adaptation, and the meta-gradient."""

    @abstractmethod
    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        """The adapted parameters ``{name: [T, *shape]}`` and support losses ``[T]`` before and after each inner step.

        Yields ``steps + 1`` pairs, detached, of the inputs and targets to adapt to, ``[T, Ns, ...]``. Under
        ``batch_norm="support"`` the statistics that query rows go by are among the parameters,
        ``{"<layer>.running_mean": [T, C], "<layer>.running_var": [T, C]}``. With ``problem.safeguard`` each step goes
        through :func:`~lightning_maml.engine.divergence.shortened`.
        """

    @abstractmethod
    def predict(self, problem: Problem, phi: Parameters, inputs: Inputs, step: int | None = None) -> Tensor:
        """Predictions ``[T, N, ...]`` of the tasks' networks ``phi {name: [T, *shape]}`` for inputs ``[T, N, ...]``.

        ``step`` is how many inner steps they have taken, for networks with a value for every step; None: all of them.
        """


class _Attach(torch.autograd.Function):
    """A scalar whose backward hands out gradients that are already known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable  # differentiating again raises, instead of being silently wrong
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.saved_tensors, upstream)


def in_layout(gradients: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in their leaves' own layout, which DDP's buffers have: it copies others, and warns."""
    return [
        gradient if gradient.stride() == leaf.stride() else torch.empty_like(leaf).copy_(gradient)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]


def attach(loss: Tensor, gradients: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
    """A scalar of the value of ``loss`` whose ``.backward()`` adds ``gradients`` to ``leaves``."""
    return _Attach.apply(loss, in_layout(gradients, leaves), *leaves)
