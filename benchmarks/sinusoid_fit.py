"""A meta-update of ``Trainer.fit`` on sinusoids: drawing the tasks, the meta-gradient, Adam's step, Lightning's loop.

    python -m benchmarks.sinusoid_fit [--tasks 25] [--inner-steps 1] [--updates 4000] [--rounds 7] [--device cpu|cuda]
                                      [--updates-per-step 20] [--warm-up 100] [--checked 60] [--json FILE]

Networks are 1-40-40-1, tasks have 10 + 10 rows. Ways in turn, round by round: 20 meta-updates a training step in a row;
on a GPU the same as one CUDA graph; the same with a callback that looks at every step, so that each goes through
Lightning; one a training step; and a loop without Lightning. Each first has to reach the parameters of the last, to
1e-4, after as many updates as are checked. A row has the milliseconds of an update, medians over rounds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from benchmarks.machine import known_device
from benchmarks.measure import relative_error
from benchmarks.result_file import ResultFile, command_line
from benchmarks.trainer import quiet_trainer
from lightning_maml import MLP, Engine, Fused, Graphed, MetaModule, SinusoidTasks, maml, meta_loss

TOLERANCE = 1e-4


class _Clock(Callback):
    """Seconds of a meta-update once the device has done those of the warm-up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.seconds = warm_up, 0.0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.warm_up:
            self.since = _now(trainer.strategy.root_device)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_step > self.warm_up:
            self.seconds = (_now(trainer.strategy.root_device) - self.since) / (trainer.global_step - self.warm_up)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class _Looks(Callback):
    """At every step of the optimiser."""

    def on_before_optimizer_step(self, *_: Any) -> None:
        pass


def under_trainer(
    options: Any, updates: int, updates_per_step: int, *callbacks: Callback, engine: str | Engine = "auto"
) -> tuple[nn.Module, float]:
    """The trained network, and the seconds of an update of ``Trainer.fit``."""
    torch.manual_seed(0)
    network, algorithm, clock = MLP(1, [40, 40], 1), maml(0.01, options.inner_steps), _Clock(options.warm_up)
    module = MetaModule(network, algorithm, updates_per_step=updates_per_step, engine=engine)
    data = SinusoidTasks(tasks_per_batch=options.tasks, batches_per_epoch=10**6, val_tasks=0)
    given = {"accelerator": options.device, "devices": 1, "callbacks": [clock, *callbacks]}
    with quiet_trainer(max_steps=updates, **given) as trainer:
        trainer.fit(module, data)
    return module.network, clock.seconds


def without_lightning(options: Any, updates: int) -> tuple[nn.Module, float]:
    """The same of a loop of ``meta_loss`` and Adam."""
    torch.manual_seed(0)
    network, algorithm, device = MLP(1, [40, 40], 1), maml(0.01, options.inner_steps), torch.device(options.device)
    network.to(device)
    optimizer, stream = torch.optim.Adam(network.parameters()), SinusoidTasks(tasks_per_batch=options.tasks)
    since = _now(device)
    for update in range(updates):
        if update == options.warm_up:
            since = _now(device)
        output = meta_loss(network, algorithm, stream.sample("train", update).to(device), loss="mse")
        optimizer.zero_grad()
        output.surrogate.backward()
        optimizer.step()
    return network.cpu(), (_now(device) - since) / max(updates - options.warm_up, 1)


def main() -> int:
    parser = command_line(
        __doc__, tasks=25, inner_steps=1, updates=4000, rounds=7, updates_per_step=20, warm_up=100, checked=60
    )
    parser.add_argument("--device", type=known_device, default="cpu")
    options = parser.parse_args()
    at_once = options.updates_per_step
    if options.updates <= options.warm_up or options.warm_up % at_once:
        parser.error(
            f"Expected `--updates` to be more than the {options.warm_up} of the warm-up, and these a multiple of the "
            f"{at_once} of a training step, but got {options.updates}"
        )
    ways: dict[str, Callable[[int], tuple[nn.Module, float]]] = {
        "in a row": lambda updates: under_trainer(options, updates, at_once),
        "each looked at": lambda updates: under_trainer(options, updates, at_once, _Looks()),
        "one a training step": lambda updates: under_trainer(options, updates, 1),
        "without Lightning": lambda updates: without_lightning(options, updates),
    }
    if options.device != "cpu":
        recorded = Graphed(Fused())
        ways = {"one graph": lambda updates: under_trainer(options, updates, at_once, engine=recorded)} | ways
    about = {"tasks": options.tasks, "inner_steps": options.inner_steps, "device": options.device}
    results = ResultFile(options.json, "sinusoid_fit", **about)
    reached = {
        name: [parameter.detach() for parameter in run(options.checked)[0].parameters()] for name, run in ways.items()
    }
    for name, parameters in reached.items():
        if (error := relative_error(parameters, reached["without Lightning"])) > TOLERANCE:
            results.leave_out(f"WRONG, its parameters are off by {error:.1e}", contender=name)
            del ways[name]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            seconds[name].append(run(options.updates)[1])
    for name, each in seconds.items():
        row = {"median_ms": statistics.median(each), "fastest_ms": min(each), "slowest_ms": max(each)}
        results.add(
            contender=name, **{key: 1e3 * value for key, value in row.items()}, updates_per_s=1 / row["median_ms"]
        )
    return int(bool(results.left_out))


if __name__ == "__main__":
    sys.exit(main())
