"""torch.func, as in `vmap`, under torch.compile."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contenders.vmap import meta_gradient
from benchmarks.problem import Problem


def prepare(problem: Problem) -> Callable[[], list[Tensor]]:
    function = torch.compile(meta_gradient(problem), fullgraph=True)
    theta = {name: parameter.detach() for name, parameter in problem.network.named_parameters()}
    return lambda: list(function(theta).values())
