"""The whole of ``Trainer.fit`` on Omniglot, 5-way 1-shot: data, meta-gradient, optimizer, logging.

    python -m benchmarks training --root FOLDER [--tasks 8] [--inner-steps 5] [--accuracy 0.9] [--json FILE]

This library's ``MetaModule``, learn2learn's ``LightningMAML`` (a task a batch, gradients accumulated over the
meta-batch, its own Taskset), and this library without Lightning, in turn, round by round; each with Adam and a CSV
logger. Then what a step of ``Trainer.fit`` consists of, beside a Lightning loop over nothing. With ``--accuracy``, how
many seconds of training it takes until validation tasks are solved so well after the inner steps.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.result_file import ResultFile, command_line, text
from benchmarks.trainer import quiet_trainer
from lightning_maml import Algorithm, Conv4, MetaModule, OmniglotTasks, evaluate, maml, meta_loss
from lightning_maml.data import import_learn2learn, load_omniglot

WAYS, SHOTS, QUERIES = 5, 1, 1
WARM_UP = 2
"""Meta-updates at the beginning of each round that are not timed."""
EVERY = 20
"""Meta-updates from one look at the accuracy to the next."""
VALIDATION = 200
OURS, THEIRS, BARE, NOTHING = "MetaModule", "learn2learn's LightningMAML", "without Lightning", "Lightning over nothing"
PARTS = ("draw the tasks", "meta_loss", "backward", "optimizer")

Look = Callable[[nn.Module], bool]
"""Called with the network after every :data:`EVERY` meta-updates; true where training may stop."""


@dataclass
class Setting:
    """What all train on."""

    root: str
    tasks: int
    inner_steps: int

    @property
    def lr(self) -> float:
        return 2.0 / self.inner_steps  # the paper's 0.4 for a sum over 5 rows, spread over the steps

    @property
    def algorithm(self) -> Algorithm:
        return maml(self.lr, self.inner_steps)

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return Conv4(WAYS)

    def stream(self) -> OmniglotTasks:
        sizes = (WAYS, SHOTS, QUERIES, self.tasks)
        data = OmniglotTasks(self.root, *sizes, "random", batches_per_epoch=10**9, val_tasks=0)
        _ = data.samplers
        return data

    def taskset(self) -> Any:
        """learn2learn's tasks of the same images."""
        of, data = import_learn2learn().data.transforms, import_learn2learn().data
        stream = self.stream()
        order = torch.randperm(1623, generator=torch.Generator().manual_seed(stream.split_seed))[: stream.split[0]]
        images = load_omniglot(self.root)[order].flatten(0, 1).float() / 255
        labels = torch.arange(len(order)).repeat_interleave(20)
        dataset = data.MetaDataset(TensorDataset(images, labels))
        rotation = import_learn2learn().vision.transforms.RandomClassRotation(dataset, [0, 90, 180, 270])
        picked = [of.NWays(dataset, WAYS), of.KShots(dataset, SHOTS + QUERIES), of.LoadData(dataset)]
        return data.Taskset(dataset, [*picked, of.RemapLabels(dataset), of.ConsecutiveLabels(dataset), rotation])


def fit(
    library: Any, logger: Any, module: Any, data: Any, updates: int, batches: int = 1, look: Any = None
) -> list[float]:
    """Seconds of each meta-update of ``batches`` batches under the ``Trainer`` of a library; ``look()`` as a Look."""
    seconds: list[float] = []

    class Clock(library.Callback):  # type: ignore[misc]  # each library takes its own callbacks alone
        def on_train_start(self, *_: Any) -> None:
            self.since = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (batch_idx + 1) % batches:
                return
            seconds.append(time.perf_counter() - self.since)
            if look and len(seconds) % EVERY == 0 and look():
                trainer.should_stop = True
            self.since = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        options = {"logger": logger(folder, flush_logs_every_n_steps=50), "callbacks": [Clock()]}
        with quiet_trainer(
            library, max_steps=updates, accumulate_grad_batches=batches, limit_val_batches=0, **options
        ) as trainer:
            trainer.fit(module, data)
    return seconds


def ours(setting: Setting, updates: int, look: Look | None = None) -> list[float]:
    """Seconds of each meta-update of ``MetaModule`` under ``Trainer.fit``."""
    network = setting.network()
    module = MetaModule(network, setting.algorithm, loss="cross_entropy")
    return fit(lightning, CSVLogger, module, setting.stream(), updates, look=look and partial(look, network))


def learn2learn(setting: Setting, updates: int, look: Look | None = None) -> list[float]:
    """Seconds of each meta-update of ``LightningMAML`` under its own Lightning's ``Trainer.fit``."""
    import_learn2learn()
    import pytorch_lightning
    from learn2learn.algorithms.lightning import LightningMAML
    from pytorch_lightning.loggers import CSVLogger as TheirLogger

    network, sizes = setting.network(), {"ways": WAYS, "shots": SHOTS, "queries": QUERIES}
    rows = {f"{stage}_{name}": value for stage in ("train", "test") for name, value in sizes.items()}
    module = LightningMAML(
        network, adaptation_steps=setting.inner_steps, adaptation_lr=setting.lr, lr=0.001, scheduler_decay=1.0, **rows
    )
    data = iter(setting.taskset().sample, None)  # without end
    return fit(pytorch_lightning, TheirLogger, module, data, updates, setting.tasks, look and partial(look, network))


