"""Which engine runs what: of each engine, and of each operator, the one set of all that it runs.

A problem's needs are pairs of a kind and of what it needs of that kind, mostly an exact class: of its inner loop, of
each of its parts, of its rule (:meth:`Problem.needs`). What an engine runs names, of every kind, what it knows. Refused
is the difference, so that a class that nobody has thought of is refused. ``eager`` runs everything.
"""

from collections.abc import Collection, Container
from itertools import combinations
from typing import Any

import torch

from lightning_maml import inner
from lightning_maml.meta_gradient import FirstOrder, Joint, MultiStep, Reptile, Unrolled
from lightning_maml.networks.layers import SpatialMean

Needs = frozenset[tuple[str, Any]]
Runs = dict[str, Container[Any]]


class _Anything:
    def __contains__(self, what: Any) -> bool:
        return True


class _Ordinary:
    def __contains__(self, kind: Any) -> bool:
        own = kind.__torch_function__
        plain = torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
        return getattr(own, "__func__", own) in (plain, torch._C._disabled_torch_function_impl)


ANYTHING = _Anything()
ORDINARY = _Ordinary()
"""Classes of tensors that leave torch's functions as they are, whatever they do below: on a device of their own."""
PLAIN = {torch.Tensor, torch.nn.Parameter}
"""Classes of tensors with nothing of their own."""

_WORDS = {
    "inner loop": "the inner loop is {}",
    "part": "the inner loop has the part {}",
    "chain": "the inner loop's steps are made of {}",
    "rates": "the inner rates are {}",
    "rule": "the meta-gradient rule is {}",
    "loss": "the loss is {}",
    "batch-norm": "batch-norm goes by {}",
    "parameters of each step": "the network has a value for every inner step",
    "backward hooks": "the network has backward hooks",
    "query loss": "the query sets have a loss of their own, {}",
    "inputs": "inputs are {}",
    "task weights": "tasks have weights",
    "gradient of data": "inputs or targets ask for a gradient",
    "gradient of the loss": "the loss has parameters that ask for a gradient",
    "autocast": "autocast is on",
    "device": "the device is {}",
    "dtypes of what adapts": "the parameters that adapt are of {}",
    "dtypes of everything": "parameters, inputs and targets are of {}",
    "rows of a set": "a task has {} rows",
    "tensor class": "parameters, inputs or targets are of the class {}",
    "tensor in": "there are tensors in {}",
    "safeguard": "a safeguard looks at every step",
}
"""How a need is said, in the order in which reasons are given."""


def refused(needs: Needs, runs: Runs) -> str | None:
    """What of ``needs`` is not in ``runs``, in words; None where everything is.

    Example:
        >>> refused(frozenset({("rule", Joint)}), {"rule": {Unrolled, FirstOrder}})
        'the meta-gradient rule is Joint, none of FirstOrder, Unrolled'
    """
    missing = []
    for kind, what in needs:
        if (known := runs.get(kind, ())) is not ANYTHING and what not in known:
            missing.append((kind, what))
    if not missing:
        return None
    # the same one on every process, whatever order a set has there
    kind, what = min(missing, key=lambda need: ([*_WORDS].index(need[0]), _word(need[1])))
    known = runs.get(kind, ())
    said = _WORDS[kind].format(_word(what))
    if isinstance(known, range):
        return f"{said}, more than {known[-1]}"
    if "{}" not in _WORDS[kind] or not isinstance(known, Collection) or not 0 < len(known) <= 6:
        return said
    return f"{said}, none of {', '.join(sorted(map(_word, known)))}"


def _word(what: Any) -> str:
    if isinstance(what, tuple | frozenset):
        return " and ".join(sorted(map(_word, what)) if isinstance(what, frozenset) else map(_word, what))
    if isinstance(what, torch.dtype):
        return str(what).removeprefix("torch.")
    return getattr(what, "__qualname__", None) or str(what)


def _in_order(*parts: type) -> set[tuple[type, ...]]:
    """Each chain of some of ``parts``, in their order, with the rates at its end."""
    return {(*chosen, inner.Scale) for number in range(len(parts) + 1) for chosen in combinations(parts, number)}


