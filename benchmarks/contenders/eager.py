"""This library, one task after another."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.contenders import of_engine
from benchmarks.problem import Problem


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    return of_engine(problem, "eager")
