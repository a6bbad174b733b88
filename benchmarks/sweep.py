"""How time grows with tasks and with inner steps: straight lines through the medians, and pictures of them.

    python -m benchmarks --workload sinusoid --tasks 25 256 1024 --inner-steps 1 5 10 --json sweep.json
    python -m benchmarks sweep sweep.json [--svg FOLDER]

A line is fitted to the medians over one of the two while the other is held, weighted so that every point counts by its
own size: what is printed is a fixed cost, a cost of each task or step, and the largest relative distance of a point
from its line. Pictures need matplotlib, of the extra ``report``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

AXES = {"tasks": "inner_steps", "inner_steps": "tasks"}
"""What is varied, and what is held meanwhile."""


class Line(NamedTuple):
    """``fixed + each * x`` milliseconds."""

    fixed: float
    each: float
    largest_error: float
    """Of the line at a point, in multiples of the point."""


def fit(x: list[float], milliseconds: list[float]) -> Line:
    """The line with the smallest squared relative errors.

    Raises:
        ValueError: fewer than three points, through two of which any line goes.

    Example:
        >>> fit([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
        Line(fixed=3.0, each=2.0, largest_error=0.0)
    """
    if len(x) < 3:
        raise ValueError(f"Expected at least 3 points to fit a line to but got {len(x)}.")
    at, times = np.array(x), np.array(milliseconds)
    columns = np.stack([1 / times, at / times], 1)
    (fixed, each), *_ = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)
    errors = np.abs((fixed + each * at) / times - 1)
    return Line(*(round(float(value), 9) + 0.0 for value in (fixed, each, errors.max())))


def series(
    rows: list[dict[str, Any]], axis: str, what: str = "median_ms"
) -> dict[tuple[str, int], dict[str, list[tuple[float, float]]]]:
    """``{(workload, what is held): {contender: [(x, y), ...]}}``, in order, of the rows that have ``what``."""
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row[axis]):
        if row.get(what) is not None:
            found[row["workload"], row[AXES[axis]]][row["contender"]].append((row[axis], row[what]))
    return found


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Pictures of each workload: milliseconds a task against tasks; milliseconds, and megabytes, against steps."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for axis, held in AXES.items():
        for what, unit in (("median_ms", "ms a task" if axis == "tasks" else "ms"), ("peak_memory_mb", "MB")):
            if what == "peak_memory_mb" and axis == "tasks":
                continue
            for (workload, value), contenders in series(rows, axis, what).items():
                if max(len(points) for points in contenders.values()) < 3:
                    continue
                name = f"{workload}_{'memory' if unit == 'MB' else 'time'}_against_{axis}_{value}_{held}.svg"
                written.append(folder / name)
                title = f"{workload}, {value} {held.replace('_', ' ')}: one meta-gradient"
                _picture(contenders, axis, unit, title).savefig(written[-1])
    return written


def _picture(contenders: dict[str, list[tuple[float, float]]], axis: str, unit: str, title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in sorted(contenders.items(), key=lambda item: -item[1][-1][1]):
        x = [at for at, _ in points]
        axes.plot(x, [y / at if unit == "ms a task" else y for at, y in points], "o-", label=name)
    axes.set(xlabel=axis.replace("_", " "), ylabel=unit, yscale="log", title=title)
    axes.set_xscale("log" if axis == "tasks" else "linear")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", type=Path, metavar="FILE", help="what --json of `python -m benchmarks` wrote")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="where to put pictures")
    options = parser.parse_args(arguments)
    rows = json.loads(options.rows.read_text())
    lines = 0
    for axis, held in AXES.items():
        for (workload, value), contenders in series(rows, axis).items():
            for name, points in contenders.items():
                if len(points) >= 3:
                    lines += 1
                    line = fit(*map(list, zip(*points, strict=True)))
                    unit = axis.removesuffix("s").replace("_", " ")
                    print(
                        f"{workload}, {value} {held.replace('_', ' ')}, {name:20}{line.fixed:9.3f} ms + "
                        f"{line.each:9.4f} ms a {unit}, off by {line.largest_error:.0%} at most"
                    )
    if not lines:
        parser.error(f"Expected at least 3 numbers of tasks or of inner steps in {options.rows}")
    for path in draw(rows, options.svg) if options.svg else ():
        print(path)
    return 0
