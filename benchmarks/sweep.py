"""How time grows with tasks and with inner steps: straight lines through the medians, and pictures of them.

    python -m benchmarks --workload sinusoid --tasks 25 256 1024 --inner-steps 1 5 10 --json sweep.json
    python -m benchmarks sweep sweep.json [--svg FOLDER]

A line is fitted to the medians over one of the two while the other is held, weighted so that every point counts by its
own size: what is printed is a fixed cost, a cost of each task or step, and the largest relative distance of a point
from its line. Pictures need matplotlib, of the extra ``report``.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result_file import Row, command_line, read

AXES = {"tasks": "inner_steps", "inner_steps": "tasks"}
"""What is varied, and what is held meanwhile."""


def fit(x: list[float], milliseconds: list[float]) -> tuple[float, float, float]:
    """The line ``fixed + each * x`` with the smallest squared relative errors, and the largest of these errors.

    Raises:
        ValueError: fewer than three points, through two of which any line goes.

    Example:
        >>> fit([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
        (3.0, 2.0, 0.0)
    """
    if len(x) < 3:
        raise ValueError(f"Expected at least 3 points to fit a line to but got {len(x)}.")
    at, times = np.array(x), np.array(milliseconds)
    columns = np.stack([1 / times, at / times], 1)
    (fixed, each), *_ = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)
    errors = np.abs((fixed + each * at) / times - 1)
    return round(float(fixed), 9) + 0.0, round(float(each), 9) + 0.0, round(float(errors.max()), 9)


def series(
    rows: list[Row], axis: str, what: str = "median_ms"
) -> dict[tuple[str, int], dict[str, list[tuple[float, float]]]]:
    """``{(workload, what is held): {contender: [(x, y), ...]}}``, in order, of the rows that have ``what``."""
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row[axis]):
        if row.get(what) is not None:
            found[row["workload"], row[AXES[axis]]][row["contender"]].append((row[axis], row[what]))
    return found


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Pictures of each workload: milliseconds a task against tasks; milliseconds, and megabytes, against steps."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    pictures = (
        *(("tasks", "median_ms", "time", "ms a task"), ("inner_steps", "median_ms", "time", "ms")),
        ("inner_steps", "peak_memory_mb", "memory", "MB"),
    )
    for axis, column, what, unit in pictures:
        for (workload, value), contenders in series(rows, axis, column).items():
            if max(len(points) for points in contenders.values()) < 3:
                continue
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            axes, held = figure.subplots(), AXES[axis]
            for name, points in sorted(contenders.items(), key=lambda item: -item[1][-1][1]):
                x = [at for at, _ in points]
                axes.plot(x, [y / at if axis == "tasks" else y for at, y in points], "o-", label=name)
            title = f"{workload}, {value} {held.replace('_', ' ')}: one meta-gradient"
            axes.set(xlabel=axis.replace("_", " "), ylabel=unit, yscale="log", title=title)
            axes.set_xscale("log" if axis == "tasks" else "linear")
            axes.grid(alpha=0.3)
            figure.legend(loc="outside right upper", frameon=False)
            written.append(folder / f"{workload}_{what}_against_{axis}_{value}_{held}.svg")
            figure.savefig(written[-1])
    return written


def main(arguments: list[str]) -> int:
    parser = command_line(__doc__, "python -m benchmarks sweep", writes=False)
    parser.add_argument("file", type=Path, metavar="FILE", help="what --json of `python -m benchmarks` wrote")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="where to put pictures")
    options = parser.parse_args(arguments)
    rows, lines = read(options.file)["rows"], []
    for axis, held in AXES.items():
        unit = axis.removesuffix("s").replace("_", " ")
        for (workload, value), contenders in series(rows, axis).items():
            for name, points in contenders.items():
                if len(points) >= 3:
                    fixed, each, error = fit(*map(list, zip(*points, strict=True)))
                    lines.append(
                        f"{workload}, {value} {held.replace('_', ' ')}, {name:20}{fixed:9.3f} ms + "
                        f"{each:9.4f} ms a {unit}, off by {error:.0%} at most"
                    )
    if not lines:
        parser.error(f"Expected at least 3 numbers of tasks or of inner steps in {options.file}")
    print(*lines, sep="\n")
    for path in draw(rows, options.svg) if options.svg else ():
        print(path)
    return 0
