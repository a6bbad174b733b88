"""An algorithm is data: how a task adapts, and how the outer gradient is formed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from torch import nn

from lightning_maml.checks import check_one_of
from lightning_maml.inner import Holder, InnerLoop, Rates, holders_in
from lightning_maml.meta_gradient import MetaGradient, Unrolled

BatchNorm = Literal["batch", "running", "support"]
"""``"batch"``: every forward normalises by the statistics of the rows it sees, support and query each by their own
(transductive, as in the paper). ``"running"``: by the stored running statistics, which none of these changes.
``"support"``: query rows by the statistics of all of their task's support rows under the adapted parameters."""


def per_step_names(network: nn.Module) -> set[str]:
    """Parameters with a value for every inner step, never adapted: classes name theirs in ``per_step_parameters``."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        for name in getattr(type(module), "per_step_parameters", ())
    }


@dataclass(frozen=True)
class Algorithm:
    """An inner loop and a meta-gradient rule. Presets build them: :mod:`lightning_maml.presets`.

    Args:
        inner: how a task adapts.
        meta_gradient: how the outer gradient is formed.
        batch_norm: what batch-norm layers do in inner and outer loop, see :data:`BatchNorm`.
        name: for logs and reports.
    """

    inner: InnerLoop
    meta_gradient: MetaGradient
    batch_norm: BatchNorm = "batch"
    name: str = "custom"

    def __post_init__(self) -> None:
        check_one_of(get_args(BatchNorm), batch_norm=self.batch_norm)
        if not isinstance(self.inner, InnerLoop):
            raise TypeError(f"Expected `inner` to be an inner loop such as SGD(lr=0.01) but got {self.inner!r}.")
        if not callable(self.meta_gradient) or isinstance(self.meta_gradient, type):
            raise TypeError(f"Expected `meta_gradient` to be a rule such as Unrolled() but got {self.meta_gradient!r}.")

    @cached_property
    def needs(self) -> frozenset[tuple[str, Any]]:
        """What an engine has to run, as ``(kind, what)``: see :attr:`InnerLoop.needs`; and the class of the rule."""
        rule = type(self.meta_gradient)
        tensors = {("tensor in", rule)} if [*holders_in(self.meta_gradient)] else set()
        return self.inner.needs | {("rule", rule), *tensors}

    @cached_property
    def holders(self) -> tuple[Holder, ...]:
        """The tensors and modules in inner loop and rule: learned rates, and whatever else may ask for a gradient."""
        return *holders_in(self.inner), *holders_in(self.meta_gradient)

    def with_steps(self, steps: int) -> Algorithm:
        """The same algorithm with another number of inner steps, as at test."""
        return self.with_inner(steps=steps)

    def with_inner(self, **changes: Any) -> Algorithm:
        """The same algorithm with other settings of its inner loop: ``maml(0.1, 5).with_inner(max_norm=10.0)``."""
        return replace(self, inner=replace(self.inner, **changes))

    def at(self, update: int) -> Algorithm:
        """The same algorithm at meta-update ``update``, from 0: in order of mini-batches and annealing.

        ``MetaModule`` calls it at every update; a loop of your own has to.
        """
        inner, rule = self.inner.at(update), self.meta_gradient
        if hasattr(rule, "at"):  # an Annealed rule: isinstance would take as long as a small inner step
            rule = rule.at(update)
        same = inner is self.inner and rule is self.meta_gradient
        return self if same else replace(self, inner=inner, meta_gradient=rule)

    def initial_rates(self, network: nn.Module) -> Rates | None:
        """The learned inner rates at their initial values, or None where the rate is fixed."""
        if self.inner.learn_lr is None:
            return None
        if isinstance(self.inner.lr, Rates):
            return self.inner.lr
        per_step = per_step_names(network)
        candidates = {name: value for name, value in network.named_parameters() if name not in per_step}
        adapted = {name: candidates[name] for name in self.inner.adapted(candidates)}
        lr = self.inner.lr if isinstance(self.inner.lr, Sequence) else float(self.inner.lr)
        return Rates(self.inner.learn_lr, lr, max(self.inner.steps, 1), adapted)

    def with_rates(self, rates: Rates | None) -> Algorithm:
        """The same algorithm with these inner rates; None changes nothing."""
        return self if rates is None else self.with_inner(lr=rates)


def check_parts(network: Any, algorithm: Any) -> None:
    """Raise TypeError where these are no network and no algorithm; a class or a function that makes one is none."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"Expected `network` to be an nn.Module but got {_instead(network)}.")
    if not isinstance(algorithm, Algorithm):
        raise TypeError(f"Expected `algorithm` to be one such as maml(lr=0.01, steps=5) but got {_instead(algorithm)}.")


def _instead(value: Any) -> str:
    if name := getattr(value, "__name__", None):
        return f"{name} itself: call it, {name}(...)"
    return repr(value) if isinstance(value, str) else type(value).__name__


# What other libraries and papers call an argument of ours.
_RATE = ("inner_lr", "adaptation_lr", "fast_lr", "update_lr", "alpha", "step_size", "learning_rate")
_STEPS = ("inner_steps", "adaptation_steps", "num_steps", "n_steps", "num_inner_steps", "update_steps", "num_updates")
ELSEWHERE = dict.fromkeys(_RATE, "lr") | dict.fromkeys(_STEPS, "steps")


def meant(of: Callable[..., Algorithm], name: str) -> str:
    """What to write in the place of an argument ``name`` that a preset does not have.

    Example:
        >>> from lightning_maml import maml
        >>> meant(maml, "inner_lr"), meant(maml, "first_order")
        ('use `lr`', 'it is of second order, and `fomaml` of first')
    """
    known = [*inspect.signature(of).parameters]
    for one in (ELSEWHERE.get(name), *difflib.get_close_matches(name, known, 1)):
        if one in known:
            return f"use `{one}`"
    if name in ("first_order", "second_order") and type(of().meta_gradient) is Unrolled:
        own = of.__name__
        first = "`fomaml`" if own == "maml" else f"`Algorithm({own}(...).inner, FirstOrder())`"
        return f"it is of second order, and {first} of first"
    return f"it has {', '.join(f'`{one}`' for one in known)}"
