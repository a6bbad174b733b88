"""Which batch-norm to serve by: accuracy of all query rows at once, of one at a time, and of the exported network.

    python -m benchmarks.serving --root data/omniglot [--updates 3000] [--only NAME ...] [--json FILE]

Omniglot 5-way 1-shot: the short run of docs/results.md (16 tasks an update, 1 query a class), once for each way to
normalise. Each is tested on 600 tasks of unseen characters, after 3 inner steps, and each row of it in three ways: all
5 query rows of a task at once, one row at a time, and one row at a time by ``adapted.network(t)``, in evaluation and
in training mode, which have to agree. Rows in the file are added to, not replaced, where ``--only`` names some.
"""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from benchmarks.result_file import ResultFile, command_line
from benchmarks.trainer import quiet_trainer
from lightning_maml import Conv4, MetaModule, OmniglotTasks, TaskBatch, adapt, maml
from lightning_maml.learner import BatchNorm
from lightning_maml.metrics import Interval, TaskMean
from lightning_maml.networks.layers import Norm

CONTENDERS: dict[str, tuple[Norm, BatchNorm]] = {
    "batch": ("batch", "batch"),
    "running": ("batch", "running"),
    "support": ("batch", "support"),
    "group norm": ("group", "batch"),
}
"""The norm of Conv4, and the algorithm's ``batch_norm``."""
TEST_STEPS, TASKS, PER_UPDATE = 3, 600, 16


def train(norm: Norm, batch_norm: BatchNorm, updates: int, data: OmniglotTasks) -> tuple[MetaModule, float]:
    """The module after so many updates, and the seconds that they took."""
    seed_everything(0, verbose=False)
    module = MetaModule(
        Conv4(5, norm=norm),
        maml(2.0, 1, batch_norm=batch_norm),  # the paper's rate of 0.4 is of a sum over the 5 rows of a task
        loss="cross_entropy",
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.002),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates),
    )
    with quiet_trainer(max_steps=updates, limit_val_batches=0) as trainer:
        start = time.perf_counter()
        trainer.fit(module, data)
        return module.eval(), time.perf_counter() - start


def served(module: MetaModule, batches: list[TaskBatch]) -> dict[str, Interval]:
    """The accuracy of each way to ask for predictions, and its interval over the tasks."""
    correct: dict[str, TaskMean] = {}
    for tasks in batches:
        algorithm = module.algorithm.with_steps(TEST_STEPS)
        adapted = adapt(module.network, algorithm, *tasks.sets[0], loss="cross_entropy")
        rows, labels = tasks.query_inputs, tasks.query_targets
        exported = [adapted.network(task) for task in range(len(rows))]
        ways = {
            "all at once": adapted.predict(rows),
            "one at a time": torch.cat([adapted.predict(row) for row in rows.split(1, 1)], 1),
            "exported, eval": _alone([network.eval() for network in exported], rows),
            "exported, train": _alone([network.train() for network in exported], rows),
        }
        for way, predictions in ways.items():
            correct.setdefault(way, TaskMean()).update((predictions.argmax(-1) == labels).float().mean(1))
    return {way: mean.compute() for way, mean in correct.items()}


@torch.no_grad()
def _alone(networks: list[Any], rows: Tensor) -> Tensor:
    each = zip(networks, rows, strict=True)
    return torch.stack([torch.cat([network(row) for row in own.split(1)]) for network, own in each])


def markdown(results: dict[str, Any]) -> str:
    """The table of a file of results, for docs/serving.md."""
    ways = ("all at once", "one at a time", "exported, eval", "exported, train")
    lines = [f"| accuracy, % | {' | '.join(ways)} |", f"|---|{'--:|' * len(ways)}"]
    known = {row["batch_norm"]: row for row in results["rows"]}
    for name in (name for name in CONTENDERS if name in known):
        cells = [f"{100 * mean:.1f} ± {100 * half:.1f}" for mean, half in (known[name][way] for way in ways)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command_line(__doc__, updates=3000)
    parser.add_argument("--root", type=Path, default=Path("data/omniglot"))
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    options = parser.parse_args()
    data = OmniglotTasks(options.root, ways=5, shots=1, queries=1, tasks_per_batch=PER_UPDATE, test_tasks=TASKS)
    results = ResultFile(options.json, "serving", key=("batch_norm",), updates=options.updates)
    for name in options.only:
        module, seconds = train(*CONTENDERS[name], options.updates, data)
        data.setup("test")
        found = served(module, [data.sample("test", at) for at in range(-(-TASKS // PER_UPDATE))])
        accuracies = {way: [float(each.mean), float(each.ci95)] for way, each in found.items()}
        results.add(batch_norm=name, **accuracies, seconds=round(seconds))


if __name__ == "__main__":
    main()
