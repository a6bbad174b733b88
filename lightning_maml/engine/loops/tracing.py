"""Functions of tensors as graphs of elementary operations, compiled by TorchInductor."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_maml.engine.generators import restore_rng, rng_state
from lightning_maml.engine.loops.checkpointed import Tensors
from lightning_maml.engine.loops.products import WithLoops

_OPTIONS: dict[str, Any] = {}
if isinstance(getattr(torch._inductor.config.cpp, "enable_floating_point_contract_flag", None), str):
    # a fused multiply-add rounds once instead of twice; a fifth faster on small products
    _OPTIONS["cpp.enable_floating_point_contract_flag"] = "fast"

Graph = Callable[[list[Tensor]], Tensors]
"""A compiled graph. It empties the list it is given, so that what nobody else holds is freed on the way."""


def trace(function: Callable[..., list[Tensor]], args: Sequence[Tensors], flat: list[Tensor]) -> torch.fx.GraphModule:
    """What ``function`` does to lists of tensors, as a graph of elementary operations on the flat list."""
    lengths = [len(arg) for arg in args]

    def flattened(*values: Tensor) -> list[Tensor]:
        rest = iter(values)
        outputs = function(*([next(rest) for _ in range(length)] for length in lengths))
        return [output.detach().contiguous() for output in outputs]

    device, before = flat[0].device, rng_state(flat[0].device)
    traced = make_fx(flattened)(*flat)
    if not torch.equal(before, rng_state(device)):
        restore_rng(device, before)
        raise NotImplementedError(
            "Expected a network without randomness for `compile=True` but its forward draws random numbers "
            "(dropout while training?): the backward could not draw the same again. Use compile=False."
        )
    # The casts of autocast are in the trace already. Functional, because the partitioner cannot cut through writing in
    # place; by the compiler's own decompositions, because it knows views and cheap operations by these names.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        functional = torch.func.functionalize(WithLoops(traced).run)
        retrace = make_fx(functional, select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
        return retrace(*flat)


def inductor(traced: torch.fx.GraphModule) -> Graph:
    def owned(node: Any) -> Any:  # outputs that are views would be made anew on every call
        schema = getattr(node.target, "_schema", None)
        views = node.op == "placeholder" or (schema is not None and schema.returns[0].alias_info is not None)
        return traced.graph.call_function(torch.ops.aten.clone.default, (node,)) if views else node

    output: Any = traced.graph.output_node()
    with traced.graph.inserting_before(output):
        output.args = ([owned(node) for node in output.args[0]],)
    traced.recompile()
    inputs = [node.meta["val"] for node in traced.graph.find_nodes(op="placeholder")]
    # without AOTAutograd, which would do over again what `trace` has done, and stand in the way of every call
    with torch.no_grad(), torch._inductor.config.patch(_OPTIONS):
        return compile_fx_inner(traced, inputs, is_inference=True)


def halves(traced: torch.fx.GraphModule, flat: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[Any, ...]:
    """A function and its way back, cut in two: the first graph feeds the second, compiled once it is asked for.

    Between them, where what is kept lies: whether among the inputs of the first, else its outputs, and the place.
    """
    for index, node in enumerate(traced.graph.find_nodes(op="placeholder")):  # as the partitioner knows them
        node.name = node.target = f"{'primals' if index < len(flat) else 'tangents'}_{index + 1}"
    traced.recompile()
    forth, back = min_cut_rematerialization_partition(traced, [*flat, *v], num_fwd_outputs=len(v) + 1)
    # what is kept of the inputs needs no way through the graph
    inputs = forth.graph.find_nodes(op="placeholder")
    output: Any = forth.graph.output_node()
    saved = output.args[0][len(v) + 1 :]
    computed = [*output.args[0][: len(v) + 1], *dict.fromkeys(node for node in saved if node not in inputs)]
    output.args = (computed,)
    forth.recompile()
    kept = [(node in inputs, (inputs if node in inputs else computed).index(node)) for node in saved]
    return inductor(forth), kept, cache(partial(inductor, back))
