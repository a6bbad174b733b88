"""What the compiler says of the kernels, without a GPU; and that the committed table is about what ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

from lightning_maml.kernels.inspect import ARCHITECTURES, MOST_SECONDS, MOST_STACK, main, variants


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
    assert [report["kernel"] for report in reports] == ["sgd_update_kernel", "mlp_backward"]
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
    ships = {(v.kernel, json.dumps(v.constants), f"sm_{a}") for v in variants() for a in ARCHITECTURES}
    assert seen == ships
    for row in table["variants"]:
        assert row["stack_bytes"] <= MOST_STACK
        assert row["shared_bytes"] <= ARCHITECTURES[int(row["architecture"].removeprefix("sm_"))].shared_per_program
        assert row["compile_seconds"] <= MOST_SECONDS


def test_resident_programs():
    chip = ARCHITECTURES[90]
    assert chip.resident(registers=128, shared=4096, warps=4) == 4
    assert chip.resident(registers=32, shared=0, warps=4) == 16
    assert chip.resident(registers=32, shared=100 * 1024, warps=4) == 2
    assert chip.resident(registers=255, shared=0, warps=8) == 1
