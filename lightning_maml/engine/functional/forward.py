"""A network as a function of its parameters: for one task, or for all tasks of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_maml.engine.coverage import ORDINARY, PLAIN
from lightning_maml.engine.functional.layers import LAYERS, POINTWISE
from lightning_maml.engine.functional.statistics import MEAN, VAR, Pass, Statistics, training_is
from lightning_maml.engine.functional.structure import layers_of
from lightning_maml.inner import Parameters, of_step
from lightning_maml.tasks import Inputs, map_inputs


@dataclass(eq=False)
class Networks:
    """The networks of all tasks as a function of what adapts, ``{name: [T, *shape]}``; the rest they share.

    Args:
        network: as it is written.
        constants: the parameters that the tasks share, and buffers.
        tied: as :attr:`Problem.tied`; None: the network may run layer by layer.
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

    def __call__(self, phi: Parameters, inputs: Inputs, step: int | None = None) -> Tensor:
        """Inputs ``[T, N, ...]`` -> predictions ``[T, N, ...]``, with the constants of a step; None: the last one's."""
        if not self.norms or not any(prefix + MEAN in phi for prefix in self.norms):
            return self._run(phi, inputs, step)[0]
        with training_is(False, self.norms.values()):
            return self._run(phi, inputs, step, "stored")[0]

    def statistics(self, phi: Parameters, inputs: Inputs, step: int | None = None) -> Parameters:
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
        self, phi: Parameters, inputs: Inputs, step: int | None, norm: Pass = "by batch"
    ) -> tuple[Tensor, Parameters]:
        constants = self.constants
        if self.per_step:
            at = -1 if step is None else step
            constants = {n: of_step(v, at) if n in self.per_step else v for n, v in constants.items()}
        if self.one:
            whole = _Layer(self.network, "", False, [], [], self.tied)
            each = (
                ({n: v[task] for n, v in phi.items()}, map_inputs(Tensor.clone, map_inputs(itemgetter(task), inputs)))
                for task in range(len(tree_leaves(inputs)[0]))
            )
            outputs, founds = zip(*(whole.one_task(norm, _safe(constants), *task) for task in each), strict=True)
            return torch.stack(outputs), {name: torch.stack([found[name] for found in founds]) for name in founds[0]}
        if self.layers is None:
            layers, tied = [], self.tied is not None
            names = dict.fromkeys((*phi, *(prefix + name for prefix in self.norms for name in (MEAN, VAR))))
            for name, module, what in [("", self.network, None)] if tied else layers_of(self.network):
                prefix = f"{name}." if name else ""
                own = [(full.removeprefix(prefix), full) for full in names if full.startswith(prefix)]
                shared = [(full.removeprefix(prefix), full) for full in constants if full.startswith(prefix)]
                layers.append(_Layer(module, prefix, what is None and not tied, own, shared, self.tied))
            self.layers = layers
        found: Parameters = {}
        for layer in self.layers:
            inputs, seen = layer(phi, constants, inputs, norm)
            found |= seen
        return inputs, found


class _Layer(NamedTuple):
    """A module of a network, or the network in one piece, and which of its parameters and buffers are whose."""

    module: nn.Module
    prefix: str
    plain: bool
    """Whether it computes what its class says, with no parameters tied."""
    own: list[tuple[str, str]]
    """What of it adapts: the names that the module has for it, and that the network has."""
    shared: list[tuple[str, str]]
    tied: dict[str, str] | None

    def __call__(
        self, phi: Parameters, constants: Mapping[str, Tensor], inputs: Inputs, norm: Pass
    ) -> tuple[Tensor, Parameters]:
        """In the batched form of its own, if it has one (:data:`LAYERS`), else under ``vmap``; and what is recorded."""
        own = {name: phi[full] for name, full in self.own if full in phi}
        shared = {name: constants[full] for name, full in self.shared}
        kind, tensors = type(self.module), {*map(type, (inputs, *own.values(), *shared.values()))}
        if (
            self.plain
            and isinstance(inputs, Tensor)
            and (tensors <= PLAIN or all(each in ORDINARY for each in tensors))
        ):
            if kind in POINTWISE:
                return self.module(inputs), {}
            if kind in LAYERS and (outputs := LAYERS[kind](self.module, own, shared, inputs)) is not None:
                return outputs, {}
        with _Elementary():
            return vmap(partial(self.one_task, norm, _safe(shared)), randomness="different")(own, inputs)

    def one_task(self, norm: Pass, shared: Parameters, own: Parameters, inputs: Inputs) -> tuple[Tensor, Parameters]:
        """One task's outputs, and the statistics recorded on the way."""
        every = {**shared, **own}
        # Tied names are filled in here: functional_call's own `tie_weights` leaves a module that is used under two
        # names holding what it was called with.
        every |= {name: every[first] for name, first in (self.tied or {}).items()}
        if norm == "by batch":
            return functional_call(self.module, every, (inputs,), tie_weights=False), {}
        with Statistics(every, own, norm == "recording", self.prefix) as statistics:
            return functional_call(self.module, every, (inputs,), tie_weights=False), statistics.found


def _safe(constants: Mapping[str, Tensor]) -> Parameters:
    """Buffers as copies: what a forward writes to in place must not reach the meta-network, nor other calls."""
    return {name: value if isinstance(value, nn.Parameter) else value.clone() for name, value in constants.items()}


_attention = torch.ops.aten._scaled_dot_product_attention_math


class _Elementary(TorchFunctionMode):
    """Recurrent layers and attention in elementary operations: torch cannot batch or differentiate the fused ones."""

    written_out: ClassVar[dict[Any, Callable[..., Any]]] = {
        F.scaled_dot_product_attention: lambda *args, **kwargs: _attention(*args, **kwargs)[0],
        torch._VF.gru: decompositions.gru_impl,
        torch._VF.lstm: decompositions.lstm_impl,
        torch._VF.rnn_tanh: decompositions.rnn_tanh_input,
        torch._VF.rnn_relu: decompositions.rnn_relu_input,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.written_out.get(func, func)(*args, **(kwargs or {}))
