"""Inner loops whose memory does not grow with the number of steps, and their compiled form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_maml.engine.base import Problem, attach
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.inner import Parameters, Rates
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import TaskBatch

__all__ = ["CheckpointedLoop", "CompiledLoop"]


class _Unroll(torch.autograd.Function):
    r"""All inner steps as one node of the graph, keeping the parameters before each step and nothing else.

    Backward is the recursion :math:`v \leftarrow v - \alpha H_k v` for plain SGD: each step is run again, and
    differentiated by itself. Exact to rounding against the unrolled graph.
    """

    @staticmethod
    def forward(ctx: Any, loop: CheckpointedLoop, order: int, *tensors: Tensor) -> Any:
        phi = list(tensors[: len(loop.theta)])
        ctx.loop, ctx.order, ctx.kept, ctx.rng = loop, order, [], []
        for step in range(loop.problem.inner.steps):
            if loop.draws:
                ctx.rng.append(_rng_state(phi[0].device))
            phi, losses, kept = loop.advance(phi, step, order)
            ctx.kept.append(kept)
            loop.support_losses.append(losses)
        return tuple(phi) if ctx.kept else tuple(value.clone() for value in phi)

    @staticmethod
    @torch.autograd.function.once_differentiable  # differentiating again raises, instead of being silently wrong
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        loop, v = ctx.loop, list(upstream)
        extras = [torch.zeros_like(leaf) for leaf in loop.extras]
        if ctx.order == 1 and not loop.extras:
            return None, None, *v  # every step is the identity
        now = _rng_state(v[0].device) if loop.draws else None
        for step in reversed(range(len(ctx.kept))):
            if loop.draws:
                _restore_rng(v[0].device, ctx.rng[step])  # the same dropout masks as on the way forward
            v, more = loop.pull_back(ctx.kept.pop(), step, v, ctx.order)
            extras = [total + part for total, part in zip(extras, more, strict=True)]
        if now is not None:
            _restore_rng(v[0].device, now)
        return None, None, *v, *extras


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore_rng(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


class CheckpointedLoop(TaskLoop):
    """:class:`TaskLoop` with memory flat in the number of inner steps (``checkpoint="step"``)."""

    draws = True
    """Whether the network may draw random numbers."""

    def __init__(self, problem: Problem, tasks: TaskBatch) -> None:
        super().__init__(problem, tasks)
        adapted = {id(value) for value in self.theta.values()}
        # what else the inner steps depend on: shared parameters, learned rates, support inputs that want a gradient
        self.extras = [leaf for leaf in problem.leaves(tasks.support_inputs) if id(leaf) not in adapted]

    def unroll(self, order: int) -> Parameters:
        outputs = _Unroll.apply(self, order, *self.initial().values(), *self.extras)
        return dict(zip(self.theta, outputs, strict=True))

    def advance(self, phi: Sequence[Tensor], step: int, order: int) -> tuple[list[Tensor], Tensor, Sequence[Tensor]]:
        """One inner step, without a graph.

        Returns the next parameters, the support losses ``[T]`` before the step, and what :meth:`pull_back` needs of it.
        """
        with torch.enable_grad():
            following, losses = self.step(self._leaves(phi), step, order=1)
        return [value.detach() for value in following.values()], losses, phi

    def pull_back(
        self, kept: Sequence[Tensor], step: int, v: Sequence[Tensor], order: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient ``v`` at the parameters after a step, brought to those before it and to ``extras``."""
        with torch.enable_grad():
            leaves = self._leaves(kept)
            following, _ = self.step(leaves, step, order)
            gradients = torch.autograd.grad(
                list(following.values()), [*leaves.values(), *self.extras], v, materialize_grads=True
            )
        return list(gradients[: len(leaves)]), list(gradients[len(leaves) :])

    def _leaves(self, phi: Sequence[Tensor]) -> Parameters:
        return {name: value.detach().requires_grad_() for name, value in zip(self.theta, phi, strict=True)}


