"""Inner loops on graphs of a single step, compiled by TorchInductor."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_maml.engine.base import Problem, attach
from lightning_maml.engine.coverage import AT_THE_END
from lightning_maml.engine.loops.checkpointed import CheckpointedLoop, Tensors
from lightning_maml.engine.loops.loop import TaskLoop
from lightning_maml.engine.loops.tracing import halves, inductor, trace
from lightning_maml.inner import Parameters, State, of_step
from lightning_maml.meta_gradient import Query
from lightning_maml.tasks import Set, mean_over_tasks

# One entry a network, and in it one for each kind of problem: graphs live as long as the network does. On disk, torch's
# own cache keeps them between runs.
_GRAPHS: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


class CompiledLoop(CheckpointedLoop):
    """Inner loops on three compiled graphs: an inner step, its way back, and the query set.

    The graphs are of a single step, so the first call costs the same for any number of steps. They are traced below
    autograd (``make_fx``), where the second derivative is plain arithmetic. With ``keep`` a second-order step keeps
    what its way back needs, as autograd would; otherwise the way back computes it again.
    """

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
        self.fixed_rates = [alpha if isinstance(alpha, Tensor) else like.new_full((), float(alpha)) for alpha in each]
        rates = self._rates(0, known=True) if self.inner.steps else []
        signature = (
            problem.fingerprint,
            problem.algorithm.batch_norm,
            (*self.inner.parts.chain, *self.inner.parts.memory),
            tuple(self.theta),
            (bool(self.learned), *self.shared, *(tuple(one.shape) for one in rates)),
            tuple((tuple(v.shape), v.dtype, v.device) for v in (*self.theta.values(), *self.values, *self.batch)),
        )
        self.graphs = _GRAPHS.setdefault(problem.network, {}).setdefault(signature, {})
        judged = (problem.loss, support), (problem.judge, query)
        # shapes are looked at before the first graph of a kind, and labels always: in a graph nobody would
        if "classes" not in self.graphs:
            with torch.no_grad():
                for loss, (inputs, targets) in judged:
                    predictions = self.predict(self.initial(), inputs)
                    loss.check_shapes(predictions.shape, targets)
            self.graphs["classes"] = predictions.shape[-1]
        for loss, (_, targets) in judged:
            loss.check_values(self.graphs["classes"], targets)

    # Graphs take flat lists: phi, the state's tensors, constants, rates, then the batch and v where they need them.

    def _bound(self, phi: Tensors, constants: Tensors, support: Any) -> tuple[Parameters, TaskLoop]:
        loop = TaskLoop(self.problem, support)
        loop.networks.constants = dict(zip(loop.networks.constants, constants, strict=True))
        loop.checked = {"support", "query"}
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
        """What tells the graphs of one step from those of another; the first one has no state yet."""
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
                # nobody knows before how many tensors the state after a step holds
                *following, _ = self._step(step, 1, spec, *arguments)
                v = [torch.zeros_like(value, memory_format=torch.contiguous_format) for value in following]
                both = trace(partial(self._forth_and_back, step, 2, spec), (*arguments, v), [*flat, *v])
                self.graphs["kept", *kind] = halves(both, flat, v)
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
        def function(phi: Any, constants: Any, batch: Any, shares: Any) -> list[Tensor]:
            with torch.enable_grad():
                leaves = [value.detach().requires_grad_() for value in phi]
                constants = [value.detach() for value in constants]
                shared = [constants[index].requires_grad_() for index in self.shared]
                bound, loop = self._bound(leaves, constants, batch[:2])
                losses, predictions = loop.losses(bound, batch[2:], of="query")
                mean = mean_over_tasks(losses, shares[0] if shares else None)
                gradients = torch.autograd.grad(mean, [*leaves, *shared], materialize_grads=True)
            with torch.no_grad():
                return [losses, predictions, loop.support(bound), *gradients]

        values = [value.detach().contiguous() for value in phi.values()]
        shares = [] if self.shares is None else [self.shares.to(values[0].dtype)]
        kind, args = ("query", bool(shares)), (values, self.values, self.batch, shares)
        losses, predictions, self.last, *self.found = self._run(kind, function, *args)
        loss, leaves = self.mean(losses), [*phi.values(), *self.extras[: len(self.shared)]]
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
            gradients = dict(zip(map(id, (*self.theta.values(), *self.extras)), values, strict=True))
            return [gradients[id(leaf)] for leaf in leaves]

    def support_history(self) -> Tensor:
        return torch.stack([*self.support_losses, self.last], dim=1)

    def _rng(self, tensors: Tensors) -> None:
        """Nothing is drawn."""

    def _rates(self, step: int, known: bool) -> list[Tensor]:
        """The rates of a step as tensors, one where all parameters share it; ``known`` without their graph."""
        if not self.fixed_rates:
            with torch.set_grad_enabled(not known):
                return [self.inner.rate(name, step).contiguous() for name in self.theta]  # type: ignore[union-attr]
        fixed = of_step(self.fixed_rates, step)
        return [fixed.detach() if known else fixed]

    def _run(self, kind: Any, function: Callable[..., list[Tensor]], *args: Tensors) -> Tensors:
        """The graph of ``function`` on lists of tensors, compiled where it is met for the first time."""
        flat = [tensor for arg in args for tensor in arg]
        if kind not in self.graphs:
            self.graphs[kind] = inductor(trace(function, args, flat))
        return self.graphs[kind](flat)
