"""The kernels of whole inner loops at sizes that hypothesis draws. In a file of its own: not every machine has it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="needs hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_mlp_adapt import assert_equal, launch, operands

from lightning_maml.kernels.mlp_adapt import ACTIVATIONS, LOSSES, mlp_adapt
from lightning_maml.kernels.mlp_adapt.naive import mlp_adapt as naive


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 19), min_size=2, max_size=4),
    tasks=st.integers(1, 3),
    support=st.integers(1, 18),
    query=st.integers(1, 18),
    activation=st.sampled_from(ACTIVATIONS),
    loss=st.sampled_from(LOSSES),
)
def test_kernels_at_any_size(widths, tasks, support, query, activation, loss):
    arguments = operands(widths, loss, tasks, support, query, steps=1)
    expected = naive(*arguments, widths, activation, loss, 2)
    assert_equal(launch(arguments, widths, activation, loss), expected, 2e-5)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_compiled_at_any_size(data):
    """Tasks that fill no register, prime numbers of rows, layers wider and narrower than a tile, in both dtypes."""
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    widths = [draw(1, 12) for _ in range(draw(2, 5))]
    loss, activation = data.draw(st.sampled_from(LOSSES)), data.draw(st.sampled_from(ACTIVATIONS))
    sizes = {"tasks": draw(1, 35), "support": draw(1, 23), "query": draw(1, 23), "steps": draw(0, 3)}
    torch.manual_seed(draw(0, 1000))
    arguments = operands(widths, loss, **sizes, elements=data.draw(st.booleans()))
    order, single = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans())
    expected = naive(*arguments, widths, activation, loss, order)
    if single:
        arguments = [value.float() if value.is_floating_point() else value for value in arguments]
    output = mlp_adapt(*arguments, widths, activation, loss, order, rates_grad=True, compiled=True)
    assert_equal(output, expected, 1e-4 if single else 1e-11)  # of which float32's worst slopes are a sum of large ones
