"""Recordings on the stand-in device: whole training steps as one launch, with the numbers of every step taken alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

import standin
from graphs import Graph, in_the_place_of_cudas
from lightning_maml import (
    MLP,
    SGD,
    Algorithm,
    Batched,
    Eager,
    Fused,
    Graphed,
    MetaModule,
    TaskBatch,
    anil,
    fomaml,
    maml,
    meta_loss,
    meta_sgd,
    reptile,
)
from lightning_maml.engine import Engine
from lightning_maml.training.meter import Meter
from problems import Diverging
from same import assert_same
from standin import DEVICE, host_copies, numbers_of
from test_adaptation import LOOPS, learned, results
from test_family import PRESETS, small
from test_training import module, trainer

UPDATES = 5
RATE = 2.0**-9
"""Of the outer step, which a recording has in float32."""


@pytest.fixture(autouse=True)
def _as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Meter, "show_due", lambda self: False)  # a copy to the host, twice a second
    with standin.as_a_gpu():
        yield


@pytest.fixture
def graphs() -> Iterator[list[Graph]]:
    with in_the_place_of_cudas() as made:
        yield made


class Listening(Callback):
    """Wants to see every step, so that none is recorded."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        pass


def fit(
    folder: Path, *, engine: Engine | str = "batched", bad: int | None = None, updates: int = 4 * UPDATES,
    callbacks: Any = (), stream: Any = None, log_every_n_steps: int = 1000, **options: Any,
) -> tuple[MetaModule, list[Any]]:  # fmt: skip
    """The module, and all that training leaves behind."""
    defaults = {"optimizer": partial(torch.optim.Adam, lr=RATE), "updates_per_step": UPDATES}
    one = module(engine=engine, **defaults | options)
    data = (stream or Diverging)(shots=5, queries=3, tasks_per_batch=4, batches_per_epoch=1000, val_tasks=0)
    data.bad = bad
    runs = trainer(DEVICE, folder, max_steps=updates, callbacks=[*callbacks], log_every_n_steps=log_every_n_steps)
    runs.fit(one, data)
    (optimizer,), parameters = runs.optimizers, [*one.parameters()]
    state = [value for each in optimizer.state_dict()["state"].values() for _, value in sorted(each.items())]
    assert one.global_step == updates
    left = [*(parameter.detach() for parameter in parameters), *state, *one._meter.losses, *one._meter.support_losses]
    return one, [numbers_of(value).cpu() for value in (*left, *(parameter.grad for parameter in parameters))]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def decayed(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)


def warmed_up(optimizer: Any) -> Any:
    first = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (1 + update) / 8))
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, decayed(optimizer)], [8])


