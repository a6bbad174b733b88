"""A meta-update of ``Trainer.fit`` on sinusoids: drawing the tasks, the meta-gradient, Adam's step, Lightning's loop.

    python -m benchmarks.sinusoid_fit [--tasks 25] [--inner-steps 1] [--updates 4000] [--rounds 7] [--json FILE]

Networks are 1-40-40-1, tasks have 10 + 10 rows. Ways in turn, round by round: 20 meta-updates a training step in a row;
the same with a callback that looks at every step, so that each goes through Lightning; one a training step; and a loop
without Lightning. Each first has to reach the parameters of the last, to 1e-4. A row has the milliseconds of an update,
medians over rounds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from benchmarks.measure import relative_error
from benchmarks.result_file import ResultFile, command_line
from benchmarks.trainer import quiet_trainer
from lightning_maml import MLP, MetaModule, SinusoidTasks, maml, meta_loss

WARM_UP, UPDATES_PER_STEP, TOLERANCE = 100, 20, 1e-4
CHECKED = 60
"""Meta-updates after which parameters are compared."""


class _Clock(Callback):
    """Seconds from the :data:`WARM_UP`-th meta-update to the last, for each of them."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.since = time.perf_counter()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_step > WARM_UP:
            self.seconds = (time.perf_counter() - self.since) / (trainer.global_step - WARM_UP)


class _Looks(Callback):
    """At every step of the optimiser."""

    def on_before_optimizer_step(self, *_: Any) -> None:
        pass


def under_trainer(options: Any, updates: int, updates_per_step: int, *callbacks: Callback) -> tuple[nn.Module, float]:
    """The trained network, and the seconds of an update of ``Trainer.fit``."""
    torch.manual_seed(0)
    module = MetaModule(MLP(1, [40, 40], 1), maml(0.01, options.inner_steps), updates_per_step=updates_per_step)
    data, clock = SinusoidTasks(tasks_per_batch=options.tasks, batches_per_epoch=10**6, val_tasks=0), _Clock()
    with quiet_trainer(max_steps=updates, callbacks=[clock, *callbacks]) as trainer:
        trainer.fit(module, data)
    return module.network, getattr(clock, "seconds", 0.0)


def without_lightning(options: Any, updates: int) -> tuple[nn.Module, float]:
    """The same of a loop of ``meta_loss`` and Adam."""
    torch.manual_seed(0)
    network, algorithm = MLP(1, [40, 40], 1), maml(0.01, options.inner_steps)
    optimizer, stream = torch.optim.Adam(network.parameters()), SinusoidTasks(tasks_per_batch=options.tasks)
    for update in range(updates):
        if update == WARM_UP:
            since = time.perf_counter()
        output = meta_loss(network, algorithm, stream.sample("train", update), loss="mse")
        optimizer.zero_grad()
        output.surrogate.backward()
        optimizer.step()
    return network, (time.perf_counter() - since) / (updates - WARM_UP) if updates > WARM_UP else 0.0


def main() -> int:
    parser = command_line(__doc__, tasks=25, inner_steps=1, updates=4000, rounds=7)
    options = parser.parse_args()
    if options.updates <= WARM_UP:
        parser.error(f"Expected `--updates` to be more than the {WARM_UP} of the warm-up but got {options.updates}")
    ways: dict[str, Callable[[int], tuple[nn.Module, float]]] = {
        "in a row": lambda updates: under_trainer(options, updates, UPDATES_PER_STEP),
        "each looked at": lambda updates: under_trainer(options, updates, UPDATES_PER_STEP, _Looks()),
        "one a training step": lambda updates: under_trainer(options, updates, 1),
        "without Lightning": lambda updates: without_lightning(options, updates),
    }
    results = ResultFile(options.json, "sinusoid_fit", tasks=options.tasks, inner_steps=options.inner_steps)
    reached = {name: [parameter.detach() for parameter in run(CHECKED)[0].parameters()] for name, run in ways.items()}
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
