"""Prints the tables of docs/choosing.md, from the files of benchmarks/results/.

``python docs/measured.py`` prints them; ``--write`` puts them between their marks.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILE = ROOT / "docs" / "choosing.md"
PROBLEMS = {
    ("sinusoid", 25): "25 sinusoid tasks, a perceptron of 40 and 40 units",
    ("sinusoid", 256): "256 of them",
    ("siren", 16): "16 tasks of 1,024 rows, a SIREN of 4 x 256 units, 3 steps",
    ("omniglot_5w1s", 8): "8 Omniglot tasks, Conv4 of 64 filters",
    ("cifar_fs", 4): "4 CIFAR-FS tasks, Conv4 of 32 filters",
    ("mini_imagenet", 4): "4 mini-ImageNet tasks of 5 shots",
}
ENGINES = {
    "eager": "`eager`",
    "batched": "`batched`",
    "batched_compile": "`batched`, compiled",
    "fused_compile": "`fused`, compiled",
}
OTHERS = {"learn2learn": "learn2learn", "jax": "JAX"}


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def engines() -> str:
    """Milliseconds and, where it was measured, megabytes."""
    rows = []
    for (file, tasks), name in PROBLEMS.items():
        found = {row["contender"]: row for row in read(file)["rows"] if row["tasks"] == tasks}
        rows.append([name, *(_cell(found.get(contender)) for contender in ENGINES | OTHERS)])
    return table(["problem", *(ENGINES | OTHERS).values()], rows)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    milliseconds = f"{row['median_ms']:,.0f}" if row["median_ms"] >= 10 else f"{row['median_ms']:.1f}"
    memory = row.get("peak_memory_mb")
    return f"{milliseconds} ms" + ("" if memory is None else f", {memory:,.0f} MB" if memory >= 1 else ", < 1 MB")


def costs() -> str:
    """Time and memory in multiples of fomaml's."""
    found = {(row["preset"], row["workload"]): row for row in read("family/costs")["rows"]}
    presets = list(dict.fromkeys(preset for preset, _ in found))
    times = {
        preset: [
            "-" if (row := found.get((preset, workload))) is None else f"{row[what]:.2g}"
            for workload in ("mlp", "conv4")
            for what in ("median_times", "memory")
        ]
        for preset in presets
    }
    rows = [[f"`{preset}`", *times[preset]] for preset in sorted(presets)]
    return table(["algorithm", "perceptron: time", "memory", "Conv4: time", "memory"], rows)


def memory() -> str:
    """Megabytes of Conv4 with few and with many steps."""
    found = {row["contender"]: row["peak_mb"] for row in read("memory")["rows"]}
    kinds = {"unrolled": "`Batched()`", "checkpoint": '`Batched(checkpoint="step")`'}
    rows = [
        [name, *(f"{found[f'{kind}, {steps} steps']:,.0f} MB" for steps in (5, 50))] for kind, name in kinds.items()
    ]
    return table(["8 Omniglot tasks, Conv4", "5 steps", "50 steps"], rows)


TABLES = {"costs": costs, "engines": engines, "memory": memory}


def written() -> str:
    """The text of docs/choosing.md with its tables as the files have them."""
    text = FILE.read_text()
    for name, made in TABLES.items():
        begin, end = f"<!-- {name}: docs/measured.py --write -->\n", "\n<!-- end -->"
        text, found = re.subn(
            f"({re.escape(begin)}).*?({re.escape(end)})", rf"\g<1>\n{made()}\n\g<2>", text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(f"Expected one table between {begin.strip()!r} and an end in {FILE.name} but got {found}.")
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text(written())
    else:
        print(*(made() for made in TABLES.values()), sep="\n\n")
