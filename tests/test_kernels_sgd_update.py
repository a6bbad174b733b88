"""The inner step of all tasks in one launch: the operator, its derivatives, and the Triton kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_maml.kernels.sgd_update import sgd_update
from lightning_maml.kernels.sgd_update.naive import sgd_update as naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU: Triton's interpreter


def _operands(tasks: int, P: int, shared: bool, elements: bool, **like) -> tuple[Tensor, Tensor, Tensor]:
    phi = torch.randn((P,) if shared else (tasks, P), **like)
    return phi, torch.randn(tasks, P, **like), torch.rand((P,) if elements else (), **like)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck reads it
@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_operator_and_its_derivatives(shared, elements):
    operands = [value.requires_grad_() for value in _operands(3, 7, shared, elements, dtype=torch.float64)]
    torch.testing.assert_close(sgd_update(*operands), naive(*operands))
    assert torch.autograd.gradcheck(sgd_update, operands)
    assert torch.autograd.gradgradcheck(sgd_update, operands)
    results = torch.library.opcheck(torch.ops.lightning_maml.sgd_update.default, operands)
    assert set(results.values()) == {"SUCCESS"}


def test_second_order_through_an_update():
    """The exact meta-gradient of one step: a custom backward that autograd cannot see would give 1 - 0 instead."""
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    rows = theta.expand(1, -1)
    (gradient,) = torch.autograd.grad((rows**3).sum(), rows, create_graph=True)
    (of_theta,) = torch.autograd.grad(sgd_update(theta, gradient, torch.tensor(0.1, dtype=torch.float64)).sum(), theta)
    assert of_theta.item() == pytest.approx(1 - 0.1 * 6 * 2.0)


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tasks,P", [(1, 1), (3, 1023), (2, 1025), (5, 2053)])
def test_kernel(tasks, P, shared, elements, poisoned):
    kernel = pytest.importorskip("lightning_maml.kernels.sgd_update.kernel", reason="needs Triton")
    operands = _operands(tasks, P, shared, elements, device=DEVICE)
    expected = naive(*(value.double() for value in operands))
    torch.testing.assert_close(kernel.launch(*operands).double(), expected, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused():
    phi, gradient, rate = _operands(3, 7, False, False)
    with pytest.raises(ValueError, match=r"Expected `gradient` \[T, P\]"):
        sgd_update(phi[:2], gradient, rate)
    with pytest.raises(ValueError, match=r"Expected `rate`"):
        sgd_update(phi, gradient, rate.expand(3))
    with pytest.raises(TypeError, match=r"Expected one dtype"):
        sgd_update(phi, gradient.double(), rate)
