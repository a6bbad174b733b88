"""A network as a function of its parameters: for one task, or for all tasks of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lightning_maml.inner import Parameters
from lightning_maml.learner import BatchNorm

__all__ = ["batch_norm_mode", "forward_all", "forward_one", "has_tied_parameters"]


@contextmanager
def batch_norm_mode(network: nn.Module, mode: BatchNorm) -> Iterator[None]:
    """Batch-norm layers as the algorithm asks for, for the time of a call; running statistics are never written."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if mode == "running":
        for layer in layers:
            if layer.running_mean is None:
                raise ValueError(
                    "Expected every batch-norm layer to keep running statistics for `batch_norm='running'` but got "
                    f"{layer} without: use `batch_norm='batch'` or track_running_stats=True."
                )
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training = mode == "batch"
            # training with statistics that are not tracked: torch uses the batch's, and writes nothing
            layer.track_running_stats = mode == "running"
        yield
    finally:
        for layer, (training, tracked) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracked


def forward_one(network: nn.Module, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The network of one task: ``phi {name: [*shape]}``, inputs ``[N, ...]`` -> predictions ``[N, ...]``."""
    return functional_call(network, {**constants, **phi}, (inputs,))


def has_tied_parameters(network: nn.Module) -> bool:
    """Whether a parameter belongs to the network under two names."""
    return sum(1 for _ in network.named_parameters()) != sum(1 for _ in network.named_parameters(remove_duplicate=False))


def forward_all(
    network: nn.Module, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor, by_layer: bool
) -> Tensor:
    """All tasks' networks: ``phi {name: [T, *shape]}``, inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``.

    Parameters and buffers in ``constants`` are shared by the tasks. With ``by_layer``, the layers of an
    ``nn.Sequential`` that have a batched form of their own (``_NATIVE``) run it; any other module runs under
    :func:`torch.func.vmap`. Tied parameters need the whole network in one piece: ``by_layer=False``.
    """
    return (_forward if by_layer else _vmapped)(network, "", phi, constants, inputs)


def _forward(module: nn.Module, prefix: str, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    if not _has_hooks(module):
        if type(module).forward is nn.Sequential.forward:
            for name, layer in module._modules.items():  # named_children() leaves out repeated layers
                assert layer is not None
                inputs = _forward(layer, f"{prefix}{name}.", phi, constants, inputs)
            return inputs
        if type(module) in _POINTWISE:
            return module(inputs)
        if (native := _NATIVE.get(type(module))) is not None and f"{prefix}weight" in phi:
            return native(module, prefix, phi, constants, inputs)
    return _vmapped(module, prefix, phi, constants, inputs)


def _vmapped(module: nn.Module, prefix: str, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    own = {name.removeprefix(prefix): value for name, value in phi.items() if name.startswith(prefix)}
    shared = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}

    def call(own: Parameters, inputs: Tensor) -> Tensor:
        return functional_call(module, {**shared, **own}, (inputs,))

    return vmap(call, randomness="different")(own, inputs)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _linear(module: nn.Module, prefix: str, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    weight = phi[f"{prefix}weight"].mT
    rows = inputs.flatten(1, -2) if inputs.ndim > 3 else inputs
    if inputs.ndim < 3:
        return _vmapped(module, prefix, phi, constants, inputs)
    bias = phi.get(f"{prefix}bias")
    if bias is None and module.bias is not None:
        outputs = torch.bmm(rows, weight) + constants[f"{prefix}bias"]
    else:
        outputs = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
    return outputs.view(*inputs.shape[:-1], -1) if inputs.ndim > 3 else outputs


_Native = Callable[[nn.Module, str, Parameters, Mapping[str, Tensor], Tensor], Tensor]
_NATIVE: dict[type[nn.Module], _Native] = {nn.Linear: _linear}
_POINTWISE = {nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Identity, nn.Hardtanh}
