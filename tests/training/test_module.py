"""MetaModule under a plain Trainer: the four phases, the optimisation, the logs, the checkpoints, the errors."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_maml import TaskBatch, evaluate, maml, meta_loss, pretrained
from lightning_maml.networks import MLP, Conv4
from lightning_maml.training.module import MetaModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*have no .val_dataloader"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:DeprecationWarning"),
]


def sinusoids(batches: int, tasks: int = 4, seed: int = 0) -> list[TaskBatch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        amplitude, phase = torch.rand(2, tasks, 1, 1, generator=generator)
        x = 10 * torch.rand(tasks, 10, 1, generator=generator) - 5
        y = 5 * amplitude * torch.sin(x - 3 * phase)
        made.append(TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:]))
    return made


def loader(batches: list) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def grouped(batches: list, size: int) -> DataLoader:
    return loader([tuple(batches[start : start + size]) for start in range(0, len(batches), size)])


def module(**arguments) -> MetaModule:
    torch.manual_seed(0)
    network = arguments.pop("network", None) or MLP(1, [8], 1, init="default")
    return MetaModule(network, arguments.pop("algorithm", maml(lr=0.01, steps=2)), **arguments)


def trainer(tmp_path, **arguments) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "max_epochs": 1,
    }
    return Trainer(**(defaults | arguments))


def parameters(of: LightningModule) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in of.parameters()]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor], same: bool = True) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) == same


# The four phases


def test_all_phases_run_under_a_plain_trainer(tmp_path):
    run, subject, held_out = trainer(tmp_path), module(), sinusoids(2, seed=1)
    before = parameters(subject)
    run.fit(subject, loader(sinusoids(3)), loader(held_out))
    assert_same(before, parameters(subject), same=False)

    trained = parameters(subject)
    (validated,) = run.validate(subject, loader(held_out), verbose=False)
    (tested,) = run.test(subject, loader(held_out), verbose=False)
    predicted = run.predict(subject, loader(held_out))
    assert_same(trained, parameters(subject))

    expected = [
        evaluate(subject.network, maml(lr=0.01, steps=2), tasks, loss="mse").query_losses.mean(0) for tasks in held_out
    ]
    expected = torch.stack(expected).mean(0)
    for step in range(3):
        assert tested[f"test/loss_step_{step}"] == pytest.approx(expected[step].item(), rel=1e-5)
        assert tested[f"test/loss_step_{step}_ci95"] > 0
    assert validated["val/loss"] == pytest.approx(expected[-1].item(), rel=1e-5)
    assert validated["val/loss_step_0"] == pytest.approx(expected[0].item(), rel=1e-5)
    for predictions, tasks in zip(predicted, held_out, strict=True):
        direct = evaluate(subject.network, maml(lr=0.01, steps=2), tasks, loss="mse").predictions[:, -1]
        torch.testing.assert_close(predictions, direct)


def test_training_is_a_bare_loop_over_meta_loss(tmp_path):
    batches = sinusoids(5)
    subject = module()
    network = copy.deepcopy(subject.network)
    trainer(tmp_path).fit(subject, loader(batches))

    optimizer = torch.optim.Adam(network.parameters())
    for tasks in batches:
        optimizer.zero_grad()
        meta_loss(network, maml(lr=0.01, steps=2), tasks, loss="mse").surrogate.backward()
        optimizer.step()
    assert_same(parameters(subject), [parameter.detach() for parameter in network.parameters()])


def test_predict_takes_three_tensors(tmp_path):
    tasks, subject = sinusoids(1, tasks=3)[0], module()
    three = DataLoader(
        TensorDataset(tasks.support_inputs, tasks.support_targets, tasks.query_inputs[:, :2]), batch_size=3
    )
    (predictions,) = trainer(tmp_path).predict(subject, three)
    direct = evaluate(subject.network, maml(lr=0.01, steps=2), tasks, loss="mse").predictions[:, -1, :2]
    torch.testing.assert_close(predictions, direct)


def test_a_batch_may_be_its_four_tensors(tmp_path):
    tasks = sinusoids(1, tasks=6)[0]
    first, second = module(), module()
    trainer(tmp_path).fit(first, DataLoader(TensorDataset(*(value for _, value in tasks.named())), batch_size=3))
    trainer(tmp_path).fit(second, loader([tasks[:3], tasks[3:]]))
    assert_same(parameters(first), parameters(second))


def test_test_steps_are_those_of_evaluation_alone(tmp_path):
    subject, run = module(test_steps=4), trainer(tmp_path)
    run.fit(subject, loader(sinusoids(1)))
    assert subject.algorithm.inner.steps == 2
    (tested,) = run.test(subject, loader(sinusoids(1)), verbose=False)
    assert [name for name in tested if re.fullmatch(r"test/loss_step_\d", name)] == [
        f"test/loss_step_{step}" for step in range(5)
    ]


def test_accuracy_with_cross_entropy_and_batch_norm(tmp_path):
    torch.manual_seed(0)
    images, labels = torch.rand(4, 6, 1, 16, 16), torch.tensor([0, 1, 2] * 2).expand(4, 6)
    images = images + labels[..., None, None, None]
    tasks = TaskBatch(images, labels, images, labels)
    subject = module(
        network=Conv4(ways=3, hidden=8, image_size=16), algorithm=maml(lr=0.5, steps=1), loss="cross_entropy"
    )
    run = trainer(tmp_path)
    run.fit(subject, loader([tasks] * 2), loader([tasks]))
    assert 0 <= run.callback_metrics["train/accuracy"] <= 1
    assert {"val/accuracy", "val/accuracy_step_0"} <= set(run.callback_metrics)
    statistics = subject.network.norm1.running_mean.clone()
    (tested,) = run.test(subject, loader([tasks]), verbose=False)
    evaluation = evaluate(subject.network, maml(lr=0.5, steps=1), tasks, loss="cross_entropy")
    hits = (evaluation.predictions[:, 1].argmax(-1) == labels).float().mean()
    assert tested["test/accuracy_step_1"] == pytest.approx(hits.item())
    assert torch.equal(statistics, subject.network.norm1.running_mean)


def test_pretrained_adapts_only_at_test(tmp_path):
    subject, run = module(algorithm=pretrained(lr=0.01, steps=3)), trainer(tmp_path)
    run.fit(subject, loader(sinusoids(3)))
    (tested,) = run.test(subject, loader(sinusoids(1)), verbose=False)
    assert tested["test/loss_step_3"] != tested["test/loss_step_0"]


# Optimisation


def test_several_updates_per_step_are_as_many_steps(tmp_path):
    batches = sinusoids(7)

    def fit(k):
        subject = module(
            updates_per_step=k,
            scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            gradient_clip_val=0.5,
        )
        run = trainer(tmp_path)
        run.fit(subject, grouped(batches, k) if k > 1 else loader(batches))
        return subject, run

    (one, one_run), (three, three_run) = fit(1), fit(3)  # the last step has one update
    assert_same(parameters(one), parameters(three))
    assert one_run.global_step == three_run.global_step == 7
    for run in (one_run, three_run):
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**7)


def test_max_steps_counts_updates(tmp_path):
    batches = sinusoids(8)
    one, three = module(), module(updates_per_step=3)
    trainer(tmp_path, max_steps=5).fit(one, loader(batches))
    run = trainer(tmp_path, max_steps=5)
    run.fit(three, grouped(batches, 3))
    assert run.global_step == 5
    assert_same(parameters(one), parameters(three))


def test_clipping_is_the_trainers(tmp_path):
    batches = sinusoids(3)
    ours, theirs, free = module(gradient_clip_val=0.01), module(), module()
    trainer(tmp_path).fit(ours, loader(batches))
    trainer(tmp_path, gradient_clip_val=0.01).fit(theirs, loader(batches))
    trainer(tmp_path).fit(free, loader(batches))
    assert_same(parameters(ours), parameters(theirs))
    assert_same(parameters(ours), parameters(free), same=False)


def test_accumulation(tmp_path):
    batches = sinusoids(4)
    subject = module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    network = copy.deepcopy(subject.network)
    trainer(tmp_path, accumulate_grad_batches=2).fit(subject, loader(batches))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for pair in (batches[:2], batches[2:]):
        optimizer.zero_grad()
        for tasks in pair:
            (meta_loss(network, maml(lr=0.01, steps=2), tasks, loss="mse").surrogate / 2).backward()
        optimizer.step()
    for ours, theirs in zip(subject.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_learned_rates_are_trained_logged_and_saved(tmp_path):
    subject = module(algorithm=maml(lr=0.01, steps=2, learn_lr="per_parameter"))
    run = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    run.fit(subject, loader(sinusoids(3)))
    rates = dict(subject.rates.named_parameters())
    assert all(rate.item() != pytest.approx(0.01, abs=1e-6) for rate in rates.values())
    rows = read_csv(run)
    assert float(rows[-1]["train/rate/head/weight"]) == pytest.approx(rates["head/weight"].item())
    run.save_checkpoint(tmp_path / "rates.ckpt")
    again = module(algorithm=maml(lr=0.01, steps=2, learn_lr="per_parameter"))
    trainer(tmp_path).test(again, loader(sinusoids(1)), ckpt_path=tmp_path / "rates.ckpt", verbose=False)
    assert_same(parameters(subject), parameters(again))


class LearnedLoss(torch.nn.Module):
    """The squared error to a power that is meta-learned."""

    def __init__(self) -> None:
        super().__init__()
        self.power = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, predictions, targets):
        return ((predictions - targets).square().mean() + 1e-3) ** self.power


def test_parameters_of_the_loss_are_trained_and_saved(tmp_path):
    batches = sinusoids(3)
    subject, loss = module(loss=LearnedLoss()), LearnedLoss()
    network = copy.deepcopy(subject.network)
    run = trainer(tmp_path)
    run.fit(subject, loader(batches))

    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()])
    for tasks in batches:
        optimizer.zero_grad()
        meta_loss(network, maml(lr=0.01, steps=2), tasks, loss=loss).surrogate.backward()
        optimizer.step()
    assert subject.loss.power.item() != 1
    assert_same(parameters(subject), [parameter.detach() for parameter in (*network.parameters(), loss.power)])

    run.save_checkpoint(tmp_path / "loss.ckpt")
    again = module(loss=LearnedLoss())
    trainer(tmp_path).test(again, loader(sinusoids(1)), ckpt_path=tmp_path / "loss.ckpt", verbose=False)
    assert_same(parameters(subject), parameters(again))


# Logs


def read_csv(run: Trainer) -> list[dict[str, str]]:
    with (Path(run.logger.log_dir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("k", [1, 2])
def test_loggers_see_every_update(tmp_path, k):
    batches = sinusoids(8)
    reference, losses, norms = module().network, [], []
    optimizer = torch.optim.Adam(reference.parameters())
    for tasks in batches:
        optimizer.zero_grad()
        output = meta_loss(reference, maml(lr=0.01, steps=2), tasks, loss="mse")
        output.surrogate.backward()
        losses.append(output.loss.item())
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()]).item())
        optimizer.step()

    run = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=4 // k)
    run.fit(
        module(updates_per_step=k, gradient_clip_val=100.0),
        grouped(batches, k) if k > 1 else loader(batches),
        loader(sinusoids(1)),
    )
    rows = read_csv(run)
    trained = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in trained] == [4, 8]  # meta-updates, not training steps
    for row, start in zip(trained, (0, 4), strict=True):
        assert float(row["train/loss"]) == pytest.approx(sum(losses[start : start + 4]) / 4, rel=1e-5)
        norm = sum(norms[start + 4 - k : start + 4]) / k  # taken in the logged training step alone
        assert float(row["train/meta_gradient_norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(row["train/support_loss_before"]) > float(row["train/support_loss_after"])
        assert float(row["train/tasks_per_second"]) > 0
        assert float(row["train/learning_rate"]) == 1e-3
    (validated,) = [row for row in rows if row["val/loss"]]
    assert int(validated["step"]) == 8


def test_progress_bar_shows_loss_and_metric(tmp_path):
    subject = module(metric="mse")
    run = trainer(tmp_path, log_every_n_steps=2)
    run.fit(subject, loader(sinusoids(2)), loader(sinusoids(1)))
    assert {"train/loss", "train/mse", "val/loss", "val/mse"} <= set(run.progress_bar_metrics)
    assert run.callback_metrics["train/loss"] == pytest.approx(run.callback_metrics["train/mse"].item())


def test_no_logging_at_all(tmp_path):
    subject = module()
    trainer(tmp_path, log_every_n_steps=0).fit(subject, loader(sinusoids(3)))
    assert len(subject._meter.losses) <= 2


def test_metrics_json_and_table(tmp_path, capsys):
    def largest_error(predictions, targets):
        return (predictions - targets).abs().flatten(1).amax(1)

    subject = module(metric=largest_error)
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, name="log"))
    held_out = sinusoids(2, tasks=3, seed=4)
    (tested,) = run.test(subject, loader(held_out))
    written = json.loads((tmp_path / "log" / "version_0" / "metrics.json").read_text())
    assert written["algorithm"] == "maml"
    assert written["tasks"] == 6
    assert written["checkpoint"] is None
    assert written["inner_steps"] == [0, 1, 2]
    for name in ("loss", "largest_error"):
        for step in range(3):
            assert written[name]["mean"][step] == pytest.approx(tested[f"test/{name}_step_{step}"], rel=1e-6)
            assert written[name]["ci95"][step] == pytest.approx(tested[f"test/{name}_step_{step}_ci95"], rel=1e-6)
            assert written[name]["median"][step] == pytest.approx(tested[f"test/{name}_step_{step}_median"], rel=1e-6)
    printed = capsys.readouterr().out
    assert "Test of maml on 6 tasks" in printed
    assert "largest_error" in printed
    assert f"{tested['test/loss_step_2']:.4f} ± {tested['test/loss_step_2_ci95']:.4f}" in printed
    assert "Test metric" not in printed  # Lightning's own table of the same numbers


def with_one_that_runs_away(tasks: int = 12) -> list[TaskBatch]:
    """Two meta-batches; the inputs of the last task are too large for the inner rate."""
    batches = sinusoids(2, tasks=tasks // 2, seed=4)
    for value in (batches[1].support_inputs, batches[1].support_targets):
        value[-1] *= 40
    return batches


def test_what_diverges_is_counted_and_said(tmp_path, capsys):
    subject, batches = module(algorithm=maml(lr=0.05, steps=2)), with_one_that_runs_away()
    each = [evaluate(subject.network, subject.algorithm, batch, loss="mse") for batch in batches]
    losses, diverged = (torch.cat([getattr(one, name) for one in each]) for name in ("query_losses", "diverged"))
    assert diverged.sum(0).tolist() == [0, 1, 1]
    assert losses[-1, 1] > losses[:-1, 1].sum()
    run = trainer(tmp_path)
    (tested,) = run.test(subject, loader(batches))
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["diverged"] == [0, 1, 1]
    assert [tested[f"test/diverged_step_{step}"] for step in range(3)] == [0, 1, 1]
    assert written["loss"]["median"] == pytest.approx(losses.sort(0).values[5:7].mean(0).tolist(), rel=1e-6)
    assert written["loss"]["mean"] == pytest.approx(losses.mean(0).tolist(), rel=1e-6)
    assert re.search(r"^ +inner step +query loss +median +diverged$", printed, re.MULTILINE)
    assert (
        "One task is more than half of the mean query loss after inner steps 1, 2; without it the mean after 2 is "
        f"{losses[:-1, 2].mean():.4f}."
    ) in printed
    (validated,) = run.validate(subject, loader(batches), verbose=False)
    assert validated["val/diverged"] == 1


def test_under_the_safeguard_nothing_diverges_and_the_table_names_it(tmp_path, capsys):
    subject = module(algorithm=maml(lr=0.05, steps=2), safeguard=True)
    (tested,) = trainer(tmp_path).test(subject, loader(with_one_that_runs_away()))
    assert [tested[f"test/diverged_step_{step}"] for step in range(3)] == [0, 0, 0]
    assert "Test of maml on 12 tasks, with safeguard, mean ± 95% interval:" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["safeguard"] is True
    (predictions,) = trainer(tmp_path).predict(subject, loader(with_one_that_runs_away()[1:]))
    assert predictions[-1].abs().max() < 1e3


def test_of_a_handful_of_tasks_one_may_be_half_of_the_mean(tmp_path, capsys):
    subject = module(algorithm=maml(lr=0.05, steps=2))
    trainer(tmp_path).test(subject, loader(with_one_that_runs_away(10)))
    assert "One task" not in capsys.readouterr().out


def test_quiet_test_prints_nothing(tmp_path, capsys):
    trainer(tmp_path).test(module(), loader(sinusoids(1)), verbose=False)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "metrics.json").exists()


def test_metrics_json_of_a_single_task_is_valid(tmp_path):
    trainer(tmp_path).test(module(), loader(sinusoids(1, tasks=1)), verbose=False)
    written = json.loads((tmp_path / "metrics.json").read_text())  # NaN would not be JSON
    assert written["loss"]["ci95"] == [None] * 3
    assert all(math.isfinite(mean) for mean in written["loss"]["mean"])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]  # no temporary file is left


# Checkpoints


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_checkpoints_hold_plain_data(tmp_path):
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    subject = module(loss=torch.nn.functional.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1), test_steps=3)
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoint])
    run.fit(subject, loader(sinusoids(2)), loader(sinusoids(1)))
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert content["hyper_parameters"]["test_steps"] == 3
    assert "network" not in content["hyper_parameters"]

    fresh = module(test_steps=3)
    with torch.no_grad():
        fresh.network.head.bias.add_(1)
    trainer(tmp_path).test(
        fresh, loader(sinusoids(1)), ckpt_path=tmp_path / "best.ckpt", verbose=False, weights_only=True
    )
    assert_same(parameters(fresh), parameters(subject))
    assert json.loads((tmp_path / "metrics.json").read_text())["checkpoint"] == str(tmp_path / "best.ckpt")

    network = MLP(1, [8], 1)
    loaded = MetaModule.load_from_checkpoint(
        tmp_path / "best.ckpt", network=network, algorithm=maml(lr=0.01, steps=2), weights_only=True
    )
    assert loaded.test_steps == 3
    assert_same(parameters(loaded), parameters(subject))


@pytest.mark.parametrize("k", [1, 2])
def test_resuming_gives_the_parameters_of_one_run(tmp_path, k):
    batches = sinusoids(8)

    def data(part):
        return grouped(part, k) if k > 1 else loader(part)

    def subject():
        return module(
            updates_per_step=k, scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        )

    whole = subject()
    trainer(tmp_path, max_epochs=2, limit_train_batches=8 // k).fit(whole, data(batches))
    first, second = subject(), subject()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(first, data(batches))
    run.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, max_epochs=2).fit(second, data(batches), ckpt_path=tmp_path / "half.ckpt")
    assert_same(parameters(whole), parameters(second))


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"algorithm": maml},
            TypeError,
            r"`algorithm` to be one such as maml\(lr=0.01, steps=5\) but got maml itself: call it, maml",
        ),
        ({"network": "mlp"}, TypeError, "`network` to be an nn.Module but got 'mlp'"),
        ({"optimizer": 1e-3}, TypeError, "`optimizer` to be a function from parameters to an optimizer.*but got float"),
        ({"updates_per_step": 0}, ValueError, "`updates_per_step` to be a whole number of at least 1 but got 0"),
        ({"updates_per_step": 2.0}, ValueError, "`updates_per_step` to be a whole number of at least 1 but got 2.0"),
        ({"test_steps": -1}, ValueError, "`test_steps` to be a whole number of at least 0 but got -1"),
        ({"gradient_clip_val": 0}, ValueError, "`gradient_clip_val` to be positive or None but got 0"),
        (
            {"gradient_clip_algorithm": "l1"},
            ValueError,
            "`gradient_clip_algorithm` to be one of .'norm', 'value'. but got 'l1'",
        ),
        ({"loss": "msee"}, ValueError, "`loss` to be one of .* but got 'msee'"),
        ({"metric": "acc"}, ValueError, "`metric` to be one of .* but got 'acc'"),
    ],
)
def test_rejects_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        module(**arguments)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            [torch.zeros(2, 3), torch.zeros(2, 3)],
            r"TaskBatch\(support_inputs, .* but got list of 2: \[2, 3\], \[2, 3\]",
        ),
        ({"images": torch.zeros(2, 3)}, r"but got dict of 1: \[2, 3\]"),
        (torch.zeros(2, 3), "but got Tensor"),
    ],
)
def test_says_how_to_build_a_batch(tmp_path, batch, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(module(), loader([batch]))


def test_several_updates_need_several_batches(tmp_path):
    with pytest.raises(
        ValueError, match="up to updates_per_step=4 task batches in a training step but got one task batch"
    ):
        trainer(tmp_path).fit(module(updates_per_step=4), loader(sinusoids(1)))
    with pytest.raises(ValueError, match="but got 5 of them"):
        trainer(tmp_path).fit(module(updates_per_step=4), grouped(sinusoids(5), 5))


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ({"gradient_clip_val": 1.0}, "MetaModule.gradient_clip_val"),
        ({"accumulate_grad_batches": 2}, "more tasks in a batch"),
    ],
)
def test_several_updates_say_what_the_trainer_must_not_do(tmp_path, argument, instead):
    with pytest.raises(ValueError, match=rf"Expected no Trainer.{next(iter(argument))}=.*use {instead}"):
        trainer(tmp_path, **argument).fit(module(updates_per_step=2), grouped(sinusoids(2), 2))


def test_no_scheduler_that_waits_for_validation(tmp_path):
    with pytest.raises(ValueError, match="advances by meta-update but got ReduceLROnPlateau"):
        trainer(tmp_path).fit(module(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau), loader(sinusoids(1)))


@pytest.mark.parametrize("k", [1, 2])
def test_divergence_names_the_inner_loop(tmp_path, k):
    subject = module(algorithm=maml(lr=1e25, steps=3), updates_per_step=k)
    with pytest.raises(
        ValueError, match=r"the inner loop diverged.*after inner step \d of 3: lower the inner rate \(now 1e\+25\)"
    ):
        trainer(tmp_path).fit(subject, loader(sinusoids(2)) if k == 1 else grouped(sinusoids(2), 2))


def test_divergence_names_the_meta_parameters(tmp_path):
    subject = module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30))
    with pytest.raises(ValueError, match="before any inner step, on finite data.*lower the outer learning rate"):
        trainer(tmp_path).fit(subject, loader(sinusoids(4)))


def test_divergence_names_the_data():
    from lightning_maml.training.meta_update import explain_divergence

    tasks = sinusoids(1, tasks=4)[0]
    tasks.query_targets[1, 0], tasks.query_targets[3, 2] = math.nan, math.inf
    said = explain_divergence(tasks, torch.zeros(4, 3), maml())
    assert "`query_targets` holds NaN or infinite values in tasks 1, 3 of 4." in said


def test_bad_data_is_named_in_training(tmp_path):
    (tasks,) = sinusoids(1)
    tasks.support_inputs[2, 0] = math.nan
    with pytest.raises(ValueError, match=r"`support_inputs` holds NaN.*2"):
        trainer(tmp_path).fit(module(), loader([tasks]))