Graph = Callable[..., Sequence[Tensor]]

# One entry a network: graphs live as long as it does. On disk, torch's own cache keeps them between runs.
_GRAPHS: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


class CompiledLoop(CheckpointedLoop):
    """Inner loops on three compiled graphs: an inner step, its way back, and the query set.

    The graphs are of a single step, so the first call costs the same for any number of steps. They are traced below
    autograd (``make_fx``), where the second derivative is plain arithmetic, then compiled by TorchInductor.

    Args:
        problem, tasks: as in :class:`TaskLoop`.
        keep: a second-order step keeps what its way back needs, as autograd would; otherwise only the parameters
            before each step are kept, and the way back computes the rest again.
    """

    draws = False

    def __init__(self, problem: Problem, tasks: TaskBatch, keep: bool) -> None:
        super().__init__(problem, tasks)
        self.graphs = _GRAPHS.setdefault(problem.network, {})
        self.keep = keep
        self.names = list(self.theta)
        self.shared = [name for name, value in self.constants.items() if value.requires_grad]
        of_shared = {id(self.constants[name]) for name in self.shared}
        self.learned = [leaf for leaf in self.extras if id(leaf) not in of_shared]
        self.values = [value.detach().contiguous() for value in self.constants.values()]
        self.batch = [value.detach().contiguous() for _, value in tasks.named()]
        like = next(iter(self.theta.values()))
        rate = problem.inner.lr
        # one tensor for all steps: a number in the graph would mean another graph for another rate
        self.rate = (
            rate if isinstance(rate, Tensor) else like.new_tensor(0.0 if isinstance(rate, Rates) else float(rate))
        )
        device = like.device
        self.signature = (
            type(problem.loss),
            problem.loss.function,
            problem.algorithm.batch_norm,
            torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
            tuple(module.training for module in problem.modules),
            tuple(self.names),
            bool(self.learned),
            tuple((tuple(v.shape), v.dtype, v.device) for v in (*self.theta.values(), *self.values, *self.batch)),
        )
        self._check()

    def _check(self) -> None:
        """Look at shapes before the first graph of a kind, and at labels always: in a graph nobody would."""
        loss, tasks = self.problem.loss, self.tasks
        classes = self.graphs.get(("classes", self.signature))
        if classes is None:
            with torch.no_grad():
                for inputs, targets in (self.batch[:2], self.batch[2:]):
                    predictions = self.predict(self.initial(), inputs)
                    loss.check_shapes(predictions, targets)
            classes = self.graphs["classes", self.signature] = predictions.shape[-1]
        loss.check_values(classes, tasks.support_targets)
        loss.check_values(classes, tasks.query_targets)

    # Graphs take flat lists: phi, constants, rates, then the batch and v where they need them.

    def _bound(self, phi: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Parameters, TaskLoop]:
        loop = TaskLoop(self.problem, self.tasks)
        loop.constants, loop.checked = dict(zip(self.constants, constants, strict=True)), True
        return dict(zip(self.names, phi, strict=True)), loop

    def _step(
        self, phi: Sequence[Tensor], constants: Sequence[Tensor], rates: Sequence[Tensor], support: Any, order: int
    ) -> tuple[list[Tensor], Tensor]:
        bound, loop = self._bound(phi, constants)
        losses, _ = loop.losses(bound, *support)
        gradients = torch.autograd.grad(losses.sum(), phi, create_graph=order == 2, materialize_grads=True)
        named = dict(zip(self.names, gradients, strict=True))
        each = rates if len(rates) == len(phi) else [rates[0]] * len(phi)
        following = self.problem.inner.update(bound, named, dict(zip(self.names, each, strict=True)))
        return list(following.values()), losses

    def _forth(self, phi: Any, constants: Any, rates: Any, support: Any) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in phi]
            following, losses = self._step(leaves, constants, rates, support, order=1)
        return [*following, losses]

    def _forth_and_back(
        self, order: int, phi: Any, constants: Any, rates: Any, support: Any, v: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in phi]
            named = dict(zip(self.constants, (value.detach() for value in constants), strict=True))
            shared = [named[name].requires_grad_() for name in self.shared]
            learned = [rate.detach().requires_grad_(bool(self.learned)) for rate in rates]
            following, losses = self._step(leaves, list(named.values()), learned, support, order)
            wanted = [*leaves, *shared, *(learned if self.learned else [])]
            back = torch.autograd.grad(following, wanted, v, materialize_grads=True)
        return [*following, losses], list(back)

    def advance(self, phi: Sequence[Tensor], step: int, order: int) -> tuple[list[Tensor], Tensor, Sequence[Tensor]]:
        if step == 0:  # theta, expanded; from then on they are outputs of the graph itself
            phi = [value.contiguous() for value in phi]
        arguments = (phi, self.values, self._rates(step, known=True), self.batch[:2])
        if not (self.keep and order == 2):
            *following, losses = self._run("forth", self._forth, *arguments)
            return following, losses, phi
        graphs = self.graphs.get(("kept", self.signature))
        flat = [tensor for argument in arguments for tensor in argument]
        if graphs is None:
            graphs = self.graphs["kept", self.signature] = self._split(arguments, flat)
        outputs = graphs[0](*flat)
        return list(outputs[: len(phi)]), outputs[len(phi)], outputs[len(phi) + 1 :]

    def pull_back(
        self, kept: Sequence[Tensor], step: int, v: Sequence[Tensor], order: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        if step == self.problem.inner.steps - 1:
            v = [value.contiguous() for value in v]
        if self.keep and order == 2:
            graphs = self.graphs["kept", self.signature]
            flat = [*kept, *v]
            if not callable(graphs[1]):
                graphs[1] = _inductor(graphs[1][0], flat)
            outputs = graphs[1](*flat)
        else:

            def back(*arguments: Any) -> list[Tensor]:
                return self._forth_and_back(order, *arguments)[1]

            rates = self._rates(step, known=True)
            outputs = self._run(("back", order), back, kept, self.values, rates, self.batch[:2], v)
        adapted, rest = list(outputs[: len(v)]), outputs[len(v) :]
        by_id = {id(self.constants[name]): value for name, value in zip(self.shared, rest, strict=False)}
        if self.learned:  # from the rates of this step to the leaves they were indexed from
            rates = self._rates(step, known=False)
            pulled = torch.autograd.grad(rates, self.learned, rest[len(self.shared) :], materialize_grads=True)
            by_id.update({id(leaf): value for leaf, value in zip(self.learned, pulled, strict=True)})
        return adapted, [by_id[id(leaf)] for leaf in self.extras]

    def query(self, phi: Parameters) -> Query:
        def function(phi: Any, constants: Any, batch: Any) -> list[Tensor]:
            support_inputs, support_targets, query_inputs, query_targets = batch
            with torch.enable_grad():
                leaves = [value.detach().requires_grad_() for value in phi]
                named = dict(zip(self.constants, (value.detach() for value in constants), strict=True))
                shared = [named[name].requires_grad_() for name in self.shared]
                bound, loop = self._bound(leaves, list(named.values()))
                losses, predictions = loop.losses(bound, query_inputs, query_targets)
                gradients = torch.autograd.grad(losses.mean(), [*leaves, *shared], materialize_grads=True)
            with torch.no_grad():
                support_losses, _ = loop.losses(bound, support_inputs, support_targets)
            return [losses, predictions, support_losses, *gradients]

        values = [value.detach().contiguous() for value in phi.values()]
        losses, predictions, self.last, *gradients = self._run("query", function, values, self.values, self.batch)
        leaves = [*phi.values(), *(self.constants[name] for name in self.shared)]
        return Query(attach(losses.mean(), gradients, leaves), losses, predictions)

    def support_history(self) -> Tensor:
        return torch.stack([*self.support_losses, self.last], dim=1)

    def _rates(self, step: int, known: bool) -> list[Tensor]:
        """The rates of a step as tensors, one for all parameters where they share it; ``known`` without their graph."""
        rate = self.problem.inner.lr
        if isinstance(rate, Rates):
            with torch.set_grad_enabled(not known):
                return [rate.at(name, step).contiguous() for name in self.names]
        return [self.rate.detach()] if known else [self.rate]

    def _run(self, kind: Any, function: Callable[..., list[Tensor]], *args: Sequence[Tensor]) -> Sequence[Tensor]:
        """The graph of ``function`` on lists of tensors, compiled where it is met for the first time."""
        graph: Graph | None = self.graphs.get((kind, self.signature))
        flat = [tensor for arg in args for tensor in arg]
        if graph is None:
            graph = self.graphs[kind, self.signature] = _inductor(_trace(function, args, flat), flat)
        return graph(*flat)

    def _split(self, arguments: Sequence[Sequence[Tensor]], flat: list[Tensor]) -> list[Any]:
        """A step and its way back as two graphs, the second fed by the first, and compiled once it is met."""

        def joint(*args: Any) -> list[Tensor]:
            forth, back = self._forth_and_back(2, *args)
            return [*forth, *back]

        v = [torch.zeros_like(value) for value in arguments[0]]
        written = _trace(joint, (*arguments, v), [*flat, *v])
        # the partitioner cannot cut through writing in place
        traced = make_fx(torch.func.functionalize(written))(*flat, *v)
        placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
        for index, node in enumerate(placeholders):  # the names by which the partitioner knows them
            kind = "primals" if index < len(flat) else "tangents"
            node.name = node.target = f"{kind}_{index + 1}"
        traced.recompile()
        forth, back = min_cut_rematerialization_partition(traced, [*flat, *v], num_fwd_outputs=len(v) + 1)
        return [_inductor(forth, flat), (back,)]


def _trace(
    function: Callable[..., list[Tensor]], args: Sequence[Sequence[Tensor]], flat: list[Tensor]
) -> torch.fx.GraphModule:
    """What ``function`` does to lists of tensors, as a graph of elementary operations on the flat list."""
    lengths = [len(arg) for arg in args]

    def flattened(*values: Tensor) -> list[Tensor]:
        rest = iter(values)
        outputs = function(*([next(rest) for _ in range(length)] for length in lengths))
        return [output.detach().contiguous() for output in outputs]

    device = flat[0].device
    before = _rng_state(device)
    traced = make_fx(flattened, decomposition_table=_THIN_PRODUCTS)(*flat)
    if not torch.equal(before, _rng_state(device)):
        _restore_rng(device, before)
        raise NotImplementedError(
            "Expected a network without randomness for `compile=True` but its forward draws random numbers "
            "(dropout while training?): the backward could not draw the same again. Use compile=False."
        )
    return traced


def _inductor(traced: torch.fx.GraphModule, flat: Sequence[Tensor]) -> Graph:
    # the casts of autocast are in the trace already
    with torch.no_grad(), torch.autocast(flat[0].device.type, enabled=False):
        return torch._inductor.compile(traced, [*flat])


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """A batched product with an inner or outer dimension of 1 as plain arithmetic, which the compiler fuses."""
    if a.shape[2] == 1:
        return a * b
    if b.shape[2] == 1:
        return (a * b.mT).sum(2, keepdim=True)
    if a.shape[1] == 1:
        return (a.mT * b).sum(1, keepdim=True)
    return NotImplemented


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if (beta, alpha) != (1, 1) or (product := _bmm(a, b)) is NotImplemented:
        return NotImplemented
    return bias + product


_THIN_PRODUCTS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.bmm.default: _bmm,
    torch.ops.aten.baddbmm.default: _baddbmm,
}
