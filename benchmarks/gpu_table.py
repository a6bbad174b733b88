"""What a GPU took, beside what the model says of the same kernels: the table of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu_table OUT

Reads the files that gpu.sh has left in the folder OUT, writes table.md there and prints it. The model's cycles are
those of ``python -m lightning_maml.kernels.inspect``, for a chip full of tasks: an estimate, never a measurement.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from lightning_maml.kernels.chips import CHIPS


def modelled_ms(rows: list[dict[str, Any]], tasks: int, precision: str) -> float | None:
    """Milliseconds of the forward and the backward launch of ``mlp_adapt`` on so many tasks, by the model's clock."""
    total = 0.0
    for kernel in ("mlp_forward", "mlp_backward"):
        wanted = {"PRECISION": precision, "ACTIVATION": "relu", "LOSS": "mse", "BN": 64}
        found = [
            row
            for row in rows
            if row["kernel"] == kernel and row.get("cycles") and wanted.items() <= row["constants"].items()
        ]
        if not found:
            return None
        row = found[0]
        chip = CHIPS[row["architecture"]]
        waves = math.ceil(tasks / (chip.multiprocessors * row["resident_programs"]))
        total += 1e3 * waves * row["cycles"] / chip.hertz
    return total


def table(folder: Path) -> str:
    """The Markdown of all that is there."""
    contents = [_read(folder / f"{name}.json") for name in ("fused", "fused_compilers")]
    rehearsed = any(content is not None and content["device"] == "standin" for content in contents)
    what = "A rehearsal on the stand-in device: no number is a measurement" if rehearsed else "Measured beside modelled"
    lines = [f"# {what}", ""]
    inspected = _read(folder / "inspect.json")
    rows = inspected["variants"] if inspected else []
    for content in filter(None, contents):
        lines += [f"## {content['benchmark']}: {content['device']}, torch {content['torch']}, {content['date']}", ""]
        lines += [
            "| tasks | contender | median ms | p10 | p90 | error | modelled ms |",
            "|--:|---|--:|--:|--:|--:|--:|",
        ]
        for result in content["results"]:
            for contender, row in sorted(result["rows"].items(), key=lambda item: item[1]["median_ms"]):
                precision = contender.removeprefix("fused, ") if contender.startswith("fused, ") else ""
                model = modelled_ms(rows, result["tasks"], precision)
                numbers = " | ".join(f"{row[key]:.3g}" for key in ("median_ms", "p10_ms", "p90_ms", "error"))
                shown = "" if model is None else f"{model:.3g}"
                lines.append(f"| {result['tasks']:,} | {contender} | {numbers} | {shown} |")
            for contender, reason in result["left_out"].items():
                lines.append(f"| {result['tasks']:,} | {contender} | left out: {reason.splitlines()[0][:80]} | | | | |")
        lines.append("")
    for name in ("sinusoid", "omniglot_5w1s"):
        content = _read(folder / f"{name}.json")
        if isinstance(content, list) and content:
            lines += [
                f"## {name}, one meta-gradient",
                "",
                "| tasks | contender | median ms | x the slowest |",
                "|--:|---|--:|--:|",
            ]
            for count in sorted({row["tasks"] for row in content}):
                some = [row for row in content if row["tasks"] == count]
                slowest = max(row["median_ms"] for row in some)
                lines += [
                    f"| {count:,} | {row['contender']} | {row['median_ms']:.3g} | {slowest / row['median_ms']:.1f} |"
                    for row in sorted(some, key=lambda row: row["median_ms"])
                ]
            lines.append("")
    for name, what in (("sinusoid", "loss"), ("omniglot_5w1s", "accuracy")):
        tested = _read(folder / f"trained_{name}.json")
        if tested is not None:
            means = ", ".join(
                f"{step}: {mean:.4g}" for step, mean in zip(tested["inner_steps"], tested[what]["mean"], strict=True)
            )
            lines += [f"## {name}, trained: {what} after inner steps, {tested['tasks']} test tasks", "", means, ""]
    return "\n".join(lines)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = table(folder)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
