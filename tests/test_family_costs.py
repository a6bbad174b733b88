"""The tables of algorithms are complete, and their costs are those of the committed measurement."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from benchmarks import family
from benchmarks.result_file import read
from lightning_maml import presets

ROW = re.compile(r"^\| `(\w+)` *\|(.*)\|$", re.MULTILINE)
# a page, the head of its table, and how many cells a row has beside the preset
TABLES = {"README.md": ("| preset | paper ", 2), "docs/guide.md": ("| preset | what is particular ", 1)}
COSTS = {"docs/results.md": ("| preset | MLP: time, memory ", 2)}


def cells(repository: Path, page: str, head: str) -> dict[str, list[str]]:
    """The cells of each preset's row."""
    text = (repository / page).read_text()
    table = text[text.index(head) :].split("\n\n")[0]
    return {name: [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)] for name, rest in ROW.findall(table)}


@pytest.mark.parametrize(("page", "head", "width"), [(page, *table) for page, table in TABLES.items()])
def test_the_table_has_every_preset(repository, page, head, width):
    rows = cells(repository, page, head)
    assert sorted(rows) == sorted(presets.__all__) == sorted(family.ALGORITHMS)
    assert {len(row) for row in rows.values()} == {width}
    assert all(all(row) for row in rows.values())


def test_costs_on_the_page_of_results_are_the_measured_ones(repository):
    results = read(repository / "benchmarks/results/family/costs.json")
    measured, left_out = (
        {(row["preset"], row["workload"]): row for row in results[kind]} for kind in ("rows", "left_out")
    )
    assert {workload for _, workload in measured} == set(family.TASKS)
    ((page, (head, _)),) = COSTS.items()
    rows = cells(repository, page, head)
    assert {preset for preset, _ in (*measured, *left_out)} == rows.keys() <= {*presets.__all__}  # new ones may wait
    for preset, (mlp, conv4) in rows.items():
        for cell, workload in (mlp, "mlp"), (conv4, "conv4"):
            row = measured.get((preset, workload))
            assert (row is None) == ((preset, workload) in left_out)
            shown = "-" if row is None else f"{row['median_times']:.2g}, {row['memory']:.2g}"
            assert cell == shown, (preset, workload)


def test_what_was_measured_is_related_to_fomaml_and_right(repository):
    rows = read(repository / "benchmarks/results/family/costs.json")["rows"]
    bases = {row["workload"]: row for row in rows if row["preset"] == family.BASE}
    for row in rows:
        base = bases[row["workload"]]
        assert base["median_times"] == base["memory"] == 1
        assert row["p10_times"] <= row["median_times"] <= row["p90_times"]
        assert row["memory"] == pytest.approx(row["peak_mb"] / base["peak_mb"])
        assert row["error"] < 1e-7


def test_a_wrong_meta_gradient_gets_no_time(monkeypatch):
    """The check that stands before every time, on an engine that is wrong by a thousandth."""
    assert family.error("mlp", "maml") < 1e-12
    right = family.meta_gradient

    def wrong(network, algorithm, tasks, engine):
        gradients = right(network, algorithm, tasks, engine)
        return [1.001 * gradient for gradient in gradients] if engine == "batched" else gradients

    monkeypatch.setattr(family, "meta_gradient", wrong)
    assert family.error("mlp", "maml") == pytest.approx(1e-3, rel=1e-6)


def test_times_are_related_round_by_round(monkeypatch):
    """On a clock by hand: a machine that becomes ten times slower changes no ratio."""
    now, load = [0.0], [1.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(seconds: float):
        def spend() -> list[torch.Tensor]:
            now[0] += seconds * load[0]
            return []

        return spend

    def slower() -> list[torch.Tensor]:
        run(0.3)()
        load[0] *= 10
        return []

    rows = family.times({"fomaml": run(0.1), "maml": run(0.2), "last": slower}, rounds=3)
    assert rows["maml"]["median_times"] == pytest.approx(2.0)
    assert rows["maml"]["p90_times"] == pytest.approx(2.0)
    assert rows["maml"]["p90_ms"] > 10 * rows["maml"]["p10_ms"]


def test_peak_memory_is_what_lives_at_once():
    kept = []

    def run() -> list[torch.Tensor]:
        kept.clear()
        first = torch.ones(3, 2**18)  # 3 MB
        second = torch.ones(2, 2**18)
        del first
        kept.append(torch.ones(2**18))
        return [second]

    assert family.peak_memory(run) == pytest.approx(5.0, abs=0.1)
