"""One meta-gradient, its memory, and one meta-batch of tasks: this library beside learn2learn, in one run.

    python -m benchmarks.foundation sinusoid|conv4|memory|sampling [--rounds N] [--omniglot FOLDER] [--json FILE]

Contenders run in turn, round by round, after a warm-up, and a wrong meta-gradient gets no time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml import MLP, Batched, Conv4, TaskBatch, maml, meta_loss
from lightning_maml.data import EpisodeSampler, import_learn2learn, load_omniglot

LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


def sinusoid() -> tuple[nn.Module, TaskBatch, str, float]:
    """25 tasks, 10 + 10 points."""
    return MLP(1, [40, 40], 1, init="default"), TaskBatch(*(torch.randn(25, 10, 1) for _ in range(4))), "mse", 0.01


def conv4() -> tuple[nn.Module, TaskBatch, str, float]:
    """8 tasks, 5-way 1-shot, 5 query images a class, random images."""
    labels = torch.arange(5).repeat(8, 1)
    tasks = TaskBatch(torch.randn(8, 5, 1, 28, 28), labels, torch.randn(8, 25, 1, 28, 28), labels.repeat(1, 5))
    return Conv4(5), tasks, "cross_entropy", 0.4


def ours(network: nn.Module, tasks: TaskBatch, loss: str, lr: float, engine: Any) -> list[Tensor]:
    """The meta-gradient of ``engine``."""
    network.zero_grad()
    meta_loss(network, maml(lr, 5), tasks, loss=loss, engine=engine).surrogate.backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def learn2learn(network: nn.Module, tasks: TaskBatch, loss: str, lr: float) -> list[Tensor]:
    """The meta-gradient of learn2learn's own loop."""
    network.zero_grad()
    learner = import_learn2learn().algorithms.MAML(network, lr=lr, first_order=False)
    for t in range(len(tasks)):
        clone = learner.clone()
        for _ in range(5):
            clone.adapt(LOSSES[loss](clone(tasks.support_inputs[t]), tasks.support_targets[t]))
        (LOSSES[loss](clone(tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def rounds(contenders: dict[str, Callable[[], Any]], count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: median, 10th and 90th percentile, and how often faster than the first."""
    for run in contenders.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            first = time.perf_counter() - start
            again = min(20, int(0.1 / first))  # a short one is its mean over a tenth of a second
            start = time.perf_counter()
            for _ in range(again):
                run()
            seconds[name].append((time.perf_counter() - start) / again if again else first)
    rows = {}
    base = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        deciles = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        rows[name] = {
            "median_ms": 1e3 * median,
            "p10_ms": 1e3 * deciles[0],
            "p90_ms": 1e3 * deciles[-1],
            "times_faster": base / median,
        }
    return rows


def speed(
    workload: Callable[[], tuple[nn.Module, TaskBatch, str, float]], compiled: bool, count: int
) -> dict[str, Any]:
    """One meta-gradient with 5 inner steps by each contender."""
    torch.manual_seed(0)
    problem = workload()
    network, tasks, loss, lr = problem
    engines: dict[str, Any] = {"batched": "batched", "batched, checkpoint": Batched(checkpoint="step")}
    if compiled:
        engines["batched, compile"] = Batched(compile=True)
    runs: dict[str, Callable[[], list[Tensor]]] = {"learn2learn": lambda: learn2learn(*problem)}
    runs |= {name: (lambda engine=engine: ours(*problem, engine)) for name, engine in engines.items()}
    exact = ours(network.double(), tasks.to(torch.float64), loss, lr, "eager")
    network.float()
    for name, run in runs.items():
        scale = max(b.abs().max().item() for b in exact)
        error = max((a - b).abs().max().item() for a, b in zip(run(), exact, strict=True)) / scale
        if not error < 1e-3:
            raise SystemExit(f"{name}: its meta-gradient is wrong by {error:.1e}; no time is reported.")
    return rounds(runs, count)


def memory(steps: int, checkpoint: bool) -> float:
    """Peak resident MB above what the imports take, of one Conv4 meta-gradient, in a process of its own."""
    engine = f"Batched(checkpoint={'step' if checkpoint else None!r})"
    code = f"""
import resource, torch
from benchmarks.foundation import conv4
from lightning_maml import Batched, maml, meta_loss
torch.manual_seed(0)
network, tasks, loss, lr = conv4()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = meta_loss(network, maml(0.1, {steps}), tasks, loss=loss, engine={engine})
output.surrogate.backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def sampling(folder: str, count: int) -> dict[str, Any]:
    """32 tasks of Omniglot, 5-way 1-shot with 15 queries a class: one gather, beside learn2learn's Taskset."""
    l2l = import_learn2learn()
    images = load_omniglot(folder)[:1100].flatten(0, 1)
    labels = torch.arange(1100).repeat_interleave(20)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images.float() / 255, labels))
    of = l2l.data.transforms
    transforms = [of.NWays(dataset, 5), of.KShots(dataset, 16), of.LoadData(dataset), of.RemapLabels(dataset)]
    taskset = l2l.data.Taskset(dataset, transforms)
    sampler = EpisodeSampler(images, labels, ways=5, shots=1, queries=15)
    generator = torch.Generator().manual_seed(0)
    return rounds(
        {
            "learn2learn, Taskset.sample()": lambda: [taskset.sample() for _ in range(32)],
            "EpisodeSampler": lambda: sampler.sample(32, generator),
        },
        count,
    )


def about(benchmark: str) -> dict[str, Any]:
    """What numbers were measured on."""
    return {
        "benchmark": benchmark,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sinusoid", "conv4", "memory", "sampling"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--omniglot", default="data/omniglot")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, Any]
    if options.what == "memory":
        rows = {
            f"{'checkpoint' if checkpoint else 'unrolled'}, {steps} steps": {"peak_mb": memory(steps, checkpoint)}
            for checkpoint in (True, False)
            for steps in (5, 50)
        }
    elif options.what == "sampling":
        rows = sampling(options.omniglot, options.rounds)
    else:
        rows = speed({"sinusoid": sinusoid, "conv4": conv4}[options.what], options.what == "sinusoid", options.rounds)
    for name, row in rows.items():
        print(f"{name:32}", "  ".join(f"{key} {value:9.3f}" for key, value in row.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**about(options.what), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
