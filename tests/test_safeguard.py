"""Steps that are halved where they do not lower a task's support loss, and which tasks diverge without that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_maml import (
    Batched,
    Eager,
    Fused,
    adapt,
    evaluate,
    maml,
)
from lightning_maml.engine import Engine, Problem
from lightning_maml.losses import task_loss
from problems import LOSSES, make_problem

PERCEPTRON = ("mlp", "norm_mlp", "conv4", "tied")
ENGINES: dict[str, Engine] = {
    "eager": Eager(),
    "batched": Batched(),
    "chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
    "sgd_update": Fused(kernel="sgd_update"),
    "mlp_adapt": Fused(kernel="mlp_adapt"),
    "compiled": Fused(compile=True),
}
RUNS_ON = {"mlp_adapt": {"mlp"}, "compiled": {"mlp", "conv4"}}
"""Which of the networks below, of those engines that do not run them all."""


def reference(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: str,
    lr: float,
    steps: int,
    momentum: float = 0.0,
    proximal: float = 0.0,
    rows: list[Tensor] | None = None,
) -> tuple[list[dict[str, Tensor]], Tensor, int]:
    """One task after another, with the halving written out: parameters after each step, losses, and halved steps."""
    network.train()
    theta = {name: value.detach() for name, value in network.named_parameters()}
    paths, losses, halved = [], [], 0
    for x, y in zip(inputs, targets, strict=True):

        def value(phi, seen, x=x, y=y):
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            return LOSSES[loss](functional_call(network, (phi, buffers), (x[seen],)), y[seen])

        def height(phi, seen):
            return value(phi, seen) + proximal / 2 * sum((phi[name] - theta[name]).square().sum() for name in phi)

        phi, velocity, path, found = theta, None, [theta], []
        for step in range(steps):
            seen = torch.arange(len(x)) if rows is None else rows[step]
            phi = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
            before = height(phi, seen)
            found.append(value(phi, seen).item())
            gradients = dict(zip(phi, torch.autograd.grad(before, list(phi.values())), strict=True))
            known = gradients if velocity is None else {n: momentum * velocity[n] + gradients[n] for n in gradients}
            velocity = known
            proposed = {name: (tensor - lr * velocity[name]).detach() for name, tensor in phi.items()}
            phi = {name: tensor.detach() for name, tensor in phi.items()}
            for halving in range(11):
                shorter = {name: phi[name] + (proposed[name] - phi[name]) / 2**halving for name in phi}
                if halving == 0:
                    shorter = proposed
                if height(shorter, seen) < before:
                    phi = shorter
                    halved += halving > 0
                    break
            else:
                halved += 1
            path.append(phi)
        found.append(value(phi, torch.arange(len(x))).item())
        paths.append(path)
        losses.append(found)
    stacked = [{name: torch.stack([path[step][name] for path in paths]) for name in theta} for step in range(steps + 1)]
    return stacked, torch.tensor(losses, dtype=torch.float64), halved


CASES = {
    "mlp": ("mlp", "mse", 3.0, 7, 5),
    "mlp, one task of one row": ("mlp", "mse", 3.0, 1, 1),
    "classes": ("mlp", "cross_entropy", 20.0, 5, 3),
    "norm_mlp": ("norm_mlp", "mse", 3.0, 5, 3),
    "conv4": ("conv4", "cross_entropy", 20.0, 3, 5),
    "tied": ("tied", "mse", 3.0, 3, 2),
}


@pytest.mark.filterwarnings("ignore:.*tasks diverged")
@pytest.mark.parametrize(
    ("case", "engine"),
    [(case, engine) for case in CASES for engine in ENGINES if CASES[case][0] in RUNS_ON.get(engine, {CASES[case][0]})],
)
def test_the_halving_written_out(case, engine):
    network, loss, lr, tasks, rows = CASES[case]
    module, batch = make_problem(network, loss, tasks=tasks, support=rows)
    support, algorithm = batch.sets[0], maml(lr, 4)
    paths, losses, halved = reference(module, *support, loss, lr, 4)
    assert halved > 0
    free = adapt(module, algorithm, *support, loss=loss, engine=ENGINES[engine])
    adapted = adapt(module, algorithm, *support, loss=loss, engine=ENGINES[engine], safeguard=True)
    assert free.diverged.any()
    assert not adapted.diverged.any()
    torch.testing.assert_close(adapted.support_losses, losses, rtol=1e-7, atol=1e-12)
    for name, value in adapted.parameters.items():
        torch.testing.assert_close(value, paths[-1][name], rtol=1e-7, atol=1e-10)
    evaluation = evaluate(module, algorithm, batch, loss=loss, engine=ENGINES[engine], safeguard=True)
    torch.testing.assert_close(evaluation.support_losses, losses, rtol=1e-7, atol=1e-12)
    for step, phi in enumerate(paths):
        values = ENGINES["eager"].predict(Problem(module, algorithm, task_loss(loss)), phi, batch.query_inputs)
        torch.testing.assert_close(evaluation.predictions[:, step], values, rtol=1e-6, atol=1e-9)
