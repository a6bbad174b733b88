"""Learning curves: what training and validation gave by meta-update, beside another run's."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

from lightning_maml.report.page import Picture, Section, place
from lightning_maml.report.run import Run, Series

POINTS = 600
"""Of a longer curve each point is the mean of as many logged ones as it takes."""


def curves(run: Run, baseline: Run | None) -> Iterator[Section]:
    """A section for each of loss and metric that training or validation logged; one for the speed."""
    for value in [run.value] if run.learns_policy else dict.fromkeys((run.value, "loss")):
        if picture := _picture(run, baseline, value):
            yield Section(
                f"Learning curve: {value}",
                f"Training tasks and validation tasks by {_unit(run)}; "
                "the distance between before and after adapting is what adapting brings.",
                place(f"curve-{value}", f"Line chart of the {value} by meta-update in training and validation"),
                {f"curve-{value}": picture},
            )


def speed(run: Run) -> Section | None:
    """Where the time of training went: tasks a second, and what their sum says."""
    steps, values = run.series.get("train/tasks_per_second", ([], []))
    tasks = run.section("data").get("init_args", {}).get("tasks_per_batch")
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value) and value > 0]
    if not kept:
        return None
    median = statistics.median(value for _, value in kept)
    says = f"Tasks a second at each line of the log, {median:,.0f} in the median."
    if isinstance(tasks, int):
        before = [0, *(step for step, _ in kept[:-1])]
        seconds = sum(tasks * (step - last) / value for (step, value), last in zip(kept, before, strict=True))
        says += f" Meta-updates took {_duration(seconds)} in all; validation, test and writing come on top of it."
    line = _line(*_thinned((steps, values)), "tasks a second", "--three")
    axes = {
        "xaxis": {"title": {"text": "meta-update"}},
        "yaxis": {"title": {"text": "tasks / s"}, "rangemode": "tozero"},
    }
    label = "Line chart of the tasks trained on in a second, by meta-update"
    return Section("Where the time went", says, place("speed", label, 260), {"speed": {"data": [line], "layout": axes}})


def _picture(run: Run, baseline: Run | None, value: str) -> Picture | None:
    lines = []
    for one, whose, dash in ((run, "", "solid"), (baseline, "baseline, ", "dot")):
        for name, color, words in (
            (f"train/{value}", "--soft", "training"),
            (f"train/{value}_before", "--five", "training before adapting"),
            (f"train/{value}_after", "--soft", "training after adapting"),
            (f"val/{value}_step_0", "--two", "validation before adapting"),
            (f"val/{value}", "--one", "validation after adapting"),
        ):
            series = one.series.get(name) if one is not None else None
            if series and not (one is baseline and name.startswith("train/")):
                lines.append(_line(*_thinned(series), whose + words, color, dash))
    if not lines:
        return None
    finite = [y for line in lines for y in line["y"] if math.isfinite(y) and y > 0]
    wide = value == "loss" and finite and max(finite) > 30 * min(finite)
    axis = {"title": {"text": value}} | ({"type": "log"} if wide else {})
    return {"data": lines, "layout": {"xaxis": {"title": {"text": _unit(run)}}, "yaxis": axis}}


def _unit(run: Run) -> str:
    return "meta-iteration" if run.learns_policy else "meta-update"


def _line(x: list[int], y: list[float], name: str, color: str, dash: str = "solid") -> dict[str, Any]:
    line = {"color": color, "width": 2, "dash": dash}
    mode = "lines" if len(x) > 12 else "lines+markers"
    return {
        "x": x,
        "y": y,
        "name": name,
        "mode": mode,
        "line": line,
        "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
    }


def _thinned(series: Series) -> Series:
    steps, values = series
    every = -(-len(steps) // POINTS)
    parts = [values[at : at + every] for at in range(0, len(values), every)]
    return steps[every - 1 :: every] + steps[len(steps) - len(steps) % every :][-1:], [
        sum(part) / len(part) for part in parts
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
