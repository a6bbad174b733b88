"""``lightning-maml demo``: MAML and the pretrained baseline on sinusoids, in about a minute."""

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from lightning_maml.adaptation import meta_loss
from lightning_maml.checks import check_positive, check_seed, check_whole
from lightning_maml.cli import report
from lightning_maml.cli.origin import origin
from lightning_maml.cli.progress import ProgressLines, is_interactive
from lightning_maml.data.sinusoid import SinusoidTasks
from lightning_maml.networks import MLP
from lightning_maml.presets import maml, pretrained
from lightning_maml.report.run import ORIGIN
from lightning_maml.training.module import MetaModule
from lightning_maml.training.results import aligned, write_json

SHOWN_STEPS = (0, 1, 5, 10)
SHOTS = 5
NETWORK = partial(MLP, 1, [40, 40], 1, init="default")
ALGORITHMS = {"MAML": maml(lr=0.01, steps=2), "pretrained": pretrained(lr=0.01)}
UPDATES_PER_STEP = 20
BAR = "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} updates, {remaining} left{postfix}"


def main(args: Sequence[str] | None = None, is_quiet: bool = False) -> dict[str, dict[str, float]]:
    """Trains both, tests both on the same held-out tasks, prints the errors side by side and returns them."""
    what = "Meta-train on sinusoids, then compare with a pretrained network on tasks neither has seen."
    parser = argparse.ArgumentParser("lightning-maml demo", description=what)
    seconds = "about how long to train, both together (default: 60)"
    parser.add_argument("--seconds", type=float, default=60, help=seconds)
    parser.add_argument("--steps", type=int, help="updates of each, instead of a time")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks and of the initial weights (default: 0)")
    options = parser.parse_args(args)
    check_positive(seconds=options.seconds)
    check_seed(seed=options.seed)
    if options.steps is not None:
        check_whole(1, steps=options.steps)
    with quiet("lightning.pytorch", "lightning.fabric"):
        return _compared(options.steps or _updates_in(options.seconds, options.seed), options.seed, is_quiet)


