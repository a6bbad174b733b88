"""Inner loops on graphs of a single step, compiled by TorchInductor."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_maml.coverage import AT_THE_END
from lightning_maml.engine.base import Problem, attach
from lightning_maml.engine.checkpointed import CheckpointedLoop, Tensors
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.generators import restore_rng, rng_state
from lightning_maml.inner import Parameters, State, of_step
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import Set

_OPTIONS: dict[str, Any] = {}
if isinstance(getattr(torch._inductor.config.cpp, "enable_floating_point_contract_flag", None), str):
    # a fused multiply-add rounds once instead of twice; a fifth faster on small products
    _OPTIONS["cpp.enable_floating_point_contract_flag"] = "fast"

Graph = Callable[[list[Tensor]], Tensors]
"""A compiled graph. It empties the list it is given, so that what nobody else holds is freed on the way."""

# One entry a network, and in it one for each kind of problem: graphs live as long as the network does. On disk, torch's
# own cache keeps them between runs.
_GRAPHS: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


class CompiledLoop(CheckpointedLoop):
    """Inner loops on three compiled graphs: an inner step, its way back, and the query set.

    The graphs are of a single step, so the first call costs the same for any number of steps. They are traced below
    autograd (``make_fx``), where the second derivative is plain arithmetic, then compiled by TorchInductor.

    Args:
        problem, support, query: as in :class:`TaskLoop`.
        keep: a second-order step keeps what its way back needs, as autograd would; otherwise only the parameters
            before each step are kept, and the way back computes the rest again.
    """

    draws = False

    def __init__(self, problem: Problem, support: Set, query: Set, keep: bool) -> None:
        super().__init__(problem, support, query)
        self.keep, self.spacing = keep, 1 if keep else self.spacing
        self.direct = type(problem.algorithm.meta_gradient) in AT_THE_END
        places = {id(value): place for place, value in enumerate(self.networks.constants.values())}
        shared = [leaf for leaf in self.extras if id(leaf) in places]
        self.shared = [places[id(leaf)] for leaf in shared]  # among the constants
        self.learned = [leaf for leaf in self.extras if id(leaf) not in places]  # of the rates
        self.extras = [*shared, *self.learned]
        self.values = [value.detach().contiguous() for value in self.networks.constants.values()]
        self.batch = [value.detach().contiguous() for value in (*support, *query)]
        like, rate = next(iter(self.theta.values())), self.inner.lr
        each: Any = () if isinstance(rate, nn.Module) else rate if isinstance(rate, Sequence) else [rate]
        # as tensors: a number in the graph would mean another graph for another rate
        self.fixed_rates = [alpha if isinstance(alpha, Tensor) else like.new_tensor(float(alpha)) for alpha in each]
        signature = (
            problem.fingerprint,
            problem.algorithm.batch_norm,
            (*self.inner.parts.chain, *self.inner.parts.memory),
            tuple(self.theta),
            (bool(self.learned), *self.shared),
            tuple((tuple(v.shape), v.dtype, v.device) for v in (*self.theta.values(), *self.values, *self.batch)),
        )
        self.graphs = _GRAPHS.setdefault(problem.network, {}).setdefault(signature, {})
        self._check()

    def _check(self) -> None:
        """Look at shapes before the first graph of a kind, and at labels always: in a graph nobody would."""
        loss, sets = self.problem.loss, (self.batch[:2], self.batch[2:])
        if "classes" not in self.graphs:
            with torch.no_grad():
                for inputs, targets in sets:
                    predictions = self.predict(self.initial(), inputs)
                    loss.check_shapes(predictions.shape, targets)
            self.graphs["classes"] = predictions.shape[-1]
        for _, targets in sets:
            loss.check_values(self.graphs["classes"], targets)

    # Graphs take flat lists: phi, the state's tensors, constants, rates, then the batch and v where they need them.

    def _bound(self, phi: Tensors, constants: Tensors, support: Any) -> tuple[Parameters, TaskLoop]:
        loop = TaskLoop(self.problem, support)
        loop.networks.constants, loop.checked = dict(zip(loop.networks.constants, constants, strict=True)), True
        return dict(zip(self.theta, phi, strict=True)), loop

    def _step(
        self, step: int, order: int, spec: Any, phi: Any, state: Any, constants: Any, rates: Any, support: Any
    ) -> list[Tensor]:
        """Parameters and state after a step, and the losses before it."""
        bound, loop = self._bound(phi, constants, support)
        each = rates if len(rates) == len(phi) else [rates[0]] * len(phi)
        loop.rates = dict(zip(self.theta, each, strict=True))
        with torch.enable_grad():
            following, after, losses = loop.step(bound, tree_unflatten(state, spec), step, order)
        values, known = tree_flatten(after)
        self.graphs["state", spec] = known, [value.shape for value in values]
        return [*following.values(), *values, losses]

    def _forth_and_back(
        self, step: int, order: int, spec: Any, phi: Any, state: Any, constants: Any, rates: Any, support: Any, v: Any
    ) -> list[Tensor]:
        with torch.enable_grad():
            leaves, memory = ([value.detach().requires_grad_() for value in part] for part in (phi, state))
            constants = [value.detach() for value in constants]
            shared = [constants[index].requires_grad_() for index in self.shared]
            learned = [rate.detach().requires_grad_(bool(self.learned)) for rate in rates]
            *following, losses = self._step(step, order, spec, leaves, memory, constants, learned, support)
            wanted = [*leaves, *memory, *shared, *(learned if self.learned else [])]
            pairs = [pair for pair in zip(following, v, strict=True) if pair[0].requires_grad]
            smooth, along = zip(*pairs, strict=True)
            return [*following, losses, *torch.autograd.grad(smooth, wanted, along, materialize_grads=True)]

    def _kind(self, step: int, spec: Any) -> tuple[Any, ...]:
        """What tells the graphs of one step from those of another: the first one has no state yet."""
        return spec, step if self.inner.counts_steps else None

    def forth(self, phi: Tensors, state: State, step: int, order: int) -> tuple[Tensors, State, Tensor, Any]:
        # theta is expanded, and what a graph puts out may lie otherwise than what it was traced with
        phi = [value.contiguous() for value in phi]
        values, spec = tree_flatten(state)
        values = [value.contiguous() for value in values]
        arguments = (phi, values, self.values, self._rates(step, known=True), self.batch[:2])
        kind = self._kind(step, spec)
        if not (self.keep and order == 2):
            outputs = self._run(("forth", *kind), partial(self._step, step, 1, spec), *arguments)
            own: Any = phi, tree_unflatten(values, spec)
        else:
            flat = [tensor for argument in arguments for tensor in argument]
            if ("kept", *kind) not in self.graphs:
                self.graphs["kept", *kind] = self._split(step, spec, arguments, flat)
            graph, places, _ = self.graphs["kept", *kind]
            outputs = graph([*flat])
            own = kind, [flat[index] if of_inputs else outputs[index] for of_inputs, index in places]
        after, _ = self.graphs["state", spec]
        size = len(phi)
        memory = outputs[size : size + after.num_leaves]
        return list(outputs[:size]), tree_unflatten(memory, after), outputs[size + len(memory)], own

    def back(self, kept: Any, step: int, v: Tensors, of_state: Tensors, order: int) -> tuple[Tensors, Tensors, Tensors]:
        first, second = kept
        spec = first[0] if self.keep and order == 2 else tree_flatten(second)[1]
        v, of_state = ([value.contiguous() for value in part] for part in (v, of_state))
        if step == self.inner.steps - 1:  # the state of the last step is nobody's
            of_state = [v[0].new_zeros(shape) for shape in self.graphs["state", spec][1]]
        if self.keep and order == 2:
            _, _, graph = self.graphs["kept", *first]
            outputs = graph()([*second, *v, *of_state])
        else:
            state, rates, along = tree_flatten(second)[0], self._rates(step, known=True), [*v, *of_state]
            outputs = self._run(
                ("back", order, *self._kind(step, spec)),
                lambda *arguments: self._forth_and_back(step, order, spec, *arguments)[len(along) + 1 :],
                *(first, state, self.values, rates, self.batch[:2], along),
            )
        size, both = len(v), len(v) + spec.num_leaves
        shared, learned = outputs[both : both + len(self.shared)], outputs[both + len(self.shared) :]
        if self.learned:  # from the rates of this step to the leaves they were indexed from
            learned = torch.autograd.grad(self._rates(step, known=False), self.learned, learned, materialize_grads=True)
        return outputs[:size], outputs[size:both], [*shared, *learned]

    def query_after(self, phi: Parameters, steps: int) -> Query:
        def function(phi: Any, constants: Any, batch: Any) -> list[Tensor]:
            with torch.enable_grad():
                leaves = [value.detach().requires_grad_() for value in phi]
                constants = [value.detach() for value in constants]
                shared = [constants[index].requires_grad_() for index in self.shared]
                bound, loop = self._bound(leaves, constants, batch[:2])
                losses, predictions = loop.losses(bound, batch[2:])
                gradients = torch.autograd.grad(losses.mean(), [*leaves, *shared], materialize_grads=True)
            with torch.no_grad():
                return [losses, predictions, loop.support(bound), *gradients]

        values = [value.detach().contiguous() for value in phi.values()]
        losses, predictions, self.last, *self.found = self._run("query", function, values, self.values, self.batch)
        loss, leaves = losses.mean(), [*phi.values(), *self.extras[: len(self.shared)]]
        return Query(loss if self.direct else attach(loss, self.found, leaves), losses, predictions)

    def unroll(self, order: int) -> Parameters:
        if not self.direct:
            return super().unroll(order)
        with torch.no_grad():
            phi, kept = self.go_forth([value.detach() for value in self.initial().values()], order)
        self.way_back = kept, order
        return dict(zip(self.theta, phi, strict=True))

    def gradients(self, query: Query, weight: float, leaves: Tensors) -> Tensors:
        if not self.direct:
            return super().gradients(query, weight, leaves)
        # on a small network autograd's engine would cost as much as a step
        with torch.no_grad():
            found = self.found if weight == 1 else [value * weight for value in self.found]
            v, of_shared = found[: len(self.theta)], found[len(self.theta) :]
            kept, order = self.way_back
            before, of_extras = self.go_back(kept, v, order)
            values = [value.sum(0) for value in before]
            values += [*map(torch.add, of_extras, of_shared), *of_extras[len(of_shared) :]]
            every = zip((*self.theta.values(), *self.extras), values, strict=True)
            gradients = {id(leaf): value for leaf, value in every}
            return [gradients[id(leaf)] for leaf in leaves]

    def support_history(self) -> Tensor:
        return torch.stack([*self.support_losses, self.last], dim=1)

    def _rates(self, step: int, known: bool) -> list[Tensor]:
        """The rates of a step as tensors, one for all parameters where they share it; ``known`` without their graph."""
        if not self.fixed_rates:
            with torch.set_grad_enabled(not known):
                return [self.inner.rate(name, step).contiguous() for name in self.theta]  # type: ignore[union-attr]
        fixed = of_step(self.fixed_rates, step)
        return [fixed.detach() if known else fixed]

    def _run(self, kind: Any, function: Callable[..., list[Tensor]], *args: Tensors) -> Tensors:
        """The graph of ``function`` on lists of tensors, compiled where it is met for the first time."""
        flat = [tensor for arg in args for tensor in arg]
        if kind not in self.graphs:
            self.graphs[kind] = _inductor(_trace(function, args, flat))
        return self.graphs[kind](flat)

    def _split(self, step: int, spec: Any, arguments: Sequence[Tensors], flat: list[Tensor]) -> tuple[Any, ...]:
        """A step and its way back as two graphs, the second fed by the first, and compiled once it is called for.

        Between them, where what is kept lies: whether among the inputs of the first, else its outputs, and the place.
        """
        # nobody knows before how many tensors the state after a step holds
        *following, _ = self._step(step, 1, spec, *arguments)
        v = [torch.zeros_like(value, memory_format=torch.contiguous_format) for value in following]
        traced = _trace(partial(self._forth_and_back, step, 2, spec), (*arguments, v), [*flat, *v])
        for index, node in enumerate(traced.graph.find_nodes(op="placeholder")):  # as the partitioner knows them
            kind = "primals" if index < len(flat) else "tangents"
            node.name = node.target = f"{kind}_{index + 1}"
        traced.recompile()
        forth, back = min_cut_rematerialization_partition(traced, [*flat, *v], num_fwd_outputs=len(v) + 1)
        # what is kept of the inputs needs no way through the graph
        inputs = forth.graph.find_nodes(op="placeholder")
        output: Any = forth.graph.output_node()
        results, saved = output.args[0][: len(v) + 1], output.args[0][len(v) + 1 :]
        computed = [*results, *dict.fromkeys(node for node in saved if node not in inputs)]
        output.args = (computed,)
        forth.recompile()
        kept = [(node in inputs, (inputs if node in inputs else computed).index(node)) for node in saved]
        return _inductor(forth), kept, cache(partial(_inductor, back))


def _trace(function: Callable[..., list[Tensor]], args: Sequence[Tensors], flat: list[Tensor]) -> torch.fx.GraphModule:
    """What ``function`` does to lists of tensors, as a graph of elementary operations on the flat list."""
    lengths = [len(arg) for arg in args]

    def flattened(*values: Tensor) -> list[Tensor]:
        rest = iter(values)
        outputs = function(*([next(rest) for _ in range(length)] for length in lengths))
        return [output.detach().contiguous() for output in outputs]

    device = flat[0].device
    before = rng_state(device)
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
        functional = torch.func.functionalize(_WithLoops(traced).run)
        retrace = make_fx(functional, select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
        return retrace(*flat)


def _inductor(traced: torch.fx.GraphModule) -> Graph:
    output: Any = traced.graph.output_node()
    with traced.graph.inserting_before(output):  # outputs that are views would be made anew on every call
        output.args = ([_owned(traced.graph, node) for node in output.args[0]],)
    traced.recompile()
    inputs = [node.meta["val"] for node in traced.graph.find_nodes(op="placeholder")]
    # without AOTAutograd, which would do over again what _trace has done, and stand in the way of every call
    with torch.no_grad(), torch._inductor.config.patch(_OPTIONS):
        return compile_fx_inner(traced, inputs, is_inference=True)


SMALL = 2**15
"""The multiplications of one task's matrix product up to which plain loops beat a library call on a CPU."""


