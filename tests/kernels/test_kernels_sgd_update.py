"""The inner step of all tasks in one launch: the operator, its derivatives, and the Triton kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_maml.kernels.sgd_update import sgd_update
from lightning_maml.kernels.sgd_update.naive import sgd_update as naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU: Triton's interpreter


OPTIONS = {
    "plain": {},
    "clipped": {"factors": True},
    "decay": {"weight_decay": 0.1},
    "first": {"momentum": 0.9},
    "everything": {"factors": True, "weight_decay": 0.1, "buffer": True, "momentum": 0.9},
}


def _operands(tasks: int, P: int, shared: bool, elements: bool, option: str = "plain", **like) -> list:
    """Parameters, gradients, rates, and the options in the operator's order."""
    option = OPTIONS[option]
    phi = torch.randn((P,) if shared else (tasks, P), **like)
    gradient, rate = torch.randn(tasks, P, **like), torch.rand((P,) if elements else (), **like)
    factors = torch.rand(tasks, **like) if "factors" in option else None
    buffer = torch.randn(tasks, P, **like) if "buffer" in option else None
    return [phi, gradient, rate, factors, option.get("weight_decay", 0.0), buffer, option.get("momentum", 0.0)]


def _outputs(result) -> list[Tensor]:
    return [value for value in result if value is not None and value.numel()]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck reads it
@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_operator_and_its_derivatives(option, shared, elements):
    operands = _operands(3, 5, shared, elements, option, dtype=torch.float64)
    leaves = [value.requires_grad_() for value in operands if isinstance(value, Tensor)]
    for ours, exact in zip(_outputs(sgd_update(*operands)), _outputs(naive(*operands)), strict=True):
        torch.testing.assert_close(ours, exact)

    def run(*leaves):
        given = iter(leaves)
        return tuple(_outputs(sgd_update(*(next(given) if isinstance(v, Tensor) else v for v in operands))))

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)
    results = torch.library.opcheck(torch.ops.lightning_maml.sgd_update.default, operands)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("wanted", range(5))
def test_one_derivative_at_a_time(wanted):
    operands = _operands(3, 5, False, True, "everything", dtype=torch.float64)
    leaf = [value for value in operands if isinstance(value, Tensor)][wanted].requires_grad_()
    ours, exact = (torch.autograd.grad(call(*operands)[0].square().sum(), leaf) for call in (sgd_update, naive))
    torch.testing.assert_close(ours, exact)


def test_second_order_through_an_update():
    """The exact meta-gradient of one step: a custom backward that autograd cannot see would give 1 - 0 instead."""
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    rows = theta.expand(1, -1)
    (gradient,) = torch.autograd.grad((rows**3).sum(), rows, create_graph=True)
    following, _ = sgd_update(theta, gradient, torch.tensor(0.1, dtype=torch.float64))
    (of_theta,) = torch.autograd.grad(following.sum(), theta)
    assert of_theta.item() == pytest.approx(1 - 0.1 * 6 * 2.0)


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "tasks,P,option",
    [(1, 1, "plain"), (3, 1023, "clipped"), (2, 1025, "decay"), (2, 7, "first"), (5, 2053, "everything")],
)
def test_kernel(tasks, P, option, shared, elements, poisoned):
    kernel = pytest.importorskip("lightning_maml.kernels.sgd_update.kernel", reason="needs Triton")
    operands = _operands(tasks, P, shared, elements, option, device=DEVICE)
    expected = _outputs(naive(*(value.double() if isinstance(value, Tensor) else value for value in operands)))
    for ours, exact in zip(_outputs(kernel.launch(*operands)), expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)


def test_torch_compile_sees_one_graph():
    phi, *rest = _operands(3, 7, False, True, "everything")
    call = lambda phi: sgd_update(2 * phi, *rest)[0].square().sum()  # noqa: E731
    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    phi.requires_grad_()
    assert whole(phi) == call(phi)
    torch.testing.assert_close(torch.autograd.grad(whole(phi), phi), torch.autograd.grad(call(phi), phi))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_numbers_than_32_bits_count():
    tasks, P = 3, (1 << 30) + 7  # the last task begins behind 2^31
    if torch.cuda.mem_get_info()[0] < 4 * 4 * tasks * P:
        pytest.skip("needs 52 GB of GPU memory")
    phi, gradient = torch.ones(P, device="cuda"), torch.full((tasks, P), 2.0, device="cuda")
    following, _ = sgd_update(phi, gradient, torch.tensor(0.25, device="cuda"))
    assert following[-1, -1] == 0.5
    assert (following == 0.5).all()


def test_what_does_not_fit_is_refused():
    phi, gradient, rate, *_ = _operands(3, 7, False, False)
    with pytest.raises(ValueError, match=r"Expected `gradient` \[T, P\]"):
        sgd_update(phi[:2], gradient, rate)
    with pytest.raises(ValueError, match=r"Expected `rate` \[\] or \[7\] but got \[3\]"):
        sgd_update(phi, gradient, rate.expand(3))
    with pytest.raises(ValueError, match=r"Expected `factors` \[3\] but got \[7\]"):
        sgd_update(phi, gradient, rate, torch.ones(7))
    with pytest.raises(ValueError, match=r"Expected `buffer` \[3, 7\] and `momentum` but got \[3, 7\] and 0.0"):
        sgd_update(phi, gradient, rate, buffer=phi)
    with pytest.raises(TypeError, match=r"Expected one dtype"):
        sgd_update(phi, gradient.double(), rate)