def bare(setting: Setting, updates: int) -> list[list[float]]:
    """Seconds of the :data:`PARTS` of each meta-update, this library's meta-gradient and Adam in a loop."""
    network, stream, algorithm = setting.network(), setting.stream(), setting.algorithm
    optimizer = torch.optim.Adam(network.parameters())
    seconds = []
    for update in range(updates):
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
        seconds.append([end - begin for begin, end in pairwise(times)])
    return seconds


class _Nothing(lightning.LightningModule):
    """A module that costs nothing, in Lightning's loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.weight * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def throughput(setting: Setting, updates: int, rounds: int, results: ResultFile) -> dict[str, float]:
    """Tasks per second of each contender go to ``results``; the milliseconds of the parts of a step are returned."""
    parts: list[list[float]] = []

    def without_lightning() -> list[float]:
        found = bare(setting, updates)
        parts.extend(found[WARM_UP:])
        return list(map(sum, found))

    runs: dict[str, Callable[[], list[float]]] = {OURS: lambda: ours(setting, updates)}
    try:
        learn2learn(setting, 1)
        runs[THEIRS] = lambda: learn2learn(setting, updates)
    except ImportError as error:
        results.leave_out(str(error)[:200], contender=THEIRS)
    runs[BARE] = without_lightning
    # so short that it takes more of them
    runs[NOTHING] = lambda: fit(lightning, CSVLogger, _Nothing(), range(10**6), 20 * updates)
    steps: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            steps[name].append(1e3 * mean(run()[WARM_UP:]))
    for name, values in steps.items():
        if name != NOTHING:
            speeds = [1e3 * setting.tasks / value for value in (median(values), max(values), min(values))]
            row = dict(zip(("tasks_per_second", "slowest", "fastest"), speeds, strict=True))
            times = median(steps[THEIRS]) / median(values) if THEIRS in steps else None
            results.add(contender=name, **row, times_learn2learn=times)
    profile = {name: 1e3 * median(values) for name, values in zip(PARTS, zip(*parts, strict=True), strict=True)}
    profile[NOTHING] = median(steps[NOTHING])
    # of each round by itself, as machines drift
    rest = [a - b - c for a, b, c in zip(steps[OURS], steps[BARE], steps[NOTHING], strict=True)]
    profile["MetaModule's own: checks, metrics, logging"] = median(rest)
    return profile | {"a step of Trainer.fit": median(steps[OURS])}


def seconds_to(accuracy: float, setting: Setting, limit: int) -> dict[str, dict[str, float | None]]:
    """Seconds of training and meta-updates until the validation tasks are solved so well; None where they never are."""
    tasks = OmniglotTasks(setting.root, WAYS, SHOTS, QUERIES, VALIDATION, "random", val_tasks=VALIDATION, seed=1)
    batch, found = tasks.sample("val", 0), {}
    reached: list[bool] = []

    def look(network: nn.Module) -> bool:
        predictions = evaluate(network, setting.algorithm, batch, loss="cross_entropy").predictions[:, -1]
        right = (predictions.argmax(2) == batch.query_targets).float().mean().item()
        reached.append(right >= accuracy)
        return reached[-1]

    for name, train in ((OURS, ours), (THEIRS, learn2learn)):
        reached.clear()
        try:
            seconds = train(setting, limit, look)
        except ImportError:
            continue
        solved = reached[-1:] == [True]
        found[name] = {"seconds": sum(seconds) if solved else None, "updates": len(seconds) if solved else None}
        print(f"{name}: {text(found[name])}", flush=True)
    return found


def main(arguments: list[str]) -> int:
    program = "python -m benchmarks training"
    parser = command_line(__doc__, program, tasks=8, inner_steps=5, updates=10, rounds=5, limit=2000)
    parser.add_argument("--root", required=True, help="where Omniglot is")
    parser.add_argument("--accuracy", type=float, help="such as 0.9, given up after `--limit` meta-updates")
    options = parser.parse_args(arguments)
    if options.accuracy is not None and not 0 < options.accuracy <= 1:
        parser.error(f"Expected `--accuracy` to be above 0 and at most 1 but got {options.accuracy}")
    setting = Setting(options.root, options.tasks, options.inner_steps)
    results = ResultFile(options.json, "training", tasks=setting.tasks, inner_steps=setting.inner_steps)
    profile = throughput(setting, options.updates + WARM_UP, options.rounds, results)
    *parts, own, _ = profile.values()
    results.write(step_ms=profile, own_share=own / sum(parts))
    print(f"milliseconds of a step: {text(profile)}; its own share is {own / sum(parts):.1%} of the others")
    if options.accuracy is not None:
        results.write(accuracy=options.accuracy, to_accuracy=seconds_to(options.accuracy, setting, options.limit))
    return 0
