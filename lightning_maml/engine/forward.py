"""A network as a function of its parameters: for one task, or for all tasks of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from lightning_maml.coverage import ORDINARY, PLAIN
from lightning_maml.engine.layers import LAYERS, POINTWISE
from lightning_maml.engine.structure import layers_of
from lightning_maml.inner import Parameters, of_step
from lightning_maml.learner import BatchNorm


@contextmanager
def batch_norm_mode(modules: Iterable[nn.Module], mode: BatchNorm) -> Iterator[None]:
    """Batch-norm layers as the algorithm asks for, for the time of a call; running statistics are never written."""
    layers = [layer for layer in modules if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        if mode == "running" and layer.running_mean is None:
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


@dataclass(eq=False)
class Networks:
    """The networks of all tasks as a function of what adapts, ``{name: [T, *shape]}``; the rest they share.

    Args:
        network: as it is written.
        constants: the parameters that the tasks share, and buffers.
        tied: ``{further name: first name}`` of the parameters that several modules share: the network is then run in
            one piece; None: each has one name, and it may run layer by layer.
        one: call the network as it is written, for one task after another.
        per_step: the constants that hold a value for every inner step.
    """

    network: nn.Module
    constants: Mapping[str, Tensor]
    tied: dict[str, str] | None
    one: bool = False
    per_step: Collection[str] = ()
    layers: list[_Layer] | None = None  # looked at once: on a small network that costs as much as it computes

    def __call__(self, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        """Inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``, with the constants of a step; None: the last one's."""
        constants = self.constants
        if self.per_step:
            at = -1 if step is None else step
            constants = {n: of_step(v, at) if n in self.per_step else v for n, v in constants.items()}
        if self.one:
            each = (({n: v[task] for n, v in phi.items()}, rows.clone()) for task, rows in enumerate(inputs))
            return torch.stack([_call(self.network, self.tied, _safe(constants), *task) for task in each])
        if self.layers is None:
            self.layers = list(_layers(self.network, phi, constants, self.tied))
        for layer in self.layers:
            inputs = layer(phi, constants, inputs)
        return inputs


def _safe(constants: Mapping[str, Tensor]) -> Parameters:
    """Buffers as copies: what a forward writes to in place must not reach the meta-network, nor other calls."""
    return {name: value if isinstance(value, nn.Parameter) else value.clone() for name, value in constants.items()}


def _call(module: nn.Module, tied: dict[str, str] | None, shared: Parameters, own: Parameters, inputs: Tensor) -> Any:
    every = {**shared, **own}
    # Tied names are filled in here: functional_call's own `tie_weights` leaves a module that is used under two names
    # holding what it was called with.
    every |= {name: every[first] for name, first in (tied or {}).items()}
    return functional_call(module, every, (inputs,), tie_weights=False)


class _Layer(NamedTuple):
    """A module of a network, and which of its parameters and buffers are whose."""

    module: nn.Module
    plain: bool
    """Whether it computes what its class says, with no parameters tied."""
    own: list[tuple[str, str]]
    """What of it adapts: the names that the module has for it, and that the network has."""
    shared: list[tuple[str, str]]
    tied: dict[str, str] | None

    def __call__(self, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """In the batched form of its own, if it has one (:data:`LAYERS`), else under ``vmap``."""
        own = {name: phi[full] for name, full in self.own}
        shared = {name: constants[full] for name, full in self.shared}
        kind, tensors = type(self.module), {*map(type, (inputs, *own.values(), *shared.values()))}
        if self.plain and (tensors <= PLAIN or all(each in ORDINARY for each in tensors)):
            if kind in POINTWISE:
                return self.module(inputs)
            if kind in LAYERS and (outputs := LAYERS[kind](self.module, own, shared, inputs)) is not None:
                return outputs
        with _Elementary():
            return vmap(partial(_call, self.module, self.tied, _safe(shared)), randomness="different")(own, inputs)


def _layers(
    network: nn.Module, phi: Iterable[str], constants: Iterable[str], tied: dict[str, str] | None
) -> Iterator[_Layer]:
    """The layers that a network runs in turn, or the network in one piece, where parameters are tied."""
    for name, module, what in layers_of(network) if tied is None else [("", network, None)]:
        prefix = f"{name}." if name else ""
        own, shared = (
            [(full.removeprefix(prefix), full) for full in names if full.startswith(prefix)]
            for names in (phi, constants)
        )
        yield _Layer(module, what is None and tied is None, own, shared, tied)


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
