"""The algorithms of the family: each against a reference of its own, on every engine that it supports."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from lightning_maml import (
    MLP,
    SGD,
    Adam,
    Algorithm,
    Batched,
    Eager,
    FirstOrder,
    Fused,
    Implicit,
    MetaModule,
    MultiStep,
    Part,
    TaskBatch,
    Unrolled,
    adapt,
    anil,
    boil,
    cavia,
    evaluate,
    fomaml,
    imaml,
    lora,
    maml,
    maml_pp,
    meta_curvature,
    meta_loss,
    meta_sgd,
    pretrained,
    proto_maml,
    reptile,
    unicorn_maml,
)
from lightning_maml.engine import Problem
from lightning_maml.inner import head_names
from lightning_maml.losses import task_loss
from lightning_maml.meta_gradient import Joint, Reptile
from lightning_maml.meta_gradient.base import Query
from lightning_maml.meta_gradient.implicit import conjugate_gradients
from lightning_maml.networks import Context, add_lora, step_batch_norm
from problems import LOSSES, make_problem, meta_gradient, reference, relative_error

ENGINES = {
    "eager": Eager(),
    "batched": Batched(),
    "checkpoint": Batched(checkpoint="step"),
}
LR = 0.1
COMPILED = Batched(compile=True)

engines = pytest.mark.parametrize("engine", ENGINES)


@pytest.mark.parametrize("checkpoint", [None, "step"])
@pytest.mark.parametrize("preset", ["anil", "meta_sgd", "meta_curvature", "reptile", "imaml", "maml_pp", "proto_maml"])
def test_chunks_add_up(preset, checkpoint):
    """Two tasks and then one give what three at once do: rules return means, and chunks are weighed by their tasks."""
    module, tasks = make_problem("mlp", "cross_entropy")
    algorithm = with_rates(PRESETS[preset]("mlp"), module)
    gradients = [
        meta_gradient(module, meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=engine))
        for engine in (Batched(chunk_size=2, checkpoint=checkpoint), Eager())
    ]
    assert relative_error(*gradients) < 1e-9


def with_rates(algorithm: Algorithm, network: nn.Module) -> Algorithm:
    return algorithm.with_rates(algorithm.initial_rates(network))


# What adapts: anil, boil


def test_the_head_is_the_last_module_with_parameters():
    names = [name for name, _ in make_problem("conv4", "mse")[0].named_parameters()]
    assert head_names(names) == ["head.weight", "head.bias"]
    assert head_names(["weight", "bias"]) == ["weight", "bias"]
    attention = [name for name, _ in make_problem("attention", "mse")[0].named_parameters()]
    assert head_names(attention) == ["attention.out_proj.weight", "attention.out_proj.bias"]  # registered last
    assert head_names(attention, "^head") == ["head.weight", "head.bias"]


def test_head_and_body_are_all_there_is():
    theta = dict(make_problem("conv4", "mse")[0].named_parameters())
    head, body = (SGD(adapts=Part(part)).adapted(theta) for part in ("head", "body"))
    assert [*body, *head] == list(theta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Part("neck"), r"`part` to be one of \['head', 'body'\] but got 'neck'"),
        (lambda: run(anil(head="^classifier")), "head's parameters to match .*classifier.* but got none"),
        (lambda: SGD(batch_size=0), "`batch_size` to be a whole number of at least 1 but got 0"),
        (lambda: SGD(proximal=-1.0), "`proximal` to be finite and not negative but got -1.0"),
        (lambda: SGD(tolerance=float("inf")), "`tolerance` to be finite"),
        (lambda: SGD(max_norm=0.0), "`max_norm` to be positive or None but got 0.0"),
        (lambda: SGD(weight_decay=-0.1), "`weight_decay` to be finite and not negative but got -0.1"),
        (lambda: SGD(momentum=1.0), r"`momentum` in \[0, 1\) but got 1.0"),
        (lambda: run(imaml().with_inner(weight_decay=0.1)), "no `weight_decay` for the implicit meta-gradient"),
        (lambda: Adam(beta2=1.0), r"`beta2` in \[0, 1\) .* but got 1.0"),
        (lambda: reptile(optimizer="rmsprop"), r"`optimizer` to be one of \['adam', 'sgd'\] but got 'rmsprop'"),
        (lambda: imaml(proximal=0.0), "`proximal` to be positive and finite but got 0.0"),
        (lambda: Implicit(cg_steps=0), "`cg_steps` to be a whole number of at least 1 but got 0"),
        (lambda: Implicit(damping=-0.1), "`damping` to be finite and not negative but got -0.1"),
        (lambda: run(Algorithm(SGD(), Implicit())), "proximal inner loop .* but got proximal=0.0"),
        (lambda: MultiStep(first_order_updates=-1), "`first_order_updates` to be finite and not negative"),
        (lambda: run(proto_maml()), "class labels .* to make prototypes of but got targets of shape"),
        (lambda: run(proto_maml(head="weight"), "cross_entropy"), "linear head with a weight and a bias"),
        (lambda: Context(0), "`size` to be a whole number of at least 1 but got 0"),
        (lambda: add_lora(nn.Linear(2, 2)), "linear layers to put adapters beside, inside of a module"),
        (lambda: add_lora(MLP(1, [2], 1), rank=0), "`rank` to be a whole number of at least 1 but got 0"),
        (lambda: step_batch_norm(MLP(1, [2], 1), 2), "affine nn.BatchNorm2d layers inside of MLP but got none"),
    ],
)
def test_rejects(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def run(algorithm: Algorithm, loss: str = "mse", engine: str | Batched = "batched"):
    module, tasks = make_problem("mlp", loss)
    return meta_loss(module, algorithm, tasks, loss=loss, engine=engine)


# Against learn2learn


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # learn2learn's clone reads it
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ["mlp", "conv4", "attention"])
@pytest.mark.parametrize("preset", ["anil", "meta_sgd", "meta_curvature"])
def test_equals_learn2learn(preset, network, loss):
    from lightning_maml.data.learn2learn import import_learn2learn

    try:
        l2l = import_learn2learn()
    except ImportError:
        pytest.skip("learn2learn is not installed")
    module, tasks = make_problem(network, loss)
    module.float().double()  # learn2learn makes Meta-Curvature's matrices in float32, and all has to follow
    algorithm = {
        "anil": anil(LR, 3, head="^head"),
        "meta_sgd": meta_sgd(LR, 3),
        "meta_curvature": meta_curvature(LR, 3),
    }[preset]
    rates = algorithm.initial_rates(module)
    if rates is not None:
        with torch.no_grad():
            for rate in rates.parameters():
                rate.add_((torch.rand_like(rate) - 0.5) * rate.max())
    ours = meta_gradient(module, meta_loss(module, algorithm.with_rates(rates), tasks, loss=loss, engine="batched"))
    ours = [gradient.clone() for gradient in ours]  # the module's own would change their type with it
    theirs = list(module.parameters())
    if preset == "anil":
        head = l2l.algorithms.MAML(module.head, lr=LR)
        body, module.head = module, nn.Identity()  # as in its examples: the features, then the head of the task
        learners = [lambda x, clone: clone(body(x)), head]
    elif preset == "meta_curvature":
        transform = l2l.optim.MetaCurvatureTransform
        learner = l2l.algorithms.GBML(module.float(), transform, lr=LR).double()
        own, matrices = [], list(learner.compute_update.parameters())
        for name, parameter in module.named_parameters():  # its "in" is the first dimension, its "out" the second
            parts = (
                ["elements"] if parameter.ndim == 1 else ["outputs", "inputs", "places"][: max(parameter.ndim - 1, 2)]
            )
            own += [rates.get_parameter(f"{rates._key(name)}/{part}") for part in parts]
        with torch.no_grad():
            for matrix, rate in zip(matrices, own, strict=True):
                matrix.copy_(rate)
        ours += [rate.grad for rate in own]
        theirs += matrices
        learners = [lambda x, clone: clone(x), learner]
    else:
        learner = l2l.algorithms.MetaSGD(module, lr=LR)
        with torch.no_grad():
            for own, rate in zip(learner.lrs, rates.parameters(), strict=True):
                own.copy_(rate)
        ours += [rate.grad for rate in rates.parameters()]
        theirs += list(learner.lrs)
        learners = [lambda x, clone: clone(x), learner]
    for parameter in theirs:
        parameter.grad = None
    call, learner = learners
    with sdpa_kernel(SDPBackend.MATH):
        for t in range(len(tasks)):
            clone = learner.clone()
            for _ in range(3):
                clone.adapt(LOSSES[loss](call(tasks.support_inputs[t], clone), tasks.support_targets[t]))
            (LOSSES[loss](call(tasks.query_inputs[t], clone), tasks.query_targets[t]) / len(tasks)).backward()
    assert relative_error(ours, [parameter.grad for parameter in theirs]) < 1e-9


@engines
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("network", ["mlp", "conv4"])
def test_meta_curvature_by_hand(network, first_order, engine):
    module, tasks = make_problem(network, "mse")
    algorithm = meta_curvature(LR, 2, first_order)
    rates = algorithm.initial_rates(module)
    with torch.no_grad():
        for rate in rates.parameters():
            rate.add_(0.3 * torch.randn_like(rate))
    theta = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)

    def transformed(name, gradient):
        if gradient.ndim == 1:
            return gradient * rates.get_parameter(f"{name}/elements")
        outputs, inputs = (rates.get_parameter(f"{name}/{part}") for part in ("outputs", "inputs"))
        if gradient.ndim == 2:
            return outputs @ gradient @ inputs
        places = rates.get_parameter(f"{name}/places")
        blocks = torch.einsum("ao,oif->aif", outputs, gradient.flatten(2))
        return torch.einsum("aif,ib,cf->abc", blocks, inputs, places).view_as(gradient)

    for t in range(len(tasks)):
        phi = theta
        for _ in range(2):
            loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            g = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
            phi = {n: v - LR * transformed(n.replace(".", "/"), d) for (n, v), d in zip(phi.items(), g, strict=True)}
        predictions = functional_call(module, phi, (tasks.query_inputs[t],))
        total = total + F.mse_loss(predictions, tasks.query_targets[t]) / len(tasks)
    expected = list(torch.autograd.grad(total, [*theta.values(), *rates.parameters()]))
    output = meta_loss(module, algorithm.with_rates(rates), tasks, loss="mse", engine=ENGINES[engine])
    ours = meta_gradient(module, output) + [rate.grad for rate in rates.parameters()]
    assert relative_error(ours, expected) < 1e-9


# Reptile


@engines
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_reptile_is_its_formula(optimizer, batch_size, engine):
    module, tasks = make_problem("mlp", "mse")
    algorithm = reptile(LR, 4, optimizer, batch_size).at(7)
    theta = {name: parameter.detach() for name, parameter in module.named_parameters()}
    total = [torch.zeros_like(value) for value in theta.values()]
    for t in range(len(tasks)):
        phi = {name: value.clone().requires_grad_() for name, value in theta.items()}
        inner = (
            torch.optim.Adam(phi.values(), LR, betas=(0.0, 0.999))
            if optimizer == "adam"
            else torch.optim.SGD(phi.values(), LR)
        )
        for step in range(4):
            rows = algorithm.inner.rows(step, 5)
            rows = slice(None) if rows is None else rows
            inner.zero_grad()
            predictions = functional_call(module, phi, (tasks.support_inputs[t, rows],))
            F.mse_loss(predictions, tasks.support_targets[t, rows]).backward()
            inner.step()
        total = [a + (theta[n] - phi[n].detach()) / len(tasks) for a, n in zip(total, theta, strict=True)]
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), total) < 1e-9
    adapted = adapt(module, algorithm, tasks.support_inputs, tasks.support_targets, loss="mse", engine=ENGINES[engine])
    moved = [theta[name] - value.mean(0) for name, value in adapted.parameters.items()]
    assert relative_error(moved, total) < 1e-9
    losses = [F.mse_loss(adapted.predict(tasks.query_inputs)[t], tasks.query_targets[t]) for t in range(len(tasks))]
    torch.testing.assert_close(output.task_losses, torch.stack(losses))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    torch.testing.assert_close(output.surrogate.detach(), output.loss)


def test_mini_batches_walk_through_all_rows():
    inner = SGD(batch_size=4)
    rows = torch.cat([inner.rows(step, 10) for step in range(5)])  # two passes over ten rows
    for walk in rows.split(10):
        assert sorted(walk.tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert inner.rows(1, 10).tolist() == inner.rows(1, 10).tolist()
    assert inner.at(1).rows(1, 10).tolist() != inner.rows(1, 10).tolist()
    assert inner.rows(0, 4) is None
    assert SGD().at(5) == SGD()


def test_outer_sgd_makes_reptiles_update(tmp_path):
    """To theta + epsilon * mean(phi - theta), with epsilon from the scheduler: 0.5, then 0."""
    module, tasks = make_problem("mlp", "mse", dtype=torch.float32)
    adapted = adapt(module, reptile(LR, 3), tasks.support_inputs, tasks.support_targets, loss="mse")
    expected = [0.5 * (p.detach() + adapted.parameters[n].mean(0)) for n, p in module.named_parameters()]
    subject = MetaModule(
        module,
        reptile(LR, 3),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 1),
    )
    trainer(tmp_path, max_steps=3).fit(subject, DataLoader([tasks] * 3, batch_size=None))
    torch.testing.assert_close([p.detach() for p in module.parameters()], expected)


def test_defaults_of_the_multi_step_loss_are_no_annealing():
    rule = MultiStep()
    assert (rule.multi_step_updates, rule.first_order_updates, rule.update) == (0, 0, 0)
    assert (rule.order, rule.weights(3)) == (2, [0.0, 0.0, 1.0])


@pytest.mark.parametrize("rule", [Unrolled(), FirstOrder(), Joint(), Reptile(), Implicit(), MultiStep()], ids=repr)
def test_a_rule_rejects_changes(rule):
    """Rules are shared by all copies of an algorithm, and parts of its equality."""
    with pytest.raises(FrozenInstanceError):
        rule.anything = 1
    assert rule == type(rule)()


# Adam inside, elsewhere


@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_adam_has_a_first_order_alone(engine):
    module, tasks = make_problem("mlp", "mse")
    output = meta_loss(module, Algorithm(Adam(0.01, 3), FirstOrder()), tasks, loss="mse", engine=engine)
    assert all(gradient.isfinite().all() for gradient in meta_gradient(module, output))
    with pytest.raises(NotImplementedError, match="first-order meta-gradient for the inner loop Adam"):
        meta_loss(module, Algorithm(Adam(0.01, 3), Unrolled()), tasks, loss="mse", engine=engine)


# Implicit MAML


def quadratic(shared: bool = False):
    """Linear regression: every Hessian is a constant, and the inner optimum the solution of a linear system."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1, dtype=torch.float64)
    network.bias.requires_grad_(shared)
    x, y = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(4, 6, 1, dtype=torch.float64)
    return network, TaskBatch(x, y, x.flip(0) + 1, y + 1)


