"""policy_gradient: the gradient and its curvature against autograd in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maml.kernels import compiler
from lightning_maml.kernels.mlp_adapt import ACTIVATIONS
from lightning_maml.kernels.mlp_adapt.layout import size
from lightning_maml.kernels.policy_gradient import DISTRIBUTIONS, KINDS, native, policy_gradient
from lightning_maml.kernels.policy_gradient.naive import policy_gradient as naive


def operands(
    widths: list[int],
    distribution: str,
    tasks: int = 3,
    rows: int = 7,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Random parameters and rows; a third of the rows does not count."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gaussian, out = distribution == "gaussian", widths[-1]
    phi = 0.4 * normal(tasks, size(widths) + out * gaussian)
    labels = torch.randint(out, (tasks, rows), generator=generator)
    weights = normal(tasks, rows) / rows * (torch.rand(tasks, rows, generator=generator) < 0.7)
    actions = normal(tasks, rows, out) if gaussian else labels
    return [phi, normal(tasks, rows, widths[0]), actions, weights, normal(tasks, rows) - 1]


def both(arguments: list[Tensor], upstream: Tensor, *kind: Any) -> list[tuple[Tensor, Tensor]]:
    """Gradients, and products of Hessians and ``upstream``: the operator's and autograd's."""
    results = []
    for function in (policy_gradient, naive):
        phi = arguments[0].clone().requires_grad_()
        gradient = function(phi, *arguments[1:], *kind)
        results.append((gradient.detach(), torch.autograd.grad(gradient, phi, upstream)[0]))
    return list(zip(*results, strict=True))


def assert_equal(pairs: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    for name, (found, expected) in zip(("gradient", "curvature"), pairs, strict=True):
        error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_autograd(activation: str, distribution: str, kind: str) -> None:
    widths = [3, 11, 7, 2]
    arguments = operands(widths, distribution, tasks=9, rows=83)
    upstream = torch.randn_like(arguments[0])
    assert_equal(both(arguments, upstream, widths, activation, distribution, kind), 1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("tasks", "rows"), [(1, 1), (1, 3), (17, 1), (2, 81)])
@pytest.mark.parametrize("widths", [[1, 1], [2, 5, 1], [3, 4, 4, 4, 3]])
def test_at_awkward_sizes(widths: list[int], tasks: int, rows: int, distribution: str) -> None:
    arguments = operands(widths, distribution, tasks, rows)
    upstream = torch.randn_like(arguments[0])
    assert_equal(both(arguments, upstream, widths, "tanh", distribution, "ratio"), 1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 13), min_size=2, max_size=5),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(KINDS),
    st.integers(1, 18),
    st.integers(1, 90),
)
def test_equals_autograd_at_any_size(
    widths: list[int], activation: str, distribution: str, kind: str, tasks: int, rows: int
) -> None:
    arguments = operands(widths, distribution, tasks, rows)
    upstream = torch.randn_like(arguments[0])
    assert_equal(both(arguments, upstream, widths, activation, distribution, kind), 1e-9)


def test_in_float32() -> None:
    widths = [2, 100, 100, 2]
    arguments = operands(widths, "gaussian", 3, 500, torch.float32)
    exact = operands(widths, "gaussian", 3, 500)
    upstream = torch.randn_like(exact[0])
    found = both(arguments, upstream.float(), widths, "relu", "gaussian", "ratio")
    expected = both(exact, upstream, widths, "relu", "gaussian", "ratio")
    assert_equal([(a[0], b[1]) for a, b in zip(found, expected, strict=True)], 1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck reads it
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_opcheck_and_gradcheck(distribution: str) -> None:
    widths = [2, 3, 2]
    phi, *rows = operands(widths, distribution, 2, 5)
    phi.requires_grad_()
    kind = (widths, "tanh", distribution, "ratio")
    operator = torch.ops.lightning_maml.policy_gradient.default
    torch.library.opcheck(operator, (phi, None, *rows, *kind))
    torch.library.opcheck(operator, (phi.detach(), torch.randn_like(phi), *rows, *kind))
    assert torch.autograd.gradcheck(lambda phi: policy_gradient(phi, *rows, *kind), phi)


def test_a_third_derivative_is_refused() -> None:
    phi, *rows = operands([2, 3, 2], "gaussian")
    phi.requires_grad_()
    gradient = policy_gradient(phi, *rows, [2, 3, 2], "tanh")
    (curvature,) = torch.autograd.grad(gradient.sum(), phi, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        curvature.sum().backward()


def test_the_same_bits_on_any_number_of_threads() -> None:
    arguments = operands([2, 10, 2], "gaussian", 11, 200, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(policy_gradient(*arguments, [2, 10, 2]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_task_that_overflows_harms_no_other() -> None:
    arguments = operands([2, 10, 2], "gaussian", 5, 50)
    expected = policy_gradient(*arguments, [2, 10, 2])
    arguments[1][2, 7] = float("nan")
    found = policy_gradient(*arguments, [2, 10, 2])
    assert found[2].isnan().any()
    others = [0, 1, 3, 4]
    assert torch.equal(found[others], expected[others])


def test_nothing_is_read_that_was_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", [*compiler.FLAGS, "-DPOISON"])
    compiler.load.cache_clear()
    try:
        for distribution in DISTRIBUTIONS:
            for rows in (1, 43):
                arguments = operands([2, 5, 3], distribution, 3, rows)
                upstream = torch.randn_like(arguments[0])
                assert_equal(both(arguments, upstream, [2, 5, 3], "gelu", distribution, "ratio"), 1e-12)
    finally:
        compiler.load.cache_clear()


def test_no_tasks() -> None:
    assert policy_gradient(*operands([2, 5, 3], "gaussian", 0), [2, 5, 3]).shape == (0, size([2, 5, 3]) + 3)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "load", lambda *_: "there is no C compiler")
    assert native.unavailable() == "there is no C compiler"
    with pytest.raises(RuntimeError, match="Expected to compile `policy_gradient` but there is no C compiler"):
        policy_gradient(*operands([2, 5, 3], "gaussian"), [2, 5, 3])


def test_bad_input_is_refused() -> None:
    phi, observations, actions, weights, old = operands([2, 5, 3], "gaussian")
    rows = (actions, weights, old)
    with pytest.raises(ValueError, match=r"Expected `phi` \[3, 36\] for widths \[2, 5, 3\] but got \[3, 35\]"):
        policy_gradient(phi[:, 1:], observations, *rows, [2, 5, 3])
    with pytest.raises(ValueError, match=r"Expected `observations` \[3, 7, 2\]"):
        policy_gradient(phi, observations[:, :6], *rows, [2, 5, 3])
    with pytest.raises(ValueError, match=r"Expected `observations` \[0, 0, 2\].*with weights \[3, 7, 1\]"):
        policy_gradient(phi[:0], observations, actions, weights.unsqueeze(-1), old, [2, 5, 3])
    with pytest.raises(ValueError, match="Expected `weights` of torch.float64.*but got torch.float32"):
        policy_gradient(phi, observations, actions, weights.float(), old, [2, 5, 3])
    with pytest.raises(ValueError, match="Expected `observations` without a gradient"):
        policy_gradient(phi, observations.requires_grad_(), *rows, [2, 5, 3])
    for name, value in (("activation", "elu"), ("distribution", "beta"), ("kind", "dice")):
        with pytest.raises(ValueError, match=f"Expected `{name}` to be one of .* but got '{value}'"):
            policy_gradient(phi, observations.detach(), *rows, [2, 5, 3], **{name: value})
    with pytest.raises(ValueError, match="Expected `widths` of at most 3 hidden layers"):
        policy_gradient(phi, observations.detach(), *rows, [2])
    arguments = operands([2, 5, 3], "categorical")
    arguments[2][0, 0] = 3
    with pytest.raises(RuntimeError, match="Expected actions from 0 to 2"):
        policy_gradient(*arguments, [2, 5, 3], distribution="categorical")
