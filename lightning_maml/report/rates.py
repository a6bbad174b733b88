"""Learned inner rates, by layer and inner step."""

from itertools import cycle
from typing import Any

from torch import Tensor, nn

from lightning_maml.report.page import LINES, Section, place


def rates(learned: nn.Module | None) -> Section | None:
    """A line a layer where steps have rates of their own, else a bar a layer; None where no rate is learned."""
    kind = getattr(learned, "kind", None)
    if learned is None or kind is None or kind == "curvature":
        return None
    found = {name.replace("/", "."): rate.detach() for name, rate in learned.named_parameters()}
    layout: dict[str, Any] = {"yaxis": {"title": {"text": "inner rate"}}}
    if kind in ("per_step", "per_parameter_and_step"):
        data = [_by_step(name, rate, color) for (name, rate), color in zip(found.items(), cycle(LINES), strict=False)]
        layout["xaxis"] = {"title": {"text": "inner step"}, "dtick": 1}
        says = "The rate that training chose for each inner step; a later step at test uses the last one."
    else:
        data = [_by_layer(found)]
        says = "The rate that training chose for each layer; where each weight has its own, the mean and 5 to 95 %."
        layout["xaxis"] = {"type": "category"}
    if any((rate < 0).any() for rate in found.values()):
        says += " Some are negative: such a step goes up its support loss, which a few learned rates do."
    label = f"Chart of the learned inner rates, {kind.replace('_', ' ')}"
    return Section("Learned inner rates", says, place("rates", label), {"rates": {"data": data, "layout": layout}})


def _by_step(name: str, rate: Tensor, color: str) -> dict[str, Any]:
    values = rate.flatten().tolist()
    line = {
        "x": [*range(1, len(values) + 1)],
        "y": values,
        "name": name,
        "mode": "lines+markers",
        "line": {"color": color},
    }
    return {**line, "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>"}


def _by_layer(found: dict[str, Tensor]) -> dict[str, Any]:
    means = [rate.float().mean().item() for rate in found.values()]
    low, high = ([rate.float().flatten().quantile(share).item() for rate in found.values()] for share in (0.05, 0.95))
    ends: dict[str, Any] = {"symmetric": False, "color": "--soft"}
    ends["array"] = [max(0.0, top - mean) for top, mean in zip(high, means, strict=True)]
    ends["arrayminus"] = [max(0.0, mean - bottom) for bottom, mean in zip(low, means, strict=True)]
    return {
        "type": "bar",
        "x": [*found],
        "y": means,
        "marker": {"color": "--one"},
        "error_y": ends,
        "name": "inner rate",
    }
