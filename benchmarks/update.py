"""One inner step of all parameters of all tasks alone, ``phi - rate * gradient``: ``sgd_update`` beside torch's ways.

    python -m benchmarks.update [--tasks 32] [--device cpu|cuda] [--rounds N] [--json FILE]

On the parameters of Omniglot's Conv4, ``[T, P]``. Each result is checked against float64 first; a wrong one gets no
time, and the exit code is 1. Contenders run in turn, round by round. The share is that of the rate at which this
machine copies memory: two numbers are read and one written for each parameter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.about import about
from benchmarks.contenders import seconds
from benchmarks.machine import copy_rate, known_device
from lightning_maml import Conv4
from lightning_maml.kernels.sgd_update import sgd_update

RATE = 0.4
TOLERANCE = 1e-6


def contenders(phi: Tensor, gradient: Tensor, sizes: list[int]) -> dict[str, Callable[[], list[Tensor]]]:
    """Each returns the next parameters, in one piece or in parts ``[T, n]``."""
    rate = torch.tensor(RATE, device=phi.device)
    parts, gradients = ([part.contiguous() for part in value.split(sizes, 1)] for value in (phi, gradient))
    return {
        "parameter by parameter": lambda: [p - RATE * g for p, g in zip(parts, gradients, strict=True)],
        "torch._foreach_add": lambda: list(torch._foreach_add(parts, gradients, alpha=-RATE)),
        "torch.add, flat": lambda: [torch.add(phi, gradient, alpha=-RATE)],
        "sgd_update": lambda: [sgd_update(phi, gradient, rate)[0]],
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--device", type=known_device, default="cpu")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.tasks < 1 or options.rounds < 2:
        parser.error("Expected at least 1 task and 2 rounds")
    torch.manual_seed(0)
    sizes = [parameter.numel() for parameter in Conv4(5).parameters()]
    phi, gradient = (torch.randn(options.tasks, sum(sizes), device=options.device) for _ in range(2))
    exact = phi.double() - RATE * gradient.double()
    runs, wrong = {}, []
    for name, run in contenders(phi, gradient, sizes).items():
        error = (torch.cat([part.double() for part in run()], 1) - exact).abs().max().item()
        if error <= TOLERANCE * exact.abs().max().item():
            runs[name] = run
        else:
            wrong.append(name)
            print(f"WRONG: {name}: off by {error:.1e}")
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            samples[name].append(seconds(run, 5) / 5)
    copy, moved = copy_rate(options.device), 3 * phi.nbytes
    rows = {}
    print(f"{options.tasks} tasks of {sum(sizes)} parameters; copy {copy / 1e9:.1f} GB/s")
    print(f"{'':24}{'median ms':>10}{'p10':>9}{'p90':>9}{'of copy':>9}")
    for name, values in samples.items():
        deciles, median = statistics.quantiles(values, n=10, method="inclusive"), statistics.median(values)
        rows[name] = {
            "median_ms": 1e3 * median,
            "p10_ms": 1e3 * deciles[0],
            "p90_ms": 1e3 * deciles[-1],
            "copy_share": moved / median / copy,
        }
        print(
            f"{name:24}{1e3 * median:10.3f}{1e3 * deciles[0]:9.3f}{1e3 * deciles[-1]:9.3f}{moved / median / copy:9.1%}"
        )
    if options.json:
        content = {"benchmark": "update", "tasks": options.tasks, "device": options.device, **about(), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
