"""Which support rows an inner step sees."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AllRows:
    """All of them, in every step."""

    def __call__(self, step: int, support: int) -> Tensor | None:
        return None


@dataclass(frozen=True)
class MiniBatches:
    """So many a step: steps walk through the rows in a random order, and shuffle them anew after each pass.

    Args:
        size: how many.
        seed: of the order.
    """

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