@engines
@pytest.mark.parametrize("shared", [False, True])
def test_implicit_gradient_on_quadratics(engine, shared):
    network, tasks = quadratic(shared)
    strength = 0.7
    total = torch.zeros((), dtype=torch.float64)
    for t in range(4):  # phi* = (H + lambda)^-1 (2/N X'(y - b) + lambda theta), differentiated through
        x, y = tasks.support_inputs[t], tasks.support_targets[t] - network.bias
        matrix = 2 * x.mT @ x / len(x) + strength * torch.eye(3, dtype=torch.float64)
        phi = torch.linalg.solve(matrix, 2 * x.mT @ y / len(x) + strength * network.weight.mT)
        total = total + F.mse_loss(tasks.query_inputs[t] @ phi + network.bias, tasks.query_targets[t]) / 4
    trainable = [p for p in network.parameters() if p.requires_grad]
    expected = torch.autograd.grad(total, trainable)
    algorithm = imaml(0.1, 500, strength, cg_steps=3, damping=0.0, adapts="weight")
    output = meta_loss(network, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-9)
    assert relative_error(meta_gradient(network, output), list(expected)) < 1e-8


def test_damping_solves_the_damped_system():
    network, tasks = quadratic()
    output = meta_loss(network, imaml(0.1, 300, 0.7, cg_steps=3, damping=0.5), tasks, loss="mse")
    total = torch.zeros(3, 1, dtype=torch.float64)
    adapted = adapt(network, imaml(0.1, 300, 0.7), tasks.support_inputs, tasks.support_targets, loss="mse")
    for t in range(4):
        hessian = 2 * tasks.support_inputs[t].mT @ tasks.support_inputs[t] / 6
        residual = tasks.query_inputs[t] @ adapted.parameters["weight"][t].mT + network.bias - tasks.query_targets[t]
        slope = 2 * tasks.query_inputs[t].mT @ residual / 6
        total += torch.linalg.solve(1.5 * torch.eye(3, dtype=torch.float64) + hessian / 0.7, slope) / 4
    assert relative_error(meta_gradient(network, output)[:1], [total.mT.detach()]) < 1e-8


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
def test_implicit_gradient_is_the_limit_of_a_long_unrolled_loop(engine):
    module, tasks = make_problem("mlp", "mse")
    inner = SGD(0.2, 300, proximal=2.0)
    unrolled = meta_gradient(
        module, meta_loss(module, Algorithm(inner, Unrolled()), tasks, loss="mse", engine=ENGINES["checkpoint"])
    )
    rule = Implicit(cg_steps=60, damping=0.0)
    implicit = meta_loss(module, Algorithm(inner, rule), tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, implicit), unrolled) < 1e-8
    first = meta_loss(module, Algorithm(inner, FirstOrder()), tasks, loss="mse", engine=ENGINES["batched"])
    assert relative_error(meta_gradient(module, first), unrolled) > 1e-2


