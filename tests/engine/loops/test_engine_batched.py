"""Tasks that bring a convolutional network many numbers: they run one after another, with the same numbers out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_maml import Batched, Conv4, Eager, TaskBatch, adapt, maml, meta_loss, meta_sgd
from lightning_maml.engine.loops.batched import LARGE


class Counted(nn.Module):
    """A layer, and how often it was called: under ``vmap`` once for all tasks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(inputs).flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize(
    "engine,numbers,layer,calls",
    [
        (Batched(), LARGE, nn.Conv2d(1, 1, 3), 1),
        (Batched(), 2 * LARGE, nn.Conv2d(1, 1, 3), 3),
        (Batched(checkpoint="step"), 2 * LARGE, nn.Conv2d(1, 1, 3), 3),
        (Batched(chunk_size=2), 2 * LARGE, nn.Conv2d(1, 1, 3), 2),  # as the user says
        (Batched(), 2 * LARGE, nn.Linear(16, 1), 1),
        (Eager(), LARGE, nn.Conv2d(1, 1, 3), 3),
    ],
    ids=["small", "large", "large, checkpoint", "chunks", "no convolution", "eager"],
)
def test_large_tasks_of_a_convolution_run_one_after_another(engine, numbers, layer, calls):
    images, targets = torch.randn(3, 8, 1, numbers // (8 * 16), 16), torch.randn(3, 8, 1)
    tasks = TaskBatch(images[:, :4], targets[:, :4], images[:, 4:], targets[:, 4:])
    network = Counted(layer)
    meta_loss(network, maml(0.1, 1), tasks, loss="mse", engine=engine)
    again = engine == Batched(checkpoint="step")  # the step, on the way back
    assert network.calls == (3 + again) * calls  # the step, the query sets, and the support sets for their losses
    network.calls = 0
    adapted = adapt(network, maml(0.1, 1), images, targets, loss="mse", engine=engine)
    assert network.calls == 2 * calls
    network.calls = 0
    adapted.predict(images)
    assert network.calls == (1 if calls < 3 else 3)  # `chunk_size` is of the adaptation


@pytest.mark.parametrize("engine", [Batched(), Batched(checkpoint="step"), Batched(chunk_size=2)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_every_gradient_is_that_of_eager(engine, weighted):
    torch.manual_seed(0)
    network = Conv4(3, channels=3, hidden=4, image_size=64, form="max_pool").double()
    images = [torch.randn(3, 6, 3, 64, 64, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert 2 * images[0][0].numel() > LARGE
    labels = torch.arange(3).repeat(3, 2)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) if weighted else None
    tasks = TaskBatch(images[0], labels, images[1], labels, task_weights=weights)
    algorithm = meta_sgd(0.1, 2)
    rates = algorithm.initial_rates(network)
    assert isinstance(rates, nn.Module)
    leaves = [*network.parameters(), *rates.double().parameters(), *images]
    found, exact = (
        meta_loss(network, algorithm.with_rates(rates), tasks, loss="cross_entropy", engine=which)
        for which in (engine, Eager())
    )
    gradients, expected = (torch.autograd.grad(output.surrogate, leaves) for output in (found, exact))
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)
    for name in ("loss", "task_losses", "predictions", "support_losses"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), rtol=1e-10, atol=1e-10)
