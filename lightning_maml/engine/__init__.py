"""How a batch of tasks runs. Every engine gives the same numbers; each says what it cannot run, and why."""

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.choice import in_a_row, named_engine, run_on
from lightning_maml.engine.fused import Fused, KernelError
from lightning_maml.engine.loops.batched import Batched, Eager
from lightning_maml.engine.loops.graphed import Graphed

__all__ = [
    "Batched",
    "Eager",
    "Engine",
    "Fused",
    "Graphed",
    "KernelError",
    "MetaOutput",
    "Problem",
    "in_a_row",
    "named_engine",
    "run_on",
]
