"""learn2learn's own loop: clone and adapt, one task after another."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.problem import LOSSES, Problem
from lightning_maml.data import import_learn2learn


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    library, loss, tasks = import_learn2learn(), LOSSES[problem.loss], problem.tasks

    def run() -> list[Tensor]:
        problem.network.zero_grad()
        learner = library.algorithms.MAML(problem.network, lr=problem.lr, first_order=False)
        for t in range(len(tasks)):
            clone = learner.clone()
            for _ in range(problem.steps):
                clone.adapt(loss(clone(tasks.support_inputs[t]), tasks.support_targets[t]))
            (loss(clone(tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)).backward()
        return [parameter.grad for parameter in problem.network.parameters() if parameter.grad is not None]

    return run
