"""Results of a test: ``metrics.json``, and a table to read."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_maml.metrics import Interval
from lightning_maml.saving import whole_file


@dataclass(frozen=True)
class Published:
    """What was published for a protocol.

    Args:
        source: where, to be found again.
        loss: ``{inner steps: [mean]}`` or ``{inner steps: [mean, half-width of its 95% interval]}``, of the query loss.
        accuracy: the same of the accuracy, from 0 to 1.
    """

    source: str
    loss: dict[int, list[float]] = field(default_factory=dict)
    accuracy: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entries = [*self.loss.values(), *self.accuracy.values()]
        if not entries or not all(1 <= len(entry) <= 2 for entry in entries):
            raise ValueError(f"Expected published numbers as {{inner steps: [mean, interval]}} but got {self}.")


def test_results(values: Mapping[str, Interval], diverged: Tensor | None, **about: Any) -> dict[str, Any]:
    """The content of ``metrics.json``: per-step mean, 95% interval and median of each value, and what they are of.

    ``values`` are ``{"loss": interval, ...}``, of each inner step from 0; ``diverged`` is how many tasks have diverged
    there; ``about`` is plain data. A number that is not finite is ``None``, as JSON has no word for it.
    """
    loss = next(iter(values.values()))
    content = {**about, "tasks": int(loss.tasks), "inner_steps": list(range(len(loss.mean)))}
    if diverged is not None:
        content["diverged"] = [int(count) for count in diverged]
    for name, interval in values.items():
        numbers = {what: getattr(interval, what).tolist() for what in ("mean", "ci95", "median")}
        content[name] = {what: [one if math.isfinite(one) else None for one in numbers[what]] for what in numbers}
    return content


test_results.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of its name


def results_table(values: Mapping[str, Interval], title: str, diverged: Tensor | None = None) -> str:
    """The same as text: a row an inner step, or some of many, and a sentence for each value that a single task makes.

    Example:
        >>> from torch import tensor
        >>> nan, tasks = float("nan"), tensor(600)
        >>> loss = Interval(tensor([3.25, 4.5]), tensor([0.2, 8.0]), tensor([2.5, 0.3]), tensor([nan, 0.4]), tasks)
        >>> print(results_table({"loss": loss}, "maml", diverged=tensor([0, 1])))
        maml
          inner step             loss  median  diverged
                   0  3.2500 ± 0.2000  2.5000         0
                   1  4.5000 ± 8.0000  0.3000         1
        One task is more than half of the mean loss after inner step 1; without it the mean is 0.4000.
    """
    head = ["inner step"]
    columns = [[str(step) for step in range(len(next(iter(values.values())).mean))]]
    for name, interval in values.items():
        head += [name, "median"]
        columns.append([f"{_number(mean)} ± {_number(ci95)}" for mean, ci95 in zip(*interval[:2], strict=True)])
        columns.append([_number(median) for median in interval.median])
    if diverged is not None:
        head.append("diverged")
        columns.append([str(int(count)) for count in diverged])
    rows = [*zip(*columns, strict=True)]
    return "\n".join([title, *aligned([head, *(rows[step] for step in shown(len(rows)))]), *_made_by_one(values)])


def shown(rows: int) -> list[int]:
    """Which of the rows of a table are printed: all of up to 16; of more the first, about ten others, and the last.

    Example:
        >>> shown(51)
        [0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    """
    last, every = rows - 1, 1 if rows <= 16 else -(-(rows - 1) // 10)
    return [row for row in range(rows) if row <= 5 or row % every == 0 or row == last]


def side_by_side(results: Mapping[str, Mapping[str, float]]) -> str:
    """What tests of several modules have logged, a column for each: the query loss, or else the return.

    Example:
        >>> print(side_by_side({"maml": {"test/loss_step_0": 2.0, "test/loss_step_0_ci95": 0.25}}))
          inner step             maml
                   0  2.0000 ± 0.2500
    """
    first = next(iter(results.values()))
    value = next(value for value in ("loss", "return") if f"test/{value}_step_0" in first)
    rows = [["inner step", *results]]
    while (name := f"test/{value}_step_{len(rows) - 1}") in first:
        means = (f"{found[name]:.4f} ± {found[f'{name}_ci95']:.4f}" for found in results.values())
        rows.append([str(len(rows) - 1), *means])
    return "\n".join(aligned([rows[0], *(rows[1 + step] for step in shown(len(rows) - 1))]))


def _made_by_one(values: Mapping[str, Interval]) -> Iterator[str]:
    """A sentence for each value of which one task makes the mean; of a handful of tasks one always may."""
    for name, interval in values.items():
        steps = interval.of_others.isfinite().nonzero().flatten().tolist()
        if not steps or interval.tasks <= 10:
            continue
        last = steps[-1]
        which, when = (f"s {', '.join(map(str, steps))}", f" after {last}") if len(steps) > 1 else (f" {last}", "")
        made, rest = f"the mean {name} after inner step{which}", _number(interval.of_others[last])
        yield f"One task is more than half of {made}; without it the mean{when} is {rest}."


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of text for each row, all columns aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _number(value: Tensor) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"