@engines
def test_proximal_term_is_differentiated(engine):
    """The unrolled proximal loop, by hand: the pull towards theta depends on theta."""
    module, tasks = make_problem("mlp", "mse")
    theta = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):
        phi = theta
        for _ in range(3):
            loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: v - LR * (g + 0.5 * (v - theta[n])) for (n, v), g in zip(phi.items(), gradients, strict=True)}
        predictions = functional_call(module, phi, (tasks.query_inputs[t],))
        total = total + F.mse_loss(predictions, tasks.query_targets[t]) / len(tasks)
    expected = list(torch.autograd.grad(total, list(theta.values())))
    algorithm = Algorithm(SGD(LR, 3, proximal=0.5), Unrolled())
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), expected) < 1e-9


@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_tolerance_stops_each_task_by_itself(engine):
    network, tasks = quadratic()
    tasks.support_targets[1] = tasks.support_inputs[1] @ network.weight.detach().mT + network.bias.detach()
    algorithm = imaml(0.1, 50, 0.7, tolerance=0.05)
    parameters = adapt(
        network, algorithm, tasks.support_inputs, tasks.support_targets, loss="mse", engine=engine
    ).parameters["weight"]
    assert torch.equal(parameters[1], network.weight)  # it was at its optimum before the first step
    exact = adapt(network, imaml(0.1, 500, 0.7), tasks.support_inputs, tasks.support_targets, loss="mse")
    for t in (0, 2, 3):
        phi = parameters[t].mT
        residual = tasks.support_inputs[t] @ phi + network.bias - tasks.support_targets[t]
        slope = 2 * tasks.support_inputs[t].mT @ residual / 6 + 0.7 * (phi - network.weight.mT)
        assert 0.02 < slope.norm() <= 0.05
        assert not torch.allclose(parameters[t], exact.parameters["weight"][t], rtol=1e-6)


