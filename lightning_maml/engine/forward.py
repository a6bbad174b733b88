"""A network as a function of its parameters: for one task, or for all tasks of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from lightning_maml.engine.layers import LAYERS, POINTWISE
from lightning_maml.inner import Parameters
from lightning_maml.learner import BatchNorm

__all__ = ["batch_norm_mode", "forward_all", "forward_one", "tied_names"]


@contextmanager
def batch_norm_mode(modules: Iterable[nn.Module], mode: BatchNorm) -> Iterator[None]:
    """Batch-norm layers as the algorithm asks for, for the time of a call; running statistics are never written."""
    layers = [layer for layer in modules if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
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
    return _call(network, {**constants, **phi}, inputs)


def tied_names(network: nn.Module) -> dict[str, str]:
    """``{further name: first name}`` of the parameters that belong to several modules."""
    first: dict[int, str] = {}
    further = {}
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if first.setdefault(id(parameter), name) != name:
                further[name] = first[id(parameter)]
    return further


def _call(network: nn.Module, parameters: Parameters, inputs: Tensor) -> Tensor:
    # Tied names are filled in here: functional_call's own `tie_weights` leaves a module that is used under two names
    # holding what it was called with.
    tied = {name: parameters[first] for name, first in tied_names(network).items()}
    return functional_call(network, {**parameters, **tied}, (inputs,), tie_weights=False)


def forward_all(
    network: nn.Module, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor, by_layer: bool
) -> Tensor:
    """All tasks' networks: ``phi {name: [T, *shape]}``, inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``.

    Parameters and buffers in ``constants`` are shared by the tasks. With ``by_layer``, the layers of an
    ``nn.Sequential`` that have a batched form of their own (:data:`LAYERS`) run it; any other module runs under
    :func:`torch.func.vmap`. Tied parameters need the whole network in one piece: ``by_layer=False``.
    """
    if by_layer:
        return _forward(network, "", phi, constants, inputs)
    return _vmapped(network, phi, constants, inputs)


def _forward(
    module: nn.Module, prefix: str, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor
) -> Tensor:
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    if type(module).forward is nn.Sequential.forward and not hooked:
        for name, layer in module._modules.items():  # named_children() leaves out repeated layers
            assert layer is not None
            inputs = _forward(layer, f"{prefix}{name}.", phi, constants, inputs)
        return inputs
    own = {name.removeprefix(prefix): value for name, value in phi.items() if name.startswith(prefix)}
    shared = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}
    if not hooked:
        if type(module) in POINTWISE:
            return module(inputs)
        native = LAYERS.get(type(module))
        if native is not None and (outputs := native(module, own, shared, inputs)) is not None:
            return outputs
    return _vmapped(module, own, shared, inputs)


def _vmapped(module: nn.Module, own: Parameters, shared: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    def call(own: Parameters, inputs: Tensor) -> Tensor:
        return _call(module, {**shared, **own}, inputs)

    with _Elementary():
        return vmap(call, randomness="different")(own, inputs)


def _attention(*args: Any, enable_gqa: bool = False, **kwargs: Any) -> Tensor:
    return torch.ops.aten._scaled_dot_product_attention_math(*args, enable_gqa=enable_gqa, **kwargs)[0]


class _Elementary(TorchFunctionMode):
    """Recurrent layers and attention written out in elementary operations, which can be batched and differentiated
    twice: torch has no batching rules for the fused recurrences, and no second derivative of the fused attention.
    """

    written_out: ClassVar[dict[Any, Callable[..., Any]]] = {
        F.scaled_dot_product_attention: _attention,
        torch._VF.gru: decompositions.gru_impl,
        torch._VF.lstm: decompositions.lstm_impl,
        torch._VF.rnn_tanh: decompositions.rnn_tanh_input,
        torch._VF.rnn_relu: decompositions.rnn_relu_input,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.written_out.get(func, func)(*args, **(kwargs or {}))
