"""This library, its operator `mlp_adapt` compiled by the C compiler."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.contenders import of_engine
from benchmarks.problem import Problem
from lightning_maml import Fused


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    return of_engine(problem, Fused(compile=True))
