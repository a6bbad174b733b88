"""One meta-gradient of 2D navigation, LVC inside and PPO outside, on each engine: 2x100 units, horizon 100.

    python -m benchmarks.rl_engines [--tasks 16 20 40] [--inner-steps 1] [--rounds N] [--json FILE]

All engines have the same rollouts, and run in turn, round by round. Each meta-gradient is checked against `eager` in
float64 first; a wrong one gets no time, and the exit code is 1. Then what a meta-iteration of rl_navigation.yaml
consists of. Freed memory is kept, as `lightning-maml` keeps it.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.measure import in_turn, relative_error, spread
from benchmarks.result_file import ResultFile, command_line, text
from lightning_maml import cli, maml
from lightning_maml.rl import Collector, GaussianPolicy, MetaObjective, Navigation2D, Rollouts

ENGINES = ("eager", "batched", "fused", "auto")
TRAJECTORIES = 20
TOLERANCE = 1e-4
KINDS = {"policy_gradient": ("policy_gradient",), "other matrix products": ("aten::bmm", "aten::baddbmm")}


def measure(tasks: int, steps: int, rounds: int, results: ResultFile) -> None:
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
    expected = list(exact(doubled).gradients)
    point = {"tasks": tasks, "inner_steps": steps, "trajectories": TRAJECTORIES}
    errors = {name: relative_error(list(each(rollouts).gradients), expected) for name, each in objectives.items()}
    for engine, error in errors.items():
        if not error <= TOLERANCE:
            results.leave_out(f"WRONG, off by {error:.1e}", **point, engine=engine)
    runs = {name: partial(each, rollouts) for name, each in objectives.items() if errors[name] <= TOLERANCE}
    samples = in_turn(runs, rounds)
    for engine, values in samples.items():
        row = {**spread(values), "meta_gradient_rel_error": errors[engine]}
        if "batched" in samples:
            row["times_batched"] = median(a / b for a, b in zip(samples["batched"], values, strict=True))
        results.add(**point, engine=engine, **row)


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
    found = {name: 1e3 * median(values) for name, values in in_turn(parts, rounds).items()}
    print(f"milliseconds of a meta-iteration: {text(found)}")
    with torch.profiler.profile() as watched:
        objective(rollouts)
    spent: dict[str, float] = {}
    for event in watched.key_averages():
        kind = next((kind for kind, keys in KINDS.items() if any(key in event.key for key in keys)), "all else")
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    shares = {kind: value / sum(spent.values()) for kind, value in spent.items()}
    print(f"shares of a meta-gradient: {text(shares)}")
    return {"meta_iteration_ms": found, "meta_gradient_shares": shares}


def main() -> int:
    options = command_line(__doc__, tasks=[16, 20, 40], inner_steps=1, rounds=15).parse_args()
    cli.keep_freed_memory()
    results = ResultFile(options.json, "rl_engines")
    for tasks in options.tasks:
        measure(tasks, options.inner_steps, options.rounds, results)
    results.write(**profile(options.rounds))
    return int(bool(results.left_out))


if __name__ == "__main__":
    sys.exit(main())
