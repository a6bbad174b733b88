"""One task after another, in autograd's own graph: the oracle, and the baseline."""

from dataclasses import dataclass

from lightning_maml.engine.base import Problem
from lightning_maml.engine.loops.chunks import LoopEngine
from lightning_maml.tasks import Set


@dataclass(frozen=True)
class Eager(LoopEngine):
    """A Python loop over the tasks that calls the network as it is written. Slow, and right for any network."""

    name = "eager"
    chunk_size = 1
    one = True

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        return None
