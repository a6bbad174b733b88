"""The inner loop: what a task's steps are made of, and the one step that every engine takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self, get_args

from torch import Tensor

from lightning_maml.checks import check_not_negative, check_one_of, check_positive, check_whole
from lightning_maml.inner.adapts import Adapts, AllRows, ByName, MiniBatches
from lightning_maml.inner.base import At, Parameters, Slope, State, Transformation, holders_in
from lightning_maml.inner.rates import Curvature, LearnedRate, Rates, Scale
from lightning_maml.inner.start import FromMeta, Nothing, Proximal, Start
from lightning_maml.inner.transformations import AddDecayed, ClipByNorm, Momentum, SecondMoment, Tolerance


class Parts(NamedTuple):
    """What an inner loop is made of: each a frozen dataclass, whose class says what an engine has to know."""

    start: Any
    adapts: Any
    rows: Any
    pull: Any
    chain: tuple[Any, ...]  # the transformations of the gradient, in turn
    memory: tuple[Any, ...]  # those that come after them, in :meth:`InnerLoop.direction`
    rates: Scale


@dataclass(frozen=True)
class InnerLoop:
    r"""What all inner loops have in common; :class:`SGD` and :class:`Adam` are the two there are.

    .. math:: \phi_{k+1} = \phi_k - \alpha \, P_k\big(\nabla L_{support}(\phi_k) + \lambda (\phi_k - \theta)\big)

    Args:
        lr: the inner rate alpha: a number, one for each step (further steps have the last), a scalar tensor, or Rates.
        steps: the number of inner steps m; 0 leaves the network as it is.
        learn_lr: what has a learned rate of its own, or None for a fixed one.
        adapts: which parameters adapt, see :data:`Adapts`: never those with ``requires_grad=False``, nor those that
            have a value for every step (:class:`~lightning_maml.networks.StepBatchNorm2d`).
        batch_size: how many support rows a step sees, see :class:`MiniBatches`; None for all. The order is the same for
            all tasks, and support losses are those of the rows seen.
        proximal: lambda, which draws the parameters back to where the task started from; 0 for no such force.
        tolerance: a task whose gradient (of loss and proximal term, all parameters together) has this norm or a smaller
            one stays where it is; 0 lets every task take all steps.
        max_norm: a task's gradient (the same) is shortened to this norm where it is longer; None for no limit.
        weight_decay: what is added to the gradient, after that, in multiples of the parameters.
        start: where tasks start, see :data:`Start`; None for the meta-parameters.
        shuffle_seed: of the order of rows; ``Algorithm.at`` puts the number of the meta-update here.
        transformations: what is made of the gradient before all that, in turn: see :class:`Transformation`.

    ValueError where an argument is out of range, TypeError where a transformation is none.
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
    transformations: tuple[Transformation, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.lr, Tensor) and self.lr.numel() != 1:
            raise ValueError(
                f"Expected `lr` to be a number or a scalar tensor but got shape {list(self.lr.shape)}; "
                "use `learn_lr` or `Rates` for a rate per step, parameter or element."
            )
        if isinstance(self.lr, Sequence) and not isinstance(self.lr, str):
            if not self.lr or not all(0 < float(rate) < float("inf") for rate in self.lr):
                raise ValueError(f"Expected `lr` to hold positive and finite rates of the steps but got {self.lr!r}.")
            object.__setattr__(self, "lr", tuple(self.lr))  # hashable, as the rest
        elif not isinstance(self.lr, Tensor | Rates):
            if isinstance(self.lr, str) or not hasattr(self.lr, "__float__"):
                got = repr(self.lr) if isinstance(self.lr, str) else type(self.lr).__name__
                wanted = "a number, one for each step, a scalar tensor or Rates"
                raise TypeError(f"Expected `lr` to be {wanted} but got {got}.")
            check_positive(lr=float(self.lr))
        check_whole(0, steps=self.steps)
        check_one_of((*get_args(LearnedRate), None), learn_lr=self.learn_lr)
        if self.batch_size is not None:
            check_whole(1, batch_size=self.batch_size)
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"Expected `max_norm` to be positive or None but got {self.max_norm!r}.")
        check_not_negative(proximal=self.proximal, tolerance=self.tolerance, weight_decay=self.weight_decay)
        object.__setattr__(self, "transformations", tuple(self.transformations))
        for part in self.transformations:
            if not callable(part) or isinstance(part, type):
                raise TypeError(f"Expected `transformations` such as SharpnessAware(0.05) but got {part!r}.")

    @cached_property
    def parts(self) -> Parts:
        """The parts that the arguments stand for."""
        chain: list[Any] = [*self.transformations]
        chain += [Tolerance(self.tolerance)] if self.tolerance else []
        chain += [ClipByNorm(self.max_norm)] if self.max_norm is not None else []
        chain += [AddDecayed(self.weight_decay)] if self.weight_decay else []
        return Parts(
            start=FromMeta() if self.start is None else self.start,
            adapts=self.adapts if hasattr(self.adapts, "choose") else ByName(self.adapts),
            rows=AllRows() if self.batch_size is None else MiniBatches(self.batch_size, self.shuffle_seed),
            pull=Proximal(self.proximal) if self.proximal else Nothing(),
            chain=tuple(chain),
            memory=self._memory(),
            rates=Scale(self.lr),  # type: ignore[arg-type]  # a sequence is a tuple by now
        )

    def _memory(self) -> tuple[Any, ...]:
        return (Curvature(self.lr),) if isinstance(self.lr, Rates) and self.lr.kind == "curvature" else ()

    @cached_property
    def needs(self) -> frozenset[tuple[str, Any]]:
        """What an engine has to run, as ``(kind, what)``: the exact classes of the loop and of its parts, above all."""
        parts = self.parts
        steps = (*parts.chain, *parts.memory, parts.rates)
        needs = {("inner loop", type(self)), ("chain", tuple(type(part) for part in steps))}
        for part in (parts.start, parts.adapts, parts.rows, parts.pull, *steps):
            needs |= {("part", type(part)), *getattr(part, "modes", ())}
            if part is not parts.rates and type(part) is not Curvature and [*holders_in(part)]:
                needs.add(("tensor in", type(part)))
        return frozenset(needs)

    @property
    def shared_rates(self) -> bool:
        """Whether all parameters have the same rate at a step."""
        return not isinstance(self.lr, Rates) or self.lr.kind in ("shared", "per_step")

    @property
    def no_state(self) -> State:
        """The state before the first step: one for each transformation, and one for :meth:`direction`."""
        return ({},) * (len(self.parts.chain) + 1)

    @property
    def pulled(self) -> bool:
        """Whether steps depend on where the tasks started from."""
        return type(self.parts.pull) is not Nothing

    @cached_property
    def second_order(self) -> bool:
        """Whether a step can be differentiated."""
        return all(getattr(part, "second_order", True) for part in self.parts.chain + self.parts.memory)

    @cached_property
    def counts_steps(self) -> bool:
        """Whether a step computes with its own number."""
        return any(getattr(part, "counts_steps", False) for part in self.parts.chain + self.parts.memory)

    def adapted(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """The names of those ``parameters {name: tensor}`` of a network that adapt; ValueError where none does."""
        trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if not trainable:
            raise ValueError("Expected at least one parameter to adapt but all are frozen: use requires_grad_(True).")
        if chosen := self.parts.adapts.choose(trainable):
            return chosen
        chooses = f"`adapts={self.adapts!r}` chooses none of the trainable parameters {trainable}"
        raise ValueError(f"Expected at least one parameter to adapt but {chooses}.")

    def rate(self, name: str, step: int) -> float | Tensor:
        """The rate of parameter ``name`` at inner step ``step``."""
        return self.parts.rates.at(name, step)

    def at(self, update: int) -> Self:
        """The same inner loop at meta-update number ``update``, counted from 0: it shuffles mini-batches anew."""
        return self if self.batch_size is None else replace(self, shuffle_seed=update)

    def rows(self, step: int, support: int) -> Tensor | None:
        """Which of the ``support`` rows of a task step ``step`` sees, ``[batch_size]``, or None where it sees all."""
        return self.parts.rows(step, support)

    def direction(self, gradients: Parameters, step: int, state: dict[str, Any]) -> Parameters:
        """What the rates multiply, ``{name: [T, *shape]}``; remembers in ``state``, which is empty at step 0."""
        for part in self.parts.memory:
            name = type(part).__name__
            gradients, state[name] = part(gradients, state.get(name, {}), At(step))
        return gradients

    @staticmethod
    def update(phi: Parameters, gradients: Parameters, rates: Mapping[str, float | Tensor]) -> Parameters:
        """The parameters after a step, all ``{name: [T, *shape]}``."""
        return {name: value - rates[name] * gradients[name] for name, value in phi.items()}

    def step(
        self,
        phi: Parameters,
        slope: Slope,
        state: State,
        step: int,
        origin: Parameters,
        order: int,
        rates: Mapping[str, float | Tensor] | None = None,
    ) -> tuple[Parameters, State]:
        """The parameters and the state after inner step ``step``, counted from 0: the same on every engine.

        Args:
            phi, origin: the parameters before it, and the meta-parameters, ``{name: [T, *shape]}``.
            slope: the gradients of the support losses at any parameters; differentiable where ``order`` is 2.
            state: what the step before returned; :attr:`no_state` before the first.
            order: 2, or 1 where the meta-gradient takes the gradients, and what is made of them, as constants.
            rates: in place of the loop's own.

        NotImplementedError where ``order`` is 2, and a part has no second order.
        """
        if order == 2 and not self.second_order:
            raise NotImplementedError(
                f"Expected a first-order meta-gradient for the inner loop {type(self).__name__}, which has no second "
                "order: use FirstOrder() or Reptile(), or the inner loop SGD."
            )
        parts = self.parts
        *kept, memory = state
        gradients = slope(phi)
        if parts.chain or self.pulled:
            known = phi
            if order == 1:
                known, origin = ({name: value.detach() for name, value in part.items()} for part in (phi, origin))
            at = At(step, known, lambda where: parts.pull(slope(where), where, origin))
            gradients = parts.pull(gradients, known, origin)
            for index, part in enumerate(parts.chain):
                gradients, kept[index] = part(gradients, kept[index], at)
        memory = dict(memory)
        gradients = self.direction(gradients, step, memory)
        if rates is None:
            rates = {name: self.rate(name, step) for name in phi}
        return self.update(phi, gradients, rates), (*kept, memory)


@dataclass(frozen=True)
class SGD(InnerLoop):
    r"""Gradient descent, ``phi <- phi - lr * dL_support/dphi``, the inner loop of MAML (Finn et al. 2017).

    With momentum as in ``torch.optim.SGD``: :math:`b_k = \mu b_{k-1} + g_k`, :math:`b_0 = g_0`, and the rate multiplies
    :math:`b_k`. The meta-gradient goes through it. The other arguments are those of :class:`InnerLoop`.

    Args:
        momentum: mu, from 0, for none, to below 1.

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

    def _memory(self) -> tuple[Any, ...]:
        return (*super()._memory(), Momentum(self.momentum)) if self.momentum else super()._memory()


@dataclass(frozen=True)
class Adam(InnerLoop):
    r"""Adam without momentum (:math:`\beta_1 = 0`), the inner loop of Reptile (Nichol et al. 2018, section 6).

    .. math:: v_k = \beta_2 v_{k-1} + (1 - \beta_2) g_k^2, \quad
              \phi_{k+1} = \phi_k - \alpha \, g_k / (\sqrt{v_k / (1 - \beta_2^k)} + \epsilon)

    It has no second order: a root of a zero gradient has no slope. Other arguments are those of :class:`InnerLoop`.

    Args:
        beta2: the decay of the squared gradients, in [0, 1).
        eps: what is added to their root, above 0.
    """

    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta2 < 1 or not self.eps > 0:
            raise ValueError(f"Expected `beta2` in [0, 1) and a positive `eps` but got {self.beta2!r}, {self.eps!r}.")

    def _memory(self) -> tuple[Any, ...]:
        return *super()._memory(), SecondMoment(self.beta2, self.eps)
