"""All algorithms on the paper's sinusoids after the same number of meta-updates: error after 1, 5 and 10 inner steps.

    python -m benchmarks.algorithms [--updates N] [--only NAME ...] [--json FILE]

25 tasks an update, 10 support and 10 query points; tested on 600 tasks of 5 points. What differs between the rows is in
:data:`CONTENDERS`. No setting was searched for: rates and steps are those of the papers' sinusoids where there are any.
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
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from benchmarks.about import about
from lightning_maml import (
    MLP,
    Algorithm,
    MetaModule,
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


@dataclass(frozen=True)
class Contender:
    """An algorithm, and what it is trained with where that differs."""

    algorithm: Algorithm
    network: Callable[[], nn.Module] = mlp
    shots: int = 10
    lr: float = 0.005
    """The outer rate of Adam, which falls along a cosine."""
    reptile: bool = False


CONTENDERS = {
    "pretrained": Contender(pretrained(0.01, 10)),
    "maml": Contender(maml(0.01, 1)),
    "fomaml": Contender(fomaml(0.01, 1)),
    "anil": Contender(anil(0.01, 1)),
    "boil": Contender(boil(0.01, 1)),
    "meta_sgd": Contender(meta_sgd(0.01, 1)),
    "meta_curvature": Contender(meta_curvature(0.01, 1)),
    "maml_pp": Contender(maml_pp(0.01, 5, multi_step_updates=1000), lr=0.001),
    "cavia": Contender(cavia(1.0, 1), with_context),
    "imaml": Contender(imaml(0.005, 16, proximal=2.0, cg_steps=10), lr=0.001),
    # support sets as large as what the others see of a task, mini-batches of 10 out of them, and no query set
    "reptile": Contender(reptile(0.01, 10, "sgd", batch_size=10), shots=20, reptile=True),
}


def run(contender: Contender, updates: int, seed: int) -> dict[str, Any]:
    """The test errors ``{steps: [mean, interval]}`` and the seconds of training."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=contender.lr)

    def cosine(optimizer: Any) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)

    def step(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    def linear(optimizer: Any) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, updates)

    seed_everything(seed, verbose=False)
    module = MetaModule(
        contender.network(),
        contender.algorithm,
        loss="mse",
        optimizer=step if contender.reptile else adam,
        scheduler=linear if contender.reptile else cosine,
        test_steps=max(STEPS),
        updates_per_step=50,
    )
    tasks = SinusoidTasks(shots=contender.shots, test_shots=5, batches_per_epoch=updates, val_tasks=0, seed=seed)
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
    errors = {step: _finite(found[f"test/loss_step_{step}"], found[f"test/loss_step_{step}_ci95"]) for step in STEPS}
    return {"mse": errors, "trained_with_steps": contender.algorithm.inner.steps, "seconds": round(seconds)}


def _finite(mean: float, half: float) -> list[float] | None:
    """Mean and interval, or None where tasks diverge: one does, and the mean says nothing."""
    return [mean, half] if math.isfinite(mean) and half < mean else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: dict[str, Any] = {}
    print(f"{'trained with':>28}   " + "".join(f"{f'{step} steps':>18}" for step in STEPS))
    for name in options.only:
        rows[name] = row = run(CONTENDERS[name], options.updates, options.seed)
        cells = "".join(f"{f'{x[0]:.3f} ± {x[1]:.3f}' if x else 'diverges':>18}" for x in row["mse"].values())
        print(f"{name:16}{row['trained_with_steps']:>12}   {cells}   {row['seconds']} s", flush=True)
        if options.json:
            content = {
                "benchmark": "sinusoid, mean squared error on 600 tasks of 5 points",
                "command": f"python -m benchmarks.algorithms --updates {options.updates} --seed {options.seed}",
                "updates": options.updates,
                "seed": options.seed,
                **about(),
            }
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
