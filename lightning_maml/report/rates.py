"""Learned inner rates, by layer and inner step."""

from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from lightning_maml.report.page import LINES, Section, place


def rates(learned: nn.Module | None) -> Section | None:
    """A line a layer where steps have rates of their own, else a bar a layer or matrix; None where none is learned."""
    kind = getattr(learned, "kind", None)
    if learned is None or kind is None:
        return None
    if kind == "curvature":
        return _curvature(learned)
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


def _curvature(learned: nn.Module) -> Section:
    """How far Meta-Curvature's matrices are from where they began: the norm of M - I in that of I."""
    far = {}
    for name, matrix in learned.named_parameters():
        identity = torch.ones_like(matrix) if matrix.ndim == 1 else torch.eye(len(matrix), device=matrix.device)
        far[name.replace("/", ".")] = ((matrix.detach() - identity).norm() / identity.norm()).item()
    bar = {"type": "bar", "x": [*far], "y": [*far.values()], "marker": {"color": "--one"}, "name": "distance"}
    axes = {"xaxis": {"type": "category"}, "yaxis": {"title": {"text": "|M - I| / |I|"}, "rangemode": "tozero"}}
    says = (
        "Its rates stay as they were given; learned matrices multiply the gradient. They begin as the identity, and "
        "this is how far each is from it now, in norms of the identity."
    )
    label = "Chart of how far the learned matrices of each layer are from the identity"
    return Section("Learned curvature", says, place("rates", label), {"rates": {"data": [bar], "layout": axes}})


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
