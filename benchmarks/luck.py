"""What the demo's numbers owe to luck: its two contenders from twenty seeds, with five numbers of updates.

python -m benchmarks.luck [--seeds 20] [--json FILE]

What FILE has already is not run again, so that a run that was stopped goes on.
"""

import math
import os
from contextlib import redirect_stderr
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import ResultFile, command_line
from lightning_maml.cli import demo

UPDATES = (5_000, 7_500, 10_000, 20_000, 40_000)


def run(seed: int, updates: int) -> dict[str, Any]:
    """Mean, median and diverged tasks of each contender, after each of the demo's numbers of inner steps."""
    row: dict[str, Any] = {"seed": seed, "updates": updates}
    for name in demo.ALGORITHMS:
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # the progress bar
            found = demo.train(name, updates, seed)[1]
        after = [f"step_{step}" for step in demo.SHOWN_STEPS]
        row[name] = {
            "mean": [_finite(found[f"test/loss_{step}"]) for step in after],
            "median": [_finite(found[f"test/loss_{step}_median"]) for step in after],
            "diverged": [int(found[f"test/diverged_{step}"]) for step in after],
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
        columns = [*means, [one / other for one, other in zip(*means, strict=True)]]
        spreads = [f"{min(values):.2f}, {median(values):.2f}, {max(values):.2f}" for values in columns]
        lines.append(f"| {updates:,} | {len(rows)} | {' | '.join(spreads)} |")
    return "\n".join(lines) + "\n"


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def main() -> None:
    parser = command_line(__doc__, seeds=20)
    parser.set_defaults(json=Path("benchmarks/results/luck.json"))
    options = parser.parse_args()
    results = ResultFile(options.json, "luck", key=("seed", "updates"), inner_steps=list(demo.SHOWN_STEPS))
    known = {(row["seed"], row["updates"]) for row in results.rows}
    with demo.quiet("lightning.pytorch"):
        for seed, updates in product(range(options.seeds), UPDATES):
            if (seed, updates) not in known:
                results.add(**run(seed, updates))


if __name__ == "__main__":
    main()