def _owned(graph: torch.fx.Graph, node: Any) -> Any:
    schema = getattr(node.target, "_schema", None)
    views = node.op == "placeholder" or (schema is not None and schema.returns[0].alias_info is not None)
    return graph.call_function(torch.ops.aten.clone.default, (node,)) if views else node


class _WithLoops(torch.fx.Interpreter):
    """A graph with its small matrix products as plain arithmetic, of which the compiler makes one kernel with the rest.

    A product is laid out as it is used: an update in the layout of the weight is one loop with the product itself.
    """

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__(traced)
        self.transposes: dict[int, tuple[Tensor, Tensor]] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.target is torch.ops.aten.transpose.int and args[0].ndim == 3 and {d % 3 for d in args[1:]} == {1, 2}:
            return self._transpose(args[0])
        if node.target in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default) and not kwargs:
            *bias, a, b = args
            if _small(a, b):
                if _turned(node):
                    product = self._transpose(self._product(self._transpose(b), self._transpose(a)))
                else:
                    product = self._product(a, b)
                return bias[0] + product if bias else product
        return super().run_node(node)

    def _transpose(self, value: Tensor) -> Tensor:
        """Of a transpose, the value itself: the compiler then sees that they are one."""
        if id(value) not in self.transposes:
            turned = value.mT
            self.transposes |= {id(value): (value, turned), id(turned): (turned, value)}
        return self.transposes[id(value)][1]

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        rows, inner, columns = *a.shape[1:], b.shape[2]
        if inner == 1:
            return a * b
        if columns == 1:
            return (a * self._transpose(b)).sum(2, keepdim=True)
        if rows == 1:
            return (self._transpose(a) * b).sum(1, keepdim=True)
        a, b = _stored(a), _stored(b)
        if b.stride(2) == 1:
            return _along_columns(a, b)
        if a.stride(1) == 1:
            return self._transpose(_along_columns(self._transpose(b), self._transpose(a)))
        return (a.unsqueeze(2) * b.mT.unsqueeze(1)).sum(3)


