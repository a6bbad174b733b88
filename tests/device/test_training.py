"""Lightning on the stand-in device: fit, validate, test, predict, checkpoints and resuming, and the CPU's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from drawings import small, write_npz
from lightning_maml import Algorithm, Conv4, MetaModule, OmniglotTasks, SinusoidTasks, TaskBatch, cli, maml, meta_sgd
from lightning_maml.networks import MLP
from lightning_maml.saving import BestCheckpoint, random_state, restore_random_state
from lightning_maml.training.meter import Meter
from same import assert_same
from standin import DEVICE, NAME, StandIn, host_copies, is_pinned

CPU = torch.device("cpu")
UNFUSED = partial(torch.optim.Adam, fused=False)
"""A CPU's Adam would take torch's fused step, whose last bit is another than that of the device's."""


@pytest.fixture(autouse=True)
def _nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar gets numbers twice a second, a copy each time: not while copies are counted."""
    monkeypatch.setattr(Meter, "show_due", lambda self: False)


def trainer(device: torch.device, folder: Path, **more: Any) -> Trainer:
    where = {"accelerator": device.type, "devices": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{"default_root_dir": folder / device.type, "enable_checkpointing": False} | where | quiet | more)


def sinusoids(**more: Any) -> SinusoidTasks:
    return SinusoidTasks(tasks_per_batch=4, batches_per_epoch=6, val_tasks=6, test_tasks=6, test_queries=7, **more)


def module(network: Callable[[], nn.Module] = lambda: MLP(1, [8], 1), **more: Any) -> MetaModule:
    seed_everything(0, verbose=False)
    given = {"algorithm": maml(0.01, 2), "loss": "mse", "engine": "batched", "optimizer": UNFUSED} | more
    made = MetaModule(network(), **given)
    torch.manual_seed(0)  # the CPU's generator has made the weights, any other has drawn nothing yet
    return made


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 1))


def weights(one: MetaModule) -> list[Tensor]:
    """On the device that they trained on: Lightning brings a module back to the CPU."""
    return [*one.state_dict().values()]


def test_fit_validate_test_predict(tmp_path: Path) -> None:
    def run(device: torch.device) -> list[Any]:
        one, data = module(), sinusoids()
        runs = trainer(device, tmp_path, max_steps=12)
        runs.fit(one, data)
        assert {value.device for value in one.parameters()} == {CPU}  # where Lightning leaves what was on a GPU
        found = [runs.validate(one, data, verbose=False), runs.test(one, data, verbose=False)]
        content = json.loads((tmp_path / device.type / "metrics.json").read_text())
        predicted = torch.cat(runs.predict(one, data))
        return [found, content, [value.to(device) for value in (*weights(one), predicted)]]

    assert_same(run)


@pytest.mark.parametrize("batch_norm", ["batch", "support"])
def test_classification(tmp_path: Path, batch_norm: Any) -> None:
    write_npz(tmp_path)

    def run(device: torch.device) -> list[Any]:
        data: OmniglotTasks = small(tmp_path, batches_per_epoch=3, val_tasks=4, test_tasks=4)
        one = module(
            lambda: Conv4(2, hidden=3).double(), algorithm=maml(0.4, 1, batch_norm=batch_norm), loss="cross_entropy",
            safeguard=batch_norm == "support",
        )  # fmt: skip
        runs = trainer(device, tmp_path, max_steps=4, precision="64-true")
        runs.fit(one, data)
        return [runs.test(one, data, verbose=False), [value.to(device) for value in weights(one)]]

    assert_same(run)


def test_learned_rates_several_updates_a_step_clipping_and_a_schedule(tmp_path: Path) -> None:
    def run(device: torch.device) -> list[Any]:
        def halved(optimizer: Any) -> Any:
            return torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)

        one, data = (
            module(algorithm=meta_sgd(0.01), updates_per_step=3, gradient_clip_val=0.1, scheduler=halved),
            sinusoids(),
        )
        trainer(device, tmp_path, max_steps=11).fit(one, data)
        return [value.to(device) for value in weights(one)]

    assert_same(run)


# Who waits for the device


@pytest.mark.parametrize("updates_per_step", [1, 3])
def test_training_waits_once_for_each_meta_update(tmp_path: Path, updates_per_step: int) -> None:
    one, data = module(updates_per_step=updates_per_step), sinusoids(test_shots=3)
    runs = trainer(DEVICE, tmp_path, max_steps=12, limit_val_batches=0)
    with host_copies() as copies:
        runs.fit(one, data)
    asked = [each for each in copies.in_library() if "metrics.py" not in each]  # values that go to the CPU at the end
    assert len(asked) == 12, copies.of
    assert {each.split()[-1] for each in asked} == {"_is_finite"}
    # nor does Lightning, whatever it may do before and after
    assert not [each for each in copies.of if "/loops/" in each or "/optim" in each], copies.of


@pytest.mark.parametrize("algorithm", [maml(0.01, 2), meta_sgd(0.01, 2)])
def test_a_logged_step_waits_for_its_row(tmp_path: Path, algorithm: Algorithm) -> None:
    """Means of the losses in one copy, and in another the norm of the meta-gradient and all learned rates."""
    one, data = module(algorithm=algorithm), sinusoids()
    logger = CSVLogger(tmp_path)
    runs = trainer(DEVICE, tmp_path, max_steps=12, limit_val_batches=0, logger=logger, log_every_n_steps=4)
    with host_copies() as copies:
        runs.fit(one, data)
    of_row = [each for each in copies.in_library() if "_is_finite" not in each and "metrics.py" not in each]
    assert len(of_row) == 2 * 12 / 4, of_row
    assert "meta_gradient_norm" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_validation_and_test_do_not_wait_task_by_task(tmp_path: Path) -> None:
    def copies_of(tasks: int) -> list[str]:
        one, data = module(), SinusoidTasks(tasks_per_batch=2, val_tasks=tasks, test_tasks=tasks, test_queries=7)
        runs = trainer(DEVICE, tmp_path)
        with host_copies() as copies:
            runs.validate(one, data, verbose=False)
            runs.test(one, data)  # with its table, and metrics.json
        return [each for each in copies.in_library() if "metrics.py" not in each]

    few = copies_of(2)
    assert len(few) == 5, few  # mean, interval, median and the mean of the others; who diverged: at the end
    assert copies_of(8) == few


def test_a_loop_of_items_in_training_is_noticed(tmp_path: Path) -> None:
    """What the test above counts: a loss that asks the device is seen in it."""

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        value = (predictions - targets).square().mean()
        return value if value.item() < 1e30 else value * 0

    runs = trainer(DEVICE, tmp_path, max_steps=2, limit_val_batches=0)
    with host_copies() as copies:
        runs.fit(module(loss=loss, engine="eager"), sinusoids())
    assert len([each for each in copies.of if "test_training.py" in each or "lightning_maml/" in each]) > 12


# Checkpoints


def run_in_parts(device: torch.device, folder: Path, parts: list[torch.device]) -> list[Tensor]:
    """Twelve meta-updates with dropout, in as many runs as devices are given; the weights at the end, on ``device``."""
    last = None
    for part, where in enumerate(parts, start=1):
        one = module(with_dropout, engine="batched")
        best = BestCheckpoint(folder / str(part), "{step}", save_last=True)
        steps = 12 * part // len(parts)
        runs = trainer(where, folder, max_steps=steps, enable_checkpointing=True, callbacks=[best])
        runs.fit(one, sinusoids(), ckpt_path=last)
        last = folder / str(part) / "last.ckpt"
        assert last.is_file()
    return [value.to(device) for value in weights(one)]


def test_a_run_that_goes_on_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    """To the bit, dropout included, which the device's own generator draws."""

    def run(device: torch.device) -> list[Any]:
        whole, halves = (run_in_parts(device, tmp_path / f"{device.type}{n}", [device] * n) for n in (1, 2))
        assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))
        return [whole]

    assert_same(run)


