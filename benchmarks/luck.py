"""What the demo's numbers owe to luck: its two contenders from twenty seeds, with five numbers of updates.

python -m benchmarks.luck [--seeds 20] [--json FILE]

What FILE has already is not run again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from contextlib import redirect_stderr
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.about import about
from lightning_maml.cli import demo
from lightning_maml.training.results import write_json

UPDATES = (5_000, 7_500, 10_000, 20_000, 40_000)


def run(seed: int, updates: int) -> dict[str, Any]:
    """Mean, median and diverged tasks of each contender, after each of the demo's numbers of inner steps."""
    row: dict[str, Any] = {"seed": seed, "updates": updates}
    for name in demo.ALGORITHMS:
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # the progress bar
            found = demo.run(name, updates, seed)
        row[name] = {
            "mean": [_finite(found[f"test/loss_step_{step}"]) for step in demo.SHOWN_STEPS],
            "median": [_finite(found[f"test/loss_step_{step}_median"]) for step in demo.SHOWN_STEPS],
            "diverged": [int(found[f"test/diverged_step_{step}"]) for step in demo.SHOWN_STEPS],
        }
    return row


def markdown(results: dict[str, Any]) -> str:
    """The table of a file of results, for docs/results.md: over the seeds, the lowest, the middle and the highest."""
    at = results["inner_steps"].index(5)
    lines = ["| updates | seeds | MAML | pretrained | MAML / pretrained |", "|--:|--:|--:|--:|--:|"]
    for updates in UPDATES:
        rows = [row for row in results["rows"] if row["updates"] == updates]
        means = [[row[name]["mean"][at] for row in rows] for name in demo.ALGORITHMS]
        if not rows or not all(value is not None for values in means for value in values):
            raise ValueError(f"Expected finite means of {updates} updates but got {means}.")
        spreads = [f"{min(values):.2f}, {median(values):.2f}, {max(values):.2f}" for values in means]
        ratios = [one / other for one, other in zip(*means, strict=True)]
        spreads.append(f"{min(ratios):.2f}, {median(ratios):.2f}, {max(ratios):.2f}")
        lines.append(f"| {updates:,} | {len(rows)} | {' | '.join(spreads)} |")
    return "\n".join(lines) + "\n"


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/luck.json"))
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    rows: list[dict[str, Any]] = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    known = {(row["seed"], row["updates"]) for row in rows}
    for seed in range(options.seeds):
        for updates in UPDATES:
            if (seed, updates) in known:
                continue
            rows.append(run(seed, updates))
            steps = list(demo.SHOWN_STEPS)
            write_json(options.json, {"benchmark": "luck", **about(), "inner_steps": steps, "rows": rows})
            shown = ", ".join(f"{name} {rows[-1][name]['mean']}" for name in demo.ALGORITHMS)
            print(f"seed {seed}, {updates:,} updates: {shown}", flush=True)


if __name__ == "__main__":
    main()