CASES: dict[str, dict[str, Any]] = {
    "maml": {},
    "first order": {"algorithm": fomaml(0.01, 2)},
    "head": {"algorithm": anil(0.01, 2)},
    "own rates": {"algorithm": meta_sgd(0.01, 2)},
    "reptile": {"algorithm": reptile(0.01, 2)},
    "decayed": {"scheduler": decayed},
    "warmed up": {"scheduler": warmed_up},
    "metric": {"metric": "mse"},
    "own loss": {"loss": lambda predictions, targets: (predictions - targets).pow(4).mean()},
    "adamw": {"optimizer": partial(torch.optim.AdamW, lr=RATE, weight_decay=0.1, amsgrad=True, maximize=True)},
    "two groups": {
        "optimizer": lambda parameters: torch.optim.Adam(
            [{"params": [*parameters][:3], "lr": 4 * RATE}, {"params": [*parameters][3:], "weight_decay": 0.1}], lr=RATE
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_is_one_launch_with_the_numbers_of_every_update(
    name: str, tmp_path: Path, graphs: list[Graph]
) -> None:
    long, expected = fit(tmp_path, callbacks=[Listening()], **CASES[name])
    assert not graphs
    with host_copies() as copies:
        short, found = fit(tmp_path, engine=Graphed(Batched()), **CASES[name])
    # each of the first training step's updates has a graph of the meta-gradient, by when an Adam has a state
    assert [graph.replays for graph in graphs] == [UPDATES, 3]
    assert_equal(found, expected)
    # and the host has waited for the device once in a training step, from the second on
    asked = [each for each in copies.in_library() if "metrics.py" not in each]
    assert len(asked) == UPDATES + 3, asked
    for one, other in zip(short.trainer.lr_scheduler_configs, long.trainer.lr_scheduler_configs, strict=True):
        assert one.scheduler.state_dict().keys() == other.scheduler.state_dict().keys()
        assert one.scheduler.last_epoch == other.scheduler.last_epoch == 4 * UPDATES
        assert one.scheduler.get_last_lr() == other.scheduler.get_last_lr()


class Images(Diverging):
    """Of which a point has 16 pixels."""

    def sample(self, *arguments: Any, **options: Any) -> TaskBatch:
        return super().sample(*arguments, **options).each(lambda one: one[..., None, None] * one.new_ones(1, 4, 4))


def convolutional() -> nn.Module:
    layers = nn.Conv2d(1, 2, 3, 1, 1), nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 2, 3, 2, 1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 16), nn.Unflatten(1, (1, 4, 4)))


@pytest.mark.parametrize("algorithm", [maml(0.01, 2), anil(0.01, 2, r"^5\.")], ids=lambda one: one.name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_lie_as_their_parameters_do(
    algorithm: Algorithm, layout: torch.memory_format, tmp_path: Path, graphs: list[Graph]
) -> None:
    """As CUDA's fused step asks for; with an eps above the noise of gradients that batch-norm takes away."""
    optimizer = partial(torch.optim.Adam, lr=RATE, eps=1e-4)
    options = {"network": lambda: convolutional().to(memory_format=layout), "stream": Images, "optimizer": optimizer}
    _, expected = fit(tmp_path, callbacks=[Listening()], algorithm=algorithm, **options)
    _, found = fit(tmp_path, engine=Graphed(), algorithm=algorithm, **options)
    assert [graph.replays for graph in graphs] == [UPDATES, 3]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scheduler", [None, decayed])
def test_whether_a_step_is_logged_changes_no_number(scheduler: Any, tmp_path: Path, graphs: list[Graph]) -> None:
    """A logged one takes each update alone, by a rate that float32 does not hold."""
    options = {"engine": Graphed(), "optimizer": partial(torch.optim.Adam, lr=1e-3), "scheduler": scheduler}
    _, expected = fit(tmp_path, **options)
    _, found = fit(tmp_path, log_every_n_steps=2, **options)
    for one, other in zip(found[:8], expected[:8], strict=True):  # parameters and moments
        assert torch.equal(one, other)
    assert [graph.replays for graph in graphs] == [UPDATES, 3, 3 * UPDATES, 1]


def test_what_is_drawn_while_a_recording_is_made_is_not_missed(tmp_path: Path, graphs: list[Graph]) -> None:
    def with_dropout() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    _, expected = fit(tmp_path, callbacks=[Listening()], network=with_dropout)
    _, found = fit(tmp_path, engine=Graphed(), network=with_dropout)
    assert [graph.replays for graph in graphs] == [UPDATES, 3]
    assert_equal(found, expected)


def test_a_loss_whose_weights_lie_elsewhere_is_recorded_anew(graphs: list[Graph]) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).to(DEVICE))
    network, tasks = small("mlp", "maml")
    network, tasks = network.double().to(DEVICE), tasks.to(DEVICE, torch.float64)
    for weights in ([1.0, 2.0, 3.0], [5.0, 1.0, 1.0]):
        loss.weight = torch.tensor(weights).to(DEVICE)
        found = meta_loss(network, maml(0.1, 2), tasks, loss=loss, engine=Graphed())
        expected = meta_loss(network, maml(0.1, 2), tasks, loss=loss, engine="batched")
        torch.testing.assert_close(numbers_of(found.loss), numbers_of(expected.loss), rtol=1e-12, atol=0)
    assert len(graphs) == 2


def test_scheduler_and_steps_stay_together_where_an_update_ends_with_an_error(
    tmp_path: Path, graphs: list[Graph]
) -> None:
    asked: list[int] = []

    def metric(predictions: Tensor, targets: Tensor) -> Tensor:
        asked.append(1)
        if len(asked) == UPDATES + 3:
            raise KeyError("the eighth update")
        return (predictions - targets).square().mean((1, 2))

    options = {"metric": metric, "scheduler": decayed, "optimizer": partial(torch.optim.Adam, lr=RATE)}
    one = module(engine=Graphed(), updates_per_step=UPDATES, **options)
    stream = Diverging(shots=5, queries=3, tasks_per_batch=4, batches_per_epoch=1000, val_tasks=0)
    runs = trainer(DEVICE, tmp_path, max_steps=30)
    with pytest.raises(KeyError, match="the eighth update"):
        runs.fit(one, stream)
    steps = int(next(iter(runs.optimizers[0].state.values()))["step"])
    assert one.global_step == steps == runs.lr_scheduler_configs[0].scheduler.last_epoch == 2 * UPDATES


@pytest.mark.parametrize("bad", [UPDATES, UPDATES + 3, 4 * UPDATES - 1])
def test_updates_end_before_one_that_diverges(bad: int, tmp_path: Path, graphs: list[Graph]) -> None:
    with pytest.warns(UserWarning, match="1 of the 4 tasks of meta-update"):
        _, expected = fit(tmp_path, bad=bad, callbacks=[Listening()])
    with pytest.warns(UserWarning, match=f"1 of the 4 tasks of meta-update {bad} "):
        one, found = fit(tmp_path, engine=Graphed(), bad=bad)
    assert one._meter.diverged == 1
    assert_equal(found, expected)
    assert graphs[1].replays == 3