@pytest.mark.parametrize("first, then", [(CPU, DEVICE), (DEVICE, CPU)])
def test_a_run_goes_on_on_another_device(tmp_path: Path, first: torch.device, then: torch.device) -> None:
    weights = run_in_parts(CPU, tmp_path, [first, then])
    assert all(bool(value.isfinite().all()) for value in weights)


def test_the_state_of_the_devices_generator_is_kept() -> None:
    state = random_state()
    assert state[NAME].dtype == torch.uint8
    drawn = torch.rand(3, device=DEVICE)
    restore_random_state(state)
    assert torch.equal(torch.rand(3, device=DEVICE).cpu(), drawn.cpu())


def test_checkpoints_are_the_cpus_and_load_anywhere(tmp_path: Path) -> None:
    def run(device: torch.device) -> list[Any]:
        one = module(meta_network := lambda: MLP(1, [8], 1), test_steps=3)
        best = BestCheckpoint(tmp_path / device.type, monitor="val/loss")
        trainer(device, tmp_path, max_steps=12, enable_checkpointing=True, callbacks=[best]).fit(one, sinusoids())
        path = best.best_model_path
        found = [Path(path).name, best.best_model_score.to(device)]
        for where in (CPU, DEVICE):
            given = {"network": meta_network(), "algorithm": maml(0.01, 2)}
            loaded = MetaModule.load_from_checkpoint(path, map_location=where, **given)
            assert {value.device for value in loaded.parameters()} == {where}
            assert isinstance(next(loaded.parameters()), StandIn) is (where == DEVICE)
            found += [value.to(device) for value in weights(loaded)]
        return found

    assert_same(run)


