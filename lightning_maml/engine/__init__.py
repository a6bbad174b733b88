"""How a batch of tasks runs. Every engine gives the same numbers; each says what it cannot run, and why."""

from __future__ import annotations

import torch

from lightning_maml.engine.base import Engine, MetaOutput, Problem
from lightning_maml.engine.batched import Batched
from lightning_maml.engine.eager import Eager

__all__ = ["Batched", "Eager", "Engine", "MetaOutput", "Problem", "resolve_engine"]

_NAMED: dict[str, type[Engine]] = {"eager": Eager, "batched": Batched}


def resolve_engine(engine: str | Engine, problem: Problem, device: torch.device) -> Engine:
    """The engine of a name; ``"auto"`` chooses, any other runs or raises.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: the engine asked for cannot run this problem; the message says why.
    """
    if engine == "auto":
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
