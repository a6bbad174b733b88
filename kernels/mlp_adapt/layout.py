"""What the perceptrons are, and where their parameters lie in a flat row of ``P`` numbers.

The operator takes them as torch has them: each layer's weight ``[out, in]``, then its bias ``[out]``. Inside, a layer
is one matrix ``[in + 1, out]``: the transposed weight, and the bias as its last row. A row of activations with a one
behind it times this matrix is the layer.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation

ACTIVATIONS = ("identity", "relu", "tanh", "gelu", "silu")
FROM_SUMS = ("gelu", "silu", "sine")
"""Activations whose derivatives are taken at what goes in; those of the others are known from what comes out."""
WITH_FREQUENCIES = ("sine",)
"""Activations ``sin(frequency * sum)``, with a frequency of its own behind each hidden layer."""
LOSSES = ("mse", "cross_entropy", "bce")
MOST_HIDDEN = 3


class Limits(NamedTuple):
    """What an implementation runs, at most."""

    hidden: int
    """Layers."""
    width: int
    """Numbers of any layer, the inputs and the outputs among them."""
    rows: int | None
    """Of a set of a task; None: any number."""
    activations: tuple[str, ...]


ON_CPU = Limits(8, 256, None, (*ACTIVATIONS, *WITH_FREQUENCIES))
"""In torch, and both sources in C."""
ON_GPU = Limits(MOST_HIDDEN, 128, 128, ACTIVATIONS)
"""In Triton."""
ON_NVIDIA = Limits(8, 256, None, (*ACTIVATIONS, *WITH_FREQUENCIES))
"""In CUDA, so far as a program's shared memory holds the weights and the activations of a row."""

Kind = tuple[Sequence[int], str, str, int, bool]
"""Widths, activation, loss, order, and whether the gradient of the rates is wanted."""


def size(widths: Sequence[int]) -> int:
    """``P``, the number of parameters of a perceptron of these widths, inputs first."""
    return sum((a + 1) * b for a, b in pairwise(widths))


def parameters_of(flat: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """``[..., P]`` -> ``[(weight [..., out, in], bias [..., out]), ...]``, as views."""
    parts = flat.split([numbers for a, b in pairwise(widths) for numbers in (a * b, b)], dim=-1)
    weights = [part.unflatten(-1, (b, a)) for part, (a, b) in zip(parts[::2], pairwise(widths), strict=True)]
    return list(zip(weights, parts[1::2], strict=True))


def matrices(flat: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """A row of matrices ``[..., P]`` -> each layer's ``[..., in + 1, out]``, as views."""
    parts = flat.split([(a + 1) * b for a, b in pairwise(widths)], dim=-1)
    return [part.unflatten(-1, (a + 1, b)) for part, (a, b) in zip(parts, pairwise(widths), strict=True)]


def into_matrices(flat: Tensor, widths: Sequence[int]) -> Tensor:
    """``[..., P]`` as torch has it -> the matrices in turn; what holds one number for all, ``[..., 1]``, stays."""
    return flat[..., _places(tuple(widths), flat.device)[0]] if flat.shape[-1] > 1 else flat


def out_of_matrices(flat: Tensor, widths: Sequence[int]) -> Tensor:
    """The inverse of :func:`into_matrices`."""
    return flat[..., _places(tuple(widths), flat.device)[1]] if flat.shape[-1] > 1 else flat


def in_torchs_order(result: Adaptation, widths: Sequence[int]) -> Adaptation:
    """With all parameters, which are matrices in turn, as torch has them."""
    return Adaptation(*result[:3], *(out_of_matrices(value, widths) for value in result[3:]))


@cache  # for good: a CUDA graph reads it where it lies
def _places(widths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        layers = parameters_of(torch.arange(size(widths)), widths)
        places = torch.cat([part for weight, bias in layers for part in (weight.T.flatten(), bias)])
        return places.to(device), places.argsort().to(device)
