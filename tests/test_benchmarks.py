"""The benchmarks' gate, and what they say of what cannot run. No speed is tested."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from itertools import count, product
from pathlib import Path

import pytest
import torch

from benchmarks import luck, measure, reproduced
from benchmarks.__main__ import main
from benchmarks.algorithms import CIFAR_FS, OMNIGLOT, SINUSOID, markdown
from benchmarks.contenders import CONTENDERS, of_engine
from benchmarks.machine import peak_memory_mb
from benchmarks.measure import relative_error, sensitivity
from benchmarks.problem import TASKS, WORKLOADS, Problem
from benchmarks.result_file import ResultFile, about, read
from benchmarks.sweep import fit, series
from lightning_maml import TaskBatch
from lightning_maml.cli import demo
from lightning_maml.cli.reproduction import FIELDS


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return main()


SMALL = ("--tasks", "1", "--inner-steps", "2", "--rounds", "2")


def test_the_gate_gives_a_wrong_contender_no_time(monkeypatch, tmp_path, capsys):
    right = CONTENDERS["batched"]

    def off(problem):
        run = right(problem)
        return lambda: [value + 0.01 * value.abs().max() for value in run()]

    monkeypatch.setitem(CONTENDERS, "batched", off)
    path = tmp_path / "rows.json"
    assert call(monkeypatch, *SMALL, "--contenders", "eager,batched", "--json", str(path)) == 1
    found = read(path)
    assert [row["contender"] for row in found["rows"]] == ["eager"]
    (left_out,) = found["left_out"]
    assert left_out["contender"] == "batched"
    assert "its meta-gradient is WRONG" in left_out["reason"]
    assert "left out: batched" in capsys.readouterr().out


def test_a_missing_contender_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "higher", None)
    assert call(monkeypatch, *SMALL, "--contenders", "eager,higher") == 0
    assert re.search("left out: higher.*: ModuleNotFoundError", capsys.readouterr().out)


def test_an_unknown_contender_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--contenders", "eagre")
    assert "but got eagre" in capsys.readouterr().err


def test_relative_error_by_hand():
    exact = [torch.tensor([4.0, 0.0]).double(), torch.tensor([1.0]).double()]
    assert relative_error([torch.tensor([4.0, 0.0]), torch.tensor([2.0])], exact) == 0.25
    assert relative_error([torch.tensor([4.0, 0.0])], exact) == float("inf")
    assert not relative_error([torch.tensor([4.0, float("nan")]), torch.tensor([1.0])], exact) <= 1


def test_a_result_file_is_added_to(tmp_path, capsys):
    path = tmp_path / "folder" / "rows.json"
    ResultFile(path, "one", key=("name",), steps=5).add(name="first", ms=1.0)
    old = read(path)
    assert old["rows"] == [{"name": "first", "ms": 1.0}]
    assert {name: old[name] for name in about()} == about()
    assert old["steps"] == 5
    path.write_text(json.dumps(old | {"commit": "an older one"}))
    again = ResultFile(path, "one", key=("name",), steps=5)
    again.add(name="second", ms=3.0)
    # the older row names its commit, as the file now names another one
    assert read(path)["rows"] == [{"commit": "an older one", "name": "first", "ms": 1.0}, {"name": "second", "ms": 3.0}]
    again.add(name="first", ms=2.0)
    assert read(path)["rows"] == [{"name": "second", "ms": 3.0}, {"name": "first", "ms": 2.0}]
    for other in (ResultFile(path, "one", key=("name",), steps=6), ResultFile(path, "one", steps=5)):
        assert other.rows == []
    path.write_text("[]")
    with pytest.raises(ValueError, match="Expected a result file with a list of rows"):
        read(path)


def test_committed_results_have_one_shape(repository: Path):
    for path in (repository / "benchmarks/results").rglob("*.json"):
        if path.parent.name not in ("reproduced", "trained") and not path.name.startswith(
            "kernels"
        ):  # of other commands
            content = read(path)
            assert {"benchmark", "machine", "date"} <= content.keys()
            assert all(isinstance(row, dict) for row in content["rows"])


def write_rows(path, **medians):
    """Measurements with a spread of a tenth to either side."""
    point = {"workload": "sinusoid", "device": "cpu", "tasks": 25, "inner_steps": 5}
    results = ResultFile(path, "meta_gradient")
    for name, ms in medians.items():
        results.add(**point, contender=name, median_ms=ms, p10_ms=0.9 * ms, p90_ms=1.1 * ms)
    return results


def test_compare_names_what_got_slower(monkeypatch, tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_rows(old, learn2learn=100.0, fused=1.0, batched=10.0, jax=2.0)
    # a machine half as fast; batched took 1.1 times as long on top of that, fused 1.5 times
    again = write_rows(new, learn2learn=200.0, fused=3.0, batched=22.0)
    capsys.readouterr()
    assert call(monkeypatch, "compare", str(old), str(new)) == 1
    printed = capsys.readouterr().out
    assert [line.split()[3] for line in printed.splitlines() if "SLOWER" in line] == ["fused"]
    assert "1.50x  SLOWER" in printed
    assert "only in the old run: sinusoid, cpu, 25, 5, jax" in printed
    assert call(monkeypatch, "compare", str(old), str(new), "--tolerance", "0.6") == 0
    again.add(**again.rows[1] | {"median_ms": 2.0, "p10_ms": 1.8})  # the last one counts
    assert call(monkeypatch, "compare", str(old), str(new)) == 0


def test_compare_refuses_what_is_no_measurement(monkeypatch, tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_rows(old, fused=1.0)
    for rows, reason in ((None, "a list of rows"), ([{"tasks": 1}], "they lack 'workload'"), ([], "share but there")):
        new.write_text(json.dumps({} if rows is None else {"rows": rows}))
        with pytest.raises(SystemExit):
            call(monkeypatch, "compare", str(old), str(new))
        assert reason in capsys.readouterr().err


def test_the_page_of_results_shows_the_table_that_was_measured(repository):
    results = json.loads((repository / "benchmarks/results/algorithms_sinusoid.json").read_text())
    assert [row["algorithm"] for row in results["rows"]] == list(SINUSOID)
    assert markdown(results) in (repository / "docs/results.md").read_text()
    # what the issue of meta-learning is about: far below the baseline, and learned rates below a fixed one
    after_one = {row["algorithm"]: row["loss"]["1"][0] for row in results["rows"]}
    assert after_one["meta_sgd"] < after_one["maml"] < after_one["pretrained"] / 2
    results = json.loads((repository / "benchmarks/results/algorithms_omniglot.json").read_text())
    assert {row["algorithm"] for row in results["rows"]} == set(OMNIGLOT)
    assert markdown(results) in (repository / "docs/results.md").read_text()
    results = json.loads((repository / "benchmarks/results/algorithms_cifar_fs.json").read_text())
    assert {row["algorithm"] for row in results["rows"]} == set(CIFAR_FS)
    assert markdown(results) in (repository / "docs/results.md").read_text()
    best = {row["algorithm"]: max(mean for mean, _ in row["accuracy"].values()) for row in results["rows"]}
    assert best["maml_pp"] > best["maml"] > best["pretrained"]


def test_the_page_of_results_shows_the_speeds_that_were_measured(repository):
    text = (repository / "docs/results.md").read_text()
    for file, name, tasks in (
        ("sinusoid", "sinusoid", 25),
        ("sinusoid", "sinusoid", 256),
        ("omniglot_5w1s", "Conv4", 8),
        ("cifar_fs", "Conv4 of CIFAR-FS", 4),
        ("mini_imagenet", "Conv4 of mini-ImageNet", 4),
    ):
        rows = read(repository / f"benchmarks/results/{file}.json")["rows"]
        taken = {row["contender"]: row["median_ms"] for row in rows if row["tasks"] == tasks}
        contenders = ("batched", "fused", "batched_compile", "fused_compile", "jax")
        ratios = [taken["learn2learn"] / taken[which] if which in taken else None for which in contenders]
        cells = ["-" if ratio is None else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}" for ratio in ratios]
        assert f"| {name}, {tasks} tasks | {' | '.join(cells)} |\n" in text


def test_a_gate_knows_a_meta_gradient_that_jumps():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    x = torch.ones(1, 1, 1)
    for weight in (1.0, 1e-30):  # relative changes move no weight over the kink at 0
        torch.nn.init.constant_(network[0].weight, weight)
        problem = Problem(network, TaskBatch(x, x, x, x), "mse", 0.1, 1)
        exact = [value.clone() for value in of_engine(problem.in_float64(), "eager")()]
        assert sensitivity(problem, exact) < 1e-3
    # the difference of two equal numbers is on either side
    network[0] = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(network[0].weight, 1.0)
    x = torch.tensor([[[1.0, -1.0 + 1e-7]]])
    problem = Problem(network, TaskBatch(x, x[..., :1], x, x[..., :1]), "mse", 0.1, 1)
    exact = [value.clone() for value in of_engine(problem.in_float64(), "eager")()]
    assert sensitivity(problem, exact, draws=20) > 1e-3


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """What the benchmarks' clock says: every look at it is a second later, and so is every meta-gradient."""
    now = [0.0]

    def look() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(time, "perf_counter", look)
    return now


