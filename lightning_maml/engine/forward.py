"""A network as a function of its parameters: for one task, or for all tasks of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from lightning_maml.coverage import ORDINARY, PLAIN
from lightning_maml.engine.layers import LAYERS, POINTWISE
from lightning_maml.engine.structure import changed, is_sequence
from lightning_maml.inner import Parameters
from lightning_maml.learner import BatchNorm


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
        self.layers: list[_Layer] | None = None  # looked at once: on a small network that costs as much as it computes

    def __call__(self, phi: Parameters, inputs: Tensor, constants: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``."""
        constants = self.constants if constants is None else constants
        if self.one:
            return torch.stack([self._one(task, phi, inputs, constants) for task in range(len(inputs))])
        if self.tied is not None:
            return _vmapped(self.network, phi, constants, inputs, self.tied)
        if self.layers is None:
            self.layers = list(_layers(self.network, "", phi, constants))
        for layer in self.layers:
            inputs = layer(phi, constants, inputs)
        return inputs

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


class _Layer(NamedTuple):
    """A module of a network, and which of its parameters and buffers are whose."""

    module: nn.Module
    plain: bool
    """Whether it computes what its class says."""
    own: list[tuple[str, str]]
    """What of it adapts: the names that the module has for it, and that the network has."""
    shared: list[tuple[str, str]]

    def __call__(self, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """In the batched form of its own, if it has one (:data:`LAYERS`), else under ``vmap``."""
        own, shared = (
            {name: phi[full] for name, full in self.own},
            {name: constants[full] for name, full in self.shared},
        )
        if self.plain and _are_ordinary(inputs, *own.values(), *shared.values()):
            kind = type(self.module)
            if kind in POINTWISE:
                return self.module(inputs)
            if kind in LAYERS and (outputs := LAYERS[kind](self.module, own, shared, inputs)) is not None:
                return outputs
        return _vmapped(self.module, own, shared, inputs)


def _are_ordinary(*tensors: Tensor) -> bool:
    kinds = {*map(type, tensors)}
    return kinds <= PLAIN or all(kind in ORDINARY for kind in kinds)


def _layers(module: nn.Module, prefix: str, phi: Iterable[str], constants: Iterable[str]) -> Iterator[_Layer]:
    """The layers that a network runs in turn: those of nested sequences, or itself."""
    plain = changed(module) is None
    if plain and is_sequence(module):
        for name, layer in module._modules.items():  # named_children() leaves out repeated layers
            assert layer is not None
            yield from _layers(layer, f"{prefix}{name}.", phi, constants)
        return
    own, shared = ([(n.removeprefix(prefix), n) for n in names if n.startswith(prefix)] for names in (phi, constants))
    yield _Layer(module, plain, own, shared)


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
