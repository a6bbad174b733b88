"""Every engine's meta-gradient against an independent reference, and against learn2learn."""

from __future__ import annotations

import weakref
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_maml import Batched, Eager, Fused, TaskBatch, adapt, fomaml, maml, meta_loss, pretrained
from lightning_maml.engine import Problem
from lightning_maml.losses import task_loss
from problems import LOSSES, NETWORKS, make_problem, meta_gradient, reference, relative_error

ENGINES = {
    "eager": Eager(),
    "batched": Batched(),
    "checkpoint": Batched(checkpoint="step"),
    "chunks": Batched(chunk_size=2),
    "chunks_checkpoint": Batched(chunk_size=2, checkpoint="step"),
    "fused": Fused(),
}
LR = 0.1


@pytest.fixture(scope="module")
def compiled_problem():
    """Problems by name: a graph belongs to its network, and is compiled in the first test that asks for it."""
    return cache(make_problem)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_reference(network, loss, steps, engine):
    module, tasks = make_problem(network, loss)
    expected = reference(module, tasks, loss, LR, steps)
    output = meta_loss(module, maml(LR, steps), tasks, loss=loss, engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), expected) < 1e-9
    first_order = reference(module, tasks, loss, LR, steps, first_order=True)
    assert relative_error(first_order, expected) > 1e-4  # or the test could not tell second order from first


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", NETWORKS)
def test_first_order_and_joint(network, engine):
    module, tasks = make_problem(network, "mse")
    output = meta_loss(module, fomaml(LR, 3), tasks, loss="mse", engine=ENGINES[engine])
    assert (
        relative_error(meta_gradient(module, output), reference(module, tasks, "mse", LR, 3, first_order=True)) < 1e-9
    )
    output = meta_loss(module, pretrained(LR, 3), tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), reference(module, tasks, "mse", LR, 0)) < 1e-9


@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_float32(network, loss, engine):
    module, tasks = make_problem(network, loss, dtype=torch.float64)
    expected = reference(module, tasks, loss, LR, 5)
    output = meta_loss(module.float(), maml(LR, 5), tasks.to(torch.float32), loss=loss, engine=ENGINES[engine])
    assert relative_error([g.double() for g in meta_gradient(module, output)], expected) < 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 13), (11, 3, 1)], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_awkward_sizes(shape, engine):
    tasks_, support, query = shape
    module, tasks = make_problem("mlp", "mse", tasks_, support, query, out=1)
    output = meta_loss(module, maml(LR, 3), tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), reference(module, tasks, "mse", LR, 3)) < 1e-9


