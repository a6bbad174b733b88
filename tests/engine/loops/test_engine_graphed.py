"""The engine Graphed: its bookkeeping with a recorder for the CPU, and CUDA's own where there is a GPU."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_maml import (
    SGD,
    Algorithm,
    Batched,
    Eager,
    Engine,
    Fused,
    Graphed,
    MetaModule,
    TaskBatch,
    Unrolled,
    adapt,
    anil,
    fomaml,
    imaml,
    maml,
    maml_pp,
    meta_loss,
    meta_sgd,
    reptile,
)
from lightning_maml.adaptation import _running
from lightning_maml.engine import Problem
from lightning_maml.engine.coverage import GRAPHED
from lightning_maml.engine.loops import graphed
from lightning_maml.losses import task_loss
from problems import make_problem, meta_gradient, reference, relative_error

LR = 0.1
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def recordings(monkeypatch):
    """Records as CUDA does, by memory that is overwritten; and counts. What a recording ran on, it runs on again."""
    made = []

    def record(run, device):
        outputs = [output.clone() for output in run()]
        made.append(outputs)
        for output in outputs:
            output.fill_(float("nan"))  # a capture computes nothing

        def replay():
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value)

        return replay, outputs

    monkeypatch.setattr(graphed, "record", record)
    return made


def run(engine, module, algorithm, tasks, loss="mse"):
    problem = Problem(module, algorithm, task_loss(loss))
    with _running(problem):
        return engine.meta_loss(problem, tasks)


@pytest.mark.parametrize("network", ["mlp", "conv4"])
@pytest.mark.parametrize("engine", [Batched(), Batched(checkpoint="step"), Fused(), Eager()], ids=lambda e: e.name)
def test_a_recording_goes_on_with_other_tasks_and_other_parameters(recordings, network, engine):
    module, tasks = make_problem(network, "cross_entropy")
    shuffled = TaskBatch(*(value.flip(0) * (2 if value.is_floating_point() else 1) for _, value in tasks.named()))
    for batch in (tasks, shuffled):
        output = run(Graphed(engine), module, maml(LR, 2), batch, "cross_entropy")
        exact = run(engine, module, maml(LR, 2), batch, "cross_entropy")
        for name in ("loss", "task_losses", "predictions", "support_losses"):
            torch.testing.assert_close(getattr(output, name), getattr(exact, name), rtol=1e-12, atol=1e-14)
        expected = reference(module, batch, "cross_entropy", LR, 2)
        assert relative_error(meta_gradient(module, output), expected) < 1e-9
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.9)
    assert len(recordings) == 1


def test_a_result_outlives_the_next_one(recordings):
    module, tasks = make_problem("mlp", "mse")
    engine = Graphed()
    first = run(engine, module, maml(LR, 2), tasks)
    losses, gradients = first.task_losses.clone(), [gradient.clone() for gradient in first.gradients]
    run(engine, module, maml(LR, 2), TaskBatch(*(2 * value for _, value in tasks.named())))
    torch.testing.assert_close(first.task_losses, losses, rtol=0, atol=0)
    torch.testing.assert_close(list(first.gradients), gradients, rtol=0, atol=0)


def test_learned_rates_are_read_anew(recordings):
    module, tasks = make_problem("mlp", "mse")
    algorithm = meta_sgd(LR, 1)
    rates = algorithm.initial_rates(module).double()
    algorithm = algorithm.with_rates(rates)
    for _ in range(2):
        output = run(Graphed(), module, algorithm, tasks)
        exact = run(Batched(), module, algorithm, tasks)
        torch.testing.assert_close(list(output.gradients), list(exact.gradients))
        with torch.no_grad():
            for rate in rates.parameters():
                rate.mul_(3)
    assert len(recordings) == 1


def test_whatever_changes_the_work_is_recorded_anew(recordings):
    module, tasks = make_problem("mlp", "mse")
    engine = Graphed()

    def made(*args, **kwargs) -> int:
        before = len(recordings)
        output = run(*args, **kwargs)
        exact = run(args[0].engine, *args[1:], **kwargs)
        torch.testing.assert_close(list(output.gradients), list(exact.gradients))
        return len(recordings) - before

    assert made(engine, module, maml(LR, 2), tasks) == 1
    assert made(engine, module, maml(LR, 2), tasks) == 0
    assert made(Graphed(Batched()), module, maml(LR, 2), tasks) == 0  # an equal engine
    assert made(engine, module, maml(LR, 3), tasks) == 1
    assert made(engine, module, fomaml(LR, 2), tasks) == 1
    assert made(engine, module, maml(2 * LR, 2), tasks) == 1
    assert made(engine, module, maml(LR, 2), tasks[:2]) == 1
    assert made(Graphed(Fused(kernel="sgd_update")), module, maml(LR, 2), tasks) == 1
    classes = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    labelled = TaskBatch(tasks.support_inputs, classes[0], tasks.query_inputs, classes[1])
    assert made(engine, module, maml(LR, 2), labelled, loss="cross_entropy") == 1
    other, _ = make_problem("mlp", "mse")
    assert made(engine, other, maml(LR, 2), tasks) == 1
    next(module.parameters()).requires_grad_(False)
    assert made(engine, module, maml(LR, 2), tasks) == 1
    next(module.parameters()).data = next(module.parameters()).data.clone()  # the recording reads the old place
    assert made(engine, module, maml(LR, 2), tasks) == 1
    module.eval()
    assert made(engine, module, maml(LR, 2), tasks) == 1


def test_the_least_used_recordings_go_and_all_with_their_network(recordings):
    module, tasks = make_problem("mlp", "mse", tasks=graphed.MOST + 2)
    for count in [1, 2, *range(3, graphed.MOST + 1), 1, graphed.MOST + 1, 1]:
        run(Graphed(), module, maml(LR, 1), tasks[:count])
    assert len(recordings) == graphed.MOST + 1  # 1 stayed
    run(Graphed(), module, maml(LR, 1), tasks[:2])
    assert len(recordings) == graphed.MOST + 2  # 2 had gone
    assert len(graphed._RECORDINGS[module]) == graphed.MOST
    # CUDA's graphs hold no network; this recorder's do
    for recording in graphed._RECORDINGS[module].values():
        object.__setattr__(recording, "replay", None)
    before = len(graphed._RECORDINGS)
    del module, recording
    gc.collect()
    assert len(graphed._RECORDINGS) == before - 1


def test_adaptation_is_the_other_engines(recordings):
    module, tasks = make_problem("mlp", "mse")
    problem = Problem(module, maml(LR, 2), task_loss("mse"))
    batch = tasks.support_inputs, tasks.support_targets
    with _running(problem):
        pairs = zip(Graphed().trajectory(problem, batch), Batched().trajectory(problem, batch), strict=True)
        for (phi, losses), (expected, expected_losses) in pairs:
            torch.testing.assert_close(phi, expected)
            torch.testing.assert_close(losses, expected_losses)
    assert not recordings


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (maml_pp(LR, 2), "the meta-gradient rule is MultiStep"),
        (imaml(LR, 2), "the meta-gradient rule is Implicit"),
        (Algorithm(SGD(LR, 2, tolerance=1.0), Unrolled()), "the inner loop has the part Tolerance"),
        (reptile(LR, 2, batch_size=2), "the inner loop has the part MiniBatches"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_no_recording_holds_is_refused(algorithm, words, monkeypatch):
    module, tasks = make_problem("mlp", "mse")
    monkeypatch.setitem(GRAPHED, "device", {"cpu"})
    algorithm = algorithm.with_rates(algorithm.initial_rates(module))
    problem = Problem(module, algorithm, task_loss("mse"))
    assert words in Graphed().unsupported(problem, *tasks.sets)
    assert Graphed().unsupported(Problem(module, maml(LR, 2), task_loss("mse")), *tasks.sets) is None


def test_what_the_other_engine_cannot_do_is_refused_in_its_words(monkeypatch):
    module, tasks = make_problem("mlp", "mse")
    monkeypatch.setitem(GRAPHED, "device", {"cpu"})
    problem = Problem(module, maml(LR, 2).with_inner(proximal=0.9), task_loss("mse"))
    engine = Batched(compile=True)
    assert Graphed(engine).unsupported(problem, *tasks.sets) == engine.unsupported(problem, *tasks.sets) != None  # noqa: E711


def test_the_cpu_has_no_graphs_and_says_so():
    module, tasks = make_problem("mlp", "mse")
    with pytest.raises(NotImplementedError, match="launches on the same memory, but the device is cpu, none of cuda"):
        meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=Graphed())


def test_inputs_that_ask_for_a_gradient_are_refused(monkeypatch):
    module, tasks = make_problem("mlp", "mse")
    monkeypatch.setitem(GRAPHED, "device", {"cpu"})
    tasks.query_inputs.requires_grad_()
    with pytest.raises(NotImplementedError, match="inputs or targets ask for a gradient"):
        meta_loss(module, maml(LR, 2), tasks, loss="mse", engine=Graphed())


@pytest.mark.parametrize("engine", ["batched", Graphed(), Batched])
def test_only_another_engine_is_recorded(engine):
    with pytest.raises(TypeError, match="Expected `engine` to be another engine"):
        Graphed(engine)


# On a GPU


@ON_A_GPU
@pytest.mark.parametrize("algorithm", [maml(LR, 3), fomaml(LR, 3), anil(LR, 3)], ids=lambda a: a.name)
@pytest.mark.parametrize("network", ["mlp", "conv4", "conv_module", "attention"])
@pytest.mark.parametrize("engine", [Batched(), Batched(checkpoint="step"), Fused()], ids=str)
def test_a_graph_gives_the_engines_numbers(engine: Engine, network: str, algorithm) -> None:
    module, tasks = make_problem(network, "cross_entropy", dtype=torch.float32)
    module, tasks = module.cuda(), tasks.to("cuda")
    for batch in (tasks, TaskBatch(*(value.flip(0) for _, value in tasks.named()))):
        output = meta_loss(module, algorithm, batch, loss="cross_entropy", engine=Graphed(engine))
        exact = meta_loss(module, algorithm, batch, loss="cross_entropy", engine=engine)
        torch.testing.assert_close(output.task_losses, exact.task_losses)
        torch.testing.assert_close(list(output.gradients), list(exact.gradients), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.9)


@ON_A_GPU
def test_what_waits_for_the_gpu_cannot_be_recorded() -> None:
    class Waits(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) if float(self.bias.detach().sum()) < 1e9 else inputs

    module, x = Waits(1, 1).cuda(), torch.randn(2, 5, 1, device="cuda")
    with pytest.raises(NotImplementedError, match="without waiting for the GPU"):
        meta_loss(module, maml(LR), TaskBatch(x, x, x, x), loss="mse", engine=Graphed(Eager()))
    adapt(module, maml(LR), x, x, loss="mse", engine="eager")  # the device is as good as before


@pytest.mark.parametrize("updates_per_step", [1, 4])
@pytest.mark.parametrize("network", ["mlp", "conv4"])
@pytest.mark.parametrize("engine", [Batched(), Fused()], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_GPU)])
def test_training_with_graphs_ends_where_it_ends_without(
    device: str, engine: Engine, network: str, updates_per_step: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if device == "cpu":
        request.getfixturevalue("recordings")
        request.getfixturevalue("monkeypatch").setitem(GRAPHED, "device", {"cpu"})

    def trained(engine: Engine) -> list[torch.Tensor]:
        module, tasks = make_problem(network, "cross_entropy", dtype=torch.float32)
        options = {"loss": "cross_entropy", "updates_per_step": updates_per_step}
        # an eps above the noise of gradients that are zero: of biases which batch-norm takes away
        optimizer = partial(torch.optim.Adam, eps=1e-3)
        lightning = MetaModule(module, maml(LR, 2), engine=engine, optimizer=optimizer, scheduler=halved, **options)
        silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator=device, devices=1, max_steps=16, default_root_dir=tmp_path, **silent)
        batches = [tasks.each(lambda value, by=by: value.roll(by, 1)) for by in range(16)]
        several = [tuple(batches[at : at + updates_per_step]) for at in range(0, 16, updates_per_step)]
        trainer.fit(lightning, DataLoader(batches if updates_per_step == 1 else several, batch_size=None))
        assert lightning.global_step == 16
        return [parameter.detach().cpu() for parameter in module.parameters()]

    torch.testing.assert_close(trained(Graphed(engine)), trained(engine), rtol=1e-3, atol=1e-4)


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5)
