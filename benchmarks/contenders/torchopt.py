"""TorchOpt's own loop: MetaSGD on the network, its state restored for each task."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.problem import LOSSES, Problem


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    import torchopt

    network, loss, tasks = problem.network, LOSSES[problem.loss], problem.tasks
    parameters = list(network.parameters())

    def run() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        inner = torchopt.MetaSGD(network, lr=problem.lr)
        start = torchopt.extract_state_dict(network, by="reference"), torchopt.extract_state_dict(inner)
        for t in range(len(tasks)):
            for _ in range(problem.steps):
                inner.step(loss(network(tasks.support_inputs[t]), tasks.support_targets[t]))
            (loss(network(tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)).backward()
            torchopt.recover_state_dict(network, start[0])
            torchopt.recover_state_dict(inner, start[1])
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    return run
