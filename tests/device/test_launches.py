"""The engine fused on the stand-in device: the very Python that launches on a GPU, and the emulator behind it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import standin
from lightning_maml import (
    SGD,
    Fused,
    TaskBatch,
    adapt,
    evaluate,
    fomaml,
    maml,
    meta_loss,
    meta_sgd,
    pretrained,
)
from lightning_maml.engine import Problem
from lightning_maml.engine.fused import KernelError, first_call
from lightning_maml.kernels.mlp_adapt import cuda, mlp_adapt
from lightning_maml.kernels.sgd_update import sgd_update
from lightning_maml.losses import task_loss
from lightning_maml.networks import MLP, Sine
from lightning_maml.training.meta_update import meta_update
from same import assert_same
from standin import DEVICE, NAME, host_copies
from test_training import module, sinusoids, trainer

pytest.importorskip("triton", reason="needs Triton")


@pytest.fixture(autouse=True)
def _as_a_gpu() -> Iterator[None]:
    """In float32, as kernels compute."""
    torch.set_default_dtype(torch.float32)
    standin.launches.clear()
    with standin.as_a_gpu():
        yield


def problem(device: torch.device, loss: str, network: Any = None) -> tuple[nn.Module, TaskBatch]:
    torch.manual_seed(0)
    module = MLP(2, [6], 3, init="default") if network is None else network()
    inputs = torch.randn(2, 2, 5, 2)
    targets = torch.randint(3, (2, 2, 5)) if loss == "cross_entropy" else torch.randn(2, 2, 5, 3)
    return module.to(device), TaskBatch(inputs[0], targets[0], inputs[1], targets[1]).to(device)


def meta_gradient(network: nn.Module, algorithm: Any, tasks: TaskBatch, loss: str, engine: Any) -> list[Any]:
    rates = algorithm.initial_rates(network)
    if rates is not None:
        algorithm = algorithm.with_rates(rates.to(tasks.support_inputs.device))
    output = meta_loss(network, algorithm, tasks, loss=loss, engine=engine)
    output.surrogate.backward()
    trained = [*network.parameters(), *(() if rates is None else rates.parameters())]
    return [output.task_losses, output.predictions, output.support_losses, *(value.grad for value in trained)]


def unverified(**more: Any) -> Fused:
    return Fused(verify=False, **more)


CASES = [
    (maml(0.1, 2), "mse", ["mlp_adapt", "mean_over_tasks"]),
    (maml(0.1, 2), "cross_entropy", ["mlp_adapt", "mean_over_tasks"]),
    (fomaml(0.1, 2), "mse", ["mlp_adapt", "mean_over_tasks"]),
    (pretrained(0.1, 2), "cross_entropy", ["mlp_adapt", "mean_over_tasks"]),
    (meta_sgd(0.1, 2), "mse", ["mlp_adapt", "mean_over_tasks", "mean_over_tasks"]),
]


@pytest.mark.parametrize("algorithm, loss, kernels", CASES)
def test_a_whole_adaptation_is_one_operator(algorithm: Any, loss: str, kernels: list[str]) -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, loss)
        return meta_gradient(network, algorithm, tasks, loss, unverified())

    assert_same(run, off=1e-5, host=0)
    assert standin.launches == [("mlp_adapt", kernels)]


def test_ieee_products_and_two_hidden_layers() -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, "mse", lambda: MLP(2, [6, 5], 3, activation="gelu", init="default"))
        return meta_gradient(network, maml(0.1, 1), tasks, "mse", unverified(precision="ieee"))

    assert_same(run, off=1e-5, host=0)


@pytest.mark.parametrize("widths, rows", [([2, 6, 3], (131, 5)), ([2, 6, 3], (5, 257)), ([2, *[4] * 5, 3], (5, 5))])
def test_what_exceeds_tritons_kernel_is_cudas_alone(widths: list[int], rows: tuple[int, int]) -> None:
    def run(device: torch.device) -> list[Any]:
        network, _ = problem(device, "mse", lambda: MLP(widths[0], widths[1:-1], widths[-1], init="default"))
        sets = [torch.randn(2, number, width) for number in rows for width in (2, 3)]
        return meta_gradient(network, maml(0.1, 2), TaskBatch(*sets).to(device), "mse", unverified())

    assert_same(run, off=1e-5, host=0)
    assert standin.launches == [("mlp_adapt", ["mlp_adapt", "mean_over_tasks"])]
    network, tasks = problem(DEVICE, "mse", lambda: MLP(widths[0], widths[1:-1], widths[-1], init="default"))
    tasks = TaskBatch(*(torch.randn(2, number, width) for number in rows for width in (2, 3))).to(DEVICE)
    for of_triton in ({"precision": "tf32"}, {"precision": "bf16"}):
        with pytest.raises(NotImplementedError, match=r"more than 128|exceed 3 hidden layers or 128 units"):
            meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=Fused(kernel="mlp_adapt", **of_triton))


def siren(*frequencies: float, width: int = 6) -> nn.Module:
    widths = [2, *[width] * len(frequencies)]
    layers = [
        part
        for inputs, outputs, frequency in zip(widths, widths[1:], frequencies, strict=False)
        for part in (nn.Linear(inputs, outputs), Sine(frequency))
    ]
    return nn.Sequential(*layers, nn.Linear(width, 3))


@pytest.mark.parametrize("algorithm, loss, kernels", [CASES[0], CASES[2], CASES[4]])
def test_sines_are_cudas_alone(algorithm: Any, loss: str, kernels: list[str]) -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, loss, lambda: siren(3.0, 2.0, 0.7))
        return meta_gradient(network, algorithm, tasks, loss, unverified())

    assert_same(run, off=1e-5, host=0)
    assert standin.launches == [("mlp_adapt", kernels)]
    for network, more in ((siren(2.0), {"precision": "tf32"}), (siren(2.0, 2.0, width=256), {})):
        network, tasks = problem(DEVICE, loss, lambda network=network: network)
        with pytest.raises(NotImplementedError, match=r"Triton's kernels have no 'sine'.* CUDA's does not take"):
            meta_loss(network, maml(0.1, 2), tasks, loss=loss, engine=Fused(kernel="mlp_adapt", **more))


@pytest.mark.usefixtures("checked")
def test_auto_takes_sines_and_compares_each_networks_own() -> None:
    """Frequencies are the compiler's constants."""
    for frequencies, launches in (((2.0, 1.0), 2), ((2.0, 1.0), 1), ((2.0, 0.5), 2), ((1.0, 2.0), 2)):
        standin.launches.clear()
        network, tasks = problem(DEVICE, "mse", lambda given=frequencies: siren(*given))
        found = meta_loss(network, maml(0.1, 2), tasks, loss="mse")
        assert [each.operator for each in standin.launches] == ["mlp_adapt"] * launches
        expected = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
        torch.testing.assert_close(found.task_losses, expected.task_losses, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("checked")
def test_steep_sines_are_no_wrong_kernel() -> None:
    """Behind frequencies of 30 with torch's own weights float32 has few right digits, on any engine."""
    network, tasks = problem(DEVICE, "mse", lambda: siren(30.0, 30.0))
    meta_loss(network, maml(0.1, 2), tasks, loss="mse")
    assert [each.operator for each in standin.launches] == ["mlp_adapt"] * 2


def test_what_sines_an_adapted_network_predicts_with() -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, "mse", lambda: siren(3.0, 2.0))
        adapted = adapt(network, maml(0.1, 2), *tasks.sets[0], loss="mse", engine=unverified())
        return [*adapted.parameters.values(), adapted.support_losses, adapted.predict(tasks.query_inputs)]

    assert_same(run, off=1e-5, host=1)
    assert standin.launches == [("mlp_trajectory", ["mlp_adapt"])]


