"""The engine fused: what it recognises, that its operators really run, and that nothing falls back in silence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_maml import (
    MLP,
    Batched,
    Conv4,
    Fused,
    MetaModule,
    Sine,
    SinusoidTasks,
    TaskBatch,
    adapt,
    anil,
    boil,
    evaluate,
    fomaml,
    maml,
    meta_loss,
    meta_sgd,
    pretrained,
)
from lightning_maml.engine import Problem, run_on
from lightning_maml.engine.fused.mlp_adapt import MlpAdapt, recognise
from lightning_maml.engine.fused.operator import UnrecognisedError
from lightning_maml.kernels import compiler
from lightning_maml.kernels.mlp_adapt import ON_CPU, ON_GPU
from lightning_maml.losses import task_loss
from problems import make_problem, meta_gradient, reference, relative_error

LR = 0.1


class _Operators(TorchDispatchMode):
    """The project's operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lightning_maml":
            self.seen.append(func.name().removeprefix("lightning_maml::"))
        return func(*args, **(kwargs or {}))


def ran(call) -> list[str]:
    with _Operators() as operators:
        call()
    return operators.seen


def test_a_perceptron_is_one_launch_and_the_rest_one_a_step():
    module, tasks = make_problem("mlp", "mse")
    assert ran(lambda: meta_loss(module, maml(LR, 3), tasks, loss="mse", engine="fused")) == ["mlp_adapt"]
    assert ran(lambda: evaluate(module, maml(LR, 3), tasks, loss="mse", engine="fused")) == ["mlp_trajectory"]
    module, tasks = make_problem("attention", "mse")
    assert ran(lambda: meta_loss(module, maml(LR, 3), tasks, loss="mse", engine="fused")) == ["sgd_update"] * 3
    with pytest.raises(
        NotImplementedError, match="expected a problem that `mlp_adapt` covers but layer '' is a Attent"
    ):
        meta_loss(module, maml(LR, 3), tasks, loss="mse", engine=Fused(kernel="mlp_adapt"))


@pytest.mark.parametrize("preset", [maml, fomaml, pretrained])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", F.binary_cross_entropy_with_logits])
def test_equals_batched(loss, preset):
    module, tasks = make_problem("mlp", "cross_entropy" if loss == "cross_entropy" else "mse")
    if callable(loss):
        tasks = TaskBatch(*(value.sigmoid() for _, value in tasks.named()))
    run = lambda engine: meta_loss(module, preset(LR, 3), tasks, loss=loss, engine=engine)  # noqa: E731
    expected = run("batched")
    wanted = meta_gradient(module, expected)
    for engine in (Fused(kernel="mlp_adapt"), Fused(kernel="sgd_update"), Fused(compile=True)):
        output = run(engine)
        assert relative_error(meta_gradient(module, output), wanted) < 1e-12
        for name in ("loss", "task_losses", "predictions", "support_losses"):
            torch.testing.assert_close(getattr(output, name), getattr(expected, name))


@pytest.mark.parametrize("adapts", ["head", "linear", "weight"])
@pytest.mark.parametrize("learn_lr", [None, "per_parameter_and_step"])
def test_partly_adapted_with_learned_rates_and_frozen(adapts, learn_lr):
    module, tasks = make_problem("mlp", "mse")
    module.linear1.bias.requires_grad_(False)
    algorithm = maml(LR, 2, learn_lr=learn_lr, adapts=adapts)
    rates = algorithm.initial_rates(module)
    algorithm = algorithm.with_rates(rates)
    gradients = []
    for engine in (Fused(kernel="mlp_adapt"), Fused(kernel="sgd_update"), Fused(compile=True), Batched()):
        module.zero_grad()
        output = meta_loss(module, algorithm, tasks, loss="mse", engine=engine)
        if rates is not None:
            rates.zero_grad()
        gradients.append(meta_gradient(module, output) + [p.grad for p in (rates.parameters() if rates else ())])
    assert module.linear1.bias.grad is None
    for others in gradients[:-1]:
        assert relative_error(others, gradients[-1]) < 1e-12