def _turned(node: torch.fx.Node) -> bool:
    """Whether nothing but the transpose of a node is used in the end, be it after sums with others."""
    transpose, add = torch.ops.aten.transpose.int, torch.ops.aten.add.Tensor
    return bool(node.users) and all(
        (user.target is transpose and not _turned(user)) or (user.target is add and _turned(user))
        for user in node.users
    )


def _small(a: Tensor, b: Tensor) -> bool:
    rows, inner, columns = *a.shape[1:], b.shape[2]
    return 1 in (rows, inner, columns) or (a.device.type == "cpu" and rows * inner * columns <= SMALL)


def _along_columns(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` as a loop along the contiguous columns of ``b``, some terms a turn: twice as fast as one."""
    terms = next((terms for terms in (5, 4, 6, 3, 7, 2) if a.shape[2] % terms == 0), 1)
    a, b = a.unflatten(2, (-1, terms)), b.unflatten(1, (-1, terms))
    total = a[:, :, :, 0:1] * b[:, None, :, 0]
    for term in range(1, terms):
        total = total + a[:, :, :, term : term + 1] * b[:, None, :, term]
    return total.sum(2)


def _stored(value: Tensor) -> Tensor:
    """A hint to the compiler to keep the value in memory as it lies rather than to compute it at each use."""
    return torch.ops.prims.inductor_force_stride_order(value, value.stride())
