"""The gate against float64, then rounds in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import of_engine, seconds
from benchmarks.problem import Problem

TOLERANCE = 1e-3
"""Largest error of a meta-gradient, over the exact one's largest entry."""

Row = dict[str, float]


def measure(problem: Problem, names: list[str], rounds: int) -> tuple[dict[str, Row], dict[str, str], dict[str, str]]:
    """Rows of the contenders that pass, the reasons of those missing, and of those wrong."""
    exact = [value.clone() for value in of_engine(problem.in_float64(), "eager")()]
    rows: dict[str, Row] = {}
    missing, wrong = {}, {}
    runs: dict[str, Callable[[], list[Tensor]]] = {}
    for name in names:
        start = time.perf_counter()
        try:
            run = import_module(f"benchmarks.contenders.{name}").prepare(problem)
            found = run()
        except Exception as error:  # one that does not run is named, with the reason
            missing[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
            continue
        first_call = time.perf_counter() - start
        error = relative_error(found, exact)
        if not error <= TOLERANCE:  # nan is wrong too
            wrong[name] = f"its meta-gradient is off by {error:.1e} of the largest entry; no time is reported"
            continue
        runs[name] = run
        rows[name] = {"first_call_s": first_call, "meta_gradient_rel_error": error}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    times = {}
    for name, run in runs.items():
        seconds(run, 1)
        times[name] = max(1, min(50, int(0.1 / seconds(run, 1))))  # a short one is its mean over a tenth of a second
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(seconds(run, times[name]) / times[name])
    with FlopCounterMode(display=False) as counter:
        of_engine(problem.first_task(), "eager")()
    work, peak = counter.get_total_flops() * len(problem.tasks), sgemm_rate()
    for name, values in samples.items():
        deciles, median = statistics.quantiles(values, n=10), statistics.median(values)
        rows[name] |= {
            "median_ms": 1e3 * median,
            "p10_ms": 1e3 * deciles[0],
            "p90_ms": 1e3 * deciles[-1],
            "tasks_per_second": len(problem.tasks) / median,
            "gflops": work / median / 1e9,
            "peak_share": work / median / peak,
        }
    return rows, missing, wrong


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference over the largest entry; infinite where the shapes differ."""
    if [value.shape for value in found] != [value.shape for value in exact]:
        return float("inf")
    scale = max(value.abs().max().item() for value in exact)
    differences = [(a.cpu().double() - b).abs().max() for a, b in zip(found, exact, strict=True)]
    return torch.stack(differences).max().item() / scale


def sgemm_rate(size: int = 1024) -> float:
    """FLOP/s of this machine's own matrix product, the best of 5."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
