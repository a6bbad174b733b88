"""What ``"auto"`` goes on to, and what it says; that an engine asked for by name refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lightning_maml import Batched, TaskBatch, adapt, evaluate, maml, meta_loss
from problems import meta_gradient, relative_error


class Item(nn.Module):
    """Looks at a number, which ``vmap`` refuses; drops units; and may fail on its own account."""

    def __init__(self, error: Exception | None = None, drops: float = 0.0) -> None:
        super().__init__()
        self.linear, self.drop, self.error = nn.Linear(3, 2), nn.Dropout(drops), error

    def forward(self, inputs):
        outputs = self.drop(self.linear(inputs))
        if self.error is not None:
            raise self.error
        return outputs * (2.0 if outputs.sum().item() > 1e9 else 1.0)


def tasks_of(width: int = 3) -> TaskBatch:
    torch.manual_seed(0)
    return TaskBatch(*(torch.randn(3, 5, size, dtype=torch.float64) for size in (width, 2, width, 2)))


def test_auto_goes_on_to_eager_and_says_so_once():
    network, tasks = Item().double(), tasks_of()
    expected = meta_gradient(network, meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="eager"))
    with pytest.warns(UserWarning, match=r"'auto' goes on with 'eager'.* Item .*item\(\).* said once"):
        output = meta_loss(network, maml(0.1, 2), tasks, loss="mse")
    assert relative_error(meta_gradient(network, output), expected) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            meta_loss(network, maml(0.1, 2), tasks, loss="mse")
        evaluate(network, maml(0.1, 2), tasks, loss="mse")
        adapt(network, maml(0.1, 2), *tasks.sets[0], loss="mse").predict(tasks.query_inputs)


def test_random_numbers_are_as_if_nothing_had_been_tried():
    network, tasks = Item(drops=0.5).double(), tasks_of()
    losses = []
    for engine in ("eager", "auto"):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses.append(float(meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=engine).loss))
        losses.append(float(torch.rand(())))
    assert losses[:2] == losses[2:]


@pytest.mark.parametrize("engine", ["auto", "batched"])
@pytest.mark.parametrize("error", [RuntimeError("vmap: but raised by the network"), ValueError("no"), KeyError("k")])
def test_an_error_of_the_network_is_its_own(error, engine):
    network = Item(error).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error)) as caught:
            meta_loss(network, maml(0.1, 2), tasks_of(), loss="mse", engine=engine)
    assert caught.value is error


@pytest.mark.parametrize("engine", ["auto", "batched"])
def test_data_that_do_not_fit_are_no_matter_of_engines(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            ValueError, match=r"Expected a network that takes inputs \[rows, 4\], .* shapes cannot be multiplied"
        ):
            meta_loss(Item().double(), maml(0.1, 2), tasks_of(4), loss="mse", engine=engine)


@pytest.mark.parametrize("engine", ["batched", Batched(checkpoint="step"), "fused"])
def test_an_engine_asked_for_by_name_refuses(engine):
    with pytest.raises(NotImplementedError, match=r"cannot run this: torch refuses .*item\(\).* Use engine='eager'"):
        meta_loss(Item().double(), maml(0.1, 2), tasks_of(), loss="mse", engine=engine)
    hooked = nn.Sequential(nn.Linear(3, 2)).double()
    hooked[0].register_full_backward_hook(lambda module, grad_input, grad_output: None)
    with pytest.raises(NotImplementedError, match="the network has backward hooks"):
        meta_loss(hooked, maml(0.1, 2), tasks_of(), loss="mse", engine=engine)


def test_losses_of_one_class_need_not_be_run_alike():
    """What ran for one loss does not stand for another: this class looks at numbers where it is told to."""

    class Looking:
        def __init__(self, looks: bool) -> None:
            self.looks = looks

        def __eq__(self, other):  # and so it has no hash
            return self is other

        def __call__(self, predictions, targets):
            squares = (predictions - targets).square().mean()
            return squares * (1.0 if not self.looks or squares.item() > 0 else 0.0)

    network, tasks = nn.Sequential(nn.Linear(3, 2), nn.Softplus()).double(), tasks_of()
    expected = meta_loss(network, maml(0.1, 2), tasks, loss=Looking(False)).loss
    with pytest.warns(UserWarning, match="goes on with 'eager'"):
        output = meta_loss(network, maml(0.1, 2), tasks, loss=Looking(True))
    torch.testing.assert_close(output.loss, expected)
