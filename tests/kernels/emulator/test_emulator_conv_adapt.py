"""The kernels of ``conv_adapt``, as compiled: right, without a race or another fault, in any order of warps."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="needs Triton")

import convolutional as c
from worker import Worker

SLOW = pytest.mark.slow
ARCHES = (80, 90, 100)
SCHEDULES = ("forward", "backward", 1, 2)


@pytest.mark.parametrize(
    "problem, arch",
    [
        pytest.param(problem, arch, marks=() if arch == ARCHES[number % 3] and number < 2 else SLOW)
        for number, problem in enumerate(c.PROBLEMS)
        for arch in ARCHES
    ],
    ids=str,
)
def test_right_and_without_a_race(problem: c.Problem, arch: int, emulated: Worker):
    assert emulated(c.complaints, problem, "ieee", arch, SCHEDULES[1:3]) == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("problem", [c.STRIDED, c.POOLED, c.WIDE], ids=str)
def test_in_any_order_of_warps(problem: c.Problem, arch: int, emulated: Worker):
    assert emulated(c.complaints, problem, "ieee", arch, SCHEDULES) == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("problem", [c.STRIDED, c.POOLED], ids=str)
def test_other_precisions(problem: c.Problem, arch: int, emulated: Worker):
    """Were operands not cut off, all would be as exact as float32: nothing is in a wrong place."""
    assert emulated(c.complaints, problem, "tf32", arch, SCHEDULES[:1], operands="exact") == []
    for precision in ("tf32", "bf16"):
        assert emulated(c.complaints, problem, precision, arch, SCHEDULES[1:2]) == []


@pytest.mark.slow
def test_tasks_in_chunks(emulated: Worker):
    assert emulated(c.complaints, c.STRIDED, "ieee", 90, SCHEDULES[:1], scratch=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("problem", [c.WIDE, c.WIDE_STRIDED], ids=str)
def test_moves_what_is_counted(problem: c.Problem, emulated: Worker):
    """A sector that holds a number which nobody asked for is moved, too; what all programs share, once a program."""
    launches = emulated(c.moved, problem, 90)
    for kernel, moved, counted, issued in launches:
        assert counted == pytest.approx(moved, rel=0.15), kernel
        assert issued == pytest.approx(1, rel=1e-6) or kernel == "conv_head", kernel
    assert sum(row[1] for row in launches) == pytest.approx(sum(row[2] for row in launches), rel=0.05)
