"""A network as a function of its parameters: for one task, or for all tasks of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from lightning_maml.engine.coverage import ORDINARY, PLAIN
from lightning_maml.engine.functional.layers import LAYERS, POINTWISE
from lightning_maml.engine.functional.statistics import MEAN, VAR, Pass, Statistics, check_layer, training_is
from lightning_maml.engine.functional.structure import layers_of
from lightning_maml.inner import Parameters, of_step
from lightning_maml.learner import BatchNorm


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
        if mode == "support":
            check_layer(layer)
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training = mode != "running"
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
        norms: the batch-norm layers that go by the support sets' statistics, under their names with the dot behind it.
            Where ``phi`` holds them they are used, else these layers go by the rows that they see.
    """

    network: nn.Module
    constants: Mapping[str, Tensor]
    tied: dict[str, str] | None
    one: bool = False
    per_step: Collection[str] = ()
    norms: Mapping[str, nn.Module] = field(default_factory=dict)
    layers: list[_Layer] | None = None  # looked at once: on a small network that costs as much as it computes

    def __call__(self, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        """Inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``, with the constants of a step; None: the last one's."""
        if not self.norms or not any(prefix + MEAN in phi for prefix in self.norms):
            return self._run(phi, inputs, step)[0]
        with training_is(False, self.norms.values()):
            return self._run(phi, inputs, step, "stored")[0]

    def statistics(self, phi: Parameters, inputs: Tensor, step: int | None = None) -> Parameters:
        """The statistics ``[T, C]`` of inputs ``[T, N, ...]`` at each batch-norm layer, by the names of its buffers."""
        with training_is(False, self.norms.values()):
            found = self._run(phi, inputs, step, "recording")[1]
        if not found:
            raise ValueError(
                "Expected batch-norm layers to run on support sets for `batch_norm='support'` but none of "
                f"{[name.rstrip('.') for name in self.norms]} does: use `batch_norm='batch'`."
            )
        return found

    def _run(
        self, phi: Parameters, inputs: Tensor, step: int | None, norm: Pass = "by batch"
    ) -> tuple[Tensor, Parameters]:
        constants = self.constants
        if self.per_step:
            at = -1 if step is None else step
            constants = {n: of_step(v, at) if n in self.per_step else v for n, v in constants.items()}
        if self.one:
            each = (({n: v[task] for n, v in phi.items()}, rows.clone()) for task, rows in enumerate(inputs))
            done = [_call(self.network, self.tied, norm, "", _safe(constants), *task) for task in each]
            outputs, founds = zip(*done, strict=True)
            return torch.stack(outputs), {name: torch.stack([found[name] for found in founds]) for name in founds[0]}
        if self.layers is None:
            own = dict.fromkeys((*phi, *(prefix + name for prefix in self.norms for name in (MEAN, VAR))))
            self.layers = _layers(self.network, own, constants, self.tied)
        found: Parameters = {}
        for layer in self.layers:
            inputs, seen = layer(phi, constants, inputs, norm)
            found |= seen
        return inputs, found


def _safe(constants: Mapping[str, Tensor]) -> Parameters:
    """Buffers as copies: what a forward writes to in place must not reach the meta-network, nor other calls."""
    return {name: value if isinstance(value, nn.Parameter) else value.clone() for name, value in constants.items()}


def _call(
    module: nn.Module,
    tied: dict[str, str] | None,
    norm: Pass,
    prefix: str,
    shared: Parameters,
    own: Parameters,
    inputs: Tensor,
) -> tuple[Tensor, Parameters]:
    """The outputs, and the statistics recorded on the way, whose names in the network begin with ``prefix``."""
    every = {**shared, **own}
    # Tied names are filled in here: functional_call's own `tie_weights` leaves a module that is used under two names
    # holding what it was called with.
    every |= {name: every[first] for name, first in (tied or {}).items()}
    if norm == "by batch":
        return functional_call(module, every, (inputs,), tie_weights=False), {}
    with Statistics(every, own, norm == "recording", prefix) as statistics:
        return functional_call(module, every, (inputs,), tie_weights=False), statistics.found


class _Layer(NamedTuple):
    """A module of a network, and which of its parameters and buffers are whose."""

    module: nn.Module
    prefix: str
    plain: bool
    """Whether it computes what its class says, with no parameters tied."""
    own: list[tuple[str, str]]
    """What of it adapts: the names that the module has for it, and that the network has."""
    shared: list[tuple[str, str]]
    tied: dict[str, str] | None

    def __call__(
        self, phi: Parameters, constants: Mapping[str, Tensor], inputs: Tensor, norm: Pass
    ) -> tuple[Tensor, Parameters]:
        """In the batched form of its own, if it has one (:data:`LAYERS`), else under ``vmap``; and what is recorded."""
        own: Parameters = {}
        shared: Parameters = {}
        for name, full in self.own:
            if full in phi:
                own[name] = phi[full]
        for name, full in self.shared:
            shared[name] = constants[full]
        kind, tensors = type(self.module), {*map(type, (inputs, *own.values(), *shared.values()))}
        if self.plain and (tensors <= PLAIN or all(each in ORDINARY for each in tensors)):
            if kind in POINTWISE:
                return self.module(inputs), {}
            if kind in LAYERS and (outputs := LAYERS[kind](self.module, own, shared, inputs)) is not None:
                return outputs, {}
        call = partial(_call, self.module, self.tied, norm, self.prefix, _safe(shared))
        with _Elementary():
            outputs, found = vmap(call, randomness="different")(own, inputs)
        return outputs, found


def _layers(
    network: nn.Module, phi: Iterable[str], constants: Iterable[str], tied: dict[str, str] | None
) -> list[_Layer]:
    """The layers that a network runs in turn, or the network in one piece, where parameters are tied."""
    layers = []
    for name, module, what in layers_of(network) if tied is None else [("", network, None)]:
        prefix = f"{name}." if name else ""
        own = [(full.removeprefix(prefix), full) for full in phi if full.startswith(prefix)]
        shared = [(full.removeprefix(prefix), full) for full in constants if full.startswith(prefix)]
        layers.append(_Layer(module, prefix, what is None and tied is None, own, shared, tied))
    return layers


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
