"""The kernels of whole inner loops at sizes that hypothesis draws. In a file of its own: not every machine has it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="needs hypothesis")

import test_kernels_conv_adapt as conv
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


@st.composite
def networks(draw) -> conv.Network:
    integer = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    pool, norm, blocks = draw(st.booleans()), draw(st.booleans()), integer(1, 3)
    least = 2**blocks if pool else 2
    stride = 1 if pool else integer(1, 2)
    flags = {"pool": pool, "norm": norm, "bias": draw(st.booleans()), "affine": norm and draw(st.booleans())}
    sizes = (integer(1, 3), integer(least, least + 7), integer(least, least + 7), integer(1, 19), blocks, stride)
    return conv.Network(*sizes, flat=draw(st.booleans()), ways=integer(1, 6), **flags)


@settings(max_examples=30, deadline=None)
@given(networks(), st.sampled_from(conv.LOSSES), st.integers(1, 4), st.integers(2, 6), st.integers(0, 3), st.booleans())
def test_convolutions_at_any_size(network, loss, tasks, rows, steps, elements):
    arguments = conv.operands(network, loss, tasks, rows, rows + 1, steps, elements)
    expected = conv.naive(*arguments, network, loss, 2)
    if not all(value.isfinite().all() and value.abs().max() < 1e6 for value in expected if value.numel()):
        return  # such a draw says nothing of rounding
    conv.assert_equal(conv.outputs(arguments, network, loss), expected, 1e-7)
