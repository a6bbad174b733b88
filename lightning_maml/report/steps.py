"""Loss or metric against inner step: the test's mean with its interval, the baseline's, and each task's own curve."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_maml.report.page import Section, place, table
from lightning_maml.report.run import Run
from lightning_maml.report.tasks import Tried

RAN_AWAY = {"color": "--two", "dash": "dash"}


def steps(run: Run, baseline: Run | None, tried: Tried | None) -> Section | None:
    """What each inner step does to test tasks; None where neither a test nor tasks tell."""
    value, results = run.value, run.results or {}
    lines = _own_curves(tried) if tried is not None and tried.value == value else []
    wrote = value in results
    if wrote:
        lines += _mean(results, value, "mean of the test", "--one", "--band")
    if baseline is not None and value in (baseline.results or {}):
        lines += _mean(baseline.results or {}, value, "baseline", "--two", None)
    if not lines:
        return None
    says = []
    if wrote:
        says.append(f"The mean over {results['tasks']:,} test tasks with its 95 % interval.")
    if tried is not None and lines[0].get("name") == "each task":
        says.append(f"Each thin line is one of {len(tried.tasks)} test tasks, adapted anew for this page: point at it.")
        says.append(_diverged(tried))
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "inner step"}, "dtick": 1 if _last(lines) <= 12 else None}}
    layout["yaxis"] = {"title": {"text": value}} | _range(lines, value)
    picture = place("steps", f"Line chart of the {value} of test tasks by inner step", 420)
    body = picture + (_numbers(results, value) if wrote else "")
    return Section(
        f"What adapting does: {value} by inner step", " ".join(says), body, {"steps": {"data": lines, "layout": layout}}
    )


def _mean(results: Mapping[str, Any], value: str, name: str, color: str, band: str | None) -> list[dict[str, Any]]:
    x, found = results["inner_steps"], results[value]
    mean, ci95 = found["mean"], found["ci95"]
    line = {"x": x, "y": mean, "name": name, "mode": "lines+markers", "line": {"color": color, "width": 3}}
    shown = [number or 0.0 for number in ci95]
    line |= {"customdata": shown, "hovertemplate": "%{y:.4g} ± %{customdata:.2g}<extra>%{fullData.name}</extra>"}
    if band is None:
        return [{**line, "error_y": {"array": shown, "color": color, "thickness": 1.5}}]
    pairs = [(step, *pair) for step, *pair in zip(x, mean, ci95, strict=True) if None not in pair]
    outline = [(step, one + half) for step, one, half in pairs] + [
        (step, one - half) for step, one, half in pairs[::-1]
    ]
    around = {"x": [step for step, _ in outline], "y": [y for _, y in outline], "fill": "toself", "fillcolor": band}
    return [{**around, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "name": "95 % interval"}, line]


def _own_curves(tried: Tried) -> list[dict[str, Any]]:
    diverged = tried.evaluation.diverged[:, -1].tolist()
    return [
        {
            "x": [*range(len(curve))],
            "y": curve,
            "mode": "lines",
            "line": {
                "color": "--two" if diverged[task] else "--faint",
                "width": 1.5,
                "dash": "dash" if diverged[task] else "solid",
            },
            "name": "each task",
            "legendgroup": "tasks",
            "showlegend": task == 0,
            "hovertemplate": f"task {task}{', diverged' if diverged[task] else ''}: %{{y:.4g}}<extra></extra>",
        }
        for task, curve in enumerate(tried.values.tolist())
    ]


def _diverged(tried: Tried) -> str:
    tasks = tried.evaluation.diverged[:, -1].nonzero().flatten().tolist()
    if not tasks:
        return "None of these diverged: no task's support loss is higher after the last step than before the first."
    which = f"Task {tasks[0]}" if len(tasks) == 1 else f"Tasks {', '.join(map(str, tasks))}"
    return f"{which} diverged (dashed): the support loss is higher than before the first step, or not finite."


def _last(lines: list[dict[str, Any]]) -> int:
    return max(max(line["x"]) for line in lines)


def _range(lines: list[dict[str, Any]], value: str) -> dict[str, Any]:
    """A loss stands on a logarithmic axis where one task's would hide all others."""
    numbers = [y for line in lines for y in line["y"] if y is not None and math.isfinite(y) and y > 0]
    means = [y for line in lines if line.get("name") != "each task" for y in line["y"] if y is not None and y > 0]
    if value == "loss" and numbers and max(numbers) > 30 * max(means or numbers[:1]):
        return {"type": "log"}
    return {"rangemode": "tozero"} if value == "loss" else {}


def _numbers(results: Mapping[str, Any], value: str) -> str:
    found, diverged = results[value], results.get("diverged")
    head = ["inner step", "mean", "± 95 %", "median", *(["diverged"] if diverged else [])]
    rows = []
    for at, step in enumerate(results["inner_steps"]):
        numbers = [_number(found[name][at]) for name in ("mean", "ci95", "median")]
        rows.append([str(step), *numbers, *([str(diverged[at])] if diverged else [])])
    return table(head, rows, "The same in numbers")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
