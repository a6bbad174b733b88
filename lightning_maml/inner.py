"""How a task adapts: which parameters take part, by what step, how often."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

__all__ = ["SGD", "Adam", "Adapts", "InnerLoop", "LearnedRate", "Parameters", "Part", "Rates", "Start", "head_names"]

Parameters = dict[str, Tensor]
"""Named parameters: of one network ``{name: [*shape]}``, or of one network a task ``{name: [T, *shape]}``."""

LearnedRate = Literal["shared", "per_step", "per_parameter", "per_parameter_and_step", "per_element", "curvature"]
"""What has a learned inner rate of its own. ``per_element`` is Meta-SGD's, ``per_parameter_and_step`` MAML++'s.
``curvature`` is Meta-Curvature's: the rate stays, and learned matrices multiply the gradient, one for its outputs,
one for its inputs and one for the places of a filter; a vector is multiplied element by element."""


def of_step(rates: Any, step: int) -> Any:
    """The rate of inner step ``step`` among ``rates``, a sequence or ``[steps]``: further steps have the last one."""
    return rates[min(step, len(rates) - 1)]


class Rates(nn.Module):
    """Learned inner rates: parameters like any other, saved, logged and in the optimizer.

    Args:
        kind: what has a rate of its own, see :data:`LearnedRate`.
        lr: the initial value of all of them, or, of the kinds that tell steps apart, of each step; later steps have the
            last one.
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
        if isinstance(lr, Sequence):
            if not self._tells_steps_apart:
                raise ValueError(
                    f"Expected one initial rate for learned rates {kind!r}, which are the same at every step, but got "
                    f"{list(lr)}; 'per_step' and 'per_parameter_and_step' can begin with one for each step."
                )
            initial: float | list[float] = [float(of_step(lr, step)) for step in range(steps)]
        else:
            initial = float(lr)
        self._dims: dict[str, int] = {}
        first = next(iter(parameters.values()))
        names = [self._key(name) for name in parameters] if kind not in ("shared", "per_step") else [kind]
        for name, parameter in zip(names, parameters.values(), strict=False):
            if kind == "curvature":
                self._dims[name] = parameter.ndim
                for part, identity in _identities(parameter).items():
                    self.register_parameter(f"{name}/{part}", nn.Parameter(identity))
                continue
            shape: tuple[int, ...] = ()
            if self._tells_steps_apart:
                shape = (steps,)
            elif kind == "per_element":
                shape = tuple(parameter.shape)
            rate = torch.tensor(initial, dtype=first.dtype, device=first.device).expand(shape).clone()
            self.register_parameter(name, nn.Parameter(rate))

    @property
    def _tells_steps_apart(self) -> bool:
        return self.kind in ("per_step", "per_parameter_and_step")

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")  # torch allows no dots in the name of a parameter

    def at(self, name: str, step: int) -> Tensor:
        """The rate of parameter ``name`` at inner step ``step``: a scalar, or of the parameter's own shape."""
        if self.kind == "curvature":
            return next(self.parameters()).new_tensor(self.lr)
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
        transformed = torch.einsum("ao,...oif,ib,cf->...abc", outputs, blocks, inputs, places)
        return transformed.reshape(gradient.shape)


def _identities(parameter: Tensor) -> dict[str, Tensor]:
    """Meta-Curvature's matrices for a parameter, as the identity."""
    if parameter.ndim < 2:
        return {"elements": torch.ones_like(parameter)}
    sizes = {"outputs": parameter.shape[0], "inputs": parameter.shape[1]}
    if parameter.ndim > 2:
        sizes["places"] = parameter[0, 0].numel()
    return {part: torch.eye(size, dtype=parameter.dtype, device=parameter.device) for part, size in sizes.items()}


def head_names(names: Iterable[str], head: str | None = None) -> list[str]:
    """The parameters of the head among ``names``, which stand in the network's order.

    Args:
        names: of the parameters, as ``named_parameters`` gives them.
        head: a regular expression for those of the head; None for the rule: the head is the last module that has
            parameters of its own.

    Raises:
        ValueError: ``head`` matches none of them, or there are none.

    Example:
        >>> head_names(["conv.weight", "norm.weight", "head.weight", "head.bias"])
        ['head.weight', 'head.bias']
    """
    every = list(names)
    if head is not None:
        chosen = [name for name in every if re.search(head, name)]
    else:
        chosen = [name for name in every if name.rpartition(".")[0] == every[-1].rpartition(".")[0]]
    if not chosen:
        raise ValueError(f"Expected the head's parameters to match {head!r} but got none of {every}.")
    return chosen


