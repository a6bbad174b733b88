"""Many meta-updates in one training step, past Lightning's calls: the same numbers, and only where nobody listens."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn

from lightning_maml import MLP, Fused, MetaModule, SinusoidTasks, TaskBatch, anil, fomaml, maml, meta_sgd
from lightning_maml.training import several_updates
from lightning_maml.training.fused_step import StepInOneCall
from problems import Diverging

UPDATES = 7


class Listening(Callback):
    """A callback that wants to see every step, so that each goes through Lightning."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self.norms.append(float(nn.utils.get_total_norm([p.grad for p in module.parameters()])))


@pytest.fixture
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many meta-updates each training step made in a row."""
    found: list[int] = []
    made = MetaModule._in_a_row

    def counted(*arguments: Any) -> Iterator[Any]:
        found.append(0)
        for each in made(*arguments):
            found[-1] += 1
            yield each

    monkeypatch.setattr(MetaModule, "_in_a_row", counted)
    return found


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each other meta-update, whether its step was taken past Lightning."""
    found: list[bool] = []
    take = several_updates.Steps.take

    def seen(*arguments: Any) -> bool:
        found.append(take(*arguments))
        return found[-1]

    monkeypatch.setattr(several_updates.Steps, "take", seen)
    return found


def fit(
    algorithm: Any = None, *, bad: int | None = None, network: Any = None, kind: Any = MetaModule,
    updates: int = 3 * UPDATES, trainer: Any = None, **options: Any,
) -> MetaModule:  # fmt: skip
    torch.manual_seed(0)
    network = MLP(1, [8, 8], 1) if network is None else network
    module = kind(network, algorithm or maml(0.01, 2), updates_per_step=UPDATES, **options)
    stream = Diverging(shots=5, queries=3, tasks_per_batch=5, batches_per_epoch=1000, val_tasks=0)
    stream.bad = bad
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults = silent | {"enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 100}
    Trainer(max_steps=updates, **defaults | (trainer or {})).fit(module, stream)
    return module


def states(module: MetaModule) -> list[Tensor]:
    """All that training leaves behind."""
    (optimizer,) = module.trainer.optimizers
    parameters = [*module.parameters()]
    every = [optimizer.state[parameter] for parameter in parameters]
    numbers = [torch.as_tensor(value) for state in every for _, value in sorted(state.items()) if value is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [*(parameter.detach() for parameter in parameters), *numbers, *gradients, *module._meter.losses]


def decayed(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": torch.optim.Adam,
    "amsgrad": partial(torch.optim.Adam, amsgrad=True, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, maximize=True),
    "sgd": partial(torch.optim.SGD, lr=0.001, momentum=0.9),
    "two groups": lambda parameters: torch.optim.Adam(
        [{"params": [*parameters][:3], "lr": 0.01}, {"params": [*parameters][3:], "weight_decay": 0.1}]
    ),
}


@pytest.mark.parametrize("scheduler", [None, decayed], ids=["constant", "decayed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_short_way_leaves_the_very_numbers_of_the_long_one(name: str, scheduler: Any, in_a_row: list[int]) -> None:
    options = {"optimizer": OPTIMIZERS[name], "scheduler": scheduler}
    short = fit(**options)
    assert in_a_row == ([0, 0, 0] if name == "sgd" else [0, UPDATES, UPDATES])  # an Adam has no state at first
    long = fit(**options, trainer={"callbacks": [Listening()]})
    assert in_a_row[3:] == [0, 0, 0]
    assert short.global_step == long.global_step == 3 * UPDATES
    for one, other in zip(states(short), states(long), strict=True):
        assert torch.equal(one, other)
    assert all(parameter.grad is not None for parameter in short.parameters())


@pytest.mark.parametrize(
    ("algorithm", "options", "made"),
    [
        (fomaml(0.01, 2), {}, UPDATES),
        (maml(0.01, 0), {}, UPDATES),
        (anil(0.01, 2), {}, UPDATES),
        (maml(0.01, 2), {"engine": Fused(compile=True)}, UPDATES),
        (maml(0.01, 2), {"accumulate_tasks": 3}, 0),
        (maml(0.01, 2), {"engine": "batched"}, 0),
        (maml(0.01, 2), {"gradient_clip_val": 0.1}, 0),
        (maml(0.01, 2), {"loss": nn.functional.l1_loss}, 0),
        (meta_sgd(0.01, 2), {}, 0),
    ],
    ids=["first order", "no step", "head", "compiled", "in parts", "batched", "clipped", "own loss", "own rates"],
)
def test_who_runs_in_a_row(algorithm: Any, options: Any, made: int, in_a_row: list[int], taken: list[bool]) -> None:
    short = fit(algorithm, **options)
    assert in_a_row == [0, made, made]
    assert taken == [True] * (3 * UPDATES - 2 * made)
    long = fit(algorithm, **options, trainer={"callbacks": [Listening()]})
    for one, other in zip(states(short), states(long), strict=True):
        assert torch.equal(one, other)


class Own(MetaModule):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        self.seen = getattr(self, "seen", 0) + 1


class Backwards(MetaModule):
    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        super().backward(loss, *arguments, **options)
        self.seen = getattr(self, "seen", 0) + 1


def test_whoever_listens_sees_every_update(taken: list[bool]) -> None:
    listening = Listening()
    fit(trainer={"callbacks": [listening]})
    assert len(listening.norms) == 3 * UPDATES
    assert taken == [False] * 3 * UPDATES
    assert fit(kind=Own).seen == 3 * UPDATES
    assert taken[3 * UPDATES :] == [True] * 3 * UPDATES  # this hook is called by either way
    assert fit(kind=Backwards).seen == 3 * UPDATES
    profiler = SimpleProfiler()
    fit(trainer={"profiler": profiler})
    assert len(profiler.recorded_durations["optimizer_step"]) == 3 * UPDATES
    assert not any(taken[6 * UPDATES :])


def test_hooks_of_parameters_and_of_the_optimizer_see_every_update() -> None:
    network, seen = MLP(1, [8, 8], 1), []
    next(network.parameters()).register_hook(lambda gradient: seen.append("parameter"))
    fit(network=network)
    network = MLP(1, [8, 8], 1)
    next(network.parameters()).register_post_accumulate_grad_hook(lambda parameter: seen.append("accumulated"))
    fit(network=network)

    def hooked(parameters: Any) -> Any:
        optimizer = torch.optim.Adam(parameters)
        optimizer.register_step_post_hook(lambda *_: seen.append("optimizer"))
        return optimizer

    fit(optimizer=hooked)
    assert seen == ["parameter"] * 3 * UPDATES + ["accumulated"] * 3 * UPDATES + ["optimizer"] * 3 * UPDATES


@pytest.mark.parametrize("bad", [UPDATES, UPDATES + 3, 3 * UPDATES - 1])
def test_a_task_that_diverges_in_the_middle_is_left_out_as_ever(bad: int, in_a_row: list[int]) -> None:
    with pytest.warns(UserWarning, match="1 of the 5 tasks of meta-update"):
        short = fit(bad=bad)
    assert sorted(in_a_row)[:2] == [0, bad % UPDATES]
    with pytest.warns(UserWarning, match="1 of the 5 tasks of meta-update"):
        long = fit(bad=bad, trainer={"callbacks": [Listening()]})
    for one, other in zip(states(short), states(long), strict=True):
        assert torch.equal(one, other)
    assert short._meter.diverged == long._meter.diverged == 1


def test_data_that_is_not_finite_is_named() -> None:
    class Broken(SinusoidTasks):
        def sample(self, *arguments: Any, **options: Any) -> TaskBatch:
            tasks = super().sample(*arguments, **options)
            if arguments[1] == UPDATES + 2:
                tasks.support_inputs[3, 0] = torch.nan
            return tasks

    module = MetaModule(MLP(1, [8], 1), maml(0.01, 2), updates_per_step=UPDATES)
    trainer = Trainer(max_steps=30, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"`support_inputs` holds NaN or infinities in tasks \[3\]"):
        trainer.fit(module, Broken(tasks_per_batch=5, val_tasks=0))


def test_a_network_that_changes_between_training_steps_is_looked_at_again(in_a_row: list[int]) -> None:
    class Frozen(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                module.network.register_forward_hook(lambda module, inputs, output: output * 1.5)

    fit(trainer={"callbacks": [Frozen()]}, updates=4 * UPDATES)
    assert in_a_row == [0, UPDATES, 0, 0]


def test_a_logged_step_has_the_norm_of_every_gradient(in_a_row: list[int]) -> None:
    module = fit(trainer={"log_every_n_steps": 2})
    assert in_a_row == [0, 0, UPDATES]
    assert module._meter.gradient_norms == []  # of the last step, which was not logged


def test_parameters_with_gaps_take_no_fused_step(in_a_row: list[int]) -> None:
    """Which goes by places, and their moments lie without gaps."""
    network = MLP(1, [8, 8], 1)
    network[0].weight = nn.Parameter(torch.randn(8, 2)[:, ::2])
    before = network[0].weight.detach().clone()
    module = fit(network=network)
    assert in_a_row == [0, 0, 0]
    assert module.trainer.optimizers[0].param_groups[0]["fused"] is None
    assert (network[0].weight != before).all()


def test_moments_that_lie_otherwise_than_their_parameters_take_the_long_way() -> None:
    """As those of a checkpoint in a network that has become channels_last."""
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert StepInOneCall.of(optimizer) is not None
    weight.data = weight.data.to(memory_format=torch.channels_last)
    assert StepInOneCall.of(optimizer) is None


def test_what_was_done_stays_where_an_update_ends_with_an_error() -> None:
    """Ctrl-C, say, after which the last checkpoint is written: an optimiser's state goes with its parameters."""
    asked: list[int] = []

    def metric(predictions: Tensor, targets: Tensor) -> Tensor:
        asked.append(1)
        if len(asked) == UPDATES + 3:
            raise KeyError("the tenth update")
        return (predictions - targets).square().mean((1, 2))

    network = MLP(1, [8, 8], 1)
    with pytest.raises(KeyError, match="the tenth update") as caught:  # which keeps the frames it went through
        fit(network=network, metric=metric)
    assert caught.traceback
    expected = fit(updates=UPDATES + 3)
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
