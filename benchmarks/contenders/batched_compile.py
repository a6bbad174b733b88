"""This library, all tasks at once, compiled."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.contenders import of_engine
from benchmarks.problem import Problem
from lightning_maml import Batched


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    return of_engine(problem, Batched(compile=True))