def test_rate_as_a_tensor_that_asks_for_a_gradient():
    module, tasks = make_problem("mlp", "mse")
    found = []
    for engine in (Fused(kernel="mlp_adapt"), Fused(compile=True), Batched()):
        rate = torch.tensor(LR, dtype=torch.float64, requires_grad=True)
        meta_gradient(module, meta_loss(module, maml(rate, 3), tasks, loss="mse", engine=engine))
        found.append(rate.grad)
    assert relative_error(found[:1], found[2:]) < 1e-12
    assert relative_error(found[1:2], found[2:]) < 1e-12


@pytest.mark.parametrize("engine", [Fused(), Fused(compile=True)], ids=["torch", "compiled"])
def test_adapt_equals_batched(engine):
    module, tasks = make_problem("mlp", "mse")
    ours, theirs = (
        adapt(module, maml(LR, 3), tasks.support_inputs, tasks.support_targets, loss="mse", engine=engine)
        for engine in (engine, "batched")
    )
    assert list(ours.parameters) == list(theirs.parameters)
    torch.testing.assert_close(ours.parameters, theirs.parameters)
    torch.testing.assert_close(ours.support_losses, theirs.support_losses)
    torch.testing.assert_close(ours.predict(tasks.query_inputs), theirs.predict(tasks.query_inputs))


@pytest.mark.parametrize("compile", [False, True], ids=["torch", "compiled"])
def test_float32_reference(compile):
    module, tasks = make_problem("mlp", "mse", tasks=25, support=10, query=10)
    expected = reference(module, tasks, "mse", LR, 5)
    output = meta_loss(module.float(), maml(LR, 5), tasks.to(torch.float32), loss="mse", engine=Fused(compile=compile))
    assert relative_error([g.double() for g in meta_gradient(module, output)], expected) < 1e-5


def chosen_by_auto(network: nn.Module, loss, tasks: TaskBatch):
    return run_on("auto", Problem(network, maml(LR, 1), task_loss(loss)), tasks.sets, lambda engine: None)[0]


class Renamed(nn.Sequential):
    """A perceptron under another class's name is still one."""


def test_recognised_by_structure():
    found = recognise(Renamed(nn.Sequential(nn.Linear(3, 8), nn.GELU()), nn.Identity(), nn.Linear(8, 2)), ON_GPU)
    assert (found.widths, found.activation) == ([3, 8, 2], "gelu")
    assert [*found.shapes] == ["0.0.weight", "0.0.bias", "2.weight", "2.bias"]
    assert [*recognise(nn.Linear(3, 2), ON_GPU).shapes] == ["weight", "bias"]
    assert recognise(MLP(1, [40, 40], 1), ON_GPU).widths == [1, 40, 40, 1]
    assert recognise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ON_GPU).activation == "identity"