def test_tries_end_with_the_time(clock):
    assert [*measure.tries(3, 100.0)] == [0, 1, 2]
    assert [*measure.tries(9, 3.0)] == [0, 1, 2]  # a look at the clock in between
    assert [*measure.tries(9, 0.0)] == [0]
    assert [*measure.tries(9, 0.0, least=2)] == [0, 1]


def test_a_problem_that_is_never_steady_is_the_nearest_one_found(monkeypatch, clock):
    errors = iter([0.5, 0.1, 0.3, 0.2])
    monkeypatch.setattr(measure, "relative_error", lambda found, exact: next(errors))
    monkeypatch.setattr(measure, "LIMIT", 3.0)
    problem, exact = measure.steady("sinusoid", 1, 1)
    assert next(errors) == 0.2  # three were tried
    torch.manual_seed(1)
    nearest = Problem(*WORKLOADS["sinusoid"](1), 1)
    assert torch.equal(problem.tasks.query_inputs, nearest.tasks.query_inputs)
    torch.testing.assert_close(exact, measure.exact_gradient(nearest))
    draws: list[Problem] = []
    monkeypatch.setattr(measure, "exact_gradient", draws.append)
    errors = iter([0.5, 0.1, 0.3, 0.2])
    assert sensitivity(problem, exact, draws=4) == 0.5
    assert len(draws) == 3


