"""What the networks here have in common, and the layer that CAVIA adds to one."""

from collections import OrderedDict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_maml.checks import check_one_of, check_whole

Norm = Literal["batch", "group", "layer", "none"]
"""What images are normalised by, see :func:`make_norm`."""


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The normalisation of images ``[N, channels, H, W]``, with a scale and a bias for each channel.

    ``"batch"`` normalises by the statistics over rows, ``"group"`` by each row's own over 8 groups of channels (or the
    most below that divide them), ``"layer"`` by each row's own over all of it, ``"none"`` not at all. Of these only
    ``"batch"`` makes a prediction depend on the other rows of its task.

    Example:
        >>> make_norm("group", 12).num_groups
        6
    """
    check_one_of(get_args(Norm), norm=norm)
    if norm in ("batch", "none"):
        return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()
    # over all channels of a row at once, layer norm is group norm with one group
    groups = 1 if norm == "layer" else max(n for n in range(1, 9) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


class Layers(nn.Sequential):
    """An ``nn.Sequential`` whose constructor may take anything, and which can still be sliced: ``network[:-1]``."""

    def __getitem__(self, index: slice | int) -> Any:
        if isinstance(index, slice):  # torch would call the subclass's constructor with a dictionary of layers
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class SpatialMean(nn.Module):
    """The mean over height and width, ``[N, C, H, W] -> [N, C]``; torch cannot batch its own with channels last."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-2, -1))


class Context(nn.Module):
    """A learned vector appended to every row, for the next layer: ``[N, features] -> [N, features + size]``.

    Its parameter ``context`` starts at zero. Zintgraf et al. (2019, arXiv:1810.03642) put it first in regression.

    Example:
        >>> nn.Sequential(Context(4), nn.Linear(1 + 4, 1))(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        check_whole(1, size=size)
        self.context = nn.Parameter(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.context.to(inputs.dtype).expand(*inputs.shape[:-1], -1)], -1)
