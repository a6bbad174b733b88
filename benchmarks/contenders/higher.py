"""higher's own loop: a patched copy and a differentiable optimiser, one task after another."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.problem import LOSSES, Problem


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    import higher

    network, loss, tasks = problem.network, LOSSES[problem.loss], problem.tasks
    optimizer = torch.optim.SGD(network.parameters(), lr=problem.lr)

    def run() -> list[Tensor]:
        network.zero_grad()
        for t in range(len(tasks)):
            with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (patched, inner):
                for _ in range(problem.steps):
                    inner.step(loss(patched(tasks.support_inputs[t]), tasks.support_targets[t]))
                (loss(patched(tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)).backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    return run
