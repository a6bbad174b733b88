"""Sinusoid tasks: the paper's distribution."""

from __future__ import annotations

import math

import torch

from lightning_maml.data import SinusoidTasks


def test_targets_are_a_sinusoid_with_one_amplitude_and_phase_for_a_task() -> None:
    tasks = SinusoidTasks(shots=4, queries=6, tasks_per_batch=3).sample("train", 0)
    inputs = torch.cat([tasks.support_inputs, tasks.query_inputs], 1).double()
    targets = torch.cat([tasks.support_targets, tasks.query_targets], 1).double()
    # A sin(x - p) = (A cos p) sin x - (A sin p) cos x: linear in two unknowns, which all ten points determine
    waves = torch.cat([inputs.sin(), -inputs.cos()], -1)
    unknown = torch.linalg.lstsq(waves, targets).solution
    torch.testing.assert_close(waves @ unknown, targets, rtol=0, atol=1e-5)
    amplitudes = unknown.norm(dim=1).flatten()
    assert ((amplitudes > 0.1) & (amplitudes < 5)).all()
    assert len(amplitudes.unique()) == 3


def test_distribution_is_the_papers() -> None:
    amplitude, phase, inputs = SinusoidTasks().draw("train", 4000, torch.Generator().manual_seed(0))
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (inputs, -5.0, 5.0)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        ordered = values.flatten().sort().values
        uniform = torch.linspace(low, high, len(ordered))
        assert (ordered - uniform).abs().max() < 0.04 * (high - low)  # Kolmogorov-Smirnov: far beyond its 1% quantile


def test_validation_and_test_have_sizes_of_their_own() -> None:
    stream = SinusoidTasks(shots=10, queries=7, tasks_per_batch=4, test_shots=5, test_queries=20)
    for stage, shots, queries in (("train", 10, 7), ("val", 5, 20), ("test", 5, 20)):
        tasks = stream.sample(stage, 0)
        assert tasks.support_inputs.shape == tasks.support_targets.shape == (4, shots, 1)
        assert tasks.query_inputs.shape == tasks.query_targets.shape == (4, queries, 1)
    assert SinusoidTasks(shots=3).sample("test", 0).support_inputs.shape == (25, 3, 1)


def test_intervals_can_be_others() -> None:
    tasks = SinusoidTasks(amplitude=(2.0, 2.0), phase=(0.0, 0.0), inputs=(0.0, 1.0)).sample("train", 0)
    assert tasks.query_inputs.min() >= 0
    torch.testing.assert_close(tasks.query_targets, 2 * tasks.query_inputs.sin())
