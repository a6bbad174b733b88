"""Joint training on all tasks with no inner loop (m = 0): the pretrained baseline."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_maml.meta_gradient.base import Loop, Query


@dataclass(frozen=True)
class Joint:
    """``d/dtheta mean_t L_query(theta)``: the tasks share one network while training, and fine-tune it at test."""

    training_steps: ClassVar[int] = 0

    def __call__(self, loop: Loop) -> Query:
        return loop.query(loop.initial())
