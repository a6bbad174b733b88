"""A kernel's first call on a GPU is compared with batched: here with the CPU's operators in a GPU's place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_maml import Batched, Fused, TaskBatch, adapt, evaluate, fomaml, maml, meta_loss
from lightning_maml.engine.fused import KernelError, first_call
from lightning_maml.kernels import mlp_adapt as kernels
from lightning_maml.kernels import sgd_update as update
from lightning_maml.networks import MLP
from problems import make_problem, meta_gradient, relative_error


@pytest.fixture(autouse=True)
def _the_cpu_in_a_gpus_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "CHECKED_ON", {"cpu"})
    monkeypatch.setattr(first_call, "_agreed", set())
    monkeypatch.setattr(first_call, "_differed", set())


@pytest.fixture
def batched_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks each of the comparisons' meta-gradients had."""
    runs: list[int] = []
    run = Batched.meta_loss

    def counted(self: Batched, problem: Any, tasks: TaskBatch) -> Any:
        runs.append(len(tasks))
        return run(self, problem, tasks)

    monkeypatch.setattr(Batched, "meta_loss", counted)
    return runs


def corrupted(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], times: int | None = None) -> None:
    """``mlp_adapt`` with ``change`` made to what it gives, the first so many times."""
    run, calls = kernels.mlp_adapt, []

    def wrong(*args: Any, **how: Any) -> Any:
        calls.append(1)
        output = run(*args, **how)
        return output if times is not None and len(calls) > times else change(output)

    monkeypatch.setattr(kernels, "mlp_adapt", wrong)


def step(network: nn.Module, tasks: TaskBatch, engine: Any, algorithm: Any = None) -> list[Tensor]:
    return meta_gradient(network, meta_loss(network, algorithm or maml(0.1, 2), tasks, loss="mse", engine=engine))


def test_once_for_each_variant_on_a_few_tasks(batched_runs: list[int]) -> None:
    network, tasks = make_problem("mlp", "mse", tasks=11)
    for _ in range(3):
        step(network, tasks, Fused())
    assert batched_runs == [8, 8]  # and of these the second with inputs that are nudged
    step(network, tasks, Fused(), fomaml(0.1, 2))
    assert len(batched_runs) == 4
    step(MLP(3, [7, 4], 5, init="default").double(), tasks, Fused())
    assert len(batched_runs) == 6
    step(network, tasks, Fused(kernel="sgd_update"))
    assert len(batched_runs) == 8
    step(network, tasks, Fused(kernel="sgd_update"))
    assert len(batched_runs) == 8


def test_on_a_cpu_nothing_is_compared(monkeypatch: pytest.MonkeyPatch, batched_runs: list[int]) -> None:
    monkeypatch.setattr(first_call, "CHECKED_ON", {"cuda"})
    step(*make_problem("mlp", "mse"), Fused())
    assert batched_runs == []


CORRUPTIONS: dict[str, Callable[[Any], Any]] = {
    "a gradient of another size": lambda out: out._replace(of_theta=out.of_theta * 1.01),
    "one element": lambda out: out._replace(
        of_theta=out.of_theta + 0.01 * out.of_theta.abs().max() * first(out.of_theta)
    ),
    "nan": lambda out: out._replace(of_theta=out.of_theta.where(first(out.of_theta) == 0, torch.nan)),
    "predictions": lambda out: out._replace(predictions=out.predictions.flip(0)),
    "losses": lambda out: out._replace(task_losses=out.task_losses + 1e-2),
    "support losses": lambda out: out._replace(support_losses=out.support_losses.flip(1)),
}


def first(value: Tensor) -> Tensor:
    return torch.arange(value.numel()).eq(0).to(value.dtype).view(value.shape)


