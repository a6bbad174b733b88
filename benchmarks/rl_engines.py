"""One meta-gradient of 2D navigation, LVC inside and PPO outside, on each engine: 2x100 units, horizon 100.

    python -m benchmarks.rl_engines [--tasks 16 20 40] [--inner-steps 1] [--rounds N] [--json FILE]

All engines have the same rollouts, and run in turn, round by round. Each meta-gradient is checked against `eager` in
float64 first; a wrong one gets no time, and the exit code is 1. Then what a meta-iteration of rl_navigation.yaml
consists of. Freed memory is kept, as `lightning-maml` keeps it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.about import about
from benchmarks.contenders import seconds
from lightning_maml import cli, maml
from lightning_maml.rl import Collector, GaussianPolicy, MetaObjective, Navigation2D, Rollouts

ENGINES = ("eager", "batched", "fused", "auto")
TRAJECTORIES = 20
TOLERANCE = 1e-4
KINDS = {"policy_gradient": ("policy_gradient",), "other matrix products": ("aten::bmm", "aten::baddbmm")}


def measure(tasks: int, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds and errors of each engine on the same rollouts."""
    torch.manual_seed(0)
    environment, policy = Navigation2D(), GaussianPolicy(2, 2)
    algorithm = maml(0.1, steps)
    objectives = {engine: MetaObjective(policy, algorithm, engine=engine) for engine in ENGINES}
    goals = environment.sample_tasks(tasks, torch.Generator().manual_seed(0))
    collect = Collector(environment, policy, goals, TRAJECTORIES)
    rollouts = [part for _, part in objectives["batched"].adapt(collect, tasks, steps)]
    with torch.no_grad():
        for parameter in policy.parameters():  # as after an outer step: other than what was sampled
            parameter += 0.01 * torch.randn_like(parameter)
    exact = MetaObjective(copy.deepcopy(policy).double(), algorithm, engine="eager")
    doubled = [Rollouts(*(getattr(part, item.name).double() for item in fields(part))) for part in rollouts]
    expected = torch.cat([part.flatten() for part in exact(doubled).gradients])
    errors: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for engine, objective in objectives.items():
        found = torch.cat([part.flatten() for part in objective(rollouts).gradients])
        errors[engine] = float((found - expected).norm() / expected.norm())
        if errors[engine] <= TOLERANCE:
            samples[engine] = []
    for _ in range(rounds):
        for engine in samples:
            samples[engine].append(seconds(lambda engine=engine: objectives[engine](rollouts), 1))
    rows = []
    for engine, values in samples.items():
        deciles, median = statistics.quantiles(values, n=10, method="inclusive"), statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(samples["batched"], values, strict=True))
        row = {"median_ms": 1e3 * median, "p10_ms": 1e3 * deciles[0], "p90_ms": 1e3 * deciles[-1]}
        rows.append({"engine": engine, **row, "times_batched": ratio, "meta_gradient_rel_error": errors[engine]})
        print(
            f"{tasks:5} tasks, {steps} inner steps  {engine:8}{1e3 * median:9.1f} ms ({1e3 * deciles[0]:.0f} to "
            f"{1e3 * deciles[-1]:.0f}), {ratio:.2f} times as fast as batched, off by {errors[engine]:.0e}",
            flush=True,
        )
    for engine in errors.keys() - samples.keys():
        print(f"WRONG: {engine}: off by {errors[engine]:.1e}")
    wrong = sorted(errors.keys() - samples.keys())
    return {"tasks": tasks, "inner_steps": steps, "trajectories": TRAJECTORIES, "engines": rows, "wrong": wrong}


def profile(rounds: int) -> dict[str, dict[str, float]]:
    """The parts of a meta-iteration of 20 tasks on the engine `auto`, one inner and 3 outer steps."""
    torch.manual_seed(0)
    environment, policy, tasks = Navigation2D(), GaussianPolicy(2, 2), 20
    objective = MetaObjective(policy, maml(0.1, 1))
    collect = Collector(environment, policy, environment.sample_tasks(tasks, torch.Generator()), TRAJECTORIES)
    phi = objective.initial(tasks)
    rollouts = [part for _, part in objective.adapt(collect, tasks, 1)]
    parts: dict[str, Callable[[], Any]] = {
        "2 x rollouts": lambda: [collect(phi, step) for step in range(2)],
        "2 x advantages, 1 inner step": lambda: list(objective.adapt(lambda _, step: rollouts[step], tasks, 1)),
        "3 x meta-gradient": lambda: [objective(rollouts) for _ in range(3)],
    }
    samples: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, part in parts.items():
            samples[name].append(seconds(part, 1))
    found = {name: 1e3 * statistics.median(values[1:]) for name, values in samples.items()}
    for name, milliseconds in found.items():
        print(f"{name:30}{milliseconds:9.1f} ms, {milliseconds / sum(found.values()):.0%} of a meta-iteration")
    with torch.profiler.profile() as watched:
        objective(rollouts)
    spent: dict[str, float] = {}
    for event in watched.key_averages():
        kind = next((kind for kind, keys in KINDS.items() if any(key in event.key for key in keys)), "all else")
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    for kind, value in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"    {kind:26}{value / sum(spent.values()):9.0%} of a meta-gradient")
    shares = {kind: value / sum(spent.values()) for kind, value in spent.items()}
    return {"meta_iteration_ms": found, "meta_gradient_shares": shares}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[16, 20, 40])
    parser.add_argument("--inner-steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if min(options.tasks) < 1 or options.rounds < 2:
        parser.error("Expected at least 1 task and 2 rounds")
    cli.keep_freed_memory()
    runs = [measure(tasks, options.inner_steps, options.rounds) for tasks in options.tasks]
    parts = profile(options.rounds)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "rl_engines", **about(), "runs": runs, **parts}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(run["wrong"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
