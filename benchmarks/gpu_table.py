"""What a GPU took, beside what the model says of the same kernels: the table of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu_table OUT

Reads the files that gpu.sh has left in the folder OUT, writes table.md there and prints it. The model's cycles are
those of ``lightning_maml.kernels.mlp_adapt.compared`` for the kernel in CUDA, and of ``lightning_maml.kernels.inspect``
for Triton's with its rounded products, for a chip full of tasks: an estimate, never a measurement.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.result_file import command_line
from lightning_maml.kernels.chips import CHIPS, Nvidia
from lightning_maml.kernels.mlp_adapt.compared import microseconds


def of_cuda_ms(contents: dict[str, Any], tasks: int) -> float | None:
    """Milliseconds of the one launch on so many tasks, by the model's clock."""
    for row in contents.get("modelled", {"rows": []})["rows"]:
        if row["workload"] == "sinusoid" and row["kernel"] == "CUDA":
            chip = CHIPS[row["architecture"]]
            assert isinstance(chip, Nvidia)
            return microseconds(chip, row["cycles"], row["issue_slots"], row["resident"], tasks) / 1e3
    return None


def of_triton_ms(contents: dict[str, Any], tasks: int, precision: str = "tf32") -> float | None:
    """Milliseconds of the forward and the backward launch on so many tasks, by the model's clock."""
    variants = contents.get("inspect", {"variants": []})["variants"]
    wanted, total = {"PRECISION": precision, "ACTIVATION": "relu", "LOSS": "mse", "BN": 64}, 0.0
    for kernel in ("mlp_forward", "mlp_backward"):
        of_kernel = (row for row in variants if row["kernel"] == kernel and row.get("cycles"))
        row = next((row for row in of_kernel if wanted.items() <= row["constants"].items()), None)
        if row is None:
            return None
        chip = CHIPS[row["architecture"]]
        waves = math.ceil(tasks / (chip.multiprocessors * row["resident_programs"]))
        total += 1e3 * waves * row["cycles"] / chip.hertz
    return total


MODELS: dict[str, Callable[[dict[str, Any], int], float | None]] = {"fused": of_cuda_ms, "fused_tf32": of_triton_ms}
"""Of ``mlp_adapt``, by contender."""


def table(folder: Path) -> str:
    """The Markdown of all that is there."""
    contents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    measured = {name: found for name, found in contents.items() if found.get("benchmark") == "meta_gradient"}
    rehearsed = any(row["device"] == "standin" for found in measured.values() for row in found["rows"])
    what = "A rehearsal on the stand-in device: no number is a measurement" if rehearsed else "Measured beside modelled"
    lines = [f"# {what}", ""]
    for name, found in measured.items():
        machine, torch = found.get("gpu", found["machine"]), found["versions"]["torch"]
        lines += [f"## {name}, one meta-gradient: {machine}, torch {torch}, {found['date']}", ""]
        lines += ["| tasks | contender | median ms | p10 | p90 | error | x the slowest | modelled ms |"]
        lines += ["|--:|---|--:|--:|--:|--:|--:|--:|"]
        for row in sorted(found["rows"], key=lambda row: (row["tasks"], row["median_ms"])):
            slowest = max(other["median_ms"] for other in found["rows"] if other["tasks"] == row["tasks"])
            numbers = [row[name] for name in ("median_ms", "p10_ms", "p90_ms", "meta_gradient_rel_error")]
            model = MODELS.get(row["contender"]) if row["workload"] == "sinusoid" else None
            numbers += [slowest / row["median_ms"], model and model(contents, row["tasks"])]
            cells = " | ".join("" if number is None else f"{number:.3g}" for number in numbers)
            lines.append(f"| {row['tasks']:,} | {row['contender']} | {cells} |")
        for row in found.get("left_out", []):
            reason = row["reason"].splitlines()[0][:80]
            lines.append(f"| {row['tasks']:,} | {row['contender']} | left out: {reason} | | | | | |")
        lines.append("")
    if (fitted := contents.get("sinusoid_fit")) is not None:
        lines += ["## sinusoid, an update of Trainer.fit", "", "| contender | median ms | fastest | slowest |"]
        lines += ["|---|--:|--:|--:|"]
        for row in fitted["rows"]:
            cells = " | ".join(f"{row[f'{name}_ms']:.3g}" for name in ("median", "fastest", "slowest"))
            lines.append(f"| {row['contender']} | {cells} |")
        lines += [f"| {row['contender']} | left out: {row['reason']} | | |" for row in fitted.get("left_out", [])]
        lines.append("")
    for name, what in (("sinusoid", "loss"), ("omniglot_5w1s", "accuracy")):
        if (tested := contents.get(f"trained_{name}")) is not None:
            means = zip(tested["inner_steps"], tested[what]["mean"], strict=True)
            lines += [f"## {name}, trained: {what} after inner steps, {tested['tasks']} test tasks", ""]
            lines += [", ".join(f"{step}: {mean:.4g}" for step, mean in means), ""]
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, writes=False)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = table(folder)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
