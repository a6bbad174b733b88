"""What was once silently wrong: each against a formula that is written out here, and needs nothing of the library's."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_maml import (
    SGD,
    Algorithm,
    Batched,
    FirstOrder,
    Fused,
    Implicit,
    Rates,
    TaskBatch,
    Unrolled,
    adapt,
    evaluate,
    imaml,
    maml,
    meta_loss,
)
from problems import make_problem, meta_gradient, relative_error

LR, STEPS = 0.1, 3
ENGINES = {
    "auto": "auto",
    "batched": Batched(),
    "checkpoint": Batched(checkpoint="step"),
    "fused": "fused",
    "fused, compiled": Fused(compile=True),
}


# Loops with a step of their own


class Scaled(SGD):
    def direction(self, gradients, step, state):
        return {name: (step + 2) * gradient for name, gradient in gradients.items()}


class Decaying(SGD):
    @staticmethod
    def update(phi, gradients, rates):
        return {name: 0.8 * value - rates[name] * gradients[name] for name, value in phi.items()}


class Cooling(SGD):
    def rate(self, name, step):
        return self.lr / (step + 1)


class Averaging(SGD):
    def direction(self, gradients, step, state):
        for name, gradient in gradients.items():
            state[name] = gradient if step == 0 else 0.5 * state[name] + gradient
        return dict(state)


# the step of each, (parameter, gradient, step, memory) -> (parameter, memory)
STEPS_OF = {
    Scaled: lambda p, g, k, b: (p - LR * (k + 2) * g, b),
    Decaying: lambda p, g, k, b: (0.8 * p - LR * g, b),
    Cooling: lambda p, g, k, b: (p - LR / (k + 1) * g, b),
    Averaging: lambda p, g, k, b: (p - LR * (g if b is None else 0.5 * b + g), g if b is None else 0.5 * b + g),
}


def by_hand(module, tasks, step_of):
    """The meta-gradient and the predictions after the steps ``step_of``, one task after another."""
    theta = dict(module.named_parameters())
    losses, predictions = [], []
    for t in range(len(tasks)):
        phi, memory = dict(theta), dict.fromkeys(theta)
        for k in range(STEPS):
            loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            for (name, value), gradient in zip(list(phi.items()), gradients, strict=True):
                phi[name], memory[name] = step_of(value, gradient, k, memory[name])
        predictions.append(functional_call(module, phi, (tasks.query_inputs[t],)))
        losses.append(F.mse_loss(predictions[-1], tasks.query_targets[t]))
    return list(torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))), torch.stack(predictions)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loop", STEPS_OF)
def test_a_loop_with_a_step_of_its_own_runs_as_written(loop, engine):
    module, tasks = make_problem("mlp", "mse")
    algorithm, engine = Algorithm(loop(LR, STEPS), Unrolled()), ENGINES[engine]
    expected, predictions = by_hand(module, tasks, STEPS_OF[loop])
    try:
        output = meta_loss(module, algorithm, tasks, loss="mse", engine=engine)
    except NotImplementedError as error:
        assert engine != "auto"
        assert loop.__name__ in str(error)  # noqa: PT017
        for call in (evaluate, lambda *a, **k: adapt(*a[:2], *a[2].sets[0], **k)):
            with pytest.raises(NotImplementedError, match=loop.__name__):
                call(module, algorithm, tasks, loss="mse", engine=engine)
        return
    assert relative_error(meta_gradient(module, output), expected) < 1e-9
    result = evaluate(module, algorithm, tasks, loss="mse", engine=engine)
    torch.testing.assert_close(result.predictions[:, -1], predictions)
    support = tasks.support_inputs, tasks.support_targets
    torch.testing.assert_close(
        adapt(module, algorithm, *support, loss="mse", engine=engine).predict(tasks.query_inputs), predictions
    )


@pytest.mark.parametrize("engine", ["auto", "fused"])
def test_matrices_that_come_as_rates_are_not_dropped(engine):
    module, tasks = make_problem("mlp", "mse")
    rates = Rates("curvature", LR, STEPS, dict(module.named_parameters()))
    with torch.no_grad():
        for matrix in rates.parameters():
            matrix.add_(0.1 * torch.randn_like(matrix))
    algorithm = Algorithm(SGD(rates, STEPS), Unrolled())

    def step(name):
        key = name.replace(".", "/")
        if f"{key}/elements" in dict(rates.named_parameters()):
            return lambda g: g * rates.get_parameter(f"{key}/elements")
        return lambda g: rates.get_parameter(f"{key}/outputs") @ g @ rates.get_parameter(f"{key}/inputs")

    theta = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):
        phi = dict(theta)
        for _ in range(STEPS):
            loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: v - LR * step(n)(g) for (n, v), g in zip(phi.items(), gradients, strict=True)}
        query = F.mse_loss(functional_call(module, phi, (tasks.query_inputs[t],)), tasks.query_targets[t])
        total = total + query / len(tasks)
    expected = torch.autograd.grad(total, list(theta.values()))
    try:
        output = meta_loss(module, algorithm, tasks, loss="mse", engine=engine)
    except NotImplementedError as error:
        assert engine == "fused"
        assert "Curvature" in str(error)  # noqa: PT017
        return
    assert relative_error(meta_gradient(module, output), list(expected)) < 1e-9


# Networks that something on the instance changes


class Squares(nn.Module):
    spatial_mean = True

    def forward(self, images):
        return images.square().mean((-2, -1))


def changed_forward():
    module, tasks = make_problem("mlp", "mse")
    module.linear1.forward = lambda inputs: 3 * F.linear(inputs, module.linear1.weight, module.linear1.bias)
    return module, tasks


def changed_activation():
    module, tasks = make_problem("mlp", "mse")
    module.tanh1.forward = torch.sin
    return module, tasks


def another_mean():
    _, tasks = make_problem("conv4", "mse")
    blocks = nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU()
    return nn.Sequential(*blocks, Squares(), nn.Linear(3, 5)).double(), tasks


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [changed_forward, changed_activation, another_mean])
def test_what_an_instance_computes_is_what_counts(make, engine):
    module, tasks = make()
    try:
        output = meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=ENGINES[engine])
    except NotImplementedError as error:
        assert engine == "fused, compiled"
        assert "of its own" in str(error) or "Squares" in str(error)  # noqa: PT017
        return
    ours = meta_gradient(module, output)
    exact = meta_loss(module, maml(LR, 2), tasks, loss="mse", engine="eager")
    assert relative_error(ours, meta_gradient(module, exact)) < 1e-9


# What asks for a gradient


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, predictions, targets):
        return F.mse_loss(self.temperature * predictions, targets)


def slope(value, call, by=1e-5):
    """Of ``call()`` in a scalar tensor, by central differences."""
    with torch.no_grad():
        value.add_(by)
        above = call()
        value.sub_(2 * by)
        below = call()
        value.add_(by)
    return (above - below) / (2 * by)


@pytest.mark.parametrize("engine", ["eager", "batched", "auto", "fused", "checkpoint"])
def test_a_loss_with_parameters_gets_their_gradient(engine):
    module, tasks = make_problem("mlp", "mse")
    loss = Tempered()
    chosen = ENGINES.get(engine, engine)
    call = lambda: meta_loss(module, maml(LR, STEPS), tasks, loss=loss, engine=chosen)  # noqa: E731
    call().surrogate.backward()
    with torch.enable_grad():
        expected = slope(loss.temperature, lambda: float(call_with_gradients(call)))
    assert float(loss.temperature.grad) == pytest.approx(expected, rel=1e-6)


def call_with_gradients(call):
    with torch.enable_grad():
        return call().loss


@pytest.mark.parametrize("engine", ["eager", "batched", "auto"])
def test_a_proximal_strength_gets_its_gradient(engine):
    torch.manual_seed(0)
    module = nn.Linear(2, 1).double()
    x, y = torch.randn(3, 6, 2, dtype=torch.float64), torch.randn(3, 6, 1, dtype=torch.float64)
    tasks = TaskBatch(x, y, x.flip(1), y + 0.5)
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    inner = imaml(LR, 400, proximal=0.7, tolerance=0.0).inner
    algorithm = Algorithm(replace(inner, proximal=strength), Implicit(cg_steps=10, damping=0.0))
    call = lambda: meta_loss(module, algorithm, tasks, loss="mse", engine=engine)  # noqa: E731
    call().surrogate.backward()
    assert float(strength.grad) == pytest.approx(slope(strength, lambda: float(call_with_gradients(call))), rel=1e-5)


# Data without a floating number, and recurrence in float32


@pytest.mark.parametrize("engine", ["eager", "batched", "auto"])
def test_labels_and_tokens_alone(engine):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5))
    tokens, labels = torch.randint(7, (2, 6, 3)), torch.arange(6).expand(2, 6) % 5
    tasks = TaskBatch(tokens, labels, tokens.flip(1), labels.flip(1))
    output = meta_loss(network, maml(LR, 2), tasks, loss="cross_entropy", engine=engine)
    assert all(gradient.isfinite().all() for gradient in meta_gradient(network, output))
    adapt(network, maml(LR, 2), tokens, labels, loss="cross_entropy", engine=engine).predict(tokens)


class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        return self.head(images.flatten(1) / 255)


@pytest.mark.parametrize("engine", ["eager", "batched", "auto"])
def test_images_of_bytes(engine):
    network, labels = Bytes(), torch.arange(6).expand(2, 6) % 5
    images = torch.randint(256, (2, 6, 4, 4), dtype=torch.uint8)
    evaluate(network, maml(LR, 2), TaskBatch(images, labels, images, labels), loss="cross_entropy", engine=engine)
    output = meta_loss(
        network, maml(LR, 2), TaskBatch(images, labels, images, labels), loss="cross_entropy", engine=engine
    )
    assert output.loss.isfinite()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.lstm(inputs)[0][:, -1])


@pytest.mark.parametrize("engine", ["eager", "batched", "auto"])
def test_lstm_in_float32(engine):
    torch.manual_seed(0)
    network = Recurrent()
    tasks = TaskBatch(*(torch.randn(2, 5, *shape) for shape in ((6, 3), (2,), (6, 3), (2,))))
    output = meta_loss(network, maml(LR, 2), tasks, loss="mse", engine=engine)
    exact = copy.deepcopy(network).double()
    expected = meta_loss(exact, maml(LR, 2), tasks.to(torch.float64), loss="mse", engine="eager")
    ours = [gradient.double() for gradient in meta_gradient(network, output)]
    assert relative_error(ours, meta_gradient(exact, expected)) < 1e-4


# Rules of one's own on compiled graphs, and what the momentum of a compiled step remembers


class EveryStep:
    def __call__(self, loop):
        path = loop.path(order=2)
        queries = [loop.query_after(phi, step) for step, phi in enumerate(path)]
        return queries[-1]._replace(loss=torch.stack([query.loss for query in queries]).mean())


@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm(SGD(LR, 3), EveryStep()),
        pytest.param(maml(LR, 3).with_inner(momentum=0.9, max_norm=0.2, weight_decay=0.1), marks=pytest.mark.slow),
    ],
    ids=["query_after", "chain"],
)
def test_compiled_graphs_run_it_too(algorithm):
    module, tasks = make_problem("mlp", "mse")
    gradients = [
        meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=engine))
        for engine in (Batched(compile=True), "eager")
    ]
    assert relative_error(*gradients) < 1e-9


@pytest.mark.parametrize(
    "inner,engines",
    [
        (SGD(LR, STEPS, proximal=0.5, weight_decay=0.1), ["eager", *list(ENGINES.values())[:3]]),
        (SGD(LR, STEPS, weight_decay=0.1), ["eager", *list(ENGINES.values())[:4]]),
        (SGD(LR, STEPS, weight_decay=0.1, momentum=0.5, max_norm=0.3), ["eager", *list(ENGINES.values())[:4]]),
    ],
)
def test_first_order_takes_pull_and_decay_as_constants(inner, engines):
    module, tasks = make_problem("mlp", "mse")
    algorithm = Algorithm(inner, FirstOrder())
    gradients = [
        meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=engine)) for engine in engines
    ]
    adapted = adapt(module, algorithm, tasks.support_inputs, tasks.support_targets, loss="mse", engine="eager")
    expected = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for t in range(len(tasks)):
        own = adapted.network(t)
        F.mse_loss(own(tasks.query_inputs[t]), tasks.query_targets[t]).backward()
        expected = [total + p.grad / len(tasks) for total, p in zip(expected, own.parameters(), strict=True)]
    for ours in gradients:
        assert relative_error(ours, expected) < 1e-9


@pytest.mark.parametrize("engine", ["eager", *ENGINES])
def test_hooks_of_parameters_see_the_meta_gradient_once(engine):
    module, tasks = make_problem("mlp", "mse")
    chosen = ENGINES.get(engine, engine)
    plain = meta_gradient(module, meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=chosen))
    handles = [parameter.register_hook(lambda gradient: 2 * gradient) for parameter in module.parameters()]
    doubled = meta_gradient(module, meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=chosen))
    assert relative_error(doubled, [2 * gradient for gradient in plain]) < 1e-12
    for handle in handles:
        handle.remove()
    again = meta_gradient(module, meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=chosen))
    assert relative_error(again, plain) < 1e-12