SETTINGS = {
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.2},
    "clipped": {"max_norm": 0.3},
    "everything": {"momentum": 0.5, "weight_decay": 0.2, "max_norm": 0.3},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", ["mlp", "attention"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_momentum_decay_and_clipping(settings, network, engine):
    """Against torch.optim.SGD and clip_grad_norm_ for the steps, and autograd through the same formula written out."""
    module, tasks = make_problem(network, "mse", tasks=3)
    given = SETTINGS[settings]
    algorithm = maml(LR, 3).with_inner(**given)
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    ours = meta_gradient(module, output)
    adapted = adapt(module, algorithm, tasks.support_inputs, tasks.support_targets, loss="mse", engine=ENGINES[engine])
    queries, clipped = [], 0
    for t in range(len(tasks)):
        copy = deepcopy(module)
        decay, momentum = given.get("weight_decay", 0), given.get("momentum", 0)
        optimizer = torch.optim.SGD(copy.parameters(), LR, momentum, weight_decay=decay)
        phi, buffer = dict(module.named_parameters()), {}
        for _ in range(3):
            optimizer.zero_grad()
            with sdpa_kernel(SDPBackend.MATH):
                F.mse_loss(copy(tasks.support_inputs[t]), tasks.support_targets[t]).backward()
                loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            if "max_norm" in given:
                torch.nn.utils.clip_grad_norm_(copy.parameters(), given["max_norm"])
            optimizer.step()
            gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            norm = torch.cat([part.flatten() for part in gradient]).norm()
            factor = (given.get("max_norm", 1e6) / (norm + 1e-6)).clamp(max=1)
            clipped += int(factor < 1)
            for (name, value), part in zip(phi.items(), gradient, strict=True):
                step = factor * part + decay * value
                buffer[name] = step + momentum * buffer[name] if name in buffer else step
            phi = {name: value - LR * buffer[name] for name, value in phi.items()}
        for name, value in copy.named_parameters():
            torch.testing.assert_close(adapted.parameters[name][t], value.detach())
        with sdpa_kernel(SDPBackend.MATH):
            queries.append(F.mse_loss(functional_call(module, phi, (tasks.query_inputs[t],)), tasks.query_targets[t]))
    assert ("max_norm" in given) == bool(clipped)
    expected = torch.autograd.grad(torch.stack(queries).mean(), list(module.parameters()))
    assert relative_error(ours, expected) < 1e-9
    assert relative_error(reference(module, tasks, "mse", LR, 3), expected) > 1e-3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # learn2learn's clone reads it
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ["mlp", "conv4", "conv_module", "gru", "attention"])
def test_equals_learn2learn(network, loss, steps):
    from lightning_maml.data.learn2learn import import_learn2learn

    try:
        l2l = import_learn2learn()
    except ImportError:
        pytest.skip("learn2learn is not installed")
    module, tasks = make_problem(network, loss)
    ours = meta_gradient(module, meta_loss(module, maml(LR, steps), tasks, loss=loss, engine="batched"))
    learner = l2l.algorithms.MAML(module, lr=LR, first_order=False)
    module.zero_grad()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused one has no second derivative
        for t in range(len(tasks)):
            clone = learner.clone()
            for _ in range(steps):
                clone.adapt(LOSSES[loss](clone(tasks.support_inputs[t]), tasks.support_targets[t]))
            (LOSSES[loss](clone(tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)).backward()
    assert relative_error(ours, [p.grad for p in module.parameters()]) < 1e-9


@pytest.mark.parametrize(
    "network,loss,checkpoint",
    [
        pytest.param("mlp", "mse", None, marks=pytest.mark.slow),
        ("mlp", "mse", "step"),
        ("norm_mlp", "cross_entropy", None),
        pytest.param("norm_mlp", "cross_entropy", "step", marks=pytest.mark.slow),
        pytest.param("conv4", "cross_entropy", None, marks=pytest.mark.slow),
        pytest.param("conv4", "cross_entropy", "step", marks=pytest.mark.slow),
    ],
)
def test_compiled(network, loss, checkpoint, compiled_problem):
    engine = Batched(compile=True, checkpoint=checkpoint)
    module, tasks = compiled_problem(network, loss)
    for steps in (1, 5):  # the second runs on the graphs of the first
        output = meta_loss(module, maml(LR, steps), tasks, loss=loss, engine=engine)
        assert relative_error(meta_gradient(module, output), reference(module, tasks, loss, LR, steps)) < 1e-9
        eager = meta_loss(module, maml(LR, steps), tasks, loss=loss, engine="eager")
        torch.testing.assert_close(output.support_losses, eager.support_losses)
        torch.testing.assert_close(output.predictions, eager.predictions)
    output = meta_loss(module, fomaml(LR, 5), tasks, loss=loss, engine=engine)
    expected = reference(module, tasks, loss, LR, 5, first_order=True)
    assert relative_error(meta_gradient(module, output), expected) < 1e-9


@pytest.mark.parametrize("steps", [8, 9, 11, 17])
@pytest.mark.parametrize("preset", [maml, fomaml])
def test_checkpoint_of_many_steps(preset, steps):
    """Of more than 8 steps only some are kept, and those between are run again."""
    module, tasks = make_problem("norm_mlp", "cross_entropy")
    algorithm = preset(LR, steps, learn_lr="per_step", adapts="^3|^1")  # with all that a way back can have
    rates = algorithm.initial_rates(module)
    gradients, histories = [], []
    for engine in (Batched(checkpoint="step"), Eager()):
        rates.zero_grad()
        output = meta_loss(module, algorithm.with_rates(rates), tasks, loss="cross_entropy", engine=engine)
        gradients.append(meta_gradient(module, output) + [rate.grad for rate in rates.parameters()])
        histories.append(output.support_losses)
    assert relative_error(*gradients) < 1e-9
    torch.testing.assert_close(*histories)


def test_compiled_with_shared_parameters():
    module, tasks = make_problem("norm_mlp", "mse")
    gradients = [
        meta_gradient(module, meta_loss(module, maml(LR, 3, adapts="^3|^1"), tasks, loss="mse", engine=engine))
        for engine in (Batched(compile=True), Eager())
    ]
    assert relative_error(*gradients) < 1e-9


def test_compiled_under_a_rule_of_ones_own(compiled_problem):
    """The known rules go back to the start by themselves; any other by autograd."""

    class BeforeAndAfter:
        def __call__(self, loop):
            before, after = loop.query(loop.initial()), loop.query(loop.unroll(order=2))
            return after._replace(loss=after.loss + 0.5 * before.loss)

    module, tasks = compiled_problem("mlp", "mse")
    algorithm = replace(maml(LR, 3), meta_gradient=BeforeAndAfter())
    gradients = [
        meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=engine))
        for engine in (Batched(compile=True), Eager())
    ]
    assert relative_error(*gradients) < 1e-9


