"""The whole of ``Trainer.fit`` on Omniglot, 5-way 1-shot: data, meta-gradient, optimizer, logging.

    python -m benchmarks training --root FOLDER [--tasks 8] [--inner-steps 5] [--accuracy 0.9] [--json FILE]

This library's ``MetaModule``, learn2learn's ``LightningMAML`` (a task a batch, gradients accumulated over the
meta-batch, its own Taskset), and this library without Lightning, in turn, round by round; each with Adam and a CSV
logger. Then what a step of ``Trainer.fit`` consists of, beside a Lightning loop over nothing. With ``--accuracy``, how
many seconds of training it takes until validation tasks are solved so well after the inner steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from benchmarks.about import about
from lightning_maml import Conv4, MetaModule, OmniglotTasks, evaluate, maml, meta_loss
from lightning_maml.cli import demo
from lightning_maml.data import import_learn2learn, load_omniglot

WAYS, SHOTS, QUERIES = 5, 1, 1
WARM_UP = 2
"""Meta-updates at the beginning of each round that are not timed."""
EVERY = 20
"""Meta-updates from one look at the accuracy to the next."""
VALIDATION = 200


@dataclass
class Setting:
    """What all train on."""

    root: str
    tasks: int
    inner_steps: int
    updates: int
    seed: int = 0

    @property
    def lr(self) -> float:
        return 2.0 / self.inner_steps  # the paper's 0.4 for a sum over 5 rows, spread over the steps

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return Conv4(WAYS)

    def stream(self) -> OmniglotTasks:
        data = OmniglotTasks(
            *(self.root, WAYS, SHOTS, QUERIES, self.tasks, "random"),
            batches_per_epoch=10**9,
            val_tasks=0,
            seed=self.seed,
        )
        _ = data.samplers
        return data

    def taskset(self) -> Any:
        """learn2learn's tasks of the same images."""
        of, data = import_learn2learn().data.transforms, import_learn2learn().data
        stream = self.stream()
        order = torch.randperm(1623, generator=torch.Generator().manual_seed(stream.split_seed))[: stream.split[0]]
        images = load_omniglot(self.root)[order].flatten(0, 1).float() / 255
        labels = torch.arange(len(order)).repeat_interleave(20)
        dataset = data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
        rotation = import_learn2learn().vision.transforms.RandomClassRotation(dataset, [0, 90, 180, 270])
        picked = [of.NWays(dataset, WAYS), of.KShots(dataset, SHOTS + QUERIES), of.LoadData(dataset)]
        return data.Taskset(dataset, [*picked, of.RemapLabels(dataset), of.ConsecutiveLabels(dataset), rotation])


@dataclass
class Clock:
    """Times the meta-updates of a ``fit``, but not the looks at its accuracy."""

    batches_per_update: int = 1
    look: Callable[[], bool] | None = None
    """Called after every :data:`EVERY` meta-updates; true where training may stop."""
    seconds: float = 0.0
    updates: int = 0
    _since: float = field(default=0.0, init=False)

    def batch_ends(self, trainer: Any, batch: int) -> None:
        if (batch + 1) % self.batches_per_update:
            return
        update = (batch + 1) // self.batches_per_update
        now = time.perf_counter()
        if update > WARM_UP or self.look:
            self.seconds += now - self._since
            self.updates += 1
        if self.look and update % EVERY == 0 and self.look():
            trainer.should_stop = True
        self._since = time.perf_counter()

    def callback(self, library: Any) -> Any:
        """The callback for ``lightning.pytorch`` or ``pytorch_lightning``, which take only their own."""
        clock = self

        class Timing(library.Callback):  # type: ignore[misc]
            def on_train_start(self, trainer: Any, module: Any) -> None:
                clock._since = time.perf_counter()

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                clock.batch_ends(trainer, batch_idx)

        return Timing()


Look = Callable[[nn.Module], bool]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says to every trainer."""
    with demo.quiet("lightning.pytorch", "pytorch_lightning", level=logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fit(library: Any, logger: Any, module: Any, data: Any, setting: Setting, clock: Clock) -> Clock:
    """Trains, quietly."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = library.Trainer(
            accelerator="cpu",
            max_steps=setting.updates,
            accumulate_grad_batches=clock.batches_per_update,
            default_root_dir=folder,
            logger=logger(folder, flush_logs_every_n_steps=50),
            callbacks=[clock.callback(library)],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        trainer.fit(module, data)
    return clock


