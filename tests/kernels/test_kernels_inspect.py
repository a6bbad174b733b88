"""What the compiler says of the kernels, without a GPU; and that the committed table is about what ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

from lightning_maml.kernels.chips import CHIPS
from lightning_maml.kernels.conv_adapt import traffic
from lightning_maml.kernels.inspect import MOST_SECONDS, MOST_STACK, Report, main, ships
from lightning_maml.kernels.modelled import WORKLOADS, Workload, multiply_adds


def _inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    # the interpreter, which the other tests use, compiles nothing
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "lightning_maml.kernels.inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_one_of_each_kernel(tmp_path: Path):
    table = tmp_path / "table.json"
    first_order = "ACTIVATION=gelu LOSS=mse PRECISION=ieee BM=16 BN=64 BK=16 BC=16 ORDER=1 RATES_GRAD=1"
    done = _inspect("--arch", "sm_90", "--only", "sgd_update", "--only", first_order, "--json", str(table))
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(table.read_text())["variants"]
    assert [report["kernel"] for report in reports] == ["sgd_update_kernel", "sgd_update_kernel", "mlp_backward"]
    for report in reports:
        assert 16 <= report["registers"] <= 128
        assert report["stack_bytes"] <= MOST_STACK
        assert report["resident_programs"] >= 4
        assert report["instructions"] > 10
    small, _, back = reports
    assert (small["barriers"], small["useful"], small["not_modelled"]) == (0, None, "there are no products")
    assert 300 < small["cycles"] < 3000
    assert small["bytes_moved"] == 2 * 4096 + 32  # the parameters come, and go; a sector with the rate
    # 5 steps of a gradient each: three products for one, rows and columns of tiles that the network does not fill
    assert 0.02 < back["useful"] < 1 / 3
    assert back["barriers"] >= 5
    assert back["cycles"] > 10 * back["barriers"]
    assert "a model, not a measurement" in done.stdout
    assert "a model, not a measurement" in json.loads(table.read_text())["model"]


def test_what_is_not_modelled_says_why():
    """On another maker's chip nothing is."""
    done = _inspect("--arch", "gfx942", "--only", "sgd_update")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cycles       -  barriers    -  useful      -  bytes       -" in done.stdout
    assert "-: only NVIDIA's PTX is emulated" in done.stdout


def test_nothing_to_inspect_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")  # which it sets, and this takes back
    assert main(["--only", "no such kernel"]) == 1


@pytest.mark.slow
def test_every_variant():
    done = _inspect()
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_table_is_of_what_ships(repository: Path):
    table = json.loads((repository / "benchmarks/results/kernels.json").read_text())
    seen = {(row["kernel"], json.dumps(row["constants"]), row["architecture"]) for row in table["variants"]}
    assert seen == {(variant.kernel, json.dumps(variant.constants), chip) for variant, chip in ships()}
    for row in table["variants"]:
        assert row["stack_bytes"] <= MOST_STACK
        assert row["shared_bytes"] <= CHIPS[row["architecture"]].shared_per_program
        assert row["compile_seconds"] <= MOST_SECONDS
        report = Report(**row)
        model = (report.cycles, report.barriers, report.useful, report.bytes_moved)
        assert (None in model) == bool(report.not_modelled), report
        if row["architecture"].startswith("sm_"):
            assert report.not_modelled == ("there are no products" if report.kernel == "sgd_update_kernel" else "")


def test_the_committed_table_of_conv_adapt_is_of_what_ships(repository: Path):
    table = json.loads((repository / "benchmarks/results/kernels_conv_adapt.json").read_text())
    seen = {(row["kernel"], json.dumps(row["constants"]), row["architecture"]) for row in table["variants"]}
    assert seen == {(each.kernel, json.dumps(each.constants), chip) for each, chip in ships("conv_adapt")}
    for row in table["variants"]:
        assert row["stack_bytes"] <= 64
        assert row["shared_bytes"] <= CHIPS[row["architecture"]].shared_per_program


def test_conv_adapt_moves_at_most_twice_what_has_to_move(repository: Path):
    """As the committed table says, and Conv4 on 28 x 28 still does."""
    table = json.loads((repository / "benchmarks/results/kernels_conv_adapt_traffic.json").read_text())
    for row in table["problems"]:
        assert row["times_least"] <= 2
        assert row["useful"] >= 0.4
    total = traffic.of_meta_gradient(traffic.CONV4["Conv4 28 x 28 x 1, strided"], 5, 75, 5, 8)
    assert total.moved * traffic.BYTES * 8 == table["problems"][0]["bytes_moved"]


def test_resident_programs():
    chip = CHIPS["sm_90"]
    assert chip.resident(registers=128, shared=4096, warps=4) == 4
    assert chip.resident(registers=32, shared=0, warps=4) == 16
    assert chip.resident(registers=32, shared=100 * 1024, warps=4) == 2
    assert chip.resident(registers=255, shared=0, warps=8) == 1
    assert CHIPS["gfx942"].resident(registers=91, shared=4096, warps=4) == 5
    assert CHIPS["gfx942"].resident(registers=16, shared=32 * 1024, warps=4) == 2


def test_useful_multiply_adds():
    """Of a linear layer of 3 inputs and 2 outputs, 5 rows of support and 7 queries."""
    workload, layer = Workload((3, 2), 5, 7, 1), (3 + 1) * 2
    # a step's pass, its gradient, the loss after it; a pass of the query set, its gradient
    assert multiply_adds(workload, {"QUERY": 0}) == 5 * layer * 3
    assert multiply_adds(workload, {"QUERY": 1}) == 5 * layer * 3 + 7 * layer * 2
    assert multiply_adds(workload, {"ORDER": 1, "RATES_GRAD": 1}) == 5 * layer
    assert multiply_adds(workload, {"ORDER": 2, "RATES_GRAD": 0}) == 5 * layer * 2
    # a second layer, without its biases: tangents of activations, both parts of their gradients, those of weights
    deep = Workload((3, 2, 4), 5, 7, 1)
    assert multiply_adds(deep, {"ORDER": 2, "RATES_GRAD": 0}) == 5 * (2 * (layer + 3 * 4) + 4 * 2 * 4)


def test_every_size_of_tiles_has_a_workload():
    found = {(row.constants["BN"], row.constants["BC"]) for row, _ in ships() if "BN" in row.constants}
    assert found == set(WORKLOADS)