def test_what_takes_long_is_cut_short_and_says_so(monkeypatch, tmp_path):
    right = CONTENDERS["eager"]

    def slow(problem):
        monkeypatch.setattr(
            time, "perf_counter", partial(next, count(1e6, 1e3))
        )  # each look is a thousand seconds later
        return right(problem)

    monkeypatch.setitem(CONTENDERS, "eager", slow)
    path = tmp_path / "rows.json"
    monkeypatch.setitem(TASKS, "sinusoid", 3)  # the default
    arguments = ("--inner-steps", "1", "--rounds", "5", "--contenders", "eager,batched")
    assert call(monkeypatch, *arguments, "--json", str(path)) == 0
    found = read(path)
    assert [(row["contender"], row["tasks"], row["rounds"]) for row in found["rows"]] == [("eager", 3, 2)]
    (left_out,) = found["left_out"]
    assert re.fullmatch(
        r"the others took \d+ s before its turn: a larger --seconds has time for it", left_out["reason"]
    )


def test_what_a_call_takes_of_the_memory():
    kept = []
    assert 90 < peak_memory_mb(lambda: kept.append(torch.ones(100 * 2**18))) < 120
    assert peak_memory_mb(lambda: kept[0].sum()) < 10
    assert 90 < peak_memory_mb(lambda: torch.ones(100 * 2**18).sum()) < 120  # given back since


def test_training_beside_learn2learn(monkeypatch, tmp_path, capsys, omniglot_root):
    small = ("--tasks", "2", "--inner-steps", "1", "--updates", "1", "--rounds", "2")
    path = tmp_path / "training.json"
    assert call(monkeypatch, "training", "--root", str(omniglot_root), *small, "--json", str(path)) == 0
    found = json.loads(path.read_text())
    assert "left_out" not in found
    names = [row["contender"] for row in found["rows"]]
    assert names == ["MetaModule", "learn2learn's LightningMAML", "without Lightning"]
    assert all(row["tasks_per_second"] > 0 for row in found["rows"])
    assert "a step of Trainer.fit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(monkeypatch, "training", "--root", str(omniglot_root), "--tasks", "0")
    assert "argument --tasks: expected at least 1 but got 0" in capsys.readouterr().err


def test_sweep_fits_lines(monkeypatch, tmp_path, capsys):
    path = tmp_path / "rows.json"
    point = {"workload": "sinusoid", "inner_steps": 5, "contender": "fused"}
    path.write_text(json.dumps({"rows": [{**point, "tasks": n, "median_ms": 3 + 2 * n} for n in (1, 100, 10_000)]}))
    assert call(monkeypatch, "sweep", str(path)) == 0
    assert "3.000 ms +    2.0000 ms a task, off by 0% at most" in capsys.readouterr().out
    other = {"workload": "sinusoid", "tasks": 5, "contender": "fused"}
    steps = [{**other, "inner_steps": n, "median_ms": n, "peak_memory_mb": 2 * n} for n in (1, 2, 3)]
    assert series(steps, "inner_steps", "peak_memory_mb") == {("sinusoid", 5): {"fused": [(1, 2), (2, 4), (3, 6)]}}
    assert not series([{**row, "peak_memory_mb": None} for row in steps], "inner_steps", "peak_memory_mb")
    path.write_text(json.dumps({"rows": [{**point, "tasks": n, "median_ms": n} for n in (1, 2)]}))
    with pytest.raises(SystemExit):
        call(monkeypatch, "sweep", str(path))
    assert "Expected at least 3 numbers of tasks" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least 3 points to fit a line to but got 2"):
        fit([1.0, 2.0], [1.0, 2.0])


