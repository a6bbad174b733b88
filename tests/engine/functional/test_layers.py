"""The batched layers against torch's own, to the second derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lightning_maml.engine.functional.layers import batch_norm, conv2d, linear, patches, scatter


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("stride,padding", [((1, 1), (0, 0)), ((2, 2), (1, 1)), ((2, 1), (0, 2)), ((3, 2), (1, 0))])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 2), (2, 1)])
def test_conv2d(kernel, stride, padding):
    inputs, weight, bias = random(2, 2, 2, 5, 4), random(2, 3, 2, *kernel), random(2, 3)
    expected = torch.stack([F.conv2d(*one, stride, padding) for one in zip(inputs, weight, bias, strict=True)])
    torch.testing.assert_close(conv2d(inputs, weight, bias, stride, padding), expected)
    function = lambda *args: conv2d(*args, stride, padding)  # noqa: E731
    assert gradcheck(function, (inputs, weight, bias))
    assert gradgradcheck(function, (inputs, weight, bias))


def test_batch_norm():
    inputs, weight, bias = random(2, 3, 2, 2, 2), random(2, 2), random(2, 2)
    each = zip(inputs, weight, bias, strict=True)
    expected = torch.stack([F.batch_norm(x, None, None, w, b, training=True) for x, w, b in each])
    torch.testing.assert_close(batch_norm(inputs, weight, bias, 1e-5), expected)
    assert gradcheck(lambda *args: batch_norm(*args, 1e-5), (inputs, weight, bias))
    assert gradgradcheck(lambda *args: batch_norm(*args, 1e-5), (inputs, weight, bias))


def test_batch_norm_far_from_zero():
    """A mean a million deviations away: the statistics are taken about it."""
    inputs = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64) + 1e6
    expected = torch.stack([F.batch_norm(x, None, None, training=True) for x in inputs])
    torch.testing.assert_close(batch_norm(inputs, None, None, 1e-5), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [(3,), (3, 2)])
def test_linear(rows):
    inputs, weight, bias = random(2, *rows, 4), random(2, 5, 4), random(2, 5)
    expected = torch.stack([F.linear(*one) for one in zip(inputs, weight, bias, strict=True)])
    torch.testing.assert_close(linear(inputs, weight, bias), expected)
    assert gradgradcheck(linear, (inputs, weight, bias))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck reads it
@pytest.mark.parametrize(
    "kernel,stride,padding", [([3, 3], [2, 2], [1, 1]), ([1, 1], [1, 1], [0, 0]), ([2, 3], [1, 2], [0, 1])]
)
def test_patches_and_their_adjoint(kernel, stride, padding):
    images = random(2, 3, 5, 4, 2)
    columns = patches(images, kernel, stride, padding)
    other = torch.randn_like(columns)
    back = scatter(other, list(images.shape), kernel, stride, padding)
    torch.testing.assert_close((columns * other).sum(), (images * back).sum())  # <A x, y> = <x, A' y>
    torch.library.opcheck(patches, (images, kernel, stride, padding))
    torch.library.opcheck(scatter, (other.requires_grad_(), list(images.shape), kernel, stride, padding))
