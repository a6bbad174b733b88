"""Steps that are halved where they do not lower a task's support loss, and which tasks diverge without that."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_maml import (
    SGD,
    Algorithm,
    Batched,
    Eager,
    Fused,
    Graphed,
    TaskBatch,
    Unrolled,
    adapt,
    evaluate,
    load_adapted,
    maml,
    save_adapted,
)
from lightning_maml.engine import Engine, Problem
from lightning_maml.engine.coverage import GRAPHED
from lightning_maml.losses import task_loss
from lightning_maml.networks import StepBatchNorm2d
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
    "graphed": Graphed(Batched()),
}
"""Graphed adapts and evaluates by the engine that it records, for which it needs no GPU."""
RUNS_ON = {"mlp_adapt": {"mlp"}, "compiled": {"mlp", "conv4"}}
"""Which of the networks below, of those engines that do not run them all."""


@pytest.fixture(autouse=True)
def _no_gpu_is_needed_where_nothing_is_recorded(monkeypatch):
    monkeypatch.setitem(GRAPHED, "device", {"cpu"})


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
    fixed: tuple[str, ...] = (),
) -> tuple[list[dict[str, Tensor]], Tensor, int]:
    """One task after another, with the halving written out: parameters after each step, losses, and halved steps.

    Parameters named in ``fixed`` do not adapt, and have a row for every step.
    """
    network.train()
    theta = {name: value.detach() for name, value in network.named_parameters()}
    paths, losses, halved = [], [], 0
    for x, y in zip(inputs, targets, strict=True):

        def value(phi, seen, step, x=x, y=y):
            tensors = {name: buffer.clone() for name, buffer in network.named_buffers()} | phi
            tensors |= {name: theta[name][min(step, len(theta[name]) - 1)] for name in fixed}
            return LOSSES[loss](functional_call(network, tensors, (x[seen],)), y[seen])

        def height(phi, seen, step):
            pull = sum((phi[name] - theta[name]).square().sum() for name in phi)
            return value(phi, seen, step) + proximal / 2 * pull

        phi = {name: tensor for name, tensor in theta.items() if name not in fixed}
        velocity, path, found = None, [phi], []
        for step in range(steps):
            seen = torch.arange(len(x)) if rows is None else rows[step]
            phi = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
            before = height(phi, seen, step)
            found.append(value(phi, seen, step).item())
            gradients = dict(zip(phi, torch.autograd.grad(before, list(phi.values())), strict=True))
            known = gradients if velocity is None else {n: momentum * velocity[n] + gradients[n] for n in gradients}
            velocity = known
            proposed = {name: (tensor - lr * velocity[name]).detach() for name, tensor in phi.items()}
            phi = {name: tensor.detach() for name, tensor in phi.items()}
            for halving in range(11):
                shorter = {name: phi[name] + (proposed[name] - phi[name]) / 2**halving for name in phi}
                if halving == 0:
                    shorter = proposed
                if height(shorter, seen, step) < before:
                    phi = shorter
                    halved += halving > 0
                    break
            else:
                halved += 1
            path.append(phi)
        found.append(value(phi, torch.arange(len(x)), steps).item())
        paths.append(path)
        losses.append(found)
    stacked = [{name: torch.stack([path[step][name] for path in paths]) for name in phi} for step in range(steps + 1)]
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


LOOPS = {
    "momentum": ({"momentum": 0.9}, {"momentum": 0.9}),
    "proximal": ({"proximal": 2.0}, {"proximal": 2.0}),
    "momentum and proximal": ({"momentum": 0.5, "proximal": 0.5}, {"momentum": 0.5, "proximal": 0.5}),
    "mini-batches": ({"batch_size": 3, "shuffle_seed": 5}, {}),
    "mini-batches and momentum": ({"batch_size": 2, "momentum": 0.9}, {"momentum": 0.9}),
}
EVERY_LOOP = ("eager", "batched", "chunks", "checkpoint")
ALSO = {"sgd_update": ("momentum",), "graphed": ("momentum", "proximal", "momentum and proximal")}


@pytest.mark.filterwarnings("ignore:.*tasks diverged")
@pytest.mark.parametrize(
    ("loop", "engine"),
    [(loop, engine) for loop in LOOPS for engine in ENGINES if engine in EVERY_LOOP or loop in ALSO.get(engine, ())],
)
def test_what_a_step_descends_is_what_has_to_fall(loop, engine):
    """The rows that the step sees, with the term that draws back; momentum remembers the step as proposed."""
    settings, told = LOOPS[loop]
    module, batch = make_problem("mlp", "mse", tasks=7, support=5)
    inner = SGD(3.0, 6, **settings)
    if "batch_size" in settings:
        told = told | {"rows": [inner.parts.rows(step, 5) for step in range(6)]}
    paths, losses, halved = reference(module, *batch.sets[0], "mse", 3.0, 6, **told)
    assert halved > 0
    adapted = adapt(
        module, Algorithm(inner, Unrolled()), *batch.sets[0], loss="mse", engine=ENGINES[engine], safeguard=True
    )
    torch.testing.assert_close(adapted.support_losses, losses, rtol=1e-7, atol=1e-12)
    for name, value in adapted.parameters.items():
        torch.testing.assert_close(value, paths[-1][name], rtol=1e-7, atol=1e-10)


class PerStep(nn.Module):
    """A convolution and batch-norm with a scale and a bias for each of three steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), StepBatchNorm2d(3, steps=3), nn.Linear(3, 2)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([[1.0], [3.0], [0.3]]).expand(3, 3))
            self.norm.bias.copy_(torch.tensor([[0.0], [-1.0], [1.0]]).expand(3, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).tanh().mean((2, 3)))