def test_the_demo_does_not_hang_on_luck(repository: Path) -> None:
    results = json.loads((repository / "benchmarks/results/luck.json").read_text())
    assert luck.markdown(results) in (repository / "docs/results.md").read_text()
    known = {(row["seed"], row["updates"]): row for row in results["rows"]}
    assert len(known) == 100
    assert known.keys() == set(product(range(20), luck.UPDATES))
    assert min(luck.UPDATES) >= 5_000
    assert max(luck.UPDATES) <= 40_000
    for (_, updates), row in known.items():
        means = [row[name]["mean"] for name in demo.ALGORITHMS]
        assert all(isinstance(value, float) for values in means for value in values)
        after = [values[results["inner_steps"].index(5)] for values in means]
        assert after[0] < after[1] / (3 if updates >= 20_000 else 2)


@pytest.mark.parametrize("seed", [0, 3])  # with which the demo of before printed nan
def test_two_of_the_demo_s_runs(seed: int) -> None:
    row = luck.run(seed, 5_000)
    means = [row[name]["mean"] for name in demo.ALGORITHMS]
    assert all(isinstance(value, float) for values in means for value in values)
    assert means[0][demo.SHOWN_STEPS.index(5)] < means[1][demo.SHOWN_STEPS.index(5)] / 2


def test_the_day_on_which_a_gpu_comes_is_rehearsed(repository: Path, tmp_path: Path) -> None:
    """Every command of gpu.sh, small, on the stand-in device."""
    command = ["bash", "benchmarks/gpu.sh", "--rehearse", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        command,
        cwd=repository,
        env=environment | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    parts = re.findall(r"^== (.+): exit code (\d+)", done.stdout, re.MULTILINE)
    assert len(parts) == 15
    assert [part for part in parts if part[1] != "0"] == [], done.stdout[-8000:]
    assert done.returncode == 0
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("# A rehearsal on the stand-in device: no number is a measurement")
    for contender, files in (
        ("fused", 3),
        ("fused_tf32", 3),
        ("batched", 4),
        ("eager", 2),
        ("learn2learn", 1),
    ):
        found = re.findall(rf"^\| 2 \| {contender} \| (.*) \|$", table, re.MULTILINE)
        assert len(found) == files
        assert "left out" not in "".join(found)
    assert "## omniglot_5w1s, trained" in table
    assert "## sinusoid, trained" in table


RESULT = {
    "protocol": "cifar_fs_5w1s",
    "max_updates": None,
    "overrides": ["--trainer.max_time=00:01:15:00"],
    "version": "0.1.0",
    "commit": "abc1234",
    "of_updates": 60_000,
    "seed": 0,
    "updates": 20_000,
    "cut_short": True,
    "minutes": 75.02,
    "weights": "0123456789abcdef",
    "test_tasks": 1000,
    "ways": 5,
    "test_queries": 15,
    "transductive": True,
    "class_orders": 1,
    "inner_steps": 10,
    "machine": {"machine": "x86_64", "cores": 2, "threads": 2},
    "torch": "2.15.0",
    "date": "2026-11-28",
    "source": "Bertinetto et al. 2019, table 1",
    "results": [
        {
            "value": "accuracy",
            "inner_steps": 10,
            "measured": 0.55123,
            "measured_ci95": 0.0121,
            "published": 0.589,
            "published_ci95": 0.019,
            "verdict": None,
        }
    ],
}


def test_the_page_of_results_shows_what_was_reproduced(repository: Path) -> None:
    text = (repository / "docs/results.md").read_text()
    found = reproduced.read()
    assert reproduced.markdown(found) in text
    older = {path.name for path in reproduced.FOLDER.glob("*.json")} - found.keys()
    assert all(name in text for name in older)  # which have a sentence of their own, and no row
    assert not any(f"`{name}`: commit" in text for name in older)


def test_a_result_that_nobody_can_check_is_none(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "cut.json").write_text(json.dumps(RESULT))
    (line,) = reproduced.markdown(reproduced.read(tmp_path)).splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "`cifar_fs_5w1s`",
        "0",
        "20,000 of 60,000, cut short",
        "75",
        "1,000 of 15 queries a class, transductive",
        "10",
        "55.12 ± 1.21 %",
        "58.90 ± 1.90 %",
        "no verdict",
        "`cut.json`: commit abc1234, weights 01234567, 2 of 2 cores of x86_64, with `--trainer.max_time=00:01:15:00`",
    ]
    for field in FIELDS:
        for content in ({**RESULT, field: None}, {name: RESULT[name] for name in RESULT if name != field}):
            (tmp_path / "cut.json").write_text(json.dumps(content))
            assert reproduced.read(tmp_path) == {}
    monkeypatch.setattr(sys, "argv", ["reproduced", str(tmp_path)])
    reproduced.main()
    assert capsys.readouterr().out == "No file in `benchmarks/results/reproduced/` says all of that yet.\n"