@pytest.mark.parametrize(
    "network, kind, first, because",
    [
        (MLP(2, [7], 3, init="default"), ("relu", ()), 129, "rows, more than 128"),
        (siren(1.5, width=7), ("sine", (1.5,)), 1, "CUDA's does not take widths [2, 7, 3], rows ["),
    ],
    ids=["relu", "sine"],
)
def test_many_numbers_of_rows_beyond_tritons_are_refused(network: Any, kind: Any, first: int, because: str) -> None:
    """Each would be compiled, which takes seconds; "auto" goes on with another engine."""
    network = network.to(DEVICE)
    found = Fused(kernel="mlp_adapt")
    reasons = []
    for rows in range(first, first + cuda.MOST_SIZES + 2):
        x, y = torch.zeros(1, rows, 2, device=DEVICE), torch.zeros(1, rows, 3, device=DEVICE)
        reasons.append(found.unsupported(Problem(network, maml(0.1, 1), task_loss("mse")), (x, y), (x, y)))
        cuda._SIZES[(2, 7, 3), *kind, "mse"].add((rows, rows))
    assert reasons[: cuda.MOST_SIZES] == [None] * cuda.MOST_SIZES
    assert all(because in str(reason) for reason in reasons[cuda.MOST_SIZES :])


def test_a_convolutional_networks_adaptation_is_one_operator() -> None:
    def run(device: torch.device) -> list[Any]:
        block = nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()
        network = nn.Sequential(*block, nn.Flatten(), nn.Linear(12, 3)).to(device)
        images, labels = torch.randn(2, 2, 5, 1, 4, 4), torch.randint(3, (2, 2, 5))
        tasks = TaskBatch(images[0], labels[0], images[1], labels[1]).to(device)
        by_name = {"kernel": "conv_adapt"} if device == DEVICE else {}
        return meta_gradient(network, maml(0.1, 1), tasks, "cross_entropy", unverified(**by_name))

    assert_same(run, off=1e-5, host=0)
    there = ["conv_forward", "conv_head"]
    step = [*there, "conv_gradient", "conv_update"]
    assert standin.launches == [("conv_adapt", [*step, *there, *step, *step])]