class Scaled(nn.Sequential):
    """A perceptron by its layers, but not by its forward."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


def _hooked() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network[0].register_forward_hook(lambda module, args, output: 2 * output)
    return network


def _tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    return network


REFUSED = {
    "no bias": lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
    "activations differ": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    ),
    "last layer is not linear": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
    "does not stand between": lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 4)),
    "approximate GELU": lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 2)),
    "is a Dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)),
    "is a Scaled": lambda: Scaled(nn.Linear(3, 4)),
    "has hooks": _hooked,
    "are tied": _tied,
    "exceed": lambda: MLP(1, [40, 129], 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_not_recognised(reason):
    with pytest.raises(UnrecognisedError, match=reason):
        recognise(REFUSED[reason](), ON_GPU)


def test_reasons_beside_the_network():
    module, tasks = make_problem("mlp", "mse")

    def reason(loss="mse", algorithm=None, tasks=tasks):
        problem = Problem(module, algorithm or maml(LR, 1), task_loss(loss))
        return Fused().why_not_covered(problem, *tasks.sets)

    assert reason() is None
    assert "the loss is l1_loss, none of bce, cross_entropy, mse" in reason(loss=F.l1_loss)
    assert "parameters, inputs and targets are of float32 and float64" in reason(tasks=tasks.to(torch.float32))
    parts = [value for _, value in tasks.named()]
    assert "ask for a gradient" in reason(tasks=TaskBatch(parts[0].clone().requires_grad_(), *parts[1:]))
    assert reason(tasks=TaskBatch(*(value.repeat(1, 30, 1) for value in parts))) is None  # of 150 rows
    assert "are not [tasks, rows, 3]" in reason(tasks=TaskBatch(parts[0][..., :2], *parts[1:]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reason() == "autocast is on"


def siren(*hidden: int, frequency: float = 3.0) -> nn.Module:
    widths = [3, *hidden, 2]
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), Sine(frequency))]
    return nn.Sequential(*layers[:-1])


def test_sines_have_frequencies_of_their_own():
    network = siren(5, 4).double()
    network[3].frequency = 0.7
    assert recognise(network, ON_CPU).frequencies == [3.0, 0.7]
    x, y = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 2).double()
    tasks = TaskBatch(x, y, x + 1, y)
    exact = reference(network, tasks, "mse", LR, 2)
    assert chosen_by_auto(network, "mse", tasks) == Fused(compile=True)
    for engine in (Fused(compile=True), Fused(kernel="mlp_adapt"), Batched()):
        output = meta_loss(network, maml(LR, 2), tasks, loss="mse", engine=engine)
        assert relative_error(meta_gradient(network, output), exact) < 1e-10


def test_limits_are_those_of_the_device():
    """Wider, deeper, with more rows and sines: the CPU's own, and said in one line where it is a GPU."""
    x, y = torch.zeros(2, 129, 3), torch.zeros(2, 129, 2)

    def reason(network: nn.Module, device: str) -> str | None:
        sets = [(x.to(device), y.to(device))] * 2
        try:
            MlpAdapt().recognise(Problem(network.to(device), maml(LR, 1), task_loss("mse")), *sets)
        except UnrecognisedError as error:
            return str(error)
        return None

    for network in (siren(256), siren(*[4] * 8), MLP(3, [256], 2), MLP(3, [4], 2)):
        assert reason(network, "cpu") is None
    assert reason(MLP(3, [257], 2), "cpu") == "its widths [3, 257, 2] exceed 8 hidden layers or 256 units"
    assert reason(MLP(3, [4] * 9, 2), "cpu").endswith("exceed 8 hidden layers or 256 units")
    of_triton = "no 'sine', only ['identity', 'relu', 'tanh', 'gelu', 'silu']"
    assert f"{of_triton}, and CUDA's does not take widths [3, 4, 2], rows [129," in str(reason(siren(4), "meta"))
    assert reason(MLP(3, [129], 2), "meta") == "its widths [3, 129, 2] exceed 3 hidden layers or 128 units"
    assert reason(MLP(3, [4], 2), "meta") == "a task has 129 rows, more than 128"


def test_unsupported_raises_with_the_reason():
    module, tasks = make_problem("mlp", "mse")
    module.head.double()
    module.linear1.float()
    with pytest.raises(
        NotImplementedError, match="'fused' cannot run this: the parameters that adapt are of float32 and float64"
    ):
        meta_loss(module, maml(LR, 1), tasks, loss="mse", engine="fused")
    module, tasks = make_problem("mlp", "mse", dtype=torch.float32)
    away = TaskBatch(*(value.to("meta") for _, value in tasks.named()))
    reason = Fused().unsupported(Problem(module.to("meta"), maml(LR, 1), task_loss("mse")), *away.sets)
    assert "the device is meta, none of cpu, cuda" in reason
    with pytest.raises(ValueError, match="Expected `kernel`"):
        Fused(kernel="other")
    with pytest.raises(ValueError, match="Expected `precision`"):
        Fused(precision="fp8")
    assert Fused(precision="tf32x3") == Fused()  # as files of before name it


