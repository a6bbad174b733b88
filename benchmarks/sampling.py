"""32 tasks of Omniglot, 5-way 1-shot with 15 queries a class: one gather, beside learn2learn's Taskset.

    python -m benchmarks.sampling [--omniglot FOLDER] [--rounds N] [--json FILE]

Both in turn, round by round.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.measure import in_turn, spread
from benchmarks.result_file import ResultFile, command_line
from lightning_maml.data import EpisodeSampler, import_learn2learn, load_omniglot


def contenders(folder: str) -> dict[str, Callable[[], Any]]:
    """What samples, learn2learn first."""
    l2l = import_learn2learn()
    images = load_omniglot(folder)[:1100].flatten(0, 1)
    labels = torch.arange(1100).repeat_interleave(20)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images.float() / 255, labels))
    of = l2l.data.transforms
    transforms = [of.NWays(dataset, 5), of.KShots(dataset, 16), of.LoadData(dataset), of.RemapLabels(dataset)]
    taskset = l2l.data.Taskset(dataset, transforms)
    sampler = EpisodeSampler(images, labels, ways=5, shots=1, queries=15)
    generator = torch.Generator().manual_seed(0)
    return {
        "learn2learn, Taskset.sample()": lambda: [taskset.sample() for _ in range(32)],
        "EpisodeSampler": lambda: sampler.sample(32, generator),
    }


def main() -> None:
    parser = command_line(__doc__, rounds=11)
    parser.add_argument("--omniglot", default="data/omniglot")
    options = parser.parse_args()
    samples = in_turn(contenders(options.omniglot), options.rounds)
    base, results = median(next(iter(samples.values()))), ResultFile(options.json, "sampling")
    for name, values in samples.items():
        results.add(contender=name, **spread(values), times_faster=base / median(values))


if __name__ == "__main__":
    main()