def test_rounded_products_are_tritons() -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, "mse")
        return meta_gradient(network, maml(0.1, 1), tasks, "mse", unverified(precision="bf16"))

    assert_same(run, off=1e-1, host=0)
    assert standin.launches == [("mlp_adapt", ["mlp_forward", "mlp_backward"])]


@pytest.mark.parametrize("safeguard", [False, True])
def test_trajectories(safeguard: bool) -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, "mse")
        chosen: dict[str, Any] = {"loss": "mse", "engine": unverified(), "safeguard": safeguard}
        adapted = adapt(network, maml(0.1, 2), *tasks.sets[0], **chosen)
        evaluation = evaluate(network, maml(0.1, 2), tasks, **chosen)
        found = [*adapted.parameters.values(), adapted.support_losses, adapted.predict(tasks.query_inputs)]
        return [*found, *vars(evaluation).values()]

    # adapt asks whom to warn of; the safeguard, which tasks have to run again, in adapt and in evaluate
    assert_same(run, off=1e-5, host=2 if safeguard else 1)
    assert standin.launches == [("mlp_trajectory", ["mlp_adapt"])] * 2


@pytest.mark.parametrize("inner", [SGD(0.1, 2), SGD(0.1, 2, momentum=0.9, weight_decay=0.1), SGD(0.1, 2, max_norm=0.1)])
def test_any_network_steps_by_one_launch(inner: SGD) -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, "mse", lambda: nn.Sequential(nn.Linear(2, 4), nn.ELU(), nn.Linear(4, 3)))
        return meta_gradient(network, replace(maml(), inner=inner), tasks, "mse", unverified())

    assert_same(run, off=1e-5, host=0)
    assert standin.launches == [("sgd_update", ["sgd_update_kernel"])] * 2


def test_a_meta_update_waits_once() -> None:
    def run(device: torch.device) -> list[Any]:
        network, tasks = problem(device, "mse")
        return [*meta_update(network, maml(0.1, 2), tasks, loss="mse", engine=unverified()).gradients]

    assert_same(run, off=1e-5, host=1)


def test_training(tmp_path: Path) -> None:
    def run(device: torch.device) -> list[Any]:
        one, data = module(engine=unverified()), sinusoids()
        trainer(device, tmp_path, max_steps=3, limit_val_batches=0).fit(one, data)
        return [value.to(device) for value in one.state_dict().values()]

    assert_same(run, off=1e-5)
    assert [each.operator for each in standin.launches] == ["mlp_adapt"] * 3


# The first call of a kernel is compared


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "CHECKED_ON", {NAME})
    monkeypatch.setattr(first_call, "_agreed", set())
    monkeypatch.setattr(first_call, "_differed", set())


@pytest.mark.usefixtures("checked")
def test_a_right_kernel_is_compared_once() -> None:
    network, tasks = problem(DEVICE, "mse")
    meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=Fused())
    assert len(standin.launches) == 2
    with host_copies() as copies:
        meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=Fused())
    assert len(standin.launches) == 3
    assert not copies.of  # nor is the device waited for ever after


