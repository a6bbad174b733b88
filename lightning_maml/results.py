"""What a test leaves behind: ``metrics.json``, and a table to read."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_maml.checkpoints import whole_file
from lightning_maml.metrics import Interval


@dataclass(frozen=True)
class Published:
    """What was published for a protocol.

    Args:
        source: where, to be found again.
        loss: ``{inner steps: [mean]}`` or ``{inner steps: [mean, half-width of its 95% interval]}``, of the query loss.
        accuracy: the same of the accuracy, from 0 to 1.

    Raises:
        ValueError: there is no number, or an entry has none or more than two.
    """

    source: str
    loss: dict[int, list[float]] = field(default_factory=dict)
    accuracy: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entries = [*self.loss.values(), *self.accuracy.values()]
        if not entries or not all(1 <= len(entry) <= 2 for entry in entries):
            raise ValueError(f"Expected published numbers as {{inner steps: [mean, interval]}} but got {self}.")


def test_results(values: Mapping[str, Interval], **about: Any) -> dict[str, Any]:
    """The content of ``metrics.json``: per-step mean and 95% interval of each value, and what they were measured on.

    ``values`` are ``{"loss": interval, ...}``, each with one entry for each inner step from 0; ``about`` is plain data:
    algorithm, seed, checkpoint and the like. A number that is not finite is ``None``, as JSON has no word for it.
    """
    loss = next(iter(values.values()))
    return {
        **about,
        "tasks": int(loss.tasks),
        "inner_steps": list(range(len(loss.mean))),
        **{name: {"mean": _finite(interval.mean), "ci95": _finite(interval.ci95)} for name, interval in values.items()},
    }


test_results.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of its name


def results_table(values: Mapping[str, Interval], title: str) -> str:
    """The same as text: a row for each inner step, ``mean ± interval`` for each value.

    Example:
        >>> import torch
        >>> print(results_table({"loss": Interval(torch.tensor([3.25, 0.5]), torch.tensor([0.2, 0.01]), 600)}, "maml"))
        maml
          inner step             loss
                   0  3.2500 ± 0.2000
                   1  0.5000 ± 0.0100
    """
    rows = [["inner step", *values]]
    for step in range(len(next(iter(values.values())).mean)):
        rows.append(
            [str(step), *(f"{_number(mean[step])} ± {_number(ci95[step])}" for mean, ci95, _ in values.values())]
        )
    return "\n".join([title, *aligned(rows)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of text for each row, all columns aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _finite(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _number(value: Tensor) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"