def test_compile_says_what_it_cannot(monkeypatch):
    module, tasks = make_problem("attention", "mse")
    with pytest.raises(
        NotImplementedError, match=r"covers but .* is a Attention.* Batched\(compile=True\) compiles any"
    ):
        meta_loss(module, maml(LR, 1), tasks, loss="mse", engine=Fused(compile=True))
    with pytest.raises(ValueError, match="Expected `compile=False`"):
        Fused(kernel="sgd_update", compile=True)
    module, tasks = make_problem("mlp", "mse")
    for compiled, reason in (
        (False, "on a CPU it is always compiled: set compile=True"),
        (True, "is a Tanh, none of"),
    ):
        with pytest.raises(NotImplementedError, match=f"that `conv_adapt` covers but .*{reason}"):
            meta_loss(module, maml(LR, 1), tasks, loss="mse", engine=Fused(kernel="conv_adapt", compile=compiled))
    monkeypatch.setenv("CC", "no-such-compiler")
    compiler.load.cache_clear()
    try:
        with pytest.raises(NotImplementedError, match="'fused' cannot run this: compile=True needs a C compiler, but"):
            meta_loss(module, maml(LR, 1), tasks, loss="mse", engine=Fused(compile=True))
        chosen = chosen_by_auto(module, "mse", tasks)
        assert chosen == Fused(kernel="mlp_adapt")
    finally:
        compiler.load.cache_clear()


def test_auto_takes_what_is_measured_to_be_faster():
    def chosen(network, loss="mse", shape=(3,)):
        x, y = torch.zeros(2, 4, *shape), torch.zeros(2, 4, 5)
        return chosen_by_auto(network, loss, TaskBatch(x, y, x, y))

    assert chosen(MLP(3, [7], 5)) == Fused(compile=True)
    assert isinstance(chosen(MLP(3, [7], 5), F.l1_loss), Batched)
    assert chosen(Conv4(5), shape=(1, 28, 28)) == Fused(compile=True)
    assert isinstance(chosen(Conv4(5, norm="group"), shape=(1, 28, 28)), Batched)


def test_bad_targets_are_named():
    module, tasks = make_problem("mlp", "cross_entropy")
    tasks.query_targets[0, 0] = 5
    with pytest.raises(ValueError, match="Expected labels from 0 to 4"):
        meta_loss(module, maml(LR, 1), tasks, loss="cross_entropy", engine="fused")


def test_kernels_are_loaded_when_they_are_needed():
    code = """
import sys, torch, lightning, torchmetrics
before = set(sys.modules)
import lightning_maml as lm
new = lambda: sorted({"triton" for n in set(sys.modules) - before if n.split(".")[0] == "triton"}
    | {n for n in sys.modules if n == "lightning_maml.kernels"})
print(new())
x = torch.randn(2, 4, 1)
lm.meta_loss(lm.MLP(1, [4], 1), lm.maml(), lm.TaskBatch(x, x, x, x), loss="mse", engine="fused")
print(new())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n['lightning_maml.kernels']\n"


@pytest.mark.slow
def test_meta_training_ends_as_on_eager(tmp_path):
    """2,000 updates of the sinusoid from the same weights on the same tasks: the same error on 600 held-out tasks."""
    results = {}
    for engine in ("eager", "fused"):
        seed_everything(0, verbose=False)
        network = MLP(1, [40, 40], 1, init="default")
        module = MetaModule(network, maml(0.01, 1), loss="mse", engine=engine, test_steps=10, updates_per_step=50)
        tasks = SinusoidTasks(shots=10, test_shots=5, batches_per_epoch=2000, val_tasks=0)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", max_steps=2000, default_root_dir=tmp_path, **options)
        trainer.fit(module, tasks)
        (results[engine],) = trainer.test(module, tasks, verbose=False)
    for step in (0, 1, 5, 10):
        loss = f"test/loss_step_{step}"
        eager, fused, interval = results["eager"][loss], results["fused"][loss], results["eager"][f"{loss}_ci95"]
        print(f"after {step} steps: eager {eager:.3f} +- {interval:.3f}, fused {fused:.3f}")
        assert abs(eager - fused) < interval
    assert results["fused"]["test/loss_step_10"] < results["fused"]["test/loss_step_0"] / 2


# Convolutional networks


def own_blocks(**changes) -> nn.Sequential:
    """Two blocks of torch's own layers, for images of 8 x 8."""
    options = {"padding": 1, "stride": 2, **changes}
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3, **options), nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, **options), nn.BatchNorm2d(3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 5),
    )


