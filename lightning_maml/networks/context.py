"""Context parameters: what CAVIA adapts."""

import torch
from torch import Tensor, nn

from lightning_maml.checks import check_whole


class Context(nn.Module):
    """A learned vector appended to every row, for the next layer: ``[N, features] -> [N, features + size]``.

    Its parameter, ``context [size]``, starts at zero. Zintgraf et al. (2019, https://arxiv.org/abs/1810.03642) put it
    before the first layer in regression.

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
