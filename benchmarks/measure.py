"""How contenders are measured: the gate against float64, then all in turn, round by round."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import CONTENDERS, TOLERANCES, Run, of_engine
from benchmarks.machine import copy_rate, peak_memory_mb, seconds, sgemm_rate
from benchmarks.problem import WORKLOADS, Problem
from benchmarks.result_file import Row

TOLERANCE = 1e-3
"""Largest error of a meta-gradient, over the exact one's largest entry; or 10 times :func:`sensitivity`."""
LIMIT = 30.0
"""Seconds after which no further seed or draw is tried: of mini_imagenet a single one takes 24."""


def tries(most: int, limit: float, least: int = 1) -> Iterator[int]:
    """Counts up to ``most`` tries; from ``least`` on no further one begins once ``limit`` seconds are spent."""
    start = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - start >= limit:
            return
        yield number


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int, limit: float = float("inf")) -> dict[str, list[float]]:
    """Seconds of each run in each round: all take part in a round, after a warm-up.

    A short one is the mean over a tenth of a second. After two rounds none begins once ``limit`` seconds are spent.
    """
    times, long = {}, {}
    for name, run in runs.items():
        if (taken := seconds(run)) < 1:
            times[name] = max(1, min(50, int(0.1 / seconds(run))))
        else:
            times[name], long[name] = 1, taken  # a warm-up would tell nothing else: it is the first round
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tries(rounds, limit, least=2):
        for name, run in runs.items():
            samples[name].append(long.pop(name) if name in long else seconds(run, times[name]))
    return samples


def spread(values: list[float], unit: str = "ms") -> dict[str, float]:
    """The median and the outer deciles; of seconds, in milliseconds."""
    scale = 1e3 if unit == "ms" else 1.0
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    found = {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[-1]}
    return {f"{name}_{unit}": scale * value for name, value in found.items()}


def steady(workload: str, tasks: int, steps: int, seeds: int = 20) -> tuple[Problem, list[Tensor]]:
    """The workload by the first seed where float32 is near float64 at all, by plain autograd, and the exact gradient.

    A meta-gradient jumps where an activation passes its kink, and by a lot where batch-norm sees a channel that hardly
    varies: nobody could be told right from wrong there. Where no seed is near, or none within :data:`LIMIT` seconds,
    the nearest is taken, and :func:`sensitivity` says how near anybody comes.
    """
    nearest = float("inf")
    for seed in tries(seeds, LIMIT):
        torch.manual_seed(seed)
        problem = Problem(*WORKLOADS[workload](tasks), steps)
        exact = exact_gradient(problem)
        off = relative_error(of_engine(problem, "eager")(), exact)
        if seed == 0 or off < nearest:
            nearest, found = off, (problem, exact)
        if off < TOLERANCE / 10:
            break
    return found


def exact_gradient(problem: Problem) -> list[Tensor]:
    """The meta-gradient in float64, by plain autograd."""
    return of_engine(problem.in_float64(), "eager")()


def measure(
    problem: Problem, exact: list[Tensor], names: list[str], rounds: int, limit: float
) -> tuple[dict[str, Row], dict[str, str], dict[str, str]]:
    """Rows of the contenders that pass, the reasons of those missing, and of those wrong.

    Half of ``limit`` seconds may pass before a contender is checked, and all of them before a third round begins.
    A row has ``rounds``, ``median_ms``, ``p10_ms``, ``p90_ms``, ``first_call_s``, ``tasks_per_second``; ``gflops`` of
    the work that torch counts in the eager engine, whoever does it; ``peak_share`` of this machine's ``sgemm_gflops``;
    its ``copy_gb_per_second``; ``peak_memory_mb`` of a call, None where it cannot be told; ``meta_gradient_rel_error``,
    and the ``tolerance`` that it was held to.
    """
    begun = time.perf_counter()
    rows: dict[str, Row] = {}
    missing, wrong = {}, {}
    tolerance = TOLERANCE
    runs: dict[str, Run] = {}
    for name in names:
        start = time.perf_counter()
        if start - begun >= limit / 2:
            missing[name] = f"the others took {start - begun:.0f} s before its turn: a larger --seconds has time for it"
            continue
        try:
            run = CONTENDERS[name](problem)
            found = run()
        except Exception as error:  # one that does not run is named, with the reason
            missing[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
            continue
        first_call = time.perf_counter() - start
        off = relative_error(found, exact)
        if off > TOLERANCE and tolerance == TOLERANCE:
            tolerance = max(TOLERANCE, 10 * sensitivity(problem, exact))
        allowed = max(tolerance, TOLERANCES.get(name, 0.0))
        if not off <= allowed:  # nan is wrong too
            wrong[name] = f"its meta-gradient is WRONG, off by {off:.1e} of the largest entry; no time is reported"
            continue
        runs[name] = run
        rows[name] = {"first_call_s": first_call, "meta_gradient_rel_error": off, "tolerance": allowed}
    samples = in_turn(runs, rounds, limit - (time.perf_counter() - begun))
    with FlopCounterMode(display=False) as counter:
        of_engine(replace(problem, tasks=problem.tasks[:1]), "eager")()
    work, peak = counter.get_total_flops() * len(problem.tasks), sgemm_rate(problem.device)
    copied = copy_rate(problem.device)
    base = statistics.median(samples["learn2learn"]) if "learn2learn" in samples else None
    for name, values in samples.items():
        median = statistics.median(values)
        rows[name] |= {
            **spread(values),
            "rounds": len(values),
            "tasks_per_second": len(problem.tasks) / median,
            "times_learn2learn": base and base / median,
            "gflops": work / median / 1e9,
            "peak_share": work / median / peak,
            "sgemm_gflops": peak / 1e9,
            "copy_gb_per_second": copied / 1e9,
            "peak_memory_mb": peak_memory_mb(runs[name], problem.device),
        }
    return rows, missing, wrong


def sensitivity(problem: Problem, exact: list[Tensor], draws: int = 4) -> float:
    """The error that parameters make alone which are off in the last bit that float32 has; the largest of some draws.

    No further one begins after :data:`LIMIT` seconds.

    A meta-gradient jumps where an activation passes its kink, or another pixel becomes a pool's largest. With millions
    of them some always do, whoever computes it.
    """
    errors = []
    for _ in tries(draws, LIMIT):
        network = copy.deepcopy(problem.network)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + torch.finfo(torch.float32).eps * (2 * torch.rand_like(parameter) - 1))
        errors.append(relative_error(exact_gradient(replace(problem, network=network)), exact))
    return max(errors)


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference over the largest entry; infinite where the shapes differ."""
    if [value.shape for value in found] != [value.shape for value in exact]:
        return float("inf")
    scale = max(value.abs().max().item() for value in exact)
    differences = [(a.cpu().double() - b).abs().max() for a, b in zip(found, exact, strict=True)]
    return torch.stack(differences).max().item() / scale
