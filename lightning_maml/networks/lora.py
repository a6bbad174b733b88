"""Low-rank adapters in the place of a network's linear layers."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml.checks import check_whole


class LowRank(nn.Module):
    r"""A linear layer and an adapter of low rank beside it: :math:`x W^T + b + \tfrac{s}{r} x A^T B^T`.

    Hu et al. (2022, https://arxiv.org/abs/2106.09685): ``lora_a [rank, in]`` is drawn at random and ``lora_b
    [out, rank]`` starts at zero, so that the layer is at first what it was.

    Args:
        linear: the layer, kept as ``base``.
        rank, scale: r and s of the adapter.

    Example:
        >>> linear, x = nn.Linear(3, 2), torch.randn(5, 3)
        >>> torch.equal(LowRank(linear, rank=2)(x), linear(x))
        True
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.base, self.scale = linear, scale / rank
        like = linear.weight
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, dtype=like.dtype, device=like.device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=like.dtype, device=like.device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear draws its weights

    @property
    def weight(self) -> Tensor:
        """The weight as changed by the adapter, ``[out, in]``, for modules that read it past the layer."""
        return self.base.weight + self.scale * self.lora_b @ self.lora_a

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + self.scale * F.linear(F.linear(inputs, self.lora_a), self.lora_b)


def add_lora(
    network: nn.Module, rank: int = 4, scale: float = 1.0, layers: str | None = None, freeze: bool = True
) -> nn.Module:
    """Puts an adapter beside the linear layers of ``network``, in place, and returns it.

    Args:
        network: any module; exact ``nn.Linear`` layers become :class:`LowRank`. Those of ``nn.MultiheadAttention``,
            which reads their weights past them, are of another class and stay.
        rank, scale: of each adapter.
        layers: a regular expression for the names of the layers; None for all of them.
        freeze: whether everything but the adapters stops learning (``requires_grad=False``).

    ValueError where ``rank`` is not a positive integer, or there is no such layer inside of the network.

    Example:
        >>> network = add_lora(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), rank=2, layers="^0")
        >>> [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        ['0.lora_a', '0.lora_b']
    """
    check_whole(1, rank=rank)
    found = [
        (parent, child, layer)
        for name, parent in network.named_modules()
        if not isinstance(parent, LowRank)
        for child, layer in parent.named_children()
        if type(layer) is nn.Linear and re.search(layers or "", f"{name}.{child}" if name else child)
    ]
    if not found:
        wanted = "linear layers to put adapters beside, inside of a module,"
        raise ValueError(f"Expected {wanted} but got none ({layers!r}).")
    if freeze:
        network.requires_grad_(False)
    for parent, child, layer in found:
        setattr(parent, child, LowRank(layer, rank, scale))
    return network
