"""The kernels of whole inner loops at sizes that hypothesis draws. In a file of its own: not every machine has it."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maml.kernels.mlp_adapt import ACTIVATIONS, LOSSES
from lightning_maml.kernels.mlp_adapt.naive import mlp_adapt as naive
from test_kernels_mlp_adapt import assert_equal, launch, operands


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
