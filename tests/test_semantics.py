"""What happens to the things around the parameters: batch-norm, dropout, buffers, precision, grad modes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from lightning_maml import Batched, Eager, Fused, TaskBatch, adapt, anil, evaluate, maml, meta_loss
from lightning_maml.engine.loops.batched import LoopEngine
from lightning_maml.networks import Conv4
from problems import make_problem, meta_gradient, reference, relative_error

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ENGINES = {"eager": Eager(), "batched": Batched(), "checkpoint": Batched(checkpoint="step")}


@pytest.mark.parametrize(
    "engine,mode,training",
    [
        *itertools.product(ENGINES, ["batch", "running"], [True, False]),
        # compiled in the mode that would write, if any did: half a minute
        pytest.param("compile", "batch", True, marks=pytest.mark.slow),
    ],
)
def test_running_statistics_are_never_written(engine, mode, training):
    # compiling a whole Conv4 takes minutes on two cores
    module, tasks = make_problem("norm_mlp" if engine == "compile" else "conv4", "cross_entropy")
    module.train(training)
    before = copy.deepcopy(module.state_dict())
    chosen = Batched(compile=True) if engine == "compile" else ENGINES[engine]
    algorithm = maml(0.1, 2, batch_norm=mode)
    meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=chosen).surrogate.backward()
    evaluate(module, algorithm, tasks, loss="cross_entropy", engine=chosen)
    adapt(module, algorithm, tasks.support_inputs, tasks.support_targets, loss="cross_entropy", engine=chosen)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(layer.training is training for layer in module.modules())
    assert all(layer.track_running_stats for layer in module.modules() if isinstance(layer, NORMS))


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_norm_modes(engine):
    """``batch``: another row changes a row's prediction, in train and eval alike. ``running``: it does not."""
    module, tasks = make_problem("conv4", "cross_entropy", query=4)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    module.eval()
    other = tasks.query_inputs.clone()
    other[:, 0] += 1
    changed = {}
    for mode in ("batch", "running"):
        first, second = (
            adapt(
                module, maml(0.1, 2, batch_norm=mode), tasks.support_inputs, tasks.support_targets,
                loss="cross_entropy", engine=ENGINES[engine],
            ).predict(inputs)[:, 1:]
            for inputs in (tasks.query_inputs, other)
        )  # fmt: skip
        changed[mode] = not torch.allclose(first, second)
    assert changed == {"batch": True, "running": False}


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
def test_running_statistics_gradient(engine):
    module, tasks = make_problem("conv_module", "mse")
    algorithm = maml(0.1, 3, batch_norm="running")
    expected = meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine="eager"))
    module.eval()  # where torch itself uses the running statistics
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), expected) < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forward_that_writes_a_buffer(engine):
    class Counter(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs):
            self.calls = self.calls + 1
            return super().forward(inputs)

    network = Counter()
    tasks = TaskBatch(torch.randn(2, 3, 3), torch.randn(2, 3, 2), torch.randn(2, 3, 3), torch.randn(2, 3, 2))
    meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine=ENGINES[engine]).surrogate.backward()
    assert network.calls == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_follows_train_and_eval(engine):
    network = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    inputs, targets = torch.randn(1, 4, 3).expand(2, -1, -1), torch.zeros(2, 4, 1)
    tasks = TaskBatch(inputs, targets, inputs, targets)
    run = lambda: meta_loss(network, maml(0.1, 1), tasks, loss="mse", engine=ENGINES[engine]).predictions  # noqa: E731
    predictions = run()
    assert not torch.equal(predictions[0], predictions[1])  # every task drops units of its own
    network.eval()
    predictions = run()
    torch.testing.assert_close(predictions[0], predictions[1])


@pytest.mark.parametrize("steps", [4, 11])  # every step kept; or every third, and the last ones without a third
def test_checkpoint_draws_the_same_dropout_again(steps):
    network = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 1)).double()
    tasks = TaskBatch(*(torch.randn(3, 4, width, dtype=torch.float64) for width in (3, 1, 3, 1)))
    gradients, after = [], []
    for engine in (Batched(), Batched(checkpoint="step")):
        torch.manual_seed(1)
        gradients.append(meta_gradient(network, meta_loss(network, maml(0.1, steps), tasks, loss="mse", engine=engine)))
        after.append(torch.rand(()))
    assert relative_error(*gradients) < 1e-9
    assert after[0] == after[1]