@pytest.mark.usefixtures("checked")
def test_a_corrupted_kernel_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(text: str) -> str:
        assert "sub.f32" in text or ".entry mean_over_tasks" in text
        return re.sub(r"sub\.f32", "add.f32", text)

    monkeypatch.setitem(standin.fault, "of PTX", corrupted)
    network, tasks = problem(DEVICE, "mse")
    expected = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
    with pytest.warns(UserWarning, match="Engine='batched' ran this call"):
        found = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=Fused())
    assert torch.equal(found.task_losses, expected.task_losses)
    with pytest.raises(KernelError, match=r"off engine='batched'.* Please report this line"):
        meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=Fused())


# What a launch must not be


def test_a_tensor_of_the_host_in_a_launch_raises() -> None:
    phi, rate = torch.randn(2, 5), torch.tensor(0.1)
    for place in range(3):
        arguments = [phi.to(DEVICE), phi.to(DEVICE), rate.to(DEVICE)]
        arguments[place] = arguments[place].cpu()
        with pytest.raises(RuntimeError, match="Expected all tensors"):
            sgd_update(*arguments)


def test_double_precision_is_refused() -> None:
    network, tasks = problem(DEVICE, "mse")
    with pytest.raises(NotImplementedError, match="on a GPU it computes in float32 alone"):
        meta_loss(network.double(), maml(0.1, 2), tasks.to(torch.float64), loss="mse", engine=Fused(kernel="mlp_adapt"))
    theta, x, y = (torch.zeros(shape, dtype=torch.float64, device=DEVICE) for shape in ((33,), (1, 2, 2), (1, 2, 3)))
    with pytest.raises(ValueError, match="Expected float32 on a GPU but got torch.float64"):
        mlp_adapt(theta[:9], theta.new_ones(1, 1), x, y, x, y, [2, 3])


def test_a_launch_outside_of_the_guard_of_its_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    phi = torch.randn(2, 5).to(DEVICE)
    with pytest.raises(RuntimeError, match=r"outside of `with torch.cuda.device"):
        sgd_update(phi, phi, torch.tensor(0.1).to(DEVICE))


# What "auto" takes


@pytest.mark.usefixtures("checked")
def test_auto_takes_the_operator_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    network, tasks = problem(DEVICE, "mse")
    with caplog.at_level("INFO", "lightning_maml"):
        found = [meta_loss(network, maml(0.1, 2), tasks, loss="mse") for _ in range(2)]
    assert [each.operator for each in standin.launches] == ["mlp_adapt"] * 3  # the first one is compared
    assert [record.getMessage() for record in caplog.records] == ["engine 'auto' chose 'fused' for MLP"]
    expected = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=unverified())
    assert torch.equal(found[1].task_losses, expected.task_losses)


def test_auto_leaves_to_batched_what_no_operator_covers() -> None:
    network, tasks = problem(DEVICE, "mse", lambda: nn.Sequential(nn.Linear(2, 4), nn.ELU(), nn.Linear(4, 3)))
    meta_loss(network, maml(0.1, 2), tasks, loss="mse")
    assert not standin.launches


@pytest.mark.usefixtures("checked")
def test_auto_goes_on_with_batched_where_a_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(standin.fault, "of PTX", lambda text: re.sub(r"sub\.f32", "add.f32", text))
    network, tasks = problem(DEVICE, "mse")
    expected = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
    with pytest.warns(UserWarning, match="Engine='batched' ran this call"):
        found = [meta_loss(network, maml(0.1, 2), tasks, loss="mse")]
    with pytest.warns(
        UserWarning, match=r"'auto' goes on without 'fused', which fails on MLP there \(A kernel of Fused"
    ):
        found.append(meta_loss(network, maml(0.1, 2), tasks, loss="mse"))
    launched = len(standin.launches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.append(meta_loss(network, maml(0.1, 2), tasks, loss="mse"))
    assert len(standin.launches) == launched
    for each in found:
        assert torch.equal(each.task_losses, expected.task_losses)


@pytest.mark.usefixtures("checked")
def test_auto_goes_on_with_batched_where_a_kernel_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> str:
        raise RuntimeError("PTX was compiled with an unsupported toolchain. See the log")

    monkeypatch.setitem(standin.fault, "of PTX", broken)
    network, tasks = problem(DEVICE, "mse")
    with pytest.warns(UserWarning, match=r"fails on MLP there \(PTX was compiled with an unsupported toolchain\)"):
        found = meta_loss(network, maml(0.1, 2), tasks, loss="mse")
    expected = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
    assert torch.equal(found.task_losses, expected.task_losses)