def test_data_that_is_not_finite_is_named(tmp_path: Path, graphs: list[Graph]) -> None:
    class Broken(Diverging):
        def sample(self, *arguments: Any, **options: Any) -> TaskBatch:
            tasks = super().sample(*arguments, **options)
            if arguments[1] == UPDATES + 2:
                tasks.support_inputs[3, 0] = torch.nan
            return tasks

    one = module(engine=Graphed(), updates_per_step=UPDATES)
    with pytest.raises(ValueError, match=r"`support_inputs` holds NaN or infinite values in task 3"):
        trainer(DEVICE, tmp_path, max_steps=30).fit(one, Broken(tasks_per_batch=4, val_tasks=0))
    assert one.global_step == UPDATES + 2


def once(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=100)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": partial(torch.optim.SGD, lr=RATE)},
        {"optimizer": partial(torch.optim.Adam, lr=RATE, foreach=True)},
        {"scheduler": once},  # which changes momentum, too
        {"gradient_clip_val": 0.1},
        {"callbacks": [Listening()]},
    ],
    ids=["sgd", "foreach", "one cycle", "clipped", "listening"],
)
def test_what_a_recording_has_no_step_for_takes_each_alone(options: Any, tmp_path: Path, graphs: list[Graph]) -> None:
    _, found = fit(tmp_path, engine=Graphed(), **options)
    assert [graph.replays for graph in graphs] == [4 * UPDATES]
    _, expected = fit(tmp_path, **options)
    assert_equal(found, expected)


def test_other_numbers_of_updates_and_a_state_elsewhere_are_recorded_anew(tmp_path: Path, graphs: list[Graph]) -> None:
    class Moved(Callback):
        """As a checkpoint does when it is loaded."""

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                (optimizer,) = trainer.optimizers
                optimizer.load_state_dict(optimizer.state_dict())
                for state in optimizer.state.values():
                    state["exp_avg"] = state["exp_avg"].clone()
            if batch_idx == 3:
                trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.25

    updates = 5 * UPDATES + 2
    _, found = fit(tmp_path, engine=Graphed(), callbacks=[Moved()], updates=updates)
    assert [graph.replays for graph in graphs] == [UPDATES, 2, 1, 1, 1]
    _, expected = fit(tmp_path, callbacks=[Moved(), Listening()], updates=updates)
    assert_equal(found, expected)


def twice(network: str, preset: str, algorithm: Algorithm, engine: Engine, device: torch.device) -> list[Any]:
    """Meta-gradients of two meta-batches, at other parameters: the first's are no good for the second."""
    module, tasks = small(network, preset)
    module, tasks = module.double().to(device), tasks.to(device, torch.float64)
    algorithm, rates = learned(algorithm, module, device)
    found = []
    for batch in (tasks, tasks.each(lambda value: value.flip(0) if value.ndim > 2 else (value + 1) % 3)):
        by = Graphed(engine) if device == DEVICE else engine
        output = meta_loss(module, algorithm.at(50), batch, loss="cross_entropy", engine=by)
        found += results(output, [*module.parameters(), *rates])
        with torch.no_grad():
            for parameter in (*module.parameters(), *rates):
                parameter.mul_(0.9)
    return found


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("network", ["mlp", "conv4"])
def test_a_presets_meta_gradient_is_one_launch_or_refused(network: str, preset: str, graphs: list[Graph]) -> None:
    run = partial(twice, network, preset, PRESETS[preset](network), Batched())
    if preset in ("imaml", "reptile", "maml_pp"):
        with pytest.raises(NotImplementedError, match="a recording repeats the same launches"):
            run(DEVICE)
        return
    assert_same(run, off=1e-12, host=0)
    assert [graph.replays for graph in graphs] == [2]


@pytest.mark.parametrize("loop", LOOPS)
def test_an_inner_loops_meta_gradient_is_one_launch_or_refused(loop: str, graphs: list[Graph]) -> None:
    run = partial(twice, "mlp", "maml", replace((fomaml if loop == "adam" else maml)(), inner=LOOPS[loop]), Batched())
    if loop in ("mini-batches", "proximal, with a tolerance"):
        with pytest.raises(NotImplementedError, match="a recording repeats the same launches"):
            run(DEVICE)
        return
    assert_same(run, off=1e-12, host=0)
    assert [graph.replays for graph in graphs] == [2]


