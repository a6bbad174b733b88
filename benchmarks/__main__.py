"""One exact meta-gradient by every contender, in one run.

    python -m benchmarks --workload sinusoid --tasks 25 256 --inner-steps 5 [--contenders a,b,c] [--json FILE]
    python -m benchmarks compare OLD NEW
    python -m benchmarks sweep FILE [--svg FOLDER]
    python -m benchmarks training --root FOLDER

First each contender's meta-gradient is checked against float64: one that is wrong gets no time, and the exit code is 1.
Contenders then run in turn, round by round. Those that are not installed or cannot run are named, with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import contenders, workloads
from benchmarks.about import about
from benchmarks.history import append
from benchmarks.history import main as compare
from benchmarks.machine import known_device
from benchmarks.measure import Row, measure, steady
from benchmarks.sweep import main as sweep


def main() -> int:
    if sys.argv[1:2] == ["training"]:
        from benchmarks.training import main as training  # Lightning takes seconds to import

        return training(sys.argv[2:])
    for name, command in (("compare", compare), ("sweep", sweep)):
        if sys.argv[1:2] == [name]:
            return command(sys.argv[2:])
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workload", choices=workloads.NAMES, default="sinusoid")
    parser.add_argument("--tasks", type=int, nargs="+", default=[25])
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[5])
    parser.add_argument("--contenders", default=",".join(contenders.NAMES), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", type=known_device, default="cpu")
    parser.add_argument("--json", type=Path, help="written anew")
    parser.add_argument("--csv", type=Path, help="added to")
    options = parser.parse_args()
    names = options.contenders.split(",")
    if unknown := sorted(set(names) - set(contenders.NAMES)):
        parser.error(f"Expected `--contenders` to be among {', '.join(contenders.NAMES)} but got {', '.join(unknown)}")
    for option in ("tasks", "inner_steps"):
        if min(getattr(options, option)) < 1:
            parser.error(f"Expected `--{option.replace('_', '-')}` to be at least 1 but got {getattr(options, option)}")
    if options.rounds < 2:
        parser.error(f"Expected `--rounds` to be at least 2 but got {options.rounds}")
    written: list[dict[str, Any]] = []
    failed = False
    for tasks in options.tasks:
        for steps in options.inner_steps:
            build = import_module(f"benchmarks.workloads.{options.workload}").build
            problem = steady(build, tasks, steps).to(options.device)
            rows, missing, wrong = measure(problem, names, options.rounds)
            failed |= bool(wrong) or not rows
            show(f"{options.workload}, {tasks} tasks, {steps} inner steps", rows, missing, wrong)
            point = {"workload": options.workload, "device": options.device, "tasks": tasks, "inner_steps": steps}
            fresh = [{**point, "contender": name, **row, **about()} for name, row in rows.items()]
            written += fresh
            if options.csv:
                append(fresh, options.csv)
            if options.json:  # after each point: what is measured stays, whatever happens next
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(written, indent=2) + "\n")
    return int(failed)


def show(title: str, rows: dict[str, Row], missing: dict[str, str], wrong: dict[str, str]) -> None:
    """The table."""
    print(f"\n{title}")
    print(
        f"{'contender':20}{'median ms':>10}{'p10':>9}{'p90':>9}{'x l2l':>8}{'first s':>9}{'error':>9}{'of peak':>9}"
        f"{'MB':>8}"
    )
    base = rows.get("learn2learn", {}).get("median_ms")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        ratio = f"{base / row['median_ms']:8.1f}" if base else f"{'-':>8}"
        print(
            f"{name:20}{row['median_ms']:10.2f}{row['p10_ms']:9.2f}{row['p90_ms']:9.2f}{ratio}"
            f"{row['first_call_s']:9.2f}{row['meta_gradient_rel_error']:9.0e}{row['peak_share']:9.1%}"
            + ("       -" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:8.1f}")
        )
    ours = min((row["median_ms"] for name, row in rows.items() if name in contenders.OURS), default=None)
    theirs = min((row["median_ms"] for name, row in rows.items() if name not in contenders.OURS), default=None)
    if ours and theirs:
        print(f"our best beside the best other: {theirs / ours:.2f} times as fast")
    if rows:
        machine = next(iter(rows.values()))
        print(
            f"this machine: sgemm {machine['sgemm_gflops']:.0f} GFLOP/s, copy {machine['copy_gb_per_second']:.0f} GB/s"
        )
    for kind, reasons in (("missing", missing), ("WRONG", wrong)):
        for name, reason in reasons.items():
            print(f"{kind}: {name}: {reason}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