# What adapts reaches an operator as names, and where it starts and what it sees are the meta-parameters and all rows.
_PLAIN = {inner.FromMeta, inner.AllRows, inner.Nothing, inner.ByName, inner.Part, inner.Scale}
_KNOWN_STEPS = (inner.ClipByNorm, inner.AddDecayed, inner.Momentum)
_RATES = {"number", "of each step", "tensor", "shared", "per_step", "per_parameter", "per_parameter_and_step"}
_RATES |= {"per_element"}
_DATA = {"loss", "query loss", "task weights", "gradient of the loss", "gradient of data", "rows of a set"}
_DATA |= {"batch-norm", "autocast", "device", "dtypes of what adapts", "dtypes of everything"}
_ONE_OF = {frozenset({torch.float32}), frozenset({torch.float64})}

# All tasks in one call of the network: every part by what it is, but nothing that takes hold of autograd or of tensors.
BATCHED: Runs = dict.fromkeys(_WORDS, ANYTHING) | {"tensor class": ORDINARY, "backward hooks": {False}}

# Plain gradient descent on one tensor of inputs, with what a known few transformations make of the gradient.
STEPS: Runs = dict.fromkeys(("rule", "safeguard", *_DATA), ANYTHING) | {
    "inner loop": {inner.SGD},
    "part": _PLAIN.union(_KNOWN_STEPS),
    "chain": _in_order(*_KNOWN_STEPS),
    "rates": _RATES,
    "parameters of each step": {False},
    "backward hooks": {False},
    "tensor class": PLAIN,
    "tensor in": set(),
}
SGD_UPDATE: Runs = STEPS | {"device": {"cpu", "cuda"}, "dtypes of what adapts": _ONE_OF}

ADAPTATION: Runs = SGD_UPDATE | {  # a whole adaptation, and its meta-gradient, as one operator
    "part": _PLAIN | {inner.OneHead, inner.Zeros},  # which all tasks start from
    "chain": _in_order(),
    "rule": {Unrolled, FirstOrder, Joint},
    "dtypes of everything": _ONE_OF,
    "loss": {"mse", "cross_entropy", "bce"},
    "query loss": set(),
    "task weights": set(),
    **{kind: {False} for kind in ("autocast", "gradient of data", "gradient of the loss")},
}
CONV_ADAPT: Runs = ADAPTATION | {"loss": {"mse", "cross_entropy"}, "batch-norm": {"batch"}}

COMPILED_PARTS = _PLAIN.union(_KNOWN_STEPS, {inner.SecondMoment, inner.Sign, inner.SharpnessAware})
COMPILED: Runs = STEPS | {
    "inner loop": {inner.SGD, inner.Adam},
    "part": COMPILED_PARTS,
    "chain": ANYTHING,
    "batch-norm": {"batch", "running"},
    "gradient of data": {False},
    "gradient of the loss": {False},
}

ROLLOUTS: Runs = {  # of reinforcement learning, where every step has rows of its own
    "inner loop": {inner.SGD},
    "part": _PLAIN | {inner.Curvature},
    "chain": _in_order(inner.Curvature),
    "rates": _RATES | {"curvature"},
    "rule": {Unrolled, FirstOrder, Joint, MultiStep},
}

# A recording repeats what was launched once: no weights that change with the update, no rows drawn anew, and nothing
# that decides by a number how long it goes on.
GRAPHED: Runs = COMPILED | {
    "part": COMPILED_PARTS | {inner.Curvature, inner.OneHead, inner.Prototypes, inner.Zeros, inner.Proximal},
    "rates": _RATES | {"curvature"},
    "rule": {Unrolled, FirstOrder, Joint, Reptile},
    "parameters of each step": ANYTHING,
    "device": {"cuda"},
    "gradient of the loss": ANYTHING,
}
AT_THE_END = {Unrolled, FirstOrder}
"""Rules that ask for the query sets after the inner steps and for nothing else, so that the way back is known."""

WHOLE = {inner.AllRows}
"""Parts by which every step sees all support rows, so that its losses can be compared."""
MEANS = {SpatialMean}
"""Layers that take the mean over the places of an image, ``[N, C, H, W]`` to ``[N, C]``."""