@pytest.mark.parametrize("engine", [Batched(checkpoint="step"), Batched(chunk_size=1), Eager()], ids=str)
@pytest.mark.parametrize("network", ["mlp", "conv4"])
def test_an_engines_meta_gradient_is_one_launch(network: str, engine: Engine, graphs: list[Graph]) -> None:
    assert_same(partial(twice, network, "maml", maml(0.1, 2), engine), off=1e-12, host=0)
    assert [graph.replays for graph in graphs] == [2]


def with_elu() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.ELU(), nn.Linear(4, 1))


MOMENTUM = SGD(0.01, 2, momentum=0.9, weight_decay=0.1, max_norm=0.5)


@pytest.mark.parametrize(
    ("network", "algorithm", "operator"),
    [
        (partial(MLP, 1, [6], 1), maml(0.01, 2), "mlp_adapt"),
        (partial(MLP, 1, [6], 1), anil(0.01, 2), "mlp_adapt"),
        (partial(MLP, 1, [6], 1), meta_sgd(0.01, 2), "mlp_adapt"),
        (with_elu, maml(0.01, 2), "sgd_update"),
        (with_elu, replace(maml(), inner=MOMENTUM), "sgd_update"),
    ],
    ids=["maml", "anil", "meta_sgd", "any network", "momentum"],
)
def test_kernels_are_recorded_with_the_steps(
    network: Any, algorithm: Algorithm, operator: str, tmp_path: Path, graphs: list[Graph]
) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    torch.set_default_dtype(torch.float32)
    options = {"network": network, "algorithm": algorithm, "updates": 6, "updates_per_step": 2}
    standin.launches.clear()
    _, found = fit(tmp_path, engine=Graphed(Fused(verify=False)), **options)
    assert [graph.replays for graph in graphs] == [2, 2]
    assert {each.operator for each in standin.launches} == {operator}
    _, expected = fit(tmp_path, **options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_convolutional_operator_is_one_launch(graphs: list[Graph]) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    torch.set_default_dtype(torch.float32)

    def run(device: torch.device) -> list[Any]:
        block = nn.Conv2d(1, 2, 3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU()
        network = nn.Sequential(*block, nn.Flatten(), nn.Linear(8, 2)).to(device)
        engine = Graphed(Fused(kernel="conv_adapt", verify=False)) if device == DEVICE else "batched"
        found = []
        for _ in range(2):
            images, labels = torch.randn(2, 1, 3, 1, 4, 4), torch.randint(2, (2, 1, 3))
            tasks = TaskBatch(images[0], labels[0], images[1], labels[1]).to(device)
            output = meta_loss(network, maml(0.1, 1), tasks, loss="cross_entropy", engine=engine)
            found += results(output, [*network.parameters()])
        return found

    assert_same(run, off=1e-5, host=0)
    assert [graph.replays for graph in graphs] == [2]


def test_what_waits_for_the_device_cannot_be_recorded(graphs: list[Graph]) -> None:
    class Waits(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) if float(self.bias.detach().sum()) < 1e9 else inputs

    x = torch.randn(2, 5, 1).to(DEVICE)
    with pytest.raises(NotImplementedError, match=r"without waiting for the GPU.*recording it failed"):
        meta_loss(Waits(1, 1).to(DEVICE), maml(0.1), TaskBatch(x, x, x, x), loss="mse", engine=Graphed(Eager()))
    assert not standin.recorders


# The recorder itself


def record(run: Callable[[], Any]) -> tuple[Graph, Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, run()


def test_a_recording_computes_nothing_and_a_replay_what_memory_holds_by_then(graphs: list[Graph]) -> None:
    x, total, factor = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE), 2.0
    graph, out = record(lambda: (total.add_(x), (x * factor).reshape(3, 1)[:2]))
    factor = 7.0
    assert numbers_of(total).tolist() == [0, 0, 0]
    assert numbers_of(out[1]).isnan().all()
    for times in (1, 2):
        x.fill_(times)
        graph.replay()
        assert numbers_of(out[1]).tolist() == [[2.0 * times]] * 2
    assert numbers_of(total).tolist() == [3, 3, 3]


def test_memory_that_is_gone_by_then_is_noticed(graphs: list[Graph]) -> None:
    x, others = torch.ones(3, device=DEVICE), [torch.ones(3, device=DEVICE)]
    graph, _ = record(lambda: x[:2] + others[0][1:])
    graph.replay()
    others.clear()
    with pytest.raises(RuntimeError, match="reads memory that was freed"):
        graph.replay()


@pytest.mark.parametrize("run", [float, torch.Tensor.cpu, lambda x: x + torch.ones(3).to(DEVICE), torch.nonzero])
def test_what_cannot_be_recorded_raises(run: Any, graphs: list[Graph]) -> None:
    x = torch.ones(1, device=DEVICE)
    with pytest.raises(RuntimeError, match="captur"):
        record(lambda: run(x))