def silent(algorithm: Algorithm, module: nn.Module, tasks: TaskBatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta_loss(module, algorithm, tasks, loss="mse")


def test_says_once_that_conjugate_gradients_took_too_few_iterations():
    network, tasks = quadratic()  # convex: no other cause is possible
    algorithm = imaml(0.1, 5, proximal=0.01, cg_steps=1, damping=0.0)
    with pytest.warns(UserWarning, match="for 4 of 4 tasks .* 1 iterations are too few.* This is said once"):
        meta_loss(network, algorithm, tasks, loss="mse")
    silent(algorithm, network, tasks)
    silent(imaml(0.1, 5, proximal=0.01, cg_steps=3, damping=0.0), network, tasks)


class Product(nn.Module):
    """``a * b``, which has a saddle at 0: ``[N, 1] -> [N, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(0.01, dtype=torch.float64)) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.a * self.b * torch.ones_like(inputs)


@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_says_that_the_inner_loop_ends_at_a_saddle(engine):
    """With the target 3, L has the Hessian [[~0, -6], [-6, ~0]] near 0: no cg_steps solve that, more steps do."""
    network, targets = Product(), torch.full((2, 1, 1), 3.0, dtype=torch.float64)
    targets[1] = 0.0  # at its minimum: no saddle
    tasks = TaskBatch(targets, targets, targets, targets)
    near = imaml(1e-6, 1, proximal=1.0, cg_steps=50, damping=0.5)
    with pytest.warns(UserWarning, match="for 1 of [12] tasks .* negative curvature.* more `cg_steps` do not help"):
        output = meta_loss(network, near, tasks, loss="mse", engine=engine)
    first = meta_loss(network, Algorithm(near.inner, FirstOrder()), tasks, loss="mse", engine=engine)
    expected = [gradient / 1.5 for gradient in meta_gradient(network, first)]  # the iterations' start, 1 + damping
    assert relative_error(meta_gradient(network, output), expected) < 1e-3
    silent(near, network, tasks)
    far = imaml(0.05, 400, proximal=1.0, cg_steps=3, damping=0.0)
    silent(far, network, tasks)
    limit = meta_loss(network, Algorithm(far.inner, Unrolled()), tasks, loss="mse", engine=engine)
    implicit = meta_loss(network, far, tasks, loss="mse", engine=engine)
    assert relative_error(meta_gradient(network, limit), meta_gradient(network, implicit)) < 1e-6


def test_says_that_the_inner_loop_diverges():
    network, tasks = quadratic()
    algorithm = imaml(1e3, 200)
    with pytest.warns(UserWarning, match="for 4 of 4 tasks .* inner loop has diverged. Use a smaller `lr`"):
        meta_loss(network, algorithm, tasks, loss="mse")


# MAML++


@engines
@pytest.mark.parametrize("update", [0, 4])
@pytest.mark.parametrize("network", ["mlp", "conv4"])
def test_multi_step_loss_is_the_weighted_sum(network, update, engine):
    module, tasks = make_problem(network, "mse")
    weights = [0.25, 0.25, 0.25, 0.25] if update == 0 else [0.15, 0.15, 0.15, 0.55]  # 4 / 10 of the way to the last
    expected = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for step, weight in enumerate(weights, start=1):
        each = reference(module, tasks, "mse", LR, step)
        expected = [a + weight * b for a, b in zip(expected, each, strict=True)]
    algorithm = maml_pp(LR, 4, learn_lr=None, multi_step_updates=10).at(update)
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), expected) < 1e-9
    last = meta_loss(module, maml(LR, 4), tasks, loss="mse", engine=ENGINES[engine])
    torch.testing.assert_close(output.task_losses, last.task_losses)  # what is logged is the loss after the last step


def test_multi_step_weights():
    assert MultiStep(None).at(10**6).weights(4) == [0.25] * 4
    assert MultiStep(0).weights(3) == MultiStep(10).at(10).weights(3) == MultiStep(10).at(99).weights(3) == [0, 0, 1]
    assert MultiStep(10).weights(1) == [1]
    for update in range(12):
        assert sum(MultiStep(10).at(update).weights(5)) == pytest.approx(1)


@engines
def test_multi_step_loss_of_no_steps(engine):
    module, tasks = make_problem("mlp", "mse")
    output = meta_loss(module, maml_pp(LR, 0, None), tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), reference(module, tasks, "mse", LR, 0)) < 1e-9


@engines
def test_order_annealing(engine):
    module, tasks = make_problem("mlp", "mse")
    algorithm = maml_pp(LR, 3, learn_lr=None, multi_step_updates=0, first_order_updates=100)
    for update, first_order in ((0, True), (99, True), (100, False), (500, False)):
        output = meta_loss(module, algorithm.at(update), tasks, loss="mse", engine=ENGINES[engine])
        expected = reference(module, tasks, "mse", LR, 3, first_order=first_order)
        assert relative_error(meta_gradient(module, output), expected) < 1e-9
    # and together with the multi-step loss
    algorithm = maml_pp(LR, 2, learn_lr=None, multi_step_updates=None, first_order_updates=1)
    each = [reference(module, tasks, "mse", LR, step, first_order=True) for step in (1, 2)]
    output = meta_loss(module, algorithm.at(0), tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), [(a + b) / 2 for a, b in zip(*each, strict=True)]) < 1e-9


def test_the_module_tells_the_algorithm_its_update(tmp_path):
    """FOMAML's updates first, then MAML's; also where a run was resumed, and with several updates a step."""
    batches = [make_problem("mlp", "mse", dtype=torch.float32)[1]] * 4
    algorithm = maml_pp(LR, 3, learn_lr=None, multi_step_updates=0, first_order_updates=3)

    def subject(k: int = 1) -> MetaModule:
        network = make_problem("mlp", "mse", dtype=torch.float32)[0]
        return MetaModule(network, algorithm, updates_per_step=k)

    expected = subject().network
    optimizer = torch.optim.Adam(expected.parameters())
    for update, tasks in enumerate(batches):
        optimizer.zero_grad()
        meta_loss(expected, (fomaml if update < 3 else maml)(LR, 3), tasks, loss="mse").surrogate.backward()
        optimizer.step()
    whole, grouped, first, second = subject(), subject(2), subject(), subject()
    trainer(tmp_path, max_steps=4).fit(whole, DataLoader(batches, batch_size=None))
    trainer(tmp_path, max_steps=4).fit(grouped, DataLoader([tuple(batches[:2])] * 2, batch_size=None))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(first, DataLoader(batches[:2], batch_size=None))
    run.save_checkpoint(tmp_path / "first.ckpt")
    trainer(tmp_path, max_epochs=2).fit(
        second, DataLoader(batches[:2], batch_size=None), ckpt_path=tmp_path / "first.ckpt"
    )
    for network in (whole.network, grouped.network, second.network):
        torch.testing.assert_close(list(network.parameters()), list(expected.parameters()))


@engines
@pytest.mark.parametrize("network", ["conv4", "conv_module"])
def test_batch_norm_of_every_step(network, engine):
    module, tasks = make_problem(network, "mse")
    expected = meta_gradient(module, meta_loss(module, maml(LR, 2, adapts="conv|head"), tasks, loss="mse"))
    names = [name for name, _ in module.named_parameters()]
    step_batch_norm(module, 2)
    assert [name for name, _ in module.named_parameters()] == names
    algorithm = maml_pp(LR, 2, learn_lr=None, multi_step_updates=0)
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    # equal at first, as every step starts from the same values: their gradients are the parts of one sum
    ours = [g.sum(0) if "norm" in name else g for g, name in zip(meta_gradient(module, output), names, strict=True)]
    assert relative_error(ours, expected) < 1e-9

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    gradient = meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine]))
    theta = dict(module.named_parameters())

    def call(phi, x, step):
        return functional_call(module, {n: v[step] if "norm" in n else v for n, v in {**theta, **phi}.items()}, (x,))

    total, history = torch.zeros((), dtype=torch.float64), torch.zeros(len(tasks), 4, dtype=torch.float64)
    for t in range(len(tasks)):
        phi = {n: v for n, v in theta.items() if "norm" not in n}
        for step in range(3):  # the third as at test: it uses the last row
            row = min(step, 1)
            if step == 2:
                total = total + F.mse_loss(call(phi, tasks.query_inputs[t], 1), tasks.query_targets[t]) / len(tasks)
            history[t, step] = F.mse_loss(
                call(phi, tasks.query_inputs[t], max(row - (step < 2), 0)), tasks.query_targets[t]
            )
            loss = F.mse_loss(call(phi, tasks.support_inputs[t], row), tasks.support_targets[t])
            g = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: v - LR * d for (n, v), d in zip(phi.items(), g, strict=True)}
        history[t, 3] = F.mse_loss(call(phi, tasks.query_inputs[t], 1), tasks.query_targets[t])
    assert relative_error(gradient, list(torch.autograd.grad(total, list(theta.values())))) < 1e-9
    result = evaluate(module, algorithm, tasks, loss="mse", engine=ENGINES[engine], steps=3)
    torch.testing.assert_close(result.query_losses, history.detach())


def test_rates_are_not_made_for_what_does_not_adapt():
    module = step_batch_norm(make_problem("conv4", "mse")[0], 3)
    assert not [name for name, _ in maml_pp(steps=3).initial_rates(module).named_parameters() if "norm" in name]


@engines
@pytest.mark.parametrize("kind", ["per_element", "per_parameter_and_step"])
def test_steps_beyond_those_trained_on(kind, engine):
    """Large rates, learned for fewer steps, make more of them diverge, and by hand it is the same divergence."""
    module, tasks = make_problem("mlp", "mse")
    algorithm = with_rates(maml(LR, 2, learn_lr=kind), module)
    rates = algorithm.inner.lr
    with torch.no_grad():
        for rate in rates.parameters():
            rate.copy_(12 * torch.rand_like(rate))
    result = evaluate(module, algorithm, tasks, loss="mse", engine=ENGINES[engine], steps=6)
    expected = torch.zeros(len(tasks), 7, dtype=torch.float64)
    for t in range(len(tasks)):
        phi = dict(module.named_parameters())
        for step in range(7):
            expected[t, step] = F.mse_loss(
                functional_call(module, phi, (tasks.query_inputs[t],)), tasks.query_targets[t]
            )
            loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            g = torch.autograd.grad(loss, list(phi.values()))
            own = [rates.get_parameter(name.replace(".", "/")) for name in phi]
            own = [rate[min(step, 1)] for rate in own] if kind == "per_parameter_and_step" else own
            phi = {n: v - a * d for (n, v), a, d in zip(phi.items(), own, g, strict=True)}
    assert (expected[:, -1] > 3 * expected[:, 0]).any()
    torch.testing.assert_close(result.query_losses, expected.detach(), rtol=1e-9, atol=1e-9)


# Proto-MAML, CAVIA, LoRA


@engines
@pytest.mark.parametrize("first_order", [False, True])
def test_proto_maml(engine, first_order):
    module, tasks = make_problem("mlp", "cross_entropy")
    for t in range(len(tasks)):  # no query of a class that has no support row
        tasks.query_targets[t] = tasks.support_targets[t][torch.randint(5, (7,))]
    theta = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):
        features, labels = module[:-1](tasks.support_inputs[t]), tasks.support_targets[t]
        present = [c for c in range(5) if (labels == c).any()]
        centres = torch.stack([features[labels == c].mean(0) for c in present])
        places = torch.tensor([present.index(c) if c in present else -1 for c in range(5)])
        assert len(present) < 5 or t > 0  # a class without a support row has no output, as in the authors' code
        # apart from the body, so that the first inner gradient is at the head and not through it
        phi = {n: v.view_as(v) for n, v in theta.items()}
        phi |= {"head.weight": 2 * centres, "head.bias": -centres.square().sum(1)}
        for _ in range(2):
            loss = F.cross_entropy(functional_call(module, phi, (tasks.support_inputs[t],)), places[labels])
            g = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order, retain_graph=True)
            phi = {n: v - LR * d for (n, v), d in zip(phi.items(), g, strict=True)}
        predictions = functional_call(module, phi, (tasks.query_inputs[t],))
        total = total + F.cross_entropy(predictions, places[tasks.query_targets[t]]) / len(tasks)
    expected = torch.autograd.grad(total, list(theta.values()), materialize_grads=True)
    algorithm = proto_maml(LR, 2, first_order=first_order)
    output = meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), list(expected)) < 1e-9
    assert not module.head.weight.grad.any()


@pytest.mark.parametrize("engine", [*ENGINES.values(), Fused(), Fused(compile=True)], ids=repr)
@pytest.mark.parametrize("first_order", [False, True])
def test_unicorn_maml(engine, first_order):
    module, tasks = make_problem("mlp", "cross_entropy")
    theta = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):
        copies = {n: v[:1].repeat(5, *[1] * (v.ndim - 1)) if n.startswith("head") else v for n, v in theta.items()}
        phi = {n: v.view_as(v) for n, v in copies.items()}
        for _ in range(3):
            loss = F.cross_entropy(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            g = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order, retain_graph=True)
            phi = {n: v - LR * d for (n, v), d in zip(phi.items(), g, strict=True)}
        predictions = functional_call(module, phi, (tasks.query_inputs[t],))
        total = total + F.cross_entropy(predictions, tasks.query_targets[t]) / len(tasks)
    expected = torch.autograd.grad(total, list(theta.values()))
    output = meta_loss(module, unicorn_maml(LR, 3, first_order=first_order), tasks, loss="cross_entropy", engine=engine)
    assert relative_error(meta_gradient(module, output), list(expected)) < 1e-9
    assert module.head.weight.grad.abs().max() < 1e-15  # a softmax does not see what all classes share


def test_prototypes_classify_by_distance():
    module, tasks = make_problem("conv4", "cross_entropy", support=25)
    labels = torch.arange(25).expand(3, 25) % 5
    adapted = adapt(module, proto_maml(LR, 0), tasks.support_inputs, labels, loss="cross_entropy")
    features = torch.stack([module[:-1](images) for images in tasks.query_inputs])
    support = torch.stack([module[:-1](images) for images in tasks.support_inputs])
    centres = torch.stack([support[:, labels[0] == c].mean(1) for c in range(5)], 1)
    expected = -torch.cdist(features, centres).square()
    torch.testing.assert_close(adapted.predict(tasks.query_inputs).log_softmax(-1), expected.log_softmax(-1))


@engines
def test_cavia(engine):
    torch.manual_seed(0)
    network = nn.Sequential(Context(2), MLP(5, [6], 5, "tanh", "default")).double()
    _, tasks = make_problem("mlp", "mse")
    body = list(network[1].parameters())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):
        context = torch.zeros(2, dtype=torch.float64, requires_grad=True)

        def call(x, context):
            return network[1](torch.cat([x, context.expand(len(x), 2)], 1))

        for _ in range(3):
            loss = F.mse_loss(call(tasks.support_inputs[t], context), tasks.support_targets[t])
            context = context - 0.5 * torch.autograd.grad(loss, context, create_graph=True)[0]
        total = total + F.mse_loss(call(tasks.query_inputs[t], context), tasks.query_targets[t]) / len(tasks)
    expected = torch.autograd.grad(total, body)
    with torch.no_grad():
        network[0].context.fill_(9.0)  # of no consequence: every task starts at zero
    output = meta_loss(network, cavia(0.5, 3), tasks, loss="mse", engine=ENGINES[engine])
    context, *ours = meta_gradient(network, output)
    assert relative_error(ours, list(expected)) < 1e-9
    assert not context.any()


@engines
def test_lora_adapts_low_rank_matrices(engine):
    module, tasks = make_problem("attention", "mse")
    plain = module(tasks.support_inputs[0])
    add_lora(module, rank=2)
    torch.testing.assert_close(module(tasks.support_inputs[0]), plain)
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert set(trainable) == {f"{layer}.lora_{x}" for layer in ("embed", "head") for x in "ab"}
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    total = torch.zeros((), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for t in range(len(tasks)):
            phi = trainable
            for _ in range(2):
                loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
                g = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {n: v - LR * d for (n, v), d in zip(phi.items(), g, strict=True)}
            predictions = functional_call(module, phi, (tasks.query_inputs[t],))
            total = total + F.mse_loss(predictions, tasks.query_targets[t]) / len(tasks)
    expected = list(torch.autograd.grad(total, list(trainable.values())))
    output = meta_loss(module, lora(LR, 2), tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), expected) < 1e-9


class Transformer(nn.Module):
    """Two of torch's own encoder layers: ``[N, 6, 3] -> [N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(inputs)).mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_lora_in_a_transformer(training):
    """In evaluation mode torch's layers read the weights past the linear layers: they must be the adapted ones."""
    torch.manual_seed(0)
    _, tasks = make_problem("attention", "cross_entropy")
    network = add_lora(Transformer().double(), rank=2).train(training)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert len(lora().inner.adapted(dict(network.named_parameters()))) == 2 * (2 + 2 * 2)
    outputs = [
        meta_loss(network, lora(LR, 2), tasks, loss="cross_entropy", engine=engine) for engine in ENGINES.values()
    ]
    first, *others = [meta_gradient(network, output) for output in outputs]
    assert all(relative_error(gradient, first) < 1e-9 for gradient in others)
    results = [
        evaluate(network, lora(LR, 2), tasks, loss="cross_entropy", engine=engine).query_losses
        for engine in ("eager", "batched")
    ]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0][:, -1], outputs[0].task_losses)