@dataclass(frozen=True)
class Part:
    """The head of a network, or all of it but the head, as what adapts: see :func:`head_names` for the rule.

    Args:
        part: ``"head"`` or ``"body"``.
        head: a regular expression for the names of the head's parameters; None for the last module that has any.

    Raises:
        ValueError: ``part`` is something else.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> SGD(adapts=Part("body")).adapted(dict(network.named_parameters()))
        ['0.weight', '0.bias']
    """

    part: Literal["head", "body"]
    head: str | None = None

    def __post_init__(self) -> None:
        if self.part not in ("head", "body"):
            raise ValueError(f"Expected `part` to be 'head' or 'body' but got {self.part!r}.")

    def choose(self, names: list[str]) -> list[str]:
        """Those of ``names`` that belong to the part."""
        head = head_names(names, self.head)
        return head if self.part == "head" else [name for name in names if name not in head]


Adapts = str | Callable[[str], bool] | Part | None
"""Which parameters adapt: None for all, a regular expression or a predicate over their names, or :class:`Part`."""

Start = Callable[[Parameters, Callable[[Parameters], Tensor], Tensor], Parameters]
"""Where each task starts, ``(theta, predict, support_targets) -> phi_0``: from the meta-parameters that adapt ``{name:
[T, *shape]}`` (or of one task, ``{name: [*shape]}``), the network on the support rows under any parameters, and the
targets ``[T, Ns, ...]``. The meta-gradient goes through it. See :mod:`lightning_maml.starts`."""

_Inner = TypeVar("_Inner", bound="InnerLoop")


