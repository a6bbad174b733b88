"""Which parameters adapt: a choice among their names."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from lightning_maml.checks import check_one_of


def head_names(names: Iterable[str], head: str | None = None) -> list[str]:
    """The parameters of the head among ``names``, which stand in the network's order, as ``named_parameters`` has them.

    ``head`` is a regular expression for them; None for the last module that has parameters of its own.

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
class Everything:
    """All of them."""

    def choose(self, names: list[str]) -> list[str]:
        return names


@dataclass(frozen=True)
class Matching:
    """Those whose names a regular expression finds something in."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"Expected `adapts` to be a regular expression but got {self.pattern!r}: {error}."
            ) from error

    def choose(self, names: list[str]) -> list[str]:
        return [name for name in names if re.search(self.pattern, name)]


@dataclass(frozen=True)
class Where:
    """Those whose names a predicate is true of."""

    predicate: Callable[[str], bool]

    def choose(self, names: list[str]) -> list[str]:
        return [name for name in names if self.predicate(name)]


@dataclass(frozen=True)
class Part:
    """The head of a network, or all of it but the head, as what adapts.

    Args:
        part: ``"head"`` or ``"body"``.
        head: as in :func:`head_names`.

    Example:
        >>> from torch import nn
        >>> from lightning_maml import SGD
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> SGD(adapts=Part("body")).adapted(dict(network.named_parameters()))
        ['0.weight', '0.bias']
    """

    part: Literal["head", "body"]
    head: str | None = None

    def __post_init__(self) -> None:
        check_one_of(("head", "body"), part=self.part)

    def choose(self, names: list[str]) -> list[str]:
        head = head_names(names, self.head)
        return head if self.part == "head" else [name for name in names if name not in head]


Adapts = str | Part | Callable[[str], bool] | None
"""Which parameters adapt: None for all, a regular expression or a predicate over their names, or :class:`Part`."""


def choice(adapts: Any) -> Any:
    """The part that an argument ``adapts`` stands for: an object with a method ``choose`` is one itself."""
    if adapts is None:
        return Everything()
    if isinstance(adapts, str):
        return Matching(adapts)
    return adapts if hasattr(adapts, "choose") else Where(adapts)
