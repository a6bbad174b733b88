"""torch.func alone: ``grad`` of the mean over ``vmap``-ed tasks, each with ``grad`` inside."""

from collections.abc import Callable

from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.problem import LOSSES, Problem


def meta_gradient(problem: Problem) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The meta-gradient as a function of the parameters."""

    def loss(phi: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return LOSSES[problem.loss](functional_call(problem.network, phi, (x,)), y)

    def one(theta: dict[str, Tensor], x: Tensor, y: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        phi = theta
        for _ in range(problem.steps):
            gradients = grad(loss)(phi, x, y)
            phi = {name: value - problem.lr * gradients[name] for name, value in phi.items()}
        return loss(phi, xq, yq)

    batch = [value for _, value in problem.tasks.named()]
    return grad(lambda theta: vmap(one, (None, 0, 0, 0, 0))(theta, *batch).mean())


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    function = meta_gradient(problem)
    theta = {name: parameter.detach() for name, parameter in problem.network.named_parameters()}
    return lambda: list(function(theta).values())