@pytest.mark.parametrize("change", CORRUPTIONS)
def test_a_kernel_that_is_wrong_never_gives_a_number(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, tasks = make_problem("mlp", "mse", tasks=5)
    corrupted(monkeypatch, CORRUPTIONS[change])
    expected = step(network, tasks, Batched())
    with pytest.warns(
        UserWarning, match=r"Engine='batched' ran this call, since a kernel of Fused\(.* on cpu with torch"
    ):
        assert relative_error(step(network, tasks, Fused()), expected) == 0
    with pytest.raises(KernelError, match=r"engine='batched' runs this problem. Please report .*verify=False"):
        step(network, tasks, Fused())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(network, tasks, Fused(verify=False))


def test_a_single_difference_decides_nothing(monkeypatch: pytest.MonkeyPatch, batched_runs: list[int]) -> None:
    """Such as that of a unit of ReLU which is on in one and off in the other."""
    network, tasks = make_problem("mlp", "mse", tasks=5)
    corrupted(monkeypatch, CORRUPTIONS["one element"], times=1)
    with pytest.warns(UserWarning, match="The next call is compared again"):
        step(network, tasks, Fused())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            step(network, tasks, Fused())
    assert batched_runs == [5, 5, 5, 5, 5]  # two comparisons, and one call in the kernel's place


def test_tasks_that_are_not_finite_tell_nothing(batched_runs: list[int]) -> None:
    network, tasks = make_problem("mlp", "mse", tasks=3)
    bad = tasks[:]
    bad.support_targets[1] *= 1e200
    for _ in range(2):
        meta_loss(network, maml(0.1, 2), bad, loss="mse", engine=Fused())
    assert len(batched_runs) == 4  # compared again, until there is something to compare
    step(network, make_problem("mlp", "mse", tasks=3)[1], Fused())
    step(network, bad, Fused())
    assert len(batched_runs) == 6


@pytest.mark.parametrize("kernel", ["mlp_adapt", "sgd_update"])
def test_adaptation_is_compared_too(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, tasks = make_problem("mlp", "mse", tasks=3)
    engine = Fused(kernel=kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(network, maml(0.1, 3), *tasks.sets[0], loss="mse", engine=engine)
    if kernel == "sgd_update":  # which does not adapt by itself: TaskLoop does
        return
    run = kernels.mlp_trajectory
    monkeypatch.setattr(first_call, "_agreed", set())
    monkeypatch.setattr(
        kernels, "mlp_trajectory", lambda *args, **kwargs: (2 * run(*args, **kwargs)[0], run(*args, **kwargs)[1])
    )
    expected = evaluate(network, maml(0.1, 3), tasks, loss="mse", engine="batched")
    with pytest.warns(UserWarning, match="batched"):
        found = evaluate(network, maml(0.1, 3), tasks, loss="mse", engine=engine)
    assert torch.equal(found.predictions, expected.predictions)
    with pytest.raises(KernelError):
        adapt(network, maml(0.1, 3), *tasks.sets[0], loss="mse", engine=engine)


def test_a_step_that_moves_the_last_bits_alone_is_right() -> None:
    network, tasks = make_problem("mlp", "mse", tasks=3, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(network, maml(1e-7, 2), *tasks.sets[0], loss="mse", engine=Fused())
        adapt(network, maml(1e-30, 2), *tasks.sets[0], loss="mse", engine=Fused(kernel="sgd_update"))


def test_the_update_of_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network, tasks = make_problem("tied", "mse", tasks=3)
    run = update.sgd_update
    expected = step(network, tasks, Batched())
    assert relative_error(step(network, tasks, Fused()), expected) < 1e-12
    monkeypatch.setattr(first_call, "_agreed", set())
    monkeypatch.setattr(update, "sgd_update", lambda p, g, *args, **kwargs: run(p, 1.01 * g, *args, **kwargs))
    with pytest.warns(UserWarning, match="sgd_update"):
        assert relative_error(step(network, tasks, Fused()), expected) == 0
    with pytest.raises(KernelError):
        step(network, tasks, Fused())


def test_random_numbers_are_drawn_as_without_the_comparison() -> None:
    """Dropout's, in the comparison and after it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 5)).double()
    tasks = make_problem("mlp", "mse", tasks=3)[1]
    draws = []
    for engine in (Fused(verify=False), Fused(), Batched()):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draws.append([step(network, tasks, engine), [torch.rand(1)]])
    for other in draws[1:]:
        assert relative_error(other[0], draws[0][0]) < 1e-12
        assert torch.equal(other[1][0], draws[0][1][0])


@pytest.mark.parametrize("lr", [3.0, 30.0])
def test_what_chaos_makes_of_roundings_is_no_difference(lr: float) -> None:
    """Inner steps that amplify: a nudge of the inputs tells how much."""
    network, tasks = make_problem("mlp", "mse", tasks=5, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            step(network, tasks, Fused(), maml(lr, 6))
