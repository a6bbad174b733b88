"""Which engine runs a problem: the one asked for, or the first that can."""

import dis
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lightning_maml.engine.base import Engine, Problem
from lightning_maml.engine.fused import Fused
from lightning_maml.engine.fused.in_a_row import InARow
from lightning_maml.engine.generators import way_back
from lightning_maml.engine.loops.batched import Batched, Eager
from lightning_maml.tasks import Set, TaskBatch

_NAMED: dict[str, type[Engine]] = {"eager": Eager, "batched": Batched, "fused": Fused}
# What runs whole adaptations, by the kind of device. On a GPU each kernel is compared with `batched` before it counts.
_FUSED = {"cpu": (Fused(compile=True), Fused(kernel="mlp_adapt")), "cuda": (Fused(),)}
_TORCH = str(Path(torch.__file__).parent)

Result = TypeVar("Result")

# Of each network the problems on it, and what "auto" has run them on; None where that failed.
_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Engine | None]] = WeakKeyDictionary()

logger = logging.getLogger("lightning_maml")


def named_engine(engine: str | Engine) -> Engine | None:
    """The engine of a name, or None for ``"auto"``; ValueError or TypeError where there is none."""
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str) or engine not in ("auto", *_NAMED):
        error = ValueError if isinstance(engine, str) else TypeError
        raise error(f"Expected `engine` to be one of {['auto', *_NAMED]} or an Engine but got {engine!r}.")
    return None if engine == "auto" else _NAMED[engine]()


def in_a_row(engine: str | Engine, problem: Problem, tasks: TaskBatch) -> InARow | None:
    """What runs meta-batches like this one in turn on the engine that :func:`run_on` takes; None where it has none."""
    asked = named_engine(engine)
    if not tasks.support_targets.is_cpu:
        return None
    for chosen in _FUSED["cpu"] if asked is None else (asked,):
        if isinstance(chosen, Fused) and chosen.covers(problem, *tasks.sets):
            return chosen.in_a_row(problem, tasks)
    return None


def run_on(
    engine: str | Engine, problem: Problem, sets: tuple[Set, ...], run: Callable[[Engine], Result]
) -> tuple[Engine, Result]:
    """What ``run`` makes of an engine, and that engine; ``"auto"`` chooses, any other runs or raises.

    ``"auto"`` takes the first of the fused operators that runs the problem, else ``batched``, and where torch refuses
    to run all tasks in one call, ``eager``: that it says once, in a warning, and knows as long as the network lives. So
    it does where a GPU's kernel fails, or is not what ``batched`` computes, which then takes its place. There are no
    ``sets`` where adapted networks are only to predict.

    Raises:
        ValueError, TypeError: it is no engine.
        NotImplementedError: the engine asked for cannot run this problem; the message says why.
    """
    asked = named_engine(engine)
    if asked is None and sets:
        for fused in _FUSED.get(sets[0][1].device.type, ()):
            if fused.covers(problem, *sets) and (found := _run_operator(fused, problem, sets, run)) is not None:
                return found
    chosen = asked or Batched()
    reason = chosen.unsupported(problem, *sets) if sets or asked is None else None
    refusal: Exception | None = None
    if asked is None:
        known, algorithm = _KNOWN.setdefault(problem.network, {}), problem.algorithm
        modes = tuple([module.training for module in problem.modules])
        losses = [(type(loss), loss.kind) for loss in (problem.loss, problem.judge)]
        key = algorithm.needs, algorithm.batch_norm, *losses, modes, reason
        if isinstance(eager := known.get(key), Eager):
            return eager, run(eager)
        back = way_back(next(iter(problem.names.values())).device)
    elif reason is not None:
        raise NotImplementedError(f"Engine {chosen.name!r} cannot run this: {reason}")
    if reason is None:
        try:
            result = run(chosen)
        except Exception as error:
            if isinstance(chosen, Eager) or not of_torch(error):
                raise
            refusal = error
            reason = f"torch refuses to run all tasks in one call ({first_sentence(error)})."
    if reason is not None and asked is not None:
        run(Eager())  # what fails here, too, is no matter of engines
        said = f"Engine {chosen.name!r} cannot run this: {reason} Use engine='eager'."
        raise NotImplementedError(said) from refusal
    if asked is not None:
        return chosen, result
    name = type(problem.network).__name__
    if reason is not None:
        back()
        chosen = Eager()
        result = run(chosen)
        said = f"Engine 'auto' goes on with 'eager', one task after another: {name} runs on no other, as {reason}"
        warnings.warn(f"{said} This is said once.", stacklevel=3)
    if known.get(key) != chosen:
        logger.info("engine 'auto' chose %r for %s", chosen.name, name)
        known[key] = chosen
    return chosen, result


def _run_operator(
    fused: Fused, problem: Problem, sets: tuple[Set, ...], run: Callable[[Engine], Result]
) -> tuple[Engine, Result] | None:
    """What "auto" has of an operator; None where a GPU's kernel fails, then or before, which is said once."""
    known, key = _KNOWN.setdefault(problem.network, {}), (fused, problem.algorithm.needs)
    if known.get(key, fused) is None:
        return None
    name, device = type(problem.network).__name__, sets[0][1].device
    back = None if device.type == "cpu" else way_back(device)
    try:
        result = run(fused)
    except Exception as error:
        # the CPU's are compiled by now, and of what the problem itself has wrong the next engine would say the same
        if back is None or isinstance(error, ValueError | TypeError | torch.OutOfMemoryError):
            raise
        back()
        known[key] = None
        said = f"Engine 'auto' goes on without {fused.name!r}, which fails on {name} there ({first_sentence(error)})."
        warnings.warn(f"{said} This is said once.", stacklevel=4)
        return None
    if key not in known:
        logger.info("engine 'auto' chose %r for %s", fused.name, name)
        known[key] = fused
    return fused, result


def first_sentence(error: Exception) -> str:
    """What an error of torch says before it explains, gives advice or asks for reports.

    Example:
        >>> first_sentence(RuntimeError("vmap: inplace arithmetic is not possible. Please file an issue."))
        'inplace arithmetic is not possible'
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.removeprefix("vmap: ").split(". ")[0].removesuffix(".")


def of_torch(error: Exception) -> bool:
    """Whether torch itself raised an error, in C or in its own Python files, and no ``raise`` in anybody else's."""
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return False
    file, raised = _raised_in(error)
    return file.startswith(_TORCH) or (isinstance(error, RuntimeError) and not raised)


def on_purpose(error: Exception) -> bool:
    """Whether a ``raise`` outside torch made an error, which then says what it is about."""
    file, raised = _raised_in(error)
    return raised and not file.startswith(_TORCH)


def _raised_in(error: Exception) -> tuple[str, bool]:
    """The file where an error came up, and whether by ``raise``."""
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return code.co_filename, dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
