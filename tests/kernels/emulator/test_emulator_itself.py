"""Does the emulator see what is wrong, and nothing where all is right?"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

import known
from worker import Worker

SCHEDULES = ("forward", "backward", 1, 2)


@pytest.mark.parametrize(
    "kernel, programs, expected",
    [
        ("back", 1, "race: "),
        ("twice", 1, "race: write after write"),
        ("meet", 2, "two programs"),
        ("outside", 1, "outside"),
        ("before", 1, "outside"),
        ("unwritten", 1, "never written"),
        ("onto_input", 1, "write to an input"),
    ],
)
def test_a_fault_is_seen(kernel: str, programs: int, expected: str, emulated: Worker):
    assert any(expected in fault for fault in emulated(known.verdict, kernel, programs=programs)[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_missing_barrier_is_seen_in_any_order(schedule: str | int, emulated: Worker):
    faults, _ = emulated(known.verdict, "shift", schedule, BARRIER=0, BLOCK=128)
    assert any("race: " in fault for fault in faults)
    assert emulated(known.verdict, "shift", schedule, BARRIER=1, BLOCK=128) == ([], [])


def test_one_program_meets_none(emulated: Worker):
    assert emulated(known.verdict, "meet") == ([], [])


def test_lanes_that_disagree_are_seen(emulated: Worker):
    faults, remarks = emulated(known.verdict, "lanes")
    assert faults == []
    assert any("lanes write different values to one place" in remark for remark in remarks)


@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("precision, limit", [("ieee", 1e-6), ("tf32", 2e-3), ("bf16", 4e-3)])
@pytest.mark.parametrize(
    "arch", [80, pytest.param(90, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)]
)
def test_products_and_reductions(arch: int, precision: str, limit: float, warps: int, emulated: Worker):
    error, faults = emulated(known.of_product, arch, precision, warps)
    assert faults == []
    assert error < limit
    if precision in ("tf32", "bf16"):
        assert error > 1e-5  # operands are rounded, as on hardware


def test_without_a_compiler_it_says_so(tmp_path: Path, emulated: Worker):
    assert emulated(_without_a_compiler, str(tmp_path)) == (
        "Expected to compile the emulator but 'no_such_compiler' of $CC is not found"
    )


def test_in_the_interpreter_it_says_so(monkeypatch: pytest.MonkeyPatch):
    from lightning_maml.kernels.emulator import Emulation

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="Expected Triton to compile but TRITON_INTERPRET is set"), Emulation(90):
        pass


def _without_a_compiler(folder: str) -> str:
    from lightning_maml.kernels.emulator import Emulation
    from lightning_maml.kernels.emulator.engine import engine

    engine.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", "no_such_compiler")
        patch.setenv("LIGHTNING_MAML_CACHE", folder)
        try:
            with Emulation(90):
                return "it compiled"
        except RuntimeError as error:
            return str(error)


def test_what_it_does_not_know_it_does_not_skip(emulated: Worker):
    assert "Expected PTX that the emulator knows but got PTX line " in emulated(_with_unknown_instruction)


def _with_unknown_instruction() -> str:
    import torch

    from lightning_maml.kernels.emulator import Emulation, UnsupportedError

    x = torch.arange(128.0)
    change = lambda text: text.replace("add.f32", "wiggle.f32").replace("add.rn.f32", "wiggle.f32")  # noqa: E731
    try:
        with Emulation(80, change=change, megabytes=2):
            known.onto_input[(1,)](x, x, x, num_warps=4)
    except UnsupportedError as error:
        return str(error)
    return "it ran"
