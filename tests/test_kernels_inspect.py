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
from lightning_maml.kernels.estimate import estimate, tiles
from lightning_maml.kernels.inspect import MOST_SECONDS, MOST_STACK, Report, estimates, main, ships


def _inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    # the interpreter, which the other tests use, compiles nothing
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "lightning_maml.kernels.inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_one_of_each_kernel(tmp_path: Path):
    table = tmp_path / "table.json"
    first_order = "ACTIVATION=gelu LOSS=mse PRECISION=tf32x3 BM=16 BN=64 BK=16 BC=16 ORDER=1 RATES_GRAD=1"
    done = _inspect("--arch", "sm_90", "--only", "sgd_update", "--only", first_order, "--json", str(table))
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(table.read_text())["variants"]
    assert [report["kernel"] for report in reports] == ["sgd_update_kernel", "sgd_update_kernel", "mlp_backward"]
    for report in reports:
        assert 16 <= report["registers"] <= 128
        assert report["stack_bytes"] <= MOST_STACK
        assert report["resident_programs"] >= 4
        assert report["instructions"] > 10


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
    assert table["estimates"] == estimates([Report(**row) for row in table["variants"]])


def test_resident_programs():
    chip = CHIPS["sm_90"]
    assert chip.resident(registers=128, shared=4096, warps=4) == 4
    assert chip.resident(registers=32, shared=0, warps=4) == 16
    assert chip.resident(registers=32, shared=100 * 1024, warps=4) == 2
    assert chip.resident(registers=255, shared=0, warps=8) == 1
    assert CHIPS["gfx942"].resident(registers=91, shared=4096, warps=4) == 5
    assert CHIPS["gfx942"].resident(registers=16, shared=32 * 1024, warps=4) == 2


def test_estimates():
    # one linear layer, one tile of everything: a step and its way back are 2 + 4 products, the query set 2, the loss 1
    assert tiles([3, 2], support=5, queries=5, steps=1) == 2 + 4 + 2 + 1
    chip = CHIPS["sm_90"]
    found = estimate(chip, 4, [3, 2], 5, 5, 1, "ieee")
    assert found.compute == pytest.approx(1e6 * 9 * 2 * 16 * 64 * 16 / 67e12)
    assert found.latency == pytest.approx(1e6 * 9 * 300 / 1.98e9 / (132 * 4))
    # P = 8 numbers of the layer, S = 10 of the rows
    assert found.memory == pytest.approx(1e6 * 8 * (2 * (2 * 10 + 8) + 3 * 10 + 3 * 8) / 3.35e12)
    assert found.bound == max(("compute", "memory", "latency"), key=lambda name: getattr(found, name))
