"""Batch-norm by the statistics of each task's support set: recorded there, and stored beside what adapts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_maml.inner import Parameters
from lightning_maml.learner import BatchNorm

Pass = Literal["by batch", "recording", "stored"]
"""What batch-norm layers normalise by in a forward. ``"by batch"`` stands for whatever they do of themselves."""

MEAN, VAR = "running_mean", "running_var"


@contextmanager
def training_is(training: bool, modules: Iterable[nn.Module], **others: bool) -> Iterator[None]:
    """These modules, and not those inside, in training or evaluation mode for the time of a call; so other flags."""
    flags = {"training": training, **others}
    before = [(module, name, getattr(module, name)) for module in modules for name in flags]
    try:
        for module, name, _ in before:
            setattr(module, name, flags[name])
        yield
    finally:
        for module, name, was in before:
            setattr(module, name, was)


@contextmanager
def batch_norm_mode(modules: Iterable[nn.Module], mode: BatchNorm) -> Iterator[None]:
    """Batch-norm layers as the algorithm asks for, for the time of a call; running statistics are never written."""
    layers = [layer for layer in modules if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        if mode != "batch" and layer.running_mean is None:
            raise ValueError(
                f"Expected every batch-norm layer to keep running statistics for `batch_norm={mode!r}` but got "
                f"{layer} without: use `batch_norm='batch'` or track_running_stats=True."
            )
        if mode == "support" and type(layer).forward is not nn.BatchNorm2d.forward:
            raise ValueError(
                "Expected batch-norm layers with the forward of nn.BatchNorm1d, 2d or 3d for `batch_norm='support'` "
                f"but got {type(layer).__name__}: use `batch_norm='batch'`, or torch's layers."
            )
    # training with statistics that are not tracked: torch uses the batch's, and writes nothing
    with training_is(mode != "running", layers, track_running_stats=mode == "running"):
        yield


class Statistics(TorchFunctionMode):
    """Layers in evaluation mode, in plain arithmetic: torch's own has no gradient with respect to what is stored.

    Args:
        every: the tensors of a network's call, ``{name: [*shape]}``.
        own: the names of those that are the task's.
        recording: layers normalise by the statistics of what they see, which end up in :attr:`found`.
        prefix: of all these names in the network.
    """

    def __init__(self, every: Parameters, own: Iterable[str], recording: bool, prefix: str) -> None:
        super().__init__()
        # a layer hands on the very tensor that it was called with
        self.names = {id(value): prefix + name for name, value in every.items() if name.rpartition(".")[2] == MEAN}
        self.own, self.recording = {prefix + name for name in own}, recording
        self.found: Parameters = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self, inputs: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """``inputs [N, C, ...]``, all others ``[C]``."""
        name = self.names.get(id(mean))
        if name is None or mean is None or var is None:
            return F.batch_norm(inputs, mean, var, weight, bias, training, momentum, eps)
        layer = repr(name.removesuffix(MEAN).rstrip(".") or "the network")
        rows = inputs.movedim(1, -1)
        if rows.dtype in (torch.float16, torch.bfloat16):
            rows = rows.float()  # statistics of half precision numbers are not to be trusted
        if self.recording:
            self._check(name, layer, inputs)
            places = tuple(range(rows.ndim - 1))
            centre = rows.mean(places)
            mean, var = centre.to(mean.dtype), (rows - centre).square().mean(places).to(var.dtype)
            self.found |= {name: mean, name.removesuffix(MEAN) + VAR: var}
        elif name not in self.own:
            raise ValueError(
                "Expected batch-norm layers to run on support sets and query sets alike for `batch_norm='support'` "
                f"but {layer} runs on query sets alone: use `batch_norm='batch'`."
            )
        scale = torch.rsqrt(var + eps)
        outputs = (rows - mean) * (scale if weight is None else scale * weight)
        return (outputs if bias is None else outputs + bias).movedim(-1, 1).to(inputs.dtype)

    def _check(self, name: str, layer: str, inputs: Tensor) -> None:
        if name in self.found:
            raise ValueError(
                f"Expected batch-norm layers to run once in a forward for `batch_norm='support'` but {layer} runs "
                "several times: use a layer for each, or `batch_norm='batch'`."
            )
        if inputs[:, 0].numel() < 2:
            raise ValueError(
                "Expected support sets with several values a channel to take statistics of for `batch_norm='support'` "
                f"but {layer} sees {list(inputs.shape)}: use more support rows, or `batch_norm='running'`."
            )
