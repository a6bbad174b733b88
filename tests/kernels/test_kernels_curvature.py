"""``curvature`` of native.c, which the playground calls: losses, predictions, gradients and Hessian-vector products."""

from __future__ import annotations

import ctypes
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.kernels.compiler import RETURNS, addresses, library_of
from lightning_maml.kernels.mlp_adapt import native
from lightning_maml.kernels.mlp_adapt.layout import LOSSES, size

FREQUENCY = 3.0
ACTIVATIONS = {
    "identity": lambda x: x, "relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu,
    "sine": lambda x: torch.sin(FREQUENCY * x),
}  # fmt: skip
SIZES = [(1, 1, (1, 1)), (7, 3, (2, 5, 3)), (13, 11, (1, 40, 40, 2))]


def called(widths: tuple[int, ...], activation: str, loss: str, *given: Tensor | None) -> tuple[str, list[Tensor]]:
    """What it returns, and what it writes over NaN, for parameters, directions, inputs and targets."""
    parameters, directions, inputs, targets = given
    (tasks, rows), out = inputs.shape[:2], widths[-1]
    shapes = [(tasks,), (tasks, rows, out), parameters.shape, parameters.shape]
    results = [inputs.new_full(shape, math.nan) for shape in shapes]
    layers, most = len(widths) - 1, native.MOST_LAYERS
    problem = native._Problem(
        tasks, rows, 0, 0, LOSSES.index(loss), 2, 0, 1, 1, layers, native.ACTIVATIONS.index(activation),
        (ctypes.c_int64 * (most + 1))(*widths), (ctypes.c_double * most)(*[FREQUENCY] * (layers - 1)),
    )  # fmt: skip
    problem.support_inputs, problem.support_targets, problem.support_losses, problem.predictions = addresses(
        [inputs, targets, *results[:2]]
    )
    pointers = [ctypes.c_void_p(one) for one in addresses([parameters, directions, *results[2:]])]
    if directions is None:
        pointers[3] = None
    code = library_of(native.SOURCE, inputs.dtype, native._Problem).curvature(ctypes.byref(problem), *pointers)
    return RETURNS[code], results


def drawn(tasks: int, rows: int, widths: tuple[int, ...], loss: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tasks)
    shapes = [(tasks, size(widths)), (tasks, size(widths)), (tasks, rows, widths[0]), (tasks, rows, widths[-1])]
    given = [torch.randn(shape, generator=generator, dtype=dtype) * 0.5 for shape in shapes]
    if loss == "cross_entropy":
        given[3] = torch.randint(widths[-1], (tasks, rows), generator=generator)
    elif loss == "bce":
        given[3] = (given[3] > 0).to(dtype)
    return given


def reference(widths: tuple[int, ...], activation: str, loss: str, *given: Tensor) -> list[Tensor]:
    """By autograd, task by task."""
    losses = {
        "mse": F.mse_loss,
        "cross_entropy": F.cross_entropy,
        "bce": F.binary_cross_entropy_with_logits,
    }
    found = []
    for flat, along, x, y in zip(*given, strict=True):
        flat, begin, values = flat.clone().requires_grad_(), 0, x
        for layer, (inside, out) in enumerate(pairwise(widths)):
            weight, bias = flat[begin : begin + inside * out].reshape(out, inside), flat[begin + inside * out :][:out]
            values = values @ weight.T + bias
            if layer < len(widths) - 2:
                values = ACTIVATIONS[activation](values)
            begin += (inside + 1) * out
        value = losses[loss](values, y)
        (gradient,) = torch.autograd.grad(value, flat, create_graph=True)
        product = torch.zeros_like(flat)
        if gradient.requires_grad:
            product = torch.autograd.grad(gradient @ along, flat, allow_unused=True)[0]
        found.append((value.detach(), values.detach(), gradient.detach(), product))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("tasks, rows, widths", SIZES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_autograds(activation: str, loss: str, tasks: int, rows: int, widths: tuple[int, ...]) -> None:
    given = drawn(tasks, rows, widths, loss, torch.float64)
    code, found = called(widths, activation, loss, *given)
    assert code == "done"
    for ours, expected in zip(found, reference(widths, activation, loss, *given), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_every_activation_and_loss_is_tested() -> None:
    assert set(ACTIVATIONS) == set(native.ACTIVATIONS)


def test_without_directions_there_are_no_products() -> None:
    parameters, _, inputs, targets = drawn(5, 4, (2, 3, 1), "mse", torch.float32)
    code, (losses, predictions, gradients, products) = called(
        (2, 3, 1), "tanh", "mse", parameters, None, inputs, targets
    )
    assert code == "done"
    assert products.isnan().all()
    assert all(part.isfinite().all() for part in (losses, predictions, gradients))


def test_a_label_out_of_range_is_said() -> None:
    parameters, directions, inputs, _ = drawn(2, 3, (2, 3), "mse", torch.float64)
    given = parameters, directions, inputs, torch.full((2, 3), 3)
    assert called((2, 3), "relu", "cross_entropy", *given)[0] == "out_of_range"