def ours(setting: Setting, look: Look | None = None) -> Clock:
    """``MetaModule`` under ``Trainer.fit``."""
    network = setting.network()
    module = MetaModule(network, maml(setting.lr, setting.inner_steps), loss="cross_entropy")
    return fit(lightning, CSVLogger, module, setting.stream(), setting, Clock(1, look and (lambda: look(network))))


def learn2learn(setting: Setting, look: Look | None = None) -> Clock:
    """``LightningMAML`` under its own Lightning's ``Trainer.fit``."""
    import_learn2learn()
    import pytorch_lightning
    from learn2learn.algorithms.lightning import LightningMAML
    from pytorch_lightning.loggers import CSVLogger as TheirLogger

    network = setting.network()
    rows = {f"{stage}_{name}": value for stage in ("train", "test") for name, value in _ROWS.items()}
    module = LightningMAML(
        network, adaptation_steps=setting.inner_steps, adaptation_lr=setting.lr, lr=0.001, scheduler_decay=1.0, **rows
    )
    data = torch.utils.data.DataLoader(_Tasks(setting.taskset()), batch_size=None)
    clock = Clock(setting.tasks, look and (lambda: look(network)))
    return fit(pytorch_lightning, TheirLogger, module, data, setting, clock)


_ROWS = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES}


class _Tasks(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """A Taskset without end."""

    def __init__(self, taskset: Any) -> None:
        self.taskset = taskset

    def __iter__(self) -> Any:
        while True:
            yield self.taskset.sample()


def bare(setting: Setting) -> tuple[Clock, dict[str, list[float]]]:
    """This library's meta-gradient and Adam in a loop, and the milliseconds of its parts."""
    network, stream, clock = setting.network(), setting.stream(), Clock()
    optimizer = torch.optim.Adam(network.parameters())
    algorithm = maml(setting.lr, setting.inner_steps)
    parts: dict[str, list[float]] = {"draw the tasks": [], "meta_loss": [], "backward": [], "optimizer": []}
    for update in range(setting.updates):
        times = [time.perf_counter()]
        tasks = stream.sample("train", update)
        times.append(time.perf_counter())
        output = meta_loss(network, algorithm, tasks, loss="cross_entropy")
        times.append(time.perf_counter())
        optimizer.zero_grad()
        output.surrogate.backward()
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        if update >= WARM_UP:
            clock.seconds += times[-1] - times[0]
            clock.updates += 1
            for name, begin, end in zip(parts, times, times[1:], strict=False):
                parts[name].append(1e3 * (end - begin))
    return clock, parts


class _Nothing(lightning.LightningModule):
    """A module that costs nothing, in Lightning's loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.weight * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def nothing(setting: Setting) -> Clock:
    """Lightning's loop over nothing."""
    return fit(lightning, CSVLogger, _Nothing(), range(10**6), setting, Clock())


def throughput(setting: Setting, rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, float], dict[str, str]]:
    """Tasks per second of each, the milliseconds of a step, and what is missing."""
    runs: dict[str, Callable[[], Clock]] = {"MetaModule": lambda: ours(setting)}
    missing = {}
    try:
        learn2learn(Setting(setting.root, setting.tasks, setting.inner_steps, 1))
        runs["learn2learn's LightningMAML"] = lambda: learn2learn(setting)
    except ImportError as error:
        missing["learn2learn's LightningMAML"] = str(error)[:200]
    steps: dict[str, list[float]] = {name: [] for name in (*runs, "without Lightning", "Lightning over nothing")}
    parts: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            steps[name].append(_milliseconds(run()))
        clock, found = bare(setting)
        steps["without Lightning"].append(_milliseconds(clock))
        for name, values in found.items():
            parts.setdefault(name, []).extend(values)
        # so short that it takes more of them
        empty = nothing(Setting(setting.root, setting.tasks, setting.inner_steps, 20 * setting.updates))
        steps["Lightning over nothing"].append(_milliseconds(empty))
    base = statistics.median(steps.get("learn2learn's LightningMAML", [float("nan")]))
    rows = {}
    for name in (*runs, "without Lightning"):
        values = sorted(steps[name])
        rows[name] = {
            "tasks_per_second": 1e3 * setting.tasks / statistics.median(values),
            "slowest": 1e3 * setting.tasks / values[-1],
            "fastest": 1e3 * setting.tasks / values[0],
            "times_learn2learn": base / statistics.median(values),
        }
    profile = {name: statistics.median(values) for name, values in parts.items()}
    profile["Lightning over nothing"] = statistics.median(steps["Lightning over nothing"])
    # of each round by itself, as machines drift
    rest = [a - b - c for a, b, c in zip(*(steps[n] for n in ("MetaModule", *list(steps)[-2:])), strict=True)]
    profile["MetaModule's own: checks, metrics, logging"] = statistics.median(rest)
    profile["a step of Trainer.fit"] = statistics.median(steps["MetaModule"])
    return rows, profile, missing