def test_compiled_graphs_are_shared_between_steps(compiled_problem):
    from lightning_maml.engine.loops.compiled import _GRAPHS

    module, tasks = compiled_problem("mlp", "mse")
    for steps in (1, 2, 7):
        meta_loss(module, maml(LR, steps), tasks, loss="mse", engine=Batched(compile=True))
        (graphs,) = _GRAPHS[module].values()
        steps_known = [kind for kind in graphs if kind[0] == "kept"]
        assert len(steps_known) == 1
        assert {kind for kind in graphs if kind[0] == "query"} == {("query", False)}


def test_learned_rates_of_other_shapes_have_graphs_of_their_own():
    """Those of a rate for each step, say, fail on rates for each element."""
    from lightning_maml.engine.loops.compiled import CompiledLoop

    module, tasks = make_problem("mlp", "mse")

    def graphs(learn_lr: str) -> int:
        algorithm = maml(LR, 2, learn_lr)
        problem = Problem(module, algorithm.with_rates(algorithm.initial_rates(module)), task_loss("mse"))
        return id(CompiledLoop(problem, *tasks.sets, keep=True).graphs)

    *scalars, elements = map(graphs, LEARNED)
    assert len({*scalars}) == 1
    assert elements not in scalars


LEARNED = ["shared", "per_step", "per_parameter", "per_parameter_and_step", "per_element"]


