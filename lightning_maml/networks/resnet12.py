"""The residual network of few-shot image classification."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_maml.checks import check_whole, check_wholes
from lightning_maml.networks.layers import Layers, Norm, SpatialMean, make_norm


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions and a 1x1 beside them, then 2x2 pooling, ``[N, C, H, W] -> [N, channels, H//2, W//2]``."""

    def __init__(self, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.residual, self.shortcut = nn.Sequential(), nn.Sequential()
        for number, width in enumerate((in_channels, channels, channels), start=1):
            self.residual.add_module(f"conv{number}", nn.Conv2d(width, channels, 3, padding=1, bias=False))
            self.residual.add_module(f"norm{number}", make_norm(norm, channels))
            if number < 3:
                self.residual.add_module(f"relu{number}", nn.LeakyReLU(0.1))
        self.shortcut.add_module("conv", nn.Conv2d(in_channels, channels, 1, bias=False))
        self.shortcut.add_module("norm", make_norm(norm, channels))
        self.relu, self.pool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.relu(self.residual(images) + self.shortcut(images)))


class ResNet12(Layers):
    """Four residual blocks, the mean over space, and a linear layer: ``[N, C, H, W] -> [N, ways]``.

    Form and widths are of Lee et al. (2019, https://arxiv.org/abs/1904.03758), without DropBlock; the last is ``head``.

    Args:
        ways: number of classes of a task, the outputs.
        channels: channels of the images.
        widths: filters of each block; the image is halved after each.
        norm: ``"batch"``, ``"group"``, ``"layer"`` or ``"none"``, see :func:`make_norm`.

    Example:
        >>> import torch
        >>> network = ResNet12(ways=5, widths=(4, 6, 8, 10))
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.head
        (torch.Size([2, 5]), Linear(in_features=10, out_features=5, bias=True))
    """

    def __init__(
        self, ways: int, channels: int = 3, widths: Sequence[int] = (64, 160, 320, 640), norm: Norm = "batch"
    ) -> None:
        check_whole(1, ways=ways, channels=channels)
        check_wholes(1, widths=widths)
        if not widths:
            raise ValueError("Expected `widths` to be of at least one block but got none.")
        super().__init__()
        for number, (before, width) in enumerate(pairwise([channels, *widths]), start=1):
            self.add_module(f"block{number}", ResidualBlock(before, width, norm))
        self.mean, self.head = SpatialMean(), nn.Linear(widths[-1], ways)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")