def images(module: nn.Module, side: int = 8) -> tuple[nn.Module, TaskBatch]:
    def part(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(3, rows, 1, side, side, dtype=torch.float64), torch.randint(5, (3, rows))

    return module.double(), TaskBatch(*part(5), *part(7))


@pytest.mark.parametrize("network", ["conv4", "conv4_max_pool", "own"])
@pytest.mark.parametrize("algorithm", [maml(LR, 3), fomaml(LR, 3), pretrained(LR, 3)], ids=lambda a: a.name)
def test_a_convolutional_network_is_one_operator(network, algorithm):
    module, tasks = images(own_blocks()) if network == "own" else make_problem(network, "cross_entropy")
    engine = Fused(compile=True)
    output = meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=engine)
    exact = meta_loss(module, algorithm, tasks, loss="cross_entropy", engine="eager")
    assert relative_error(meta_gradient(module, output), meta_gradient(module, exact)) < 1e-9
    for name in ("loss", "task_losses", "predictions", "support_losses"):
        torch.testing.assert_close(getattr(output, name), getattr(exact, name), rtol=1e-9, atol=1e-12)
    call = lambda: meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=engine)  # noqa: E731
    assert ran(call) == ["conv_adapt"]

    adapted = lambda engine: adapt(  # noqa: E731
        module, algorithm, tasks.support_inputs, tasks.support_targets, loss="cross_entropy", engine=engine
    )
    assert ran(lambda: adapted(engine)) == ["conv_trajectory"]
    for (name, a), (other, b) in zip(
        adapted(engine).parameters.items(), adapted("eager").parameters.items(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_convolutional_networks_rates_are_learned_and_parts_of_it_adapt():
    module, tasks = make_problem("conv4", "cross_entropy")
    module.conv2.weight.requires_grad_(False)
    for preset in (meta_sgd(LR, 2), anil(LR, 2), boil(LR, 2)):
        rates = preset.initial_rates(module)
        algorithm = preset if rates is None else preset.with_rates(rates.double())
        found = meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=Fused(compile=True))
        exact = meta_loss(module, algorithm, tasks, loss="cross_entropy", engine="eager")
        assert relative_error(list(found.gradients), list(exact.gradients)) < 1e-9, preset.name
        assert any(gradient.abs().max() > 1e-6 for gradient in found.gradients)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stride": 1, "padding": 0}, "layer '0.0' is no convolution of 3 x 3 with a padding of 1"),
        ({"dilation": 2}, "layer '0.0' has groups, a dilation or another padding"),
        ({"padding_mode": "circular"}, "layer '0.0' has groups, a dilation or another padding"),
        ({"padding": "same", "stride": 1}, "layer '0.0' is no convolution of 3 x 3"),
        (lambda m: m[1].insert(1, nn.Dropout2d()), "layer '1.1' is a Dropout2d, none of"),
        (lambda m: m[1].append(nn.MaxPool2d(2)), "its blocks differ"),
        (lambda m: m[1].append(nn.MaxPool2d(3)), "layer '1.3' is no plain pooling of 2 x 2"),
        (lambda m: m[0].pop(3), "no ReLU follows on layer '0.1'"),
        (lambda m: m.insert(0, nn.Flatten()), "it does not begin with a convolution"),
        (lambda m: m.pop(2), "its linear layer does not fit images [8, 8]"),
        (lambda m: m.pop(3), "neither nn.Flatten nor a mean over places"),
        (lambda m: m.append(nn.ReLU()), "its last layer is not linear"),
        (lambda m: setattr(m[1][0], "bias", m[0][0].bias), "some of its parameters are tied"),
        (lambda m: m[0][0].register_forward_hook(print), "layer '0.0' has hooks"),
        (lambda m: setattr(m[1][1], "eps", 0.1), "its blocks differ"),
    ],
)
def test_other_convolutional_networks_are_refused_by_name(change, reason):
    module = own_blocks(**change) if isinstance(change, dict) else own_blocks()
    if callable(change):
        change(module)
    module, tasks = images(module)
    problem = Problem(module, maml(LR, 1), task_loss("cross_entropy"))
    said = Fused(compile=True).why_not_covered(problem, *tasks.sets)
    assert reason in said
    with pytest.raises(NotImplementedError, match=r"`mlp_adapt` or `conv_adapt` covers but"):
        meta_loss(module, maml(LR, 1), tasks, loss="cross_entropy", engine=Fused(compile=True))


