"""The reference for what a meta-batch may hold besides: one task after another, written out in torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_maml import Batched, Eager, TaskBatch
from lightning_maml.engine import MetaOutput
from lightning_maml.tasks import Inputs, map_inputs
from problems import meta_gradient, relative_error

LR, STEPS = 0.1, 3
ENGINES = {
    "auto": "auto",
    "eager": Eager(),
    "batched": Batched(),
    "chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
    "checkpointed chunks": Batched(checkpoint="step", chunk_size=2),
}


class Masked(nn.Module):
    """The mean over the places that a mask names, and a linear layer: ``[N, 6, 3]`` and ``[N, 6]`` to ``[N, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Any) -> Tensor:
        x, mask = (inputs["x"], inputs["mask"]) if isinstance(inputs, dict) else inputs
        weights = mask.to(x.dtype).unsqueeze(-1)
        return self.head((torch.tanh(self.embed(x)) * weights).sum(1) / (1 + weights.sum(1)))


def tasks_of(structure: str, tasks: int = 5, support: int = 4, query: int = 6) -> TaskBatch:
    """Random tasks for :class:`Masked`."""

    def inputs(rows: int) -> Inputs:
        x, mask = torch.randn(tasks, rows, 6, 3, dtype=torch.float64), torch.rand(tasks, rows, 6) > 0.4
        return {"x": x, "mask": mask} if structure == "dict" else (x, mask)

    targets = [torch.randn(tasks, rows, 2, dtype=torch.float64) for rows in (support, query)]
    return TaskBatch(inputs(support), targets[0], inputs(query), targets[1])


def oracle(
    network: nn.Module,
    tasks: TaskBatch,
    order: int = 2,
    steps: int = STEPS,
    rows: Callable[[int], Any] = lambda step: slice(None),
    loss: Callable[..., Tensor] = F.mse_loss,
    query_loss: Callable[..., Tensor] = F.mse_loss,
    shares: list[float] | None = None,
    leaves: tuple[Tensor, ...] = (),
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The meta-gradient, query losses and predictions of one task after another, written out."""
    theta = dict(network.named_parameters())
    losses, predictions = [], []
    for task in range(len(tasks)):
        one = tasks.each(lambda value, task=task: value[task])
        phi = theta
        for step in range(steps):
            seen = map_inputs(lambda value, step=step: value[rows(step)], one.support_inputs)
            inner = loss(functional_call(network, phi, (seen,)), one.support_targets[rows(step)])
            slopes = torch.autograd.grad(inner, [*phi.values()], create_graph=order == 2, retain_graph=True)
            phi = {name: value - LR * slope for (name, value), slope in zip(phi.items(), slopes, strict=True)}
        predictions.append(functional_call(network, phi, (one.query_inputs,)))
        losses.append(query_loss(predictions[-1], one.query_targets))
    shares = shares or [1 / len(tasks)] * len(tasks)
    total = sum(share * one for share, one in zip(shares, losses, strict=True))
    gradient = torch.autograd.grad(total, [*theta.values(), *leaves], materialize_grads=True)
    return [*gradient], torch.stack(losses).detach(), torch.stack(predictions).detach()


def assert_equal(network: nn.Module, output: MetaOutput, expected: tuple[list[Tensor], Tensor, Tensor]) -> None:
    gradient, losses, predictions = expected
    torch.testing.assert_close(output.task_losses, losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.predictions, predictions, rtol=1e-10, atol=1e-12)
    assert relative_error(meta_gradient(network, output), gradient) < 1e-10