# Precision


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_precision_of_its_own(tmp_path: Path, precision: Any) -> None:
    def run(device: torch.device) -> list[Any]:
        one, data = module(), sinusoids()
        trainer(device, tmp_path, max_steps=3, precision=precision, limit_val_batches=0).fit(one, data)
        return [value.to(device) for value in weights(one)]

    assert_same(run)


@pytest.mark.parametrize("network", [lambda: MLP(1, [8], 1), with_dropout])
def test_mixed_precision(tmp_path: Path, network: Any) -> None:
    """By the plugin, as Lightning takes "bf16-mixed" for CUDA's wherever a strategy is not the CPU's."""
    torch.set_default_dtype(torch.float32)
    seen = set()

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        seen.add(predictions.dtype)
        return nn.functional.mse_loss(predictions, targets)

    def run(device: torch.device) -> list[Any]:
        one, data = module(network, loss=loss), sinusoids()
        runs = trainer(device, tmp_path, max_steps=6, plugins=[MixedPrecision("bf16-mixed", device.type)])
        runs.fit(one, data)
        return [runs.test(one, data, verbose=False), [value.to(device) for value in weights(one)]]

    copies = assert_same(run)
    assert seen == {torch.bfloat16}
    assert len([each for each in copies.of if "_is_finite" in each]) == 6


def test_autocast_is_the_devices_own() -> None:
    network = nn.Linear(2, 1).to(DEVICE, torch.float32)
    rows = torch.zeros(3, 2, device=DEVICE, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(rows).dtype == torch.float32
    with torch.autocast(NAME, torch.bfloat16):
        assert network(rows).dtype == torch.bfloat16


# Pinned memory


def test_batches_of_a_loader_come_by_pinned_memory(tmp_path: Path) -> None:
    pinned = []

    class Looking(MetaModule):
        def transfer_batch_to_device(self, batch: TaskBatch, device: torch.device, dataloader_idx: int) -> TaskBatch:
            pinned.append(all(is_pinned(value) for _, value in batch.named()))
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def run(device: torch.device) -> list[Any]:
        seed_everything(0, verbose=False)
        one = Looking(MLP(1, [8], 1), maml(0.01, 2), loss="mse", engine="batched", optimizer=UNFUSED)
        batches = [sinusoids().sample("train", position) for position in range(5)]
        loader = DataLoader(batches, batch_size=None, pin_memory=device.type == NAME)
        trainer(device, tmp_path, max_steps=5).fit(one, loader)
        return [value.to(device) for value in weights(one)]

    assert_same(run)
    assert pinned == [False] * 5 + [True] * 5


# The command line


def test_the_command_line_trains_there_goes_on_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--ckpt_path``, of one run that was stopped, and of the best."""
    monkeypatch.chdir(tmp_path)
    config = str(Path(__file__).parents[2] / "configs" / "sinusoid.yaml")
    small = [
        "--config",
        config,
        "--model.network.hidden=[8]",
        "--model.updates_per_step=2",
        "--model.engine=batched",
        "--model.optimizer.init_args.fused=false",
        "--data.val_tasks=3",
    ]
    small += ["--data.test_tasks=3", "--data.batches_per_epoch=4", "--trainer.enable_progress_bar=false"]

    def weights_of(name: str, *parts: str) -> dict[str, Tensor]:
        there = f"--trainer.accelerator={NAME if name == 'there' else 'cpu'}"
        for steps, *more in parts:
            run = [*small, there, f"--checkpoint.dirpath={name}", f"--trainer.max_steps={steps}", *more]
            assert cli.main(["fit", "--debug", *run]) == 0
        assert cli.main(["test", *small, there, f"--checkpoint.dirpath={name}", f"--ckpt_path={name}/best.ckpt"]) == 0
        return torch.load(Path(name) / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]

    whole = weights_of("here", (8,))
    parts = weights_of("there", (4,), (8, "--ckpt_path=there/last.ckpt"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
