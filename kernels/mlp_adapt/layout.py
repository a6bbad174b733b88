"""Where the parameters of a perceptron lie in a flat row of ``P`` numbers.

Each layer is one matrix ``[in + 1, out]``: the transposed weight, and the bias as its last row. A row of activations
with a one behind it times this matrix is the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["matrices", "pack", "size", "unpack"]


def size(widths: Sequence[int]) -> int:
    """``P``, the number of parameters of a perceptron of these widths, inputs first."""
    return sum((a + 1) * b for a, b in pairwise(widths))


def pack(layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``[(weight [out, in], bias [out]), ...]`` -> ``[P]``. Differentiable."""
    return torch.cat([part.flatten() for weight, bias in layers for part in (weight.mT, bias)])


def matrices(flat: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """``[..., P]`` -> each layer's ``[..., in + 1, out]``, as views."""
    parts = flat.split([(a + 1) * b for a, b in pairwise(widths)], dim=-1)
    return [part.unflatten(-1, (a + 1, b)) for part, (a, b) in zip(parts, pairwise(widths), strict=True)]


def unpack(flat: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """``[..., P]`` -> ``[(weight [..., out, in], bias [..., out]), ...]``, as views. The inverse of :func:`pack`."""
    # one split for all: what a call of torch costs counts here
    parts = flat.split([numbers for a, b in pairwise(widths) for numbers in (a * b, b)], dim=-1)
    weights = [part.view(*flat.shape[:-1], a, b).mT for part, (a, b) in zip(parts[::2], pairwise(widths), strict=True)]
    return list(zip(weights, parts[1::2], strict=True))
