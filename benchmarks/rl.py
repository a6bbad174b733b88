"""2D navigation by its configurations: returns after each inner step, of MAML and of the pretrained control.

    python -m benchmarks.rl [--seeds 0 1 2] [--epochs N] [--only maml|pretrained] [--json FILE]

Every run is `lightning-maml fit` and then `test` of configs/rl_navigation.yaml, or of
configs/rl_navigation_pretrained.yaml, on 40 held-out goals x 40 trajectories. An epoch is 10 meta-iterations.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.about import about

CONFIGS = {
    "maml": Path(__file__).parents[1] / "configs/rl_navigation.yaml",
    "pretrained": Path(__file__).parents[1] / "configs/rl_navigation_pretrained.yaml",
}


def run(config: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """What the test of a training says, and how long it took."""
    common = ["--config", str(config), "--seed_everything", str(seed), "--data.seed", str(seed), *options]
    with tempfile.TemporaryDirectory() as folder:
        common += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", folder]
        start = time.perf_counter()
        _command(["fit", *common])
        seconds = time.perf_counter() - start
        _command(["test", *common, "--ckpt_path", "last"])
        logs = Path(folder) / "lightning_logs"
        with (logs / "version_0/metrics.csv").open() as file:
            iterations = [float(row["train/seconds"]) for row in csv.DictReader(file) if row.get("train/seconds")]
        test = json.loads((logs / "version_1/metrics.json").read_text())
    return {
        "seed": seed,
        "command": f"lightning-maml fit --config configs/{config.name} --seed_everything {seed} --data.seed {seed} "
        + " ".join(options),
        "meta_iterations": len(iterations),
        "seconds": seconds,
        "seconds_per_iteration": statistics.median(iterations),
        **{key: test[key] for key in ("algorithm", "rates", "tasks", "trajectories", "inner_steps", "return")},
    }


def _command(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lightning_maml.cli", *arguments]
    done = subprocess.run([*command, "--trainer.enable_progress_bar", "false"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="of 10 meta-iterations (default: 5)")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--json", type=Path)
    options, further = parser.parse_known_args()
    rows = []
    for seed in options.seeds:
        for name in options.only:
            rows.append(row := run(CONFIGS[name], seed, ["--trainer.max_epochs", str(options.epochs), *further]))
            cells = "".join(
                f"  {mean:6.1f} ± {half:4.1f}"
                for mean, half in zip(row["return"]["mean"], row["return"]["ci95"], strict=True)
            )
            print(f"{name:10} seed {seed}  {cells}   {row['seconds_per_iteration']:.2f} s an iteration", flush=True)
            if options.json:
                usable = sorted(os.sched_getaffinity(0))
                result = {"benchmark": "rl_navigation", **about(), "usable_cores": len(usable), "runs": rows}
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
