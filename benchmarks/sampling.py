"""32 tasks of Omniglot, 5-way 1-shot with 15 queries a class: one gather, beside learn2learn's Taskset.

    python -m benchmarks.sampling [--omniglot FOLDER] [--rounds N] [--json FILE]

Both in turn, round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from benchmarks.about import about
from benchmarks.contenders import seconds
from lightning_maml.data import EpisodeSampler, import_learn2learn, load_omniglot


def sample(folder: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, and how often faster than learn2learn."""
    l2l = import_learn2learn()
    images = load_omniglot(folder)[:1100].flatten(0, 1)
    labels = torch.arange(1100).repeat_interleave(20)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images.float() / 255, labels))
    of = l2l.data.transforms
    transforms = [of.NWays(dataset, 5), of.KShots(dataset, 16), of.LoadData(dataset), of.RemapLabels(dataset)]
    taskset = l2l.data.Taskset(dataset, transforms)
    sampler = EpisodeSampler(images, labels, ways=5, shots=1, queries=15)
    generator = torch.Generator().manual_seed(0)
    runs = {
        "learn2learn, Taskset.sample()": lambda: [taskset.sample() for _ in range(32)],
        "EpisodeSampler": lambda: [sampler.sample(32, generator)],
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(1e3 * seconds(run, 5) / 5)
    base = statistics.median(found["learn2learn, Taskset.sample()"])
    return {
        name: {
            "median_ms": statistics.median(values),
            "p10_ms": statistics.quantiles(values, n=10, method="inclusive")[0],
            "p90_ms": statistics.quantiles(values, n=10, method="inclusive")[-1],
            "times_faster": base / statistics.median(values),
        }
        for name, values in found.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", default="data/omniglot")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = sample(options.omniglot, options.rounds)
    for name, row in rows.items():
        print(f"{name:32}", "  ".join(f"{key} {value:9.3f}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "sampling", **about(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
