"""What the networks here have in common."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

__all__ = ["Layers", "SpatialMean"]


class Layers(nn.Sequential):
    """An ``nn.Sequential`` whose constructor may take anything, and which can still be sliced: ``network[:-1]``."""

    def __getitem__(self, index: slice | int) -> Any:
        if isinstance(index, slice):  # torch would call the subclass's constructor with a dictionary of layers
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class SpatialMean(nn.Module):
    """The mean over height and width, ``[N, C, H, W] -> [N, C]``.

    ``nn.AdaptiveAvgPool2d(1)`` has the same numbers, but torch cannot batch it over tasks where images lie in memory
    channels last.
    """

    def forward(self, images: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C]``."""
        return images.mean((-2, -1))