@contextmanager
def quiet(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Without what Lightning's loggers say of each trainer, below ``level``."""
    before = [(logger, logger.level) for logger in map(logging.getLogger, names)]
    try:
        for logger, _ in before:
            logger.setLevel(level)
        yield
    finally:
        for logger, own in before:
            logger.setLevel(own)


def _compared(updates: int, seed: int, is_quiet: bool) -> dict[str, dict[str, float]]:
    if not is_quiet:
        print(
            f"Regression of sine waves y = A sin(x - phase), {SHOTS} examples of each new one,\n"
            f"by a network 1-40-40-1. Training: {updates:,} updates of 25 tasks for each of MAML\n"
            "(2 inner steps) and the pretrained baseline (all tasks at once, no inner loop);\n"
            "the outer rate falls to 0 along a cosine.\n"
        )
    folders = {name: _new_folder(name, updates, seed) for name in ALGORITHMS}
    found = {name: train(name, updates, seed, is_quiet, folders[name]) for name in ALGORITHMS}
    results = {name: result for name, (_, result) in found.items()}
    rows = [["inner steps", *(f"{name:>16}" for name in results)]]
    for step in SHOWN_STEPS:
        loss = f"test/loss_step_{step}"
        rows.append([str(step), *(f"{found[loss]:.3f} ± {found[f'{loss}_ci95']:.3f}" for found in results.values())])
    print(
        "\nMean squared error on 600 held-out tasks, ± 95% interval, after some inner steps",
        f"on the {SHOTS} examples of each:",
        *("", *aligned(rows), ""),
        "At test a step that does not lower the error on the examples is halved",
        "(safeguard=True). The paper has 1 inner step, a constant rate and no safeguard:",
        "in some runs a task then runs away, and the mean with it. Its protocol:",
        "  lightning-maml fit --config configs/sinusoid.yaml    (70,000 updates)",
        sep="\n",
    )
    print()
    first, other = folders.values()
    report.write(first, baseline=other, module=found["MAML"][0], stream=_tasks(updates, seed))
    return results


def _new_folder(name: str, updates: int, seed: int) -> Path:
    """A folder of this run's own in ``runs/demo``, with what a page has to know of it."""
    root = Path("runs") if os.access(Path(), os.W_OK) else Path(tempfile.mkdtemp())
    parent = root / "demo" / name.lower()
    folder = next(path for number in count() if not (path := parent / f"version_{number}").exists())
    algorithm = ALGORITHMS[name]
    inner = {
        "class_path": f"lightning_maml.{algorithm.name}",
        "init_args": {"lr": 0.01, "steps": algorithm.inner.steps},
    }
    model = {
        "network": {"class_path": "lightning_maml.networks.MLP"},
        "algorithm": inner,
        "loss": "mse",
        "safeguard": True,
    }
    data = {
        "class_path": "lightning_maml.data.SinusoidTasks",
        "init_args": {"tasks_per_batch": 25, "test_shots": SHOTS},
    }
    content = {"seed_everything": seed, "model": model, "data": data, "trainer": {"max_steps": updates}}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    write_json(folder / ORIGIN, origin())
    return folder


def _tasks(updates: int, seed: int) -> SinusoidTasks:
    return SinusoidTasks(shots=10, test_shots=SHOTS, batches_per_epoch=updates, val_tasks=0, seed=seed)


def train(
    name: str, updates: int, seed: int, is_quiet: bool = False, folder: Path | None = None
) -> tuple[MetaModule, dict[str, float]]:
    """Trains one of :data:`ALGORITHMS`: the module, and what its test on 600 held-out tasks logs, in ``folder`` too."""
    seed_everything(seed, verbose=False)  # both start from the same weights
    module = MetaModule(
        NETWORK(),
        ALGORITHMS[name],
        loss="mse",
        scheduler=partial(CosineAnnealingLR, T_max=updates),
        test_steps=max(SHOWN_STEPS),
        updates_per_step=UPDATES_PER_STEP,
        safeguard=True,
    )
    tasks = _tasks(updates, seed)
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",  # a network this small is slower anywhere else
            max_steps=updates,
            callbacks=[] if is_quiet else [_Bar(name, updates) if is_interactive() else ProgressLines(name)],
            default_root_dir=root,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False if folder is None else CSVLogger(folder.parent, "", folder.name),
            log_every_n_steps=50 if folder is None else 10,
        )
        trainer.fit(module, tasks)
        (result,) = trainer.test(module, tasks, verbose=False)
    return module, dict(result)


def _updates_in(seconds: float, seed: int) -> int:
    """How many updates of each algorithm fit into ``seconds`` together, on this machine at this moment."""
    tasks = SinusoidTasks(shots=10, seed=seed)
    spent = 0.0
    for algorithm in ALGORITHMS.values():
        network = NETWORK()
        optimizer = torch.optim.Adam(network.parameters())
        for position in range(15):
            if position == 5:  # the first ones are slower
                start = time.perf_counter()
            optimizer.zero_grad()
            meta_loss(network, algorithm, tasks.sample("train", position), loss="mse").surrogate.backward()
            optimizer.step()
        spent += (time.perf_counter() - start) / 10
    return max(int(seconds / spent / UPDATES_PER_STEP), 1) * UPDATES_PER_STEP


class _Bar(Callback):
    """A progress bar that counts updates, where Lightning's counts training steps and epochs."""

    def __init__(self, name: str, updates: int) -> None:
        self.name, self.updates = name, updates

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = tqdm(total=self.updates, desc=self.name.ljust(10), bar_format=BAR, ncols=get_terminal_size().columns)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if "train/loss" in trainer.callback_metrics:  # not yet at the first step
            self.bar.set_postfix_str(f"query loss {float(trainer.callback_metrics['train/loss']):.2f}", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()
