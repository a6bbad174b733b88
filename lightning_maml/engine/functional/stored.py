"""An adapted network on its own: an ordinary module that predicts in either mode what it predicted here."""

import warnings
from typing import Self
from weakref import WeakSet

import torch
from torch import nn

from lightning_maml.inner import of_step
from lightning_maml.learner import BatchNorm


class _Stored(nn.Module):
    """A layer that stays in evaluation mode, whatever the mode of the network around."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class StoredBatchNorm1d(_Stored, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` by its stored statistics, in training mode too."""


class StoredBatchNorm2d(_Stored, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` by its stored statistics, in training mode too."""


class StoredBatchNorm3d(_Stored, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` by its stored statistics, in training mode too."""


STORED = {kind.__bases__[1]: kind for kind in (StoredBatchNorm1d, StoredBatchNorm2d, StoredBatchNorm3d)}
"""What stands for torch's layers where these go by stored statistics."""

_TOLD: WeakSet[nn.Module] = WeakSet()


def detach_from_mode(network: nn.Module, batch_norm: BatchNorm) -> None:
    """Have batch-norm layers compute in training and evaluation mode alike what they do under ``batch_norm``, in place.

    ``"batch"``: they lose their running statistics, and torch uses those of the rows. Else they are made layers of
    :data:`STORED`. Those with a value for every inner step keep the last one's.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> detach_from_mode(network, "running")
        >>> rows = torch.randn(4, 3)
        >>> torch.equal(network.train()(rows), network.eval()(rows))
        True
    """
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and batch_norm == "batch":
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        elif type(layer) in STORED:
            layer.__class__ = STORED[type(layer)]
            layer.train()
        for name in getattr(type(layer), "per_step_parameters", ()):
            with torch.no_grad():
                value = layer.get_parameter(name)
                value.copy_(of_step(value, len(value) - 1).clone().expand_as(value))


def say_once(network: nn.Module) -> None:
    """Warn, once for a network, that its predictions depend on which rows come together."""
    if network not in _TOLD:
        _TOLD.add(network)
        warnings.warn(
            f"Predictions of {type(network).__name__} depend on which rows come together, as batch_norm='batch' goes "
            "by the statistics of each call: those of one row alone are mostly wrong. With batch_norm='support' a task "
            "goes by those of its support set, one row or many. This is said once.",
            stacklevel=3,
        )