def test_convolutional_networks_without_compile_and_with_running_statistics():
    module, tasks = images(own_blocks())

    def call(engine: Fused, algorithm):
        return meta_loss(module, algorithm, tasks, loss="cross_entropy", engine=engine)

    operators = ran(lambda: call(Fused(), maml(LR, 2)))
    assert operators.count("sgd_update") == 2
    assert "conv_adapt" not in operators
    with pytest.raises(NotImplementedError, match=r"`mlp_adapt` covers but layer '0.0' is a Conv2d, none of"):
        call(Fused(kernel="mlp_adapt", compile=True), maml(LR, 2))
    running = replace(maml(LR, 2), batch_norm="running")
    with pytest.raises(NotImplementedError, match="batch-norm goes by running, none of batch"):
        call(Fused(compile=True), running)
    hot = [F.one_hot(value, 5).double() for value in (tasks.support_targets, tasks.query_targets)]
    tasks = TaskBatch(tasks.support_inputs, hot[0], tasks.query_inputs, hot[1])
    for loss, reason in (
        (F.l1_loss, "the loss is l1_loss, none of cross"),
        (F.binary_cross_entropy_with_logits, "the loss is bce"),
    ):
        problem = Problem(module, maml(LR, 1), task_loss(loss))
        assert reason in Fused(compile=True).why_not_covered(problem, *tasks.sets)


def test_images_that_do_not_fit_are_said_to():
    problem = lambda module: Problem(module, maml(LR, 1), task_loss("cross_entropy"))  # noqa: E731
    module, tasks = images(own_blocks())
    wide = TaskBatch(tasks.support_inputs[..., 1:], tasks.support_targets, tasks.query_inputs, tasks.query_targets)
    assert "differ in size" in Fused(compile=True).why_not_covered(problem(module), *wide.sets)
    assert "are no images of 1 channels" in Fused(compile=True).why_not_covered(
        problem(module),
        *TaskBatch(*(v.flatten(2) if v.ndim > 2 else v for _, v in tasks.named())).sets,
    )
    module, tasks = make_problem("conv4_max_pool", "cross_entropy")
    larger = TaskBatch(*(F.pad(v, (8, 8, 8, 8)) if v.ndim > 2 else v for _, v in tasks.named()))
    assert "its linear layer does not fit images [32, 32]" in Fused(compile=True).why_not_covered(
        problem(module), *larger.sets
    )
    module, tasks = make_problem("conv4", "cross_entropy", support=1)
    assert "a single value of a channel" in Fused(compile=True).why_not_covered(problem(module), *tasks.sets)