@dataclass(frozen=True)
class InnerLoop:
    r"""What all inner loops have in common; :class:`SGD` and :class:`Adam` are the two there are.

    .. math:: \phi_{k+1} = \phi_k - \alpha \, P_k\big(\nabla L_{support}(\phi_k) + \lambda (\phi_k - \theta)\big)

    Args:
        lr: the inner rate alpha: a number, one for each step (of which further steps have the last), a scalar tensor,
            or :class:`Rates`.
        steps: the number of inner steps m; 0 leaves the network as it is.
        learn_lr: what has a learned rate of its own, or None for a fixed one.
        adapts: which parameters adapt, see :data:`Adapts`. Parameters with ``requires_grad=False`` never do, nor do
            those that have a value for every step (:class:`~lightning_maml.networks.StepBatchNorm2d`).
        batch_size: how many support rows a step sees; None for all. Steps walk through the rows in a random order, the
            same for all tasks, and shuffle them anew after each pass; support losses are then those of the rows seen.
        proximal: lambda, which draws the parameters back to where the task started from; 0 for no such force.
        tolerance: a task whose gradient (of loss and proximal term, all parameters together) has this norm or a smaller
            one stays where it is; 0 lets every task take all steps.
        max_norm: a task's gradient (the same) is shortened to this norm where it is longer; None for no limit. The
            meta-gradient goes through the factor.
        weight_decay: what is added to the gradient, after that, in multiples of the parameters.
        start: where tasks start, see :data:`Start`; None for the meta-parameters.
        shuffle_seed: of the order of rows; ``Algorithm.at`` puts the number of the meta-update here.

    Raises:
        ValueError: an argument is out of range.
    """

    lr: float | Sequence[float] | Tensor | Rates = 0.01
    steps: int = 5
    learn_lr: LearnedRate | None = None
    adapts: Adapts = None
    batch_size: int | None = None
    proximal: float = 0.0
    tolerance: float = 0.0
    start: Start | None = None
    shuffle_seed: int = 0
    max_norm: float | None = None
    weight_decay: float = 0.0

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
        elif isinstance(self.lr, Sequence):
            if not self.lr or not all(0 < float(rate) < float("inf") for rate in self.lr):
                raise ValueError(f"Expected `lr` to hold positive and finite rates of the steps but got {self.lr!r}.")
            object.__setattr__(self, "lr", tuple(self.lr))  # hashable, as the rest
        elif not isinstance(self.lr, Rates) and not 0 < float(self.lr) < float("inf"):
            raise ValueError(f"Expected `lr` to be positive and finite but got {self.lr!r}.")
        if self.learn_lr is not None and self.learn_lr not in get_args(LearnedRate):
            raise ValueError(
                f"Expected `learn_lr` to be one of {get_args(LearnedRate)} or None but got {self.learn_lr!r}."
            )
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ValueError(
                f"Expected `batch_size` to be a positive number of support rows or None but got {self.batch_size!r}."
            )
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"Expected `max_norm` to be positive or None but got {self.max_norm!r}.")
        for name in ("proximal", "tolerance", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"Expected `{name}` to be finite and not negative but got {value!r}.")

    def adapted(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """The names of those ``parameters {name: tensor}`` of a network that adapt.

        Raises:
            ValueError: there are none.
        """
        trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if isinstance(self.adapts, str):
            pattern = re.compile(self.adapts)
            chosen = [name for name in trainable if pattern.search(name)]
        elif isinstance(self.adapts, Part):
            chosen = self.adapts.choose(trainable) if trainable else []
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
        if isinstance(self.lr, Rates):
            return self.lr.at(name, step)
        return of_step(self.lr, step) if isinstance(self.lr, Sequence) else self.lr

    def rates(self, names: list[str], step: int) -> list[float | Tensor]:
        """The rates of all parameters at inner step ``step``, in the order of ``names``."""
        return [self.rate(name, step) for name in names]

    def at(self: _Inner, update: int) -> _Inner:
        """The same inner loop at meta-update number ``update``, counted from 0: it shuffles mini-batches anew."""
        return self if self.batch_size is None else replace(self, shuffle_seed=update)

    def rows(self, step: int, support: int) -> Tensor | None:
        """Which of the ``support`` rows of a task step ``step`` sees, ``[batch_size]``, or None where it sees all."""
        if self.batch_size is None or self.batch_size >= support:
            return None
        first, end = step * self.batch_size, (step + 1) * self.batch_size
        rows = []
        for walk in range(first // support, (end - 1) // support + 1):
            generator = torch.Generator().manual_seed((self.shuffle_seed << 16) + walk)
            order = torch.randperm(support, generator=generator)
            rows.append(order[max(first - walk * support, 0) : end - walk * support])
        return torch.cat(rows)

    def direction(self, gradients: Parameters, step: int, state: Parameters) -> Parameters:
        """What the rates multiply: the gradients ``{name: [T, *shape]}``, or what the rule makes of them.

        ``state`` is the rule's own memory of the steps before, to be written to; it is empty at step 0.
        """
        if not isinstance(self.lr, Rates):
            return gradients
        return {name: self.lr.direction(name, gradient) for name, gradient in gradients.items()}

    def clipping(self, norms: Tensor) -> Tensor:
        """The factors ``[T]`` that shorten gradients of norms ``[T]`` to ``max_norm``, as ``clip_grad_norm_``'s."""
        assert self.max_norm is not None
        return (self.max_norm / (norms + 1e-6)).clamp(max=1.0)

    @staticmethod
    def update(phi: Parameters, gradients: Parameters, rates: Mapping[str, float | Tensor]) -> Parameters:
        """One step. ``phi`` and ``gradients`` ``{name: [T, *shape]}`` or of one task, ``{name: [*shape]}``."""
        return {name: value - rates[name] * gradients[name] for name, value in phi.items()}


@dataclass(frozen=True)
class SGD(InnerLoop):
    r"""Gradient descent, ``phi <- phi - lr * dL_support/dphi``, the inner loop of MAML (Finn et al. 2017).

    With momentum as in ``torch.optim.SGD``: :math:`b_k = \mu b_{k-1} + g_k`, :math:`b_0 = g_0`, and the rate multiplies
    :math:`b_k`. The meta-gradient goes through it.

    Args:
        momentum: mu, from 0, for none, to below 1.

    The other arguments are those of :class:`InnerLoop`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from lightning_maml import maml
        >>> maml(0.1, 5).with_inner(momentum=0.9, max_norm=10.0).inner.momentum
        0.9
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1) but got {self.momentum!r}.")

    def direction(self, gradients: Parameters, step: int, state: Parameters) -> Parameters:
        gradients = super().direction(gradients, step, state)
        if not self.momentum:
            return gradients
        for name, gradient in gradients.items():
            state[name] = gradient if step == 0 else self.momentum * state[name] + gradient
        return dict(state)


@dataclass(frozen=True)
class Adam(InnerLoop):
    r"""Adam without momentum (:math:`\beta_1 = 0`), the inner loop of Reptile (Nichol et al. 2018, section 6).

    .. math:: v_k = \beta_2 v_{k-1} + (1 - \beta_2) g_k^2, \quad
              \phi_{k+1} = \phi_k - \alpha \, g_k / (\sqrt{v_k / (1 - \beta_2^k)} + \epsilon)

    Every task starts with empty moments. It has no second order: a root of a zero gradient has no slope.

    Args:
        beta2: the decay of the squared gradients.
        eps: what is added to their root.

    The other arguments are those of :class:`InnerLoop`.

    Raises:
        ValueError: an argument is out of range.
    """

    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta2 < 1 or not self.eps > 0:
            raise ValueError(
                f"Expected `beta2` in [0, 1) and a positive `eps` but got {self.beta2!r} and {self.eps!r}."
            )

    def direction(self, gradients: Parameters, step: int, state: Parameters) -> Parameters:
        correction = 1 - self.beta2 ** (step + 1)
        for name, gradient in gradients.items():
            fresh = (1 - self.beta2) * gradient.square()
            state[name] = fresh if step == 0 else self.beta2 * state[name] + fresh
        return {name: gradient / ((state[name] / correction).sqrt() + self.eps) for name, gradient in gradients.items()}
