"""All tasks at once, in pure torch, on any network."""

from dataclasses import dataclass
from typing import Literal

from lightning_maml.checks import check_one_of, check_whole
from lightning_maml.engine.base import Problem
from lightning_maml.engine.coverage import BATCHED, COMPILED, refused
from lightning_maml.engine.loops.checkpointed import CheckpointedLoop
from lightning_maml.engine.loops.chunks import LoopEngine
from lightning_maml.engine.loops.loop import TaskLoop
from lightning_maml.tasks import Set


@dataclass(frozen=True)
class Batched(LoopEngine):
    """The forward of all tasks is one batched call; the summed loss is differentiated outside of it.

    Args:
        compile: run an inner step, its pull-back and the query set as graphs compiled by TorchInductor. The first
            call takes seconds, whatever the number of steps; needs a C++ compiler on a CPU.
        chunk_size: how many tasks at once; None for all. Less memory, same gradient.
        checkpoint: ``"step"`` keeps only the parameters before an inner step and runs the step again in the
            backward: nearly flat memory in the number of steps, the same gradient to rounding. Of more than 8 steps
            every square-root-th is kept, and those between are run twice.

    Raises:
        ValueError: an argument is out of range.
    """

    compile: bool = False
    chunk_size: int | None = None
    checkpoint: Literal["step"] | None = None
    name = "batched"

    def __post_init__(self) -> None:
        if self.chunk_size is not None:
            check_whole(1, chunk_size=self.chunk_size)
        check_one_of((None, "step"), checkpoint=self.checkpoint)

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        if self.compile and (what := refused(problem.needs(*sets), COMPILED)):
            return f"compile=True has graphs of the steps that it knows, but {what}. Use compile=False."
        if what := refused(problem.needs(*sets), BATCHED):
            return f"all tasks run in one call of the network, but {what}. Use engine='eager'."
        return None

    def loop(self, problem: Problem, support: Set, query: Set) -> TaskLoop:
        if self.compile:
            from lightning_maml.engine.loops.compiled import CompiledLoop  # torch's compiler takes a second to import

            return CompiledLoop(problem, support, query, keep=self.checkpoint is None)
        return CheckpointedLoop(problem, support, query) if self.checkpoint else super().loop(problem, support, query)
