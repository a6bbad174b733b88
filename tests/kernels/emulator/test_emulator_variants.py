"""Every variant of every Triton kernel, as compiled: right, without a race or another fault, in any order of warps."""

from __future__ import annotations

from itertools import combinations, product

import pytest

pytest.importorskip("triton", reason="needs Triton")

import emulated as e
from lightning_maml.kernels.inspect import variants
from lightning_maml.kernels.mlp_adapt import ACTIVATIONS, LOSSES, PRECISIONS
from worker import Worker

SCHEDULES = ("forward", "backward", 1, 2)
ARCHES = (80, 90, 100)
KINDS = [(order, rates) for order in (2, 1) for rates in ("", "shared", "own")]
"""The order of the meta-gradient, and which rates get one of their own."""
WIDTHS = ((6, 13, 11, 4), (3, 40, 4))
SLOW = pytest.mark.slow


def problem(activation: str, loss: str, order: int, rates: str, widths: tuple[int, ...]) -> e.Problem:
    kind = {"order": order, "rates": rates or "shared", "rates_grad": bool(rates)}
    name = f"{activation}, {loss}, order {order}, {rates or 'no'} rates, {widths}"
    return e.Problem(name, widths, activation, loss, 7, 18, 2, rate=0.1, **kind)


# all pairs of an activation, a kind, a precision, a loss and an architecture, in as few cases as there can be
PAIRS = [
    (activation, kind, PRECISIONS[(i + j) % 3], LOSSES[(i + 2 * j) % 3], ARCHES[(j + j // 3 + i // 2 + i // 3) % 3])
    for i, activation in enumerate(ACTIVATIONS)
    for j, kind in enumerate(KINDS)
]
QUICK = [
    (problem(activation, loss, *kind, WIDTHS[number % 2]), precision, arch)
    for number, (activation, kind, precision, loss, arch) in enumerate(PAIRS)
]
QUICK += [(e.Problem("64 classes", (3, 64), "relu", "cross_entropy", 20, 20, 1, rate=0.1), "ieee", 90)]
EVERY = [
    (problem(activation, loss, *KINDS[number % 6], WIDTHS[number // 6 % 2]), precision, arch)
    for number, (activation, loss, precision, arch) in enumerate(product(ACTIVATIONS, LOSSES, PRECISIONS, ARCHES))
]
EVERY += [
    (problem(activation, "mse", *kind, WIDTHS[1]), precision, arch)
    for activation, kind, precision, arch in product(("relu", "gelu"), KINDS, PRECISIONS, ARCHES)
]
SHIPPED = [variant for variant in variants() if variant.kernel != "sgd_update_kernel"]
EVERY += [(e.of(variant), variant.constants["PRECISION"], arch) for variant in SHIPPED for arch in ARCHES]
EVERY += [(problem, precision, arch) for problem in e.SIZES for precision in PRECISIONS for arch in ARCHES]


def test_each_two_choices_meet_in_a_quick_case():
    choices = (ACTIVATIONS, KINDS, PRECISIONS, LOSSES, ARCHES)
    for (i, some), (j, others) in combinations(enumerate(choices), 2):
        assert {(case[i], case[j]) for case in PAIRS} == set(product(some, others))


def test_all_that_ships_is_emulated():
    covered = [
        (*variant, arch) for problem, precision, arch in QUICK + EVERY for variant in problem.variants(precision)
    ]
    missing = [
        f"{variant} on sm_{arch}"
        for variant in SHIPPED
        for arch in ARCHES
        if (variant.kernel, variant.constants, arch) not in covered
    ]
    assert missing == []


@pytest.mark.parametrize("problem, precision, arch", QUICK, ids=str)
def test_right_and_without_a_race(problem: e.Problem, precision: str, arch: int, emulated: Worker):
    assert emulated(e.complaints, problem, precision, arch, SCHEDULES) == []


@pytest.mark.slow
@pytest.mark.parametrize("problem, precision, arch", EVERY, ids=str)
def test_every_variant_is_right_and_without_a_race(problem: e.Problem, precision: str, arch: int, emulated: Worker):
    assert emulated(e.complaints, problem, precision, arch, SCHEDULES if problem.tasks > 1 else SCHEDULES[1:3]) == []


@pytest.mark.parametrize("arch", [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)])
def test_tf32_cuts_off_and_does_nothing_else(arch: int, emulated: Worker):
    """Were operands not cut off, all would be as exact as float32: nothing is in a wrong place."""
    gelu = problem("gelu", "cross_entropy", 2, "own", WIDTHS[0])
    assert emulated(e.complaints, gelu, "tf32", arch, SCHEDULES[:1], operands="exact") == []


@pytest.mark.parametrize("arch", [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)])
def test_tasks_in_chunks(arch: int, emulated: Worker):
    """Slices of one task start at addresses that are no multiples of 16."""
    assert emulated(e.complaints, e.CHUNKS, "ieee", arch, SCHEDULES[::2], scratch=1) == []


CHOICES = [chosen for chosen in product((False, True), repeat=6) if chosen[4] or not chosen[5]]
"""Own parameters, own rates, factors, decay, momentum, a buffer: there is none without momentum."""


@pytest.mark.parametrize("arch, tasks, length", [(80, 3, 1761), (90, 1, 1), (100, 2, 48)])
def test_sgd_update(arch: int, tasks: int, length: int, emulated: Worker):
    for number, chosen in enumerate(CHOICES):
        if number % 3 == ARCHES.index(arch):
            assert emulated(e.complaints_of_sgd, arch, tasks, length, chosen) == [], chosen


@pytest.mark.slow
@pytest.mark.parametrize("tasks, length", [(3, 1761), (2, 1024), (1, 1), (2, 48)])
@pytest.mark.parametrize("arch", ARCHES)
def test_sgd_update_with_all_options(arch: int, tasks: int, length: int, emulated: Worker):
    for chosen in CHOICES:
        assert emulated(e.complaints_of_sgd, arch, tasks, length, chosen) == [], chosen
