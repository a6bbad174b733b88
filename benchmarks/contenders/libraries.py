"""Other libraries' own loops."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.problem import LOSSES, Problem
from lightning_maml.data import import_learn2learn
from lightning_maml.engine.loops.graphed import record


def gradients(problem: Problem, backward: Callable[[], None]) -> Callable[[], list[Tensor]]:
    """A contender whose ``backward`` leaves the meta-gradient in the network's parameters."""
    parameters = list(problem.network.parameters())  # a step may put others in their place

    def run() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        backward()
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    return run


def learn2learn(problem: Problem) -> Callable[[], list[Tensor]]:
    """Clone and adapt, one task after another."""
    library, loss = import_learn2learn(), LOSSES[problem.loss]

    def backward() -> None:
        learner = library.algorithms.MAML(problem.network, lr=problem.lr, first_order=False)
        for x, y, xq, yq in problem.each_task():
            clone = learner.clone()
            for _ in range(problem.steps):
                clone.adapt(loss(clone(x), y))
            (loss(clone(xq), yq) / len(problem.tasks)).backward()

    return gradients(problem, backward)


def higher(problem: Problem) -> Callable[[], list[Tensor]]:
    """A patched copy and a differentiable optimiser, one task after another."""
    import higher

    loss, optimizer = LOSSES[problem.loss], torch.optim.SGD(problem.network.parameters(), lr=problem.lr)

    def backward() -> None:
        for x, y, xq, yq in problem.each_task():
            with higher.innerloop_ctx(problem.network, optimizer, copy_initial_weights=False) as (patched, inner):
                for _ in range(problem.steps):
                    inner.step(loss(patched(x), y))
                (loss(patched(xq), yq) / len(problem.tasks)).backward()

    return gradients(problem, backward)


def torchopt(problem: Problem) -> Callable[[], list[Tensor]]:
    """MetaSGD on the network, its state restored for each task."""
    import torchopt

    network, loss = problem.network, LOSSES[problem.loss]

    def backward() -> None:
        inner = torchopt.MetaSGD(network, lr=problem.lr)
        start = torchopt.extract_state_dict(network, by="reference"), torchopt.extract_state_dict(inner)
        for x, y, xq, yq in problem.each_task():
            for _ in range(problem.steps):
                inner.step(loss(network(x), y))
            (loss(network(xq), yq) / len(problem.tasks)).backward()
            torchopt.recover_state_dict(network, start[0])
            torchopt.recover_state_dict(inner, start[1])

    return gradients(problem, backward)


def _functional(problem: Problem) -> tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Tensor]]:
    """The meta-gradient as a function of the parameters: ``grad`` of the mean over ``vmap``-ed tasks; and these."""

    def loss(phi: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return LOSSES[problem.loss](functional_call(problem.network, phi, (x,)), y)

    def one(theta: dict[str, Tensor], x: Tensor, y: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        phi = theta
        for _ in range(problem.steps):
            slope = grad(loss)(phi, x, y)
            phi = {name: value - problem.lr * slope[name] for name, value in phi.items()}
        return loss(phi, xq, yq)

    batch = [value for _, value in problem.tasks.named()]
    theta = {name: parameter.detach() for name, parameter in problem.network.named_parameters()}
    return grad(lambda theta: vmap(one, (None, 0, 0, 0, 0))(theta, *batch).mean()), theta


def vmapped(problem: Problem) -> Callable[[], list[Tensor]]:
    """torch.func alone."""
    function, theta = _functional(problem)
    return lambda: list(function(theta).values())


def compiled_vmap(problem: Problem, mode: str | None = None) -> Callable[[], list[Tensor]]:
    """torch.func under torch.compile; ``mode="reduce-overhead"`` puts it into a CUDA graph."""
    function, theta = _functional(problem)
    compiled = torch.compile(function, mode=mode, fullgraph=True)
    return lambda: [value.clone() if mode else value for value in compiled(theta).values()]


def graphed_vmap(problem: Problem) -> Callable[[], list[Tensor]]:
    """torch.func without a compiler, recorded once as a CUDA graph."""
    function, theta = _functional(problem)
    replay, outputs = record(lambda: list(function(theta).values()), problem.device)
    return lambda: replay() or outputs
