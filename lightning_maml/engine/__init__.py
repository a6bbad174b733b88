"""How a batch of tasks runs. Every engine gives the same numbers; each says what it cannot run, and why."""

from __future__ import annotations

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.batched import Batched
from lightning_maml.engine.eager import Eager
from lightning_maml.engine.fused import Fused
from lightning_maml.engine.graphed import Graphed
from lightning_maml.tasks import TaskBatch

__all__ = ["Batched", "Eager", "Engine", "Fused", "Graphed", "MetaOutput", "Problem", "resolve_engine"]

_NAMED: dict[str, type[Engine]] = {"eager": Eager, "batched": Batched, "fused": Fused}


def resolve_engine(engine: str | Engine, problem: Problem, tasks: TaskBatch) -> Engine:
    """The engine of a name; ``"auto"`` chooses, any other runs or raises.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: the engine asked for cannot run this problem; the message says why.
    """
    device = tasks.support_inputs.device
    if engine == "auto":
        # the fused operator where it has been measured to be faster: on the CPU so far, and compiled above all
        if device.type == "cpu":
            for fused in (Fused(compile=True), Fused(kernel="mlp_adapt")):
                if fused.supports(problem, tasks) is None and fused.unsupported(problem, device) is None:
                    return fused
        return Batched()
    if isinstance(engine, str):
        if engine not in _NAMED:
            raise ValueError(f"Expected `engine` to be one of {['auto', *_NAMED]} or an Engine but got {engine!r}.")
        engine = _NAMED[engine]()
    if not isinstance(engine, Engine):
        raise TypeError(f"Expected `engine` to be one of {['auto', *_NAMED]} or an Engine but got {engine!r}.")
    if (reason := engine.unsupported(problem, device)) is not None:
        raise NotImplementedError(f"Engine {engine.name!r} cannot run this: {reason}")
    return engine