@engines
def test_lora_in_bf16(engine):
    """Under autocast, on a base in bfloat16 with adapters in float32: near the float32 meta-gradient."""
    torch.manual_seed(0)
    tasks = make_problem("attention", "cross_entropy", dtype=torch.float32)[1]
    network = add_lora(Transformer(), rank=2)
    adapters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for value in adapters.values():
            value.add_(0.1 * torch.randn_like(value))
    right = meta_gradient(network, meta_loss(network, lora(LR, 2), tasks, loss="cross_entropy", engine="eager"))
    for name, value in network.named_parameters():
        if name not in adapters:
            value.data = value.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = meta_loss(network, lora(LR, 2), tasks, loss="cross_entropy", engine=ENGINES[engine])
    actual = meta_gradient(network, output)
    assert {gradient.dtype for gradient in actual} == {torch.float32}
    flat = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (actual, right)]
    assert not torch.equal(*flat)  # or autocast did nothing
    assert F.cosine_similarity(*flat, dim=0) > 0.98


@pytest.mark.parametrize("engine", ["eager", "batched"])
def test_scalar_parameters(engine):
    """A parameter without dimensions under all that looks at the shape of gradients."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.tensor(2.0).double()), nn.Linear(3, 5).double()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.scale * self.linear(inputs)

    _, tasks = make_problem("mlp", "mse")
    network = Scale()
    for algorithm in (imaml(0.05, 5, tolerance=0.01), meta_curvature(0.05, 2), reptile(), meta_sgd(0.05, 2)):
        algorithm = with_rates(algorithm, network)
        output = meta_loss(network, algorithm, tasks, loss="mse", engine=engine)
        assert all(gradient.isfinite().all() for gradient in meta_gradient(network, output))


# What an engine cannot run, it says


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (reptile(LR, 2, "sgd", batch_size=2), "has the part MiniBatches"),
        (Algorithm(SGD(LR, 2, proximal=1.0), Unrolled()), "has the part Proximal"),
        (imaml(LR, 2), "has the part Proximal"),
        (cavia(adapts="bias"), "has the part Zeros"),
        (meta_curvature(LR, 2), "has the part Curvature"),
        (Algorithm(SGD(LR, 2, tolerance=0.1), Unrolled()), "has the part Tolerance"),
    ],
)
def test_compiled_says_what_it_cannot(algorithm, message):
    algorithm = with_rates(algorithm, make_problem("mlp", "mse")[0])
    with pytest.raises(NotImplementedError, match=f"Engine 'batched' cannot run this: compile=True .* {message}"):
        run(algorithm, engine=COMPILED)


def test_compiled_refuses_values_of_every_step():
    module, tasks = make_problem("conv4", "mse")
    step_batch_norm(module, 2)
    with pytest.raises(NotImplementedError, match="the network has a value for every inner step"):
        meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=COMPILED)


@pytest.mark.parametrize("steps", [3, 11])
def test_checkpoint_carries_the_state_of_the_steps(steps):
    module, tasks = make_problem("mlp", "mse")
    momentum = maml(LR, steps).with_inner(momentum=0.9, max_norm=1.0, weight_decay=0.1)
    for algorithm in (Algorithm(Adam(LR, steps), FirstOrder()), momentum):
        gradients = [
            meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=engine))
            for engine in (Batched(checkpoint="step"), Eager())
        ]
        assert relative_error(*gradients) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [anil(LR, 3), boil(LR, 3), reptile(LR, 3, "sgd")], ids=lambda a: a.name)
def test_compiled_runs_what_is_plain(algorithm):
    module, tasks = make_problem("mlp", "mse")
    gradients = [
        meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=engine))
        for engine in (COMPILED, Eager())
    ]
    assert relative_error(*gradients) < 1e-9


# Every preset, every engine, three kinds of network

HEAD = {"mlp": None, "conv4": None, "attention": "^head"}
CONTEXT = {"mlp": r"linear1\.bias", "conv4": r"norm\d\.bias", "attention": r"norm\.bias"}
PRESETS = {
    "maml": lambda network: maml(LR, 2),
    "fomaml": lambda network: fomaml(LR, 2),
    "pretrained": lambda network: pretrained(LR, 2),
    "anil": lambda network: anil(LR, 2, HEAD[network]),
    "boil": lambda network: boil(LR, 2, HEAD[network]),
    "meta_sgd": lambda network: meta_sgd(LR, 2),
    "meta_curvature": lambda network: meta_curvature(LR, 2),
    "reptile": lambda network: reptile(0.01, 3, batch_size=4),
    "reptile_sgd": lambda network: reptile(LR, 3, "sgd"),
    "imaml": lambda network: imaml(LR, 4),
    "maml_pp": lambda network: maml_pp(LR, 2, multi_step_updates=10, first_order_updates=5),
    "proto_maml": lambda network: proto_maml(LR, 2, HEAD[network]),
    "unicorn_maml": lambda network: unicorn_maml(LR, 2, HEAD[network]),
    "cavia": lambda network: cavia(LR, 2, CONTEXT[network]),
    "lora": lambda network: lora(LR, 2),
}


def small(network: str, preset: str) -> tuple[nn.Module, TaskBatch]:
    """A network and two tasks, always the same: a few steps must fit them better."""
    module, tasks = make_problem(network, "cross_entropy", tasks=2, support=6, query=6, out=3, dtype=torch.float32)
    inputs, labels = tasks.support_inputs, torch.arange(6).expand(2, 6) % 3
    if preset == "lora":
        add_lora(module, rank=2)
    if preset == "maml_pp" and network == "conv4":
        step_batch_norm(module, 2)
    return module, TaskBatch(inputs, labels, inputs.flip(1), labels.flip(1))


def trainer(path, **arguments) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def subject(network: str, preset: str, engine: str) -> tuple[MetaModule, TaskBatch]:
    module, tasks = small(network, preset)
    outer = (lambda p: torch.optim.SGD(p, lr=1.0)) if preset.startswith("reptile") else torch.optim.Adam
    if outer is torch.optim.Adam:
        outer = lambda p: torch.optim.Adam(p, lr=0.02)  # noqa: E731
    made = MetaModule(
        module, PRESETS[preset](network), loss="cross_entropy", optimizer=outer, engine=FIT[engine], metric=None
    )
    return made, tasks


FIT = {**ENGINES, "fused": Fused(), "compile": COMPILED}
PLAIN = ("maml", "fomaml", "pretrained", "anil", "boil", "meta_sgd", "reptile_sgd", "lora")


@pytest.mark.parametrize("network", ["mlp", "conv4", "attention"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_tables_below_hold_every_engine_that_supports_a_preset(preset, network):
    module, tasks = small(network, preset)
    problem = Problem(module, with_rates(PRESETS[preset](network), module), task_loss("cross_entropy"))
    supporting = {n for n, e in FIT.items() if e.unsupported(problem, *tasks.sets) is None}
    several = preset == "maml_pp" and network != "conv4"  # whose norms have a value for every step
    started = preset in ("unicorn_maml", "cavia") and network == "mlp"
    more = ["compile", "fused"] if several else ["fused"] if started else []
    assert supporting == ({*FIT} if preset in PLAIN else {*ENGINES, *more})


def every(quick: Callable[[int, int, int], bool]) -> list:
    """Every preset, network and engine that supports it; those that ``quick`` does not choose by number are slow."""
    return [
        pytest.param(preset, network, engine, marks=[] if quick(i, j, k) else pytest.mark.slow)
        for i, preset in enumerate(PRESETS)
        for j, network in enumerate(("mlp", "conv4", "attention"))
        for k, engine in enumerate(FIT)
        if engine in ENGINES or preset in PLAIN
    ]


# a Latin square in each run: every new preset meets every network and every engine; compiling takes long
@pytest.mark.filterwarnings("ignore:The conjugate gradients of the implicit")  # said once, and tested above
@pytest.mark.parametrize(
    ("preset", "network", "engine"), every(lambda i, j, k: i > 2 and (i + j + k) % 3 == 0 and k < 4)
)
def test_twenty_steps_lower_the_loss(tmp_path, preset, network, engine):
    made, tasks = subject(network, preset, engine)

    def loss() -> float:
        steps = 0 if preset == "pretrained" else None
        result = evaluate(made.network, made.algorithm, tasks, loss="cross_entropy", engine="batched", steps=steps)
        return result.query_losses[:, -1].mean().item()

    before = loss()
    trainer(tmp_path, max_steps=20).fit(made, DataLoader([tasks] * 20, batch_size=None))
    assert loss() < 0.97 * before


# with the batched engine in each run, mostly on the perceptron
@pytest.mark.filterwarnings("ignore:The conjugate gradients of the implicit")
@pytest.mark.parametrize(
    ("preset", "network", "engine"),
    every(lambda i, j, k: k == 1 and i > 2 and (j == 0 or (j, [*PRESETS][i]) in ((1, "maml_pp"), (2, "lora")))),
)
def test_checkpoint_resume_predict(tmp_path, preset, network, engine):
    whole, tasks = subject(network, preset, engine)
    data = DataLoader([tasks] * 4, batch_size=None)
    trainer(tmp_path, max_epochs=2).fit(whole, data)
    first, _ = subject(network, preset, engine)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(first, data)
    run.save_checkpoint(tmp_path / "half.ckpt")
    second, _ = subject(network, preset, engine)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(second, data, ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    (predictions,) = run.predict(second, DataLoader([tasks], batch_size=None))
    result = evaluate(whole.network, whole.algorithm, tasks, loss="cross_entropy")
    torch.testing.assert_close(predictions, result.predictions[:, -1])
    assert predictions.isfinite().all()


def test_conjugate_gradients_know_no_scale():
    A = torch.tensor([[[3.0, 1.0], [1.0, 2.0]]], dtype=torch.float64)
    b = torch.tensor([[5.0, 2.0]], dtype=torch.float64)
    x, residuals, saddle = conjugate_gradients(lambda v: (A @ v[..., None])[..., 0], b, 1, start=b)
    assert 1e-3 < residuals < 1  # one iteration is too few for two unknowns,
    assert not saddle  # and no direction has negative curvature, however small it is
    small, same, saddle = conjugate_gradients(lambda v: (A @ v[..., None])[..., 0], 1e-6 * b, 1, start=1e-6 * b)
    torch.testing.assert_close(small, 1e-6 * x)
    torch.testing.assert_close(same, residuals)
    assert not saddle


def test_the_implicit_rule_is_as_documented():
    rule = Implicit()
    assert (rule.cg_steps, rule.damping, rule.tolerance) == (5, 1.0, 0.1)
    for wrong in ({"cg_steps": True}, {"cg_steps": 2.5}, {"tolerance": math.inf}, {"damping": -1.0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"Expected `{name}` to be"):
            Implicit(**wrong)


def test_the_multi_step_rule_asks_for_the_query_set_after_each_step():
    """The number of the step decides, on networks with statistics of every step."""
    seen = []

    class Recorder:
        def path(self, order):
            return ["start", "after one", "after two"]

        def query_after(self, phi, steps):
            seen.append((phi, steps))
            nothing = torch.zeros(1)
            return Query(torch.tensor(float(steps)), nothing, nothing)

    query = MultiStep(multi_step_updates=None)(Recorder())
    assert seen == [("after one", 1), ("after two", 2)]
    assert query.loss == 1.5
