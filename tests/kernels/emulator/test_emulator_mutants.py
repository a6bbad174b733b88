"""A fault put into a kernel's PTX is noticed: each barrier taken out, a product or a constant that is another."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="needs Triton")

import emulated as e
import mutants
from worker import Worker

SLOW = pytest.mark.slow
ARCHES = [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)]


@pytest.mark.parametrize("arch", ARCHES)
def test_each_barrier_is_missed(arch: int, emulated: Worker):
    """Of those that kernels ask for; where one of Triton's own is not, it could do without that one."""
    asked_for: dict[tuple[str, str], bool] = {}
    for problem in mutants.BARRIERS:
        for barrier in emulated(mutants.without_each_barrier, problem, arch):
            if barrier.asked_for:
                asked_for.setdefault((barrier.kernel, barrier.source), False)
                asked_for[barrier.kernel, barrier.source] |= barrier.noticed
            elif not barrier.noticed:
                # Triton uses scratch in shared memory once more: what a warp writes there, it alone had read
                before, after = barrier.around
                assert "lds" in before, barrier
                assert "sts" in after, barrier
    # Where weights, or v times a rate, were stored last, products read tiles of the same shape: BM = BK. The layout is
    # the same, too, and every thread reads what itself wrote; which nobody promises, so that the barriers stay.
    silent = [kernel for (kernel, _), noticed in asked_for.items() if not noticed]
    assert silent == ["mlp_forward", "mlp_backward"]
    assert len(asked_for) == 8


PROBLEM = e.Problem("corrupted", (6, 13, 11, 4), "tanh", "cross_entropy", 7, 9, 2, rates_grad=True, rate=0.5, tasks=1)


@pytest.mark.parametrize("entry", ["mlp_forward", "mlp_backward"])
@pytest.mark.parametrize(
    "precision, pattern, by",
    [
        ("tf32", r"(mma\..*\}, \{) (%r\d+), (%r\d+) \}, \{", r"\1 \3, \2 }, {"),
        ("ieee", r"fma\.rn\.f32(\s+%\w+, %\w+, %\w+), %\w+", r"mul.f32\1"),
        ("ieee", r"0f3F800000", "0f3F7F0000"),
        ("ieee", r"(st\.global.*\+) 0 \]", r"\1 4 ]"),
    ],
    ids=["operands of a product", "an operation", "a constant", "an address"],
)
def test_a_corrupted_kernel_is_noticed(entry: str, precision: str, pattern: str, by: str, emulated: Worker):
    assert emulated(mutants.unnoticed, PROBLEM, precision, entry, pattern, by) == set()
