"""Batch-norm with a scale and a bias for every inner step, as in MAML++."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml.checks import check_whole


class StepBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm with a scale and a bias for every inner step: ``weight`` and ``bias`` are ``[steps, channels]``.

    Antoniou et al. (2019, https://arxiv.org/abs/1810.09502), per-step batch normalization. Engines call it with the row
    of the step, or the last; a forward pass outside of any inner loop uses the first. Both are meta-learned, shared by
    the tasks, and do not adapt. It normalises by the rows that it sees, and keeps no running statistics.

    Example:
        >>> layer = StepBatchNorm2d(8, steps=5)
        >>> layer.weight.shape, layer(torch.randn(2, 8, 4, 4)).shape
        (torch.Size([5, 8]), torch.Size([2, 8, 4, 4]))
    """

    per_step_parameters = ("weight", "bias")

    def __init__(self, channels: int, steps: int, eps: float = 1e-5) -> None:
        check_whole(1, steps=steps)
        super().__init__(channels, eps=eps, track_running_stats=False)
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.bias = nn.Parameter(torch.zeros(steps, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        weight, bias = (value if value.ndim == 1 else value[0] for value in (self.weight, self.bias))
        return F.batch_norm(inputs, None, None, weight, bias, training=True, eps=self.eps)


def step_batch_norm(network: nn.Module, steps: int) -> nn.Module:
    """Replaces every ``nn.BatchNorm2d`` of ``network`` by a :class:`StepBatchNorm2d`, in place, and returns it.

    Scales and biases start at the layer's own, for every step. ValueError where no layer has a scale and a bias.

    Example:
        >>> network = step_batch_norm(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), steps=5)
        >>> network[1].bias.shape
        torch.Size([5, 8])
    """
    found = [
        (parent, child, layer)
        for parent in network.modules()
        for child, layer in parent.named_children()
        if type(layer) is nn.BatchNorm2d and layer.affine
    ]
    if not found:
        raise ValueError(f"Expected affine nn.BatchNorm2d layers inside of {type(network).__name__} but got none.")
    for parent, child, layer in found:
        own = StepBatchNorm2d(layer.num_features, steps, layer.eps).to(layer.weight.device, layer.weight.dtype)
        own.load_state_dict({name: value.expand(steps, -1) for name, value in layer.named_parameters()})
        setattr(parent, child, own)
    return network