@pytest.mark.parametrize("engine", ["eager", "batched", "chunks", "checkpoint"])
def test_a_step_is_judged_by_its_own_scale_and_bias(engine):
    torch.manual_seed(0)
    module = PerStep().double()
    x, y = torch.randn(5, 4, 1, 6, 6, dtype=torch.float64), torch.randn(5, 4, 2, dtype=torch.float64)
    paths, losses, halved = reference(module, x, y, "mse", 4.0, 4, fixed=("norm.weight", "norm.bias"))
    assert halved > 0
    adapted = adapt(module, maml(4.0, 4), x, y, loss="mse", engine=ENGINES[engine], safeguard=True)
    torch.testing.assert_close(adapted.support_losses, losses, rtol=1e-7, atol=1e-12)
    for name, value in paths[-1].items():
        torch.testing.assert_close(adapted.parameters[name], value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("engine", ["eager", "batched", "mlp_adapt", "compiled"])
def test_a_task_whose_every_step_overflows_stays_where_it_is(engine):
    module, batch = make_problem("mlp", "mse", tasks=3, support=5)
    targets = batch.support_targets.clone()
    targets[1] *= 1e150  # a gradient of 1e150 with a rate of 1e10: 2**10 does not help
    adapted = adapt(
        module, maml(1e10, 3), batch.support_inputs, targets, loss="mse", engine=ENGINES[engine], safeguard=True
    )
    for name, value in module.named_parameters():
        assert torch.equal(adapted.parameters[name][1], value.detach())
    assert torch.equal(adapted.support_losses[1], adapted.support_losses[1, :1].expand(4))
    assert not adapted.diverged.any()


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_that_all_lower_the_loss_are_the_same_bits(engine):
    """The safeguard has nothing to say there, whoever runs it; and without it nothing is asked."""
    module, batch = make_problem("mlp", "mse", tasks=7, support=5)
    free = evaluate(module, maml(0.01, 3), batch, loss="mse", engine=ENGINES[engine])
    guarded = evaluate(module, maml(0.01, 3), batch, loss="mse", engine=ENGINES[engine], safeguard=True)
    assert (free.support_losses.diff() < 0).all()
    for name in ("query_losses", "support_losses", "predictions"):
        assert torch.equal(getattr(free, name), getattr(guarded, name)), name


def test_without_a_safeguard_no_step_is_judged(monkeypatch):
    monkeypatch.setattr("lightning_maml.engine.loops.loop.shortened", partial(pytest.fail, "a step was judged"))
    module, batch = make_problem("mlp", "mse")
    evaluate(module, maml(0.01, 2), batch, loss="mse", engine="batched")


def diverging() -> tuple[nn.Module, Tensor, Tensor]:
    """Seven lines through nought; the inputs of tasks 2 and 5 are too large for a rate of 0.1."""
    network = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    x = torch.ones(7, 4, 1, dtype=torch.float64)
    x[[2, 5]] = 10.0
    return network, x, 2 * x


def test_adapt_warns_of_tasks_that_diverge_once_a_call():
    network, x, y = diverging()
    with pytest.warns(UserWarning, match="diverged") as said:
        adapted = adapt(network, maml(0.1, 3), x, y, loss="mse")
    (only,) = said
    assert str(only.message) == (
        "2 of 7 tasks diverged (tasks 2, 5): after the last inner step the support loss is not finite, or higher than "
        "before the first. safeguard=True shortens steps that raise it."
    )
    assert only.filename == __file__
    assert adapted.diverged.tolist() == [False, False, True, False, False, True, False]


def test_what_is_asked_for_or_counted_does_not_warn():
    network, x, y = diverging()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not adapt(network, maml(0.1, 3), x, y, loss="mse", safeguard=True).diverged.any()
        found = evaluate(network, maml(0.1, 3), TaskBatch(x, y, x, y), loss="mse")
    assert found.diverged.sum(0).tolist() == [0, 2, 2, 2]


def test_a_task_that_comes_down_again_has_not_diverged():
    network, x, y = (value[:1] if isinstance(value, Tensor) else value for value in diverging())
    up = Algorithm(SGD((1.2, 0.5), 2), Unrolled())  # the curvature is 2: farther away, and then to the minimum
    assert evaluate(network, up, TaskBatch(x, y, x, y), loss="mse").diverged.tolist() == [[False, True, False]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(network, up, x, y, loss="mse")


def test_mini_batches_diverge_where_a_loss_is_not_finite():
    """Losses on other rows are not to be compared."""
    network, x, y = diverging()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not adapt(network, Algorithm(SGD(0.1, 3, batch_size=2), Unrolled()), x, y, loss="mse").diverged.any()
    with pytest.warns(UserWarning, match=r"7 of 7 tasks diverged \(tasks 0, 1, 2, 3, 4, ...\)"):
        adapt(network, Algorithm(SGD(1e200, 3, batch_size=2), Unrolled()), x, y, loss="mse")


def test_what_is_loaded_knows_who_diverged(tmp_path):
    network, x, y = diverging()
    with pytest.warns(UserWarning, match="2 of 7 tasks"):
        adapted = adapt(network, maml(0.1, 3), x, y, loss="mse")
    save_adapted(adapted, tmp_path / "adapted.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_adapted(tmp_path / "adapted.safetensors", copy.deepcopy(network), maml(0.1, 3), loss="mse")
    assert torch.equal(again.diverged, adapted.diverged)
    assert again.diverged.any()