@pytest.mark.parametrize(
    "preset,learn_lr",
    [
        *((maml, kind) for kind in LEARNED),
        # which compile anew for each kind, too
        *(pytest.param(fomaml, kind, marks=[pytest.mark.slow] * (kind == "per_element")) for kind in LEARNED),
    ],
)
def test_learned_rates(preset, learn_lr):
    module, tasks = make_problem("mlp", "mse")
    algorithm = preset(LR, 3, learn_lr=learn_lr)
    rates = algorithm.initial_rates(module)
    with torch.no_grad():
        for rate in rates.parameters():
            rate.mul_(torch.rand_like(rate) + 0.5)
    gradients = {}
    compiled = {"compile": Batched(compile=True)} if learn_lr in ("per_step", "per_element") else {}  # 10 s each
    for name, engine in {**ENGINES, **compiled}.items():
        rates.zero_grad()
        output = meta_loss(module, algorithm.with_rates(rates), tasks, loss="mse", engine=engine)
        gradients[name] = meta_gradient(module, output) + [rate.grad for rate in rates.parameters()]
    for name, gradient in gradients.items():
        assert relative_error(gradient, gradients["eager"]) < 1e-9, name
    if preset is fomaml:  # whose gradients are not the loss's slope
        return
    # and the oracle's own, by finite differences along a random direction
    direction = [torch.randn_like(rate) for rate in rates.parameters()]
    slope = sum((g * d).sum().item() for g, d in zip(gradients["eager"][-len(direction) :], direction, strict=True))
    losses = []
    for sign in (1, -2):
        with torch.no_grad():
            for rate, d in zip(rates.parameters(), direction, strict=True):
                rate.add_(sign * 1e-5 * d)
        losses.append(meta_loss(module, algorithm.with_rates(rates), tasks, loss="mse").loss.item())
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("preset", [maml, fomaml])
@pytest.mark.parametrize("network", ["mlp", "norm_mlp"])
def test_a_rate_for_each_step(preset, network, compiled_problem):
    """The numbers are those of learned rates at the same values, and further steps have the last one."""
    module, tasks = compiled_problem(network, "mse")
    fixed, learned = preset([LR, LR / 2], 3), preset([LR, LR / 2], 3, learn_lr="per_step")
    rates = learned.initial_rates(module)
    assert rates.per_step.tolist() == [LR, LR / 2, LR / 2]
    oracle = meta_loss(module, learned.with_rates(rates), tasks, loss="mse", engine="eager")
    expected = meta_gradient(module, oracle)
    compiled = {"compile": Batched(compile=True)} if (preset, network) == (maml, "mlp") else {}
    for name, engine in {**ENGINES, **compiled}.items():
        output = meta_loss(module, fixed, tasks, loss="mse", engine=engine)
        assert relative_error(meta_gradient(module, output), expected) < 1e-9, name
        torch.testing.assert_close(output.support_losses, oracle.support_losses)
    one = meta_loss(module, preset(LR, 3), tasks, loss="mse")
    assert relative_error(meta_gradient(module, one), expected) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_partly_adapted_and_frozen(engine):
    """A body that is shared, a layer that is frozen: all as autograd has it."""
    module, tasks = make_problem("conv4", "mse")
    module.conv2.weight.requires_grad_(False)
    algorithm = maml(LR, 3, adapts="^head|^norm3")
    theta = {n: p for n, p in module.named_parameters() if p.requires_grad}
    adapted = [n for n in theta if n.startswith(("head", "norm3"))]
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):
        phi = {n: theta[n] for n in adapted}
        buffers = dict(module.named_buffers())

        def call(phi, x, buffers=buffers):
            return torch.func.functional_call(module, ({n: b.clone() for n, b in buffers.items()}, phi), (x,))

        for _ in range(3):
            inner = LOSSES["mse"](call(phi, tasks.support_inputs[t]), tasks.support_targets[t])
            g = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
            phi = {n: v - LR * d for (n, v), d in zip(phi.items(), g, strict=True)}
        total = total + LOSSES["mse"](call(phi, tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)
    expected = list(torch.autograd.grad(total, list(theta.values())))
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    assert relative_error(meta_gradient(module, output), expected) < 1e-9
    assert module.conv2.weight.grad is None


@pytest.mark.parametrize("engine", [*ENGINES, pytest.param("compile", marks=pytest.mark.slow)])
def test_a_meta_batch_is_freed_at_once(engine):
    """A cycle through autograd's graph would never be: no garbage collector sees it."""
    module, tasks = make_problem("mlp", "mse")
    seen = [weakref.ref(value) for _, value in tasks.named()]
    chosen = Batched(compile=True) if engine == "compile" else ENGINES[engine]
    meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=chosen).surrogate.backward()
    del tasks
    assert [value() for value in seen] == [None] * 4


@pytest.mark.parametrize("engine", ["eager", "batched", "checkpoint"])
def test_gradients_reach_inputs_that_ask_for_them(engine):
    module, tasks = make_problem("mlp", "mse")
    inputs = tasks.support_inputs.clone().requires_grad_()
    asking = TaskBatch(inputs, tasks.support_targets, tasks.query_inputs, tasks.query_targets)
    meta_loss(module, maml(LR, 2), asking, loss="mse", engine=ENGINES[engine]).surrogate.backward()
    index, eps = (1, 2, 0), 1e-6
    moved = []
    for sign in (1, -1):
        shifted = tasks.support_inputs.clone()
        shifted[index] += sign * eps
        batch = TaskBatch(shifted, tasks.support_targets, tasks.query_inputs, tasks.query_targets)
        moved.append(meta_loss(module, maml(LR, 2), batch, loss="mse", engine="eager").loss.item())
    assert inputs.grad[index].item() == pytest.approx((moved[0] - moved[1]) / (2 * eps), rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_differentiating_the_surrogate_twice_raises(engine):
    """Its gradients are numbers by then: a silent zero here would be a silently wrong third order."""
    module, tasks = make_problem("mlp", "mse")
    output = meta_loss(module, maml(LR, 1), tasks, loss="mse", engine=ENGINES[engine])
    gradients = torch.autograd.grad(output.surrogate, list(module.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        torch.autograd.grad(sum(g.sum() for g in gradients), list(module.parameters()))
