"""Which parameters adapt, by their names, and which support rows a step of theirs sees."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_maml.checks import check_one_of


def head_names(names: Iterable[str], head: str | None = None) -> list[str]:
    """The parameters of the head among ``names``, which stand in the network's order, as ``named_parameters`` has them.

    ``head`` is a regular expression for them; None for the last module that has parameters of its own. ValueError where
    there are none.

    Example:
        >>> head_names(["conv.weight", "norm.weight", "head.weight", "head.bias"])
        ['head.weight', 'head.bias']
    """
    every = list(names)
    chosen = [name for name in every if name.rpartition(".")[0] == every[-1].rpartition(".")[0]]
    if head is not None:
        chosen = [name for name in every if re.search(head, name)]
    if not chosen:
        raise ValueError(f"Expected the head's parameters to match {head!r} but got none of {every}.")
    return chosen


@dataclass(frozen=True)
class ByName:
    """Those whose names a regular expression finds something in, or a predicate is true of; None for all of them."""

    which: str | Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        if self.which is not None and not isinstance(self.which, str) and not callable(self.which):
            wanted = "a regular expression, as '^(body|head)', or a function of a name"
            raise TypeError(f"Expected `adapts` to be {wanted} but got {type(self.which).__name__}.")
        try:
            re.compile(self.which if isinstance(self.which, str) else "")
        except re.error as error:
            what = "`adapts` to be a regular expression"
            raise ValueError(f"Expected {what} but got {self.which!r}: {error}.") from error

    def choose(self, names: list[str]) -> list[str]:
        if self.which is None:
            return names
        chosen = re.compile(self.which).search if isinstance(self.which, str) else self.which
        return [name for name in names if chosen(name)]


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


@dataclass(frozen=True)
class AllRows:
    """All support rows, in every step."""

    def __call__(self, step: int, support: int) -> Tensor | None:
        return None


@dataclass(frozen=True)
class MiniBatches:
    """``size`` a step: steps walk through the rows in a random order, of ``seed``, and shuffle them after each pass."""

    size: int
    seed: int = 0

    def __call__(self, step: int, support: int) -> Tensor | None:
        """Which of ``support`` rows step ``step`` sees, ``[size]``, of all tasks alike; None where it sees all."""
        if self.size >= support:
            return None
        first, generator = step * self.size, torch.Generator()
        walks = range(first // support, (first + self.size - 1) // support + 1)
        orders = [torch.randperm(support, generator=generator.manual_seed((self.seed << 16) + walk)) for walk in walks]
        return torch.cat(orders)[first % support :][: self.size]
