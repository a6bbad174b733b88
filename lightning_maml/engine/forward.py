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

from lightning_maml.coverage import ORDINARY
from lightning_maml.engine.layers import LAYERS, POINTWISE
from lightning_maml.engine.structure import changed, is_sequence
from lightning_maml.inner import Parameters
from lightning_maml.learner import BatchNorm

__all__ = ["Networks", "batch_norm_mode"]


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


class Networks:
    """The networks of all tasks as a function of what adapts, ``{name: [T, *shape]}``; the rest they share.

    Args:
        network: as it is written.
        constants: the parameters that the tasks share, and buffers.
        tied: ``{further name: first name}`` of the parameters that several modules share: the network is then run in
            one piece; None: each has one name, and it may run layer by layer.
        one: call the network as it is written, for one task after another.
    """

    def __init__(
        self, network: nn.Module, constants: Mapping[str, Tensor], tied: Mapping[str, str] | None, one: bool = False
    ) -> None:
        self.network, self.constants, self.tied, self.one = network, constants, tied, one

    def __call__(self, phi: Parameters, inputs: Tensor, constants: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``."""
        constants = self.constants if constants is None else constants
        if self.one:
            return torch.stack([self._one(task, phi, inputs, constants) for task in range(len(inputs))])
        if self.tied is not None:
            return _vmapped(self.network, phi, constants, inputs, self.tied)
        return _forward(self.network, "", phi, constants, inputs)

    def _one(self, task: int, phi: Parameters, inputs: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        own = {name: value[task] for name, value in phi.items()}
        return _call(self.network, {**_safe(constants), **own}, inputs[task].clone(), self.tied or {})


def _safe(constants: Mapping[str, Tensor]) -> Parameters:
    """Buffers as copies: what a forward writes to in place must not reach the meta-network, nor other calls."""
    return {name: value if isinstance(value, nn.Parameter) else value.clone() for name, value in constants.items()}


def _call(network: nn.Module, parameters: Parameters, inputs: Tensor, tied: Mapping[str, str] = {}) -> Tensor:
    # Tied names are filled in here: functional_call's own `tie_weights` leaves a module that is used under two names
    # holding what it was called with.
    every = {**parameters, **{name: parameters[first] for name, first in tied.items()}}
    return functional_call(network, every, (inputs,), tie_weights=False)


def _forward(
    module: nn.Module, prefix: str, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor
) -> Tensor:
    """Layer by layer, those of :data:`LAYERS` in the batched form of their own, any other module under ``vmap``."""
    plain = changed(module) is None
    if plain and is_sequence(module):
        for name, layer in module._modules.items():  # named_children() leaves out repeated layers
            assert layer is not None
            inputs = _forward(layer, f"{prefix}{name}.", phi, constants, inputs)
        return inputs
    own = {name.removeprefix(prefix): value for name, value in phi.items() if name.startswith(prefix)}
    shared = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}
    if plain and all(kind in ORDINARY for kind in {type(value) for value in (inputs, *own.values(), *shared.values())}):
        if type(module) in POINTWISE:
            return module(inputs)
        native = LAYERS.get(type(module))
        if native is not None and (outputs := native(module, own, shared, inputs)) is not None:
            return outputs
    return _vmapped(module, own, shared, inputs)


def _vmapped(
    module: nn.Module,
    own: Parameters,
    shared: Mapping[str, Tensor],
    inputs: Tensor,
    tied: Mapping[str, str] = {},
) -> Tensor:
    shared = _safe(shared)

    def call(own: Parameters, inputs: Tensor) -> Tensor:
        return _call(module, {**shared, **own}, inputs, tied)

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
