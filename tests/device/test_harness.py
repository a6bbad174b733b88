"""The stand-in device itself: that it is what CUDA would be, and that what must not happen on a device is noticed."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils import backend_registration

import standin
from lightning_maml import TaskBatch, maml, meta_loss
from lightning_maml.training.meta_update import meta_update
from problems import make_problem
from same import assert_same
from standin import DEVICE, NAME, StandIn, host_copies


def test_the_api_of_torch_is_what_it_was() -> None:
    """It is experimental: where this fails, a new torch has changed it, and nothing else here says anything."""
    of_it = "_setup_privateuseone_for_python_backend"
    assert hasattr(backend_registration, of_it), f"torch {torch.__version__} has no {of_it} any more"
    assert torch.accelerator.current_accelerator() == torch.device(NAME)
    assert torch.get_device_module(NAME).device_count() == 1
    made = torch.zeros(2, device=NAME)
    assert isinstance(made, StandIn), f"torch {torch.__version__} makes {type(made)} of a factory's device={NAME!r}"
    assert made.device == DEVICE
    assert isinstance(made + 1, StandIn), f"torch {torch.__version__} does not hand operators to the subclass"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device=DEVICE),
        lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        lambda: torch.as_tensor(2.0, device=DEVICE),
        lambda: torch.arange(3, device=DEVICE),
        lambda: torch.eye(3, device=DEVICE),
        lambda: torch.rand(3, device=DEVICE),
        lambda: torch.randperm(3, device=DEVICE),
        lambda: torch.zeros(3).to(DEVICE, torch.float32),
        lambda: torch.zeros(3).to(NAME).new_ones(2),
        lambda: copy.deepcopy(nn.Parameter(torch.zeros(3, device=DEVICE))),
    ],
)
def test_tensors_are_made_there(make) -> None:
    assert isinstance(make(), StandIn)
    assert make().device == DEVICE


def test_a_module_moves_and_stays_the_same_objects() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = [*module.parameters()]
    optimizer = torch.optim.Adam(before)
    module.to(DEVICE)
    assert all(one is other for one, other in zip(module.parameters(), before, strict=True))
    assert {value.device for value in module.state_dict().values()} == {DEVICE}
    module(torch.ones(4, 3, device=DEVICE)).sum().backward()
    optimizer.step()
    assert {value.device for value in module.cpu().state_dict().values()} == {torch.device("cpu")}


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: there + here,
        lambda here, there: here @ there.T,
        lambda here, there: torch.stack([here[0, 0], there[0, 0]]),
        lambda here, there: torch.cat([there, here]),
        lambda here, there: here[there[:, 0].long()],
        lambda here, there: nn.Linear(3, 2)(there),
        lambda here, there: torch.addmm(there[0], there, here.T),
        lambda here, there: nn.functional.cross_entropy(there, here[:, 0].long()),
        lambda here, there: torch._foreach_add([there], [here]),
    ],
)
def test_a_tensor_on_another_device_raises(mix) -> None:
    here = torch.rand(3, 3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, but found at least two"):
        mix(here, here.to(DEVICE))


def test_what_cuda_takes_of_the_cpu() -> None:
    there = torch.arange(6.0).view(2, 3).to(DEVICE)
    assert (there * torch.tensor(2.0)).device == DEVICE
    assert there[torch.tensor([1])].device == DEVICE
    with pytest.raises(RuntimeError, match="attempting to assign a gradient with device type 'cpu'"):
        nn.Parameter(there).grad = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="can't convert standin:0 device type tensor to numpy"):
        there.numpy()


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.solve(torch.diag(x), x),
        lambda x: x.unique(),
    ],
)
def test_what_waits_for_the_device_is_counted(ask) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).to(DEVICE)
    with host_copies() as copies:
        ask(x)
    assert len(copies) == 1, copies.of
    assert "test_harness.py" in copies.of[0]


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.to(torch.float32),
        lambda x: x.where(x > 1, 0.0),
        lambda x: x.masked_fill(x > 1, 0.0),
        lambda x: torch.zeros(3).to(DEVICE),
        lambda x: x.shape,
        lambda x: torch.linalg.solve_ex(torch.diag(x), x),
        lambda x: x.clone().requires_grad_().square().sum().backward(),
    ],
)
def test_what_does_not_wait_is_not_counted(ask) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).to(DEVICE)
    with host_copies() as copies:
        ask(x)
    assert not copies.of


# Random numbers


def test_random_numbers_come_from_the_devices_own_generator() -> None:
    torch.manual_seed(3)
    here = torch.rand(2)
    there = torch.rand(2, device=DEVICE)
    assert torch.equal(there.numbers, here)  # seeded alike, and drawn from apart
    state = standin.module.get_rng_state()
    again = torch.rand(2, device=DEVICE)
    torch.rand(2)
    standin.module.set_rng_state(state)
    assert torch.equal(torch.rand_like(there).numbers, again.numbers)


def test_generators() -> None:
    there = torch.Generator(device=NAME).manual_seed(3)
    assert there.device == DEVICE
    drawn = torch.rand(2, generator=there, device=DEVICE)
    assert torch.equal(drawn.numbers, torch.rand(2, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(RuntimeError, match="Expected a 'standin' device type for generator but found 'cpu'"):
        torch.rand(2, generator=torch.Generator(), device=DEVICE)


# Pinned memory


def test_a_copy_to_the_host_that_does_not_block_has_not_arrived() -> None:
    there = torch.ones(3, device=DEVICE)
    with host_copies() as copies:
        here = there.to("cpu", non_blocking=True)
        assert here.isnan().all()
        assert not copies.of
    torch.accelerator.synchronize()
    assert torch.equal(here, torch.ones(3))
    with host_copies() as copies:
        assert torch.equal(torch.zeros(3).copy_(there, non_blocking=True), torch.ones(3))  # nor is that memory pinned
    assert len(copies) == 1
    with host_copies() as copies:
        assert torch.zeros(3).pin_memory().copy_(there, non_blocking=True).isnan().all()
    assert not copies.of
    torch.accelerator.synchronize()


def test_pinned_memory_is_not_to_be_written_to_while_it_is_copied() -> None:
    here = torch.ones(3).pin_memory()
    assert here.is_pinned()
    assert not torch.ones(3).is_pinned()
    there = here.to(DEVICE, non_blocking=True)
    torch.accelerator.synchronize()
    here.zero_()
    assert torch.equal(there.cpu(), torch.ones(3))
    here.to(DEVICE, non_blocking=True)
    here.fill_(2.0)
    with pytest.raises(RuntimeError, match="pinned memory was written to while a non_blocking copy of it"):
        torch.accelerator.synchronize()
    with pytest.raises(RuntimeError, match="cannot pin 'standin:0'"):
        there.pin_memory()


# Files


def test_files_say_where_a_tensor_lay() -> None:
    def loaded(to) -> Tensor:
        file.seek(0)
        return torch.load(file, map_location=to, weights_only=True)

    file = io.BytesIO()
    torch.save(torch.arange(3.0).to(DEVICE), file)
    assert loaded(None).device == DEVICE
    assert type(loaded("cpu")) is Tensor
    assert loaded("cpu").tolist() == loaded(None).tolist() == [0, 1, 2]
    torch.save(torch.arange(3.0), file := io.BytesIO())
    assert type(loaded(None)) is Tensor
    assert loaded(NAME).device == DEVICE


# The harness proves itself: what must not be in a loss, is noticed


def _problem() -> tuple[nn.Module, TaskBatch]:
    network, tasks = make_problem("mlp", "mse")
    return network.to(DEVICE), tasks.to(DEVICE)


def _item_in_a_loop(predictions: Tensor, targets: Tensor) -> Tensor:
    loss = (predictions - targets).square().mean()
    if loss.item() > 1e30:  # what a user writes to be on the safe side
        raise AssertionError
    return loss


def _on_the_cpu(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions.cpu() - targets.cpu()).square().mean().to(predictions.device)


def _weights_of_the_wrong_device(predictions: Tensor, targets: Tensor) -> Tensor:
    return ((predictions - targets).square() * torch.ones(predictions.shape[-1])).mean()


@pytest.mark.parametrize("loss", [_item_in_a_loop, _on_the_cpu])
def test_a_loss_that_waits_for_the_device_is_noticed(loss) -> None:
    network, tasks = _problem()
    with host_copies() as copies:
        meta_update(network, maml(0.1, 2), tasks, loss=loss, engine="eager")
    assert len(copies) > 1
    # what test_adaptation.py asserts of every meta-update
    with pytest.raises(AssertionError):
        assert_same(
            lambda device: [
                *meta_update(network.to(device), maml(0.1, 2), tasks.to(device), loss=loss, engine="eager").gradients
            ],
            host=1,
        )


@pytest.mark.parametrize("engine", ["eager", "batched", "auto"])
def test_a_loss_that_makes_tensors_on_the_wrong_device_raises(engine) -> None:
    network, tasks = _problem()
    with pytest.raises(RuntimeError, match=r"found at least two devices, standin:0 and cpu!"):
        meta_loss(network, maml(0.1, 2), tasks, loss=_weights_of_the_wrong_device, engine=engine)


def test_a_result_on_the_wrong_device_is_noticed() -> None:
    with pytest.raises(AssertionError, match="a result lies on cpu"):
        assert_same(lambda device: torch.ones(3, device=device).cpu())


def test_other_numbers_are_noticed() -> None:
    with pytest.raises(AssertionError, match="not close|not equal"):
        assert_same(lambda device: torch.ones(3, device=device) + (device.type == "cpu") * 1e-15)
