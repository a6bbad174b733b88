"""Networks and tasks that the tests share, and the reference: MAML written out in fifteen lines of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_maml import SinusoidTasks, TaskBatch
from lightning_maml.networks import MLP, Conv4

LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


class Recurrent(nn.Module):
    """The last hidden state of a GRU, and a linear layer: ``[N, 6, 3] -> [N, out]``."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, out)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.gru(inputs)[0][:, -1])


class Attention(nn.Module):
    """One block of self-attention with layer norm: ``[N, 6, 3] -> [N, out]``."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, out)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0])
        return self.head(hidden.mean(1))


class Tied(nn.Module):
    """One matrix used twice under two names."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, out)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs[:, 0])))))


class ConvModule(nn.Module):
    """Convolution and batch-norm in no ``nn.Sequential``, and so under vmap: ``[N, 1, 8, 8] -> [N, out]``."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Linear(3, out)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(inputs)).relu().mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda out: MLP(3, [7, 5], out, activation="tanh", init="default"), (3,)),
    "norm_mlp": (
        lambda out: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, out)),
        (3,),
    ),
    "conv4": (lambda out: Conv4(out, hidden=3, image_size=16), (1, 16, 16)),
    "conv4_max_pool": (lambda out: Conv4(out, hidden=3, image_size=16, form="max_pool"), (1, 16, 16)),
    "conv_module": (ConvModule, (1, 8, 8)),
    "gru": (Recurrent, (6, 3)),
    "attention": (Attention, (6, 3)),
    "tied": (Tied, (6, 3)),
}


def make_problem(
    network: str, loss: str, tasks: int = 3, support: int = 5, query: int = 7, out: int = 5, dtype=torch.float64
) -> tuple[nn.Module, TaskBatch]:
    """A small network by name, and random tasks for it."""
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    module = build(out).to(dtype)

    def part(rows: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(tasks, rows, *shape, dtype=dtype)
        targets = (
            torch.randint(out, (tasks, rows)) if loss == "cross_entropy" else torch.randn(tasks, rows, out, dtype=dtype)
        )
        return inputs, targets

    return module, TaskBatch(*part(support), *part(query))


@sdpa_kernel(SDPBackend.MATH)  # the fused attention has no second derivative
def reference(
    network: nn.Module, tasks: TaskBatch, loss: str, lr: float, steps: int, first_order: bool = False
) -> list[Tensor]:
    """The meta-gradient of MAML, independent of the library: one task after another, everything unrolled.

    The network runs in training mode with its buffers cloned: batch-norm by batch statistics.
    """
    theta = dict(network.named_parameters())
    buffers = dict(network.named_buffers())
    network.train()
    total = torch.zeros((), dtype=next(iter(theta.values())).dtype)
    for t in range(len(tasks)):
        call = lambda phi, x: functional_call(network, (phi, {n: b.clone() for n, b in buffers.items()}), (x,))  # noqa: E731
        phi = theta
        for _ in range(steps):
            inner = LOSSES[loss](call(phi, tasks.support_inputs[t]), tasks.support_targets[t])
            gradients = torch.autograd.grad(inner, list(phi.values()), create_graph=not first_order, retain_graph=True)
            phi = {name: value - lr * g for (name, value), g in zip(phi.items(), gradients, strict=True)}
        total = total + LOSSES[loss](call(phi, tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)
    return list(torch.autograd.grad(total, list(theta.values())))


def meta_gradient(network: nn.Module, output) -> list[Tensor]:
    """What ``surrogate.backward()`` leaves in ``.grad``, which is poisoned first."""
    for parameter in network.parameters():
        parameter.grad = None
    output.surrogate.backward()
    return [
        p.grad if p.grad is not None else torch.full_like(p, float("nan"))
        for p in network.parameters()
        if p.requires_grad
    ]


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest entry, of all tensors together."""
    scale = max(e.abs().max().item() for e in expected)
    worst = max((a - e).abs().max().item() for a, e in zip(actual, expected, strict=True))
    return worst / scale if worst == worst else float("nan")


class Diverging(SinusoidTasks):
    """In which the target of one task of one meta-batch, ``bad``, is beyond all bounds."""

    bad: int | None = None

    def sample(self, stage: Any, position: int, *arguments: Any, **options: Any) -> TaskBatch:
        tasks = super().sample(stage, position, *arguments, **options)
        if stage == "train" and position == self.bad:
            tasks.query_targets[2] = 0.9 * torch.finfo(tasks.query_targets.dtype).max
        return tasks
