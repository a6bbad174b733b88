"""Meta-gradients of several meta-batches one after another, with all that is no number looked at once."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from lightning_maml.engine.base import MetaOutput
from lightning_maml.engine.fused.operator import OperatorLoop
from lightning_maml.tasks import TaskBatch


class InARow:
    """An operator on a network, for meta-batches of equal shapes in turn, by meta-parameters in one row.

    Whoever steps changes :attr:`parameters`, views of a copy of the network's own, which are called :attr:`leaves`.
    """

    def __init__(self, loop: OperatorLoop) -> None:
        self.loop, self.leaves = loop, [*loop.parameters.values()]
        self.parameters: Sequence[Tensor] = _unflatten_dense_tensors(loop.theta, self.leaves)

    def meta_loss(self, tasks: TaskBatch) -> MetaOutput | None:
        """The meta-batch's losses and meta-gradient; None where they are not finite."""
        loop: Any = self.loop
        loop.take(*tasks.sets)
        query = loop.problem.algorithm.meta_gradient(loop)
        row = loop.output.of_theta
        if not math.isfinite((row.sum() + query.loss).item()):
            return None
        gradients = _unflatten_dense_tensors(row, self.leaves)
        return MetaOutput(
            query.loss, gradients, self.leaves, query.task_losses, query.predictions, loop.support_history()
        )
