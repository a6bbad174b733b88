"""Prints the tables and numbers of docs/choosing.md, from the files of benchmarks/results/ and configs/.

``python docs/measured.py`` prints them; ``--write`` puts them between their marks.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import marked
import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "choosing.md"
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
CONFIGURATIONS = {
    "sinusoid": "sines",
    "omniglot_5w1s": "Omniglot, 5 ways",
    "omniglot_20w1s": "Omniglot, 20 ways",
    "cifar_fs_5w1s": "CIFAR-FS, 5 ways",
}


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def paragraph(text: str) -> str:
    return textwrap.fill(text, 128, break_long_words=False, break_on_hyphens=False)


def engines() -> str:
    """Milliseconds and, where it was measured, megabytes; and the day, as machines differ from day to day."""
    rows = []
    for (file, tasks), name in PROBLEMS.items():
        whole = read(file)
        found = {row["contender"]: row for row in whole["rows"] if row["tasks"] == tasks}
        rows.append([name, *(_cell(found.get(contender)) for contender in ENGINES | OTHERS), whole["date"]])
    return table(["problem", *(ENGINES | OTHERS).values(), "day"], rows)


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


def imaml() -> str:
    """What ``imaml`` costs, beside the lines that recommend it."""
    costs = read("family/costs")
    found = {row["workload"]: row for row in costs["rows"] if row["preset"] == "imaml"}
    time, memory = (
        [f"{found[workload][what]:.2g}" for workload in ("mlp", "conv4")] for what in ("median_times", "memory")
    )
    return paragraph(
        "`imaml` has its price: it solves a system by conjugate gradients, each iteration of which takes a second "
        f"derivative. With {costs['inner_steps']} inner steps a meta-gradient of the perceptron below takes {time[0]} "
        f"times as long as by `fomaml`, in {memory[0]} times the memory; of the convolutional network {time[1]} times, "
        f"in {memory[1]} times. Steps add to its time and not to its memory, so that it is for long inner loops."
    )


def growth() -> str:
    """How much longer more tasks take."""
    few, many = (tasks for file, tasks in PROBLEMS if file == "sinusoid")
    found = {(row["contender"], row["tasks"]): row["median_ms"] for row in read("sinusoid")["rows"]}
    times = ", ".join(
        f"{found[contender, many] / found[contender, few]:.1f} times as long ({name})"
        for contender, name in ENGINES.items()
        if (contender, few) in found
    )
    return paragraph(f"On sines {many} tasks, {many / few:.0f} times as many as {few}, take {times}.")


def configurations() -> str:
    """Steps, rates and meta-batches of our configurations of MAML."""
    rows = []
    for file, name in CONFIGURATIONS.items():
        whole = yaml.safe_load((ROOT / "configs" / f"{file}.yaml").read_text())
        inner = whole["model"]["algorithm"]["init_args"]
        tasks = whole["data"]["init_args"]["tasks_per_batch"]
        rows.append([f"`{file}`", name, *map(str, (inner["steps"], whole["model"]["test_steps"], inner["lr"], tasks))])
    head = ["configuration", "problem", "inner steps", "at test", "inner rate", "tasks in a meta-batch"]
    return table(head, rows)


def memory() -> str:
    """Megabytes of Conv4 with few and with many steps."""
    found = {row["contender"]: row["peak_mb"] for row in read("memory")["rows"]}
    kinds = {"unrolled": "`Batched()`", "checkpoint": '`Batched(checkpoint="step")`'}
    rows = [
        [name, *(f"{found[f'{kind}, {steps} steps']:,.0f} MB" for steps in (5, 50))] for kind, name in kinds.items()
    ]
    return table(["8 Omniglot tasks, Conv4", "5 steps", "50 steps"], rows)


PARTS = {
    "imaml": imaml,
    "costs": costs,
    "engines": engines,
    "memory": memory,
    "configurations": configurations,
    "growth": growth,
}

if __name__ == "__main__":
    marked.main(PAGE, "measured.py", PARTS)