def test_compile_refuses_dropout_in_training():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    tasks = TaskBatch(*(torch.randn(3, 4, width) for width in (3, 1, 3, 1)))
    with pytest.raises(NotImplementedError, match="without randomness for `compile=True`"):
        meta_loss(network, maml(0.1, 1), tasks, loss="mse", engine=Batched(compile=True))


@pytest.mark.parametrize("network", ["mlp", "conv4", "attention"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_autocast(network, engine):
    module, tasks = make_problem(network, "cross_entropy", dtype=torch.float32)
    expected = meta_gradient(module, meta_loss(module, maml(0.1, 2), tasks, loss="cross_entropy", engine="eager"))
    with torch.autocast("cpu", torch.bfloat16):
        output = meta_loss(module, maml(0.1, 2), tasks, loss="cross_entropy", engine=ENGINES[engine])
    actual = meta_gradient(module, output)
    assert all(gradient.dtype == torch.float32 for gradient in actual)
    flat, right = (torch.cat([g.flatten() for g in gradients]) for gradients in (actual, expected))
    assert not torch.equal(flat, right)  # or autocast did nothing
    assert torch.nn.functional.cosine_similarity(flat, right, dim=0) > 0.98


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluate_and_adapt_where_gradients_are_off(engine, mode):
    module, tasks = make_problem("conv4", "cross_entropy")
    expected = evaluate(module, maml(0.1, 2), tasks, loss="cross_entropy", engine=ENGINES[engine])
    weights = copy.deepcopy(module.state_dict())
    with mode():
        made_here = TaskBatch(*(value.clone() for _, value in tasks.named()))
        result = evaluate(module, maml(0.1, 2), made_here, loss="cross_entropy", engine=ENGINES[engine])
        adapted = adapt(
            module, maml(0.1, 2), made_here.support_inputs, made_here.support_targets,
            loss="cross_entropy", engine=ENGINES[engine],
        )  # fmt: skip
        predictions = adapted.predict(made_here.query_inputs)
    torch.testing.assert_close(result.query_losses, expected.query_losses)
    torch.testing.assert_close(predictions, expected.predictions[:, -1])
    assert result.query_losses.shape == (3, 3)
    assert result.predictions.shape == (3, 3, 7, 5)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluate_after_the_steps_that_are_asked_for(engine):
    module, tasks = make_problem("conv4", "cross_entropy")
    every = evaluate(module, maml(0.1, 3), tasks, loss="cross_entropy", engine=ENGINES[engine])
    some = evaluate(module, maml(0.1, 3), tasks, loss="cross_entropy", engine=ENGINES[engine], at=(3, 0))
    torch.testing.assert_close(some.query_losses, every.query_losses[:, [3, 0]])
    torch.testing.assert_close(some.predictions, every.predictions[:, [3, 0]])
    torch.testing.assert_close(some.support_losses, every.support_losses)
    assert torch.equal(some.diverged, every.diverged)
    for wrong in ([], [4], [-1]):
        with pytest.raises(ValueError, match=r"Expected `at` to name some of the steps 0 to 3 but got \["):
            evaluate(module, maml(0.1, 3), tasks, loss="cross_entropy", at=wrong)


@pytest.mark.parametrize("network", ["conv4", "conv4_max_pool"])
def test_the_operator_that_adapts_predicts(network, monkeypatch):
    module, tasks = make_problem(network, "cross_entropy")
    expected = evaluate(module, anil(0.1, 2), tasks, loss="cross_entropy", engine="eager")
    monkeypatch.setattr(LoopEngine, "predict", None)
    found = evaluate(module, anil(0.1, 2), tasks, loss="cross_entropy", engine=Fused(compile=True))
    torch.testing.assert_close(found.predictions, expected.predictions, rtol=1e-10, atol=1e-10)
    adapted = adapt(
        module, anil(0.1, 2), tasks.support_inputs, tasks.support_targets,
        loss="cross_entropy", engine=Fused(compile=True),
    )  # fmt: skip
    torch.testing.assert_close(adapted.predict(tasks.query_inputs), expected.predictions[:, -1], rtol=1e-10, atol=1e-10)
    monkeypatch.undo()
    if network == "conv4":  # whose head sees a mean over places: of images of another size, which nothing was found for
        larger = tasks.query_inputs.repeat(1, 1, 1, 2, 2)
        own = torch.stack([adapted.network(task)(larger[task]) for task in range(3)])
        torch.testing.assert_close(adapted.predict(larger), own, rtol=1e-10, atol=1e-10)


def test_adapted_network_is_an_ordinary_module():
    module, tasks = make_problem("mlp", "mse")
    adapted = adapt(module, maml(0.1, 3), tasks.support_inputs, tasks.support_targets, loss="mse")
    own = adapted.network(1)
    assert own is not module
    torch.testing.assert_close(own(tasks.query_inputs[1]), adapted.predict(tasks.query_inputs)[1])
    errors = (adapted.predict(tasks.support_inputs) - tasks.support_targets).square().mean((1, 2))
    torch.testing.assert_close(adapted.support_losses[:, -1], errors)


def test_meta_output_agrees_with_evaluate():
    module, tasks = make_problem("conv4", "cross_entropy")
    output = meta_loss(module, maml(0.1, 2), tasks, loss="cross_entropy")
    result = evaluate(module, maml(0.1, 2), tasks, loss="cross_entropy")
    torch.testing.assert_close(output.task_losses, result.query_losses[:, -1])
    torch.testing.assert_close(output.support_losses, result.support_losses)
    torch.testing.assert_close(output.predictions, result.predictions[:, -1])
    assert output.loss == output.surrogate.detach() == output.task_losses.mean()


def test_a_layer_used_twice():
    """``named_children`` leaves out repeats: the walk over an ``nn.Sequential`` must not."""
    relu, shared = nn.Tanh(), nn.Linear(4, 4)
    for layers in ([nn.Linear(3, 4), relu, nn.Linear(4, 4), relu], [nn.Linear(3, 4), shared, relu, shared]):
        network = nn.Sequential(*layers).double()
        tasks = TaskBatch(*(torch.randn(2, 5, width, dtype=torch.float64) for width in (3, 4, 3, 4)))
        output = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
        assert relative_error(meta_gradient(network, output), reference(network, tasks, "mse", 0.1, 2)) < 1e-9


def test_hooks_still_run():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    tasks = TaskBatch(*(torch.randn(2, 5, width, dtype=torch.float64) for width in (3, 1, 3, 1)))
    output = meta_loss(network, maml(0.1, 2), tasks, loss="mse", engine="batched")
    assert relative_error(meta_gradient(network, output), reference(network, tasks, "mse", 0.1, 2)) < 1e-9


def test_callable_loss():
    module, tasks = make_problem("mlp", "cross_entropy")
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    outputs = [meta_loss(module, maml(0.1, 2), tasks, loss=smoothed, engine=engine) for engine in ("eager", "batched")]
    assert relative_error(*(meta_gradient(module, output) for output in outputs)) < 1e-9


def test_more_steps_than_learned_rates_use_the_last():
    module, tasks = make_problem("mlp", "mse")
    algorithm = maml(0.1, 2, learn_lr="per_step")
    rates = algorithm.initial_rates(module)
    result = evaluate(module, algorithm.with_rates(rates), tasks, loss="mse", steps=6)
    expected = evaluate(module, maml(0.1, 6), tasks, loss="mse")
    torch.testing.assert_close(result.query_losses, expected.query_losses)


def test_conv4_memory_layout_is_not_seen_outside():
    network = Conv4(3, hidden=4, image_size=16, form="max_pool")
    images, labels = torch.randn(2, 3, 1, 16, 16), torch.arange(3).repeat(2, 1)
    tasks = TaskBatch(images, labels, images + 0.1, labels)
    a, b = (evaluate(network, maml(0.1, 1), tasks, loss="cross_entropy", engine=e) for e in ("eager", "batched"))
    torch.testing.assert_close(a.predictions, b.predictions, rtol=1e-4, atol=1e-5)