def _milliseconds(clock: Clock) -> float:
    return 1e3 * clock.seconds / clock.updates


def seconds_to(accuracy: float, setting: Setting) -> dict[str, dict[str, float | None]]:
    """Seconds of training and meta-updates until the validation tasks are solved so well; None where they never are."""
    tasks = OmniglotTasks(setting.root, WAYS, SHOTS, QUERIES, VALIDATION, "random", val_tasks=VALIDATION, seed=1)
    batch, algorithm = tasks.sample("val", 0), maml(setting.lr, setting.inner_steps)

    def solved(network: nn.Module) -> bool:
        predictions = evaluate(network, algorithm, batch, loss="cross_entropy").predictions[:, -1]
        return (predictions.argmax(2) == batch.query_targets).float().mean().item() >= accuracy

    found: dict[str, dict[str, float | None]] = {}
    for name, train in (("MetaModule", ours), ("learn2learn's LightningMAML", learn2learn)):
        reached: list[bool] = []

        def look(network: nn.Module, reached: list[bool] = reached) -> bool:
            reached.append(solved(network))
            return reached[-1]

        try:
            clock = train(setting, look)
        except ImportError:
            continue
        done = bool(reached) and reached[-1]
        found[name] = {"seconds": clock.seconds if done else None, "updates": clock.updates if done else None}
        print(
            f"  {name:44}{f'{clock.seconds:.0f} s' if done else 'not reached':>14}  {clock.updates} updates", flush=True
        )
    return found


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", required=True, help="where Omniglot is")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--inner-steps", type=int, default=5)
    parser.add_argument("--updates", type=int, default=10, help="of a round, beyond those that warm up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy", type=float, help="also the seconds to this validation accuracy, such as 0.9")
    parser.add_argument("--limit", type=int, default=2000, help="meta-updates after which that is given up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    for name in ("tasks", "inner_steps", "updates", "rounds", "limit"):
        if getattr(options, name) < 1:
            parser.error(f"Expected `--{name.replace('_', '-')}` to be at least 1 but got {getattr(options, name)}")
    if options.accuracy is not None and not 0 < options.accuracy <= 1:
        parser.error(f"Expected `--accuracy` to be above 0 and at most 1 but got {options.accuracy}")
    setting = Setting(options.root, options.tasks, options.inner_steps, options.updates + WARM_UP)
    rows, profile, missing = throughput(setting, options.rounds)
    print(f"Omniglot 5-way 1-shot, Conv4, {setting.tasks} tasks, {setting.inner_steps} inner steps\n")
    print(f"{'':46}{'tasks/s':>9}{'slowest':>9}{'fastest':>9}{'x l2l':>8}")
    for name, row in rows.items():
        print(
            f"  {name:44}"
            + "".join(f"{value:{width}.1f}" for value, width in zip(row.values(), (9, 9, 9, 8), strict=True))
        )
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}")
    print("\nmilliseconds of a step")
    for name, value in profile.items():
        print(f"  {name:44}{value:9.2f}")
    *parts, own, _ = profile.values()
    print(f"  its own share beyond the others{own / sum(parts):22.1%}", flush=True)
    content: dict[str, Any] = {"benchmark": "training", "tasks": setting.tasks, "inner_steps": setting.inner_steps}
    content |= {"rows": rows, "step_ms": profile, "own_share": own / sum(parts), "missing": missing, **about()}
    if options.accuracy is not None:
        print(f"\nseconds of training to a validation accuracy of {options.accuracy}")
        setting.updates = options.limit
        content["accuracy"] = options.accuracy
        content["to_accuracy"] = seconds_to(options.accuracy, setting)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
