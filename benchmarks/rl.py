"""Reinforcement learning by its configurations: returns after each inner step, of MAML and of the pretrained control.

    python -m benchmarks.rl [NAME] [--seeds 0 1 2] [--epochs N] [--only maml|pretrained] [--json FILE] [OPTION ...]

Every run is `lightning-maml fit` and then `test` of configs/NAME.yaml on held-out tasks, with further options as given.
NAME is rl_navigation, rl_navigation_two_steps or rl_half_cheetah; an epoch is 10 meta-iterations.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.result_file import ResultFile, command_line

REPOSITORY = Path(__file__).parents[1]
NAMES = ["rl_navigation", "rl_navigation_two_steps", "rl_half_cheetah"]
ALGORITHMS: dict[str, list[str]] = {
    "maml": [],
    "pretrained": ["--model.algorithm", "lightning_maml.pretrained"],
}


def run(name: str, seed: int, options: list[str]) -> dict[str, Any]:
    """What the test of a training says, and how long it took."""
    options = ["--config", f"configs/{name}.yaml", "--seed_everything", str(seed), "--data.seed", str(seed), *options]
    with tempfile.TemporaryDirectory() as folder:
        logged = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", folder]
        start = time.perf_counter()
        _command(["fit", *options, *logged])
        seconds = time.perf_counter() - start
        _command(["test", *options, *logged, "--ckpt_path", "last"])
        logs = Path(folder) / "lightning_logs"
        with (logs / "version_0/metrics.csv").open() as file:
            iterations = [float(row["train/seconds"]) for row in csv.DictReader(file) if row.get("train/seconds")]
        test = json.loads((logs / "version_1/metrics.json").read_text())
    return {
        "seed": seed,
        "command": " ".join(["lightning-maml fit", *options]),
        "meta_iterations": len(iterations),
        "seconds": seconds,
        "seconds_per_iteration": statistics.median(iterations),
        **{key: test[key] for key in ("algorithm", "rates", "tasks", "trajectories", "inner_steps", "return")},
    }


def _command(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lightning_maml.cli", *arguments, "--trainer.enable_progress_bar", "false"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("name", nargs="?", default=NAMES[0], choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of 10 meta-iterations (default: the configuration's)")
    parser.add_argument("--only", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    options, further = parser.parse_known_args()
    if options.epochs is not None:
        further += ["--trainer.max_epochs", str(options.epochs)]
    results = ResultFile(
        *(options.json, options.name),
        shown=("algorithm", "seed", "return", "seconds_per_iteration"),
        usable_cores=len(os.sched_getaffinity(0)),
    )
    for seed, algorithm in product(options.seeds, options.only):
        results.add(**run(options.name, seed, [*ALGORITHMS[algorithm], *further]))


if __name__ == "__main__":
    main()
