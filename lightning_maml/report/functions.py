"""Regression in one input: the function of a task's network before and after each inner step."""

import torch

from lightning_maml.report.page import Picture, Section, place, slider
from lightning_maml.report.tasks import Tried
from lightning_maml.tasks import TaskBatch

POINTS = 121


def functions(tried: Tried) -> Section | None:
    """The functions of four tasks, as a slider goes through the inner steps; None where inputs are not one number."""
    tasks, predictions = tried.tasks, tried.evaluation.predictions
    sets = tasks.support_inputs, tasks.support_targets, tasks.query_targets
    if (
        any(value.ndim != 3 or value.shape[2] != 1 or not value.is_floating_point() for value in sets)
        or predictions.ndim != 4
    ):
        return None
    chosen = _chosen(tried)
    own = [
        value[list(chosen.values())]
        for value in (tasks.support_inputs, tasks.support_targets, tasks.query_inputs, tasks.query_targets)
    ]
    inputs = torch.cat([own[0], own[2]], 1)
    grid = torch.linspace(inputs.min().item(), inputs.max().item(), POINTS, dtype=inputs.dtype)
    rows = grid.expand(len(own[0]), -1)[..., None]
    curves = tried.again(TaskBatch(own[0], own[1], rows, torch.zeros_like(rows))).predictions[..., 0].tolist()
    pictures, cells = {}, []
    for at, (words, task) in enumerate(chosen.items()):
        points = [value[at, :, 0].tolist() for value in own]
        pictures[f"function-{at}"] = _picture(grid.tolist(), curves[at], points)
        last = tried.values[task, -1].item()
        label = f"Task {task}: the network's function with support and query points, at the inner step of the slider"
        cells.append(
            f"<div><h3>Task {task}, {words}: {tried.value} {last:.3g}</h3>{place(f'function-{at}', label, 300)}</div>"
        )
    says = (
        "The network's function, fitted to the support points (full circles) and judged by the query points (rings), "
        "beside what it was (dotted). "
        "Move the slider, or use the arrow keys: at step 0 it is the learned initialisation, the same for every task."
    )
    body = slider("function-step", "After inner step", len(curves[0]) - 1) + f'<div class="grid">{"".join(cells)}</div>'
    return Section("A task's function, step by step", says, body, pictures)


def _chosen(tried: Tried) -> dict[str, int]:
    """Tasks from best to worst by what they end with; one that is not finite is the worst."""
    order = tried.values[:, -1].nan_to_num(nan=torch.inf).argsort().tolist()
    last = len(order) - 1
    places = {"the best": 0, "the median": last // 2, "at nine tenths": round(0.9 * last), "the worst": last}
    return {words: order[at] for words, at in places.items() if words == "the best" or at > 0}


def _picture(x: list[float], curves: list[list[float]], points: list[list[float]]) -> Picture:
    support_x, support_y, query_x, query_y = points
    circle = {"color": "--two", "size": 9}
    ring = {"color": "--soft", "size": 7, "symbol": "circle-open"}
    seen = [y for y in (*support_y, *query_y, *curves[0]) if y == y]
    low, high = min(seen), max(seen)
    margin = 0.15 * (high - low) + 1e-6
    data = [
        {"x": x, "y": curves[-1], "mode": "lines", "line": {"color": "--one", "width": 3}, "name": "network"},
        {"x": query_x, "y": query_y, "mode": "markers", "marker": ring, "name": "query"},
        {"x": support_x, "y": support_y, "mode": "markers", "marker": circle, "name": "support"},
        {
            "x": x,
            "y": curves[0],
            "mode": "lines",
            "line": {"color": "--soft", "width": 1.5, "dash": "dot"},
            "name": "step 0",
        },
    ]
    layout = {
        "showlegend": False,
        "xaxis": {"title": {"text": "input"}},
        "yaxis": {"range": [low - margin, high + margin]},
    }
    return {"data": data, "layout": layout, "frames": [[{"y": curve}] for curve in curves], "slider": "function-step"}
