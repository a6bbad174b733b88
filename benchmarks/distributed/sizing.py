"""Where scaling ends, by a model of one meta-update on n processes; the table of docs/distributed.md.

    python -m benchmarks.distributed.sizing [--flops 5e12] [--latency 2e-5] [--bandwidth 25e9] [--draw 2e-6]
        [--each 32] [--all 1024]

    t(n) = draw T + ceil(T / n) work / flops + [n > 1] (3 * 2 log2(n) latency + 2 (n - 1) / n bytes / bandwidth)

T tasks in all, of which each process adapts its share and draws the random numbers of all. `work` is counted, the
floating point operations of one task's meta-gradient (eager engine, torch's own counter), and so are the bytes of the
gradient. `--each` are a process's tasks where the meta-batch grows with the processes, `--all` those of all where it
does not. The three small messages are the gradient's all-reduce, the counts of tasks, and Lightning's word on SIGTERM.
What a device and a network sustain are assumptions, the options: this predicts nothing that they do not say.
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.problem import random_images, regression
from benchmarks.result_file import command_line
from lightning_maml import MLP, Algorithm, Conv4, ResNet12, TaskBatch, maml, meta_loss

SIZES = (1, 2, 8, 64, 256, 1024)


def problems() -> dict[str, tuple[nn.Module, Algorithm, TaskBatch, str]]:
    """One task of each."""
    sinusoids = regression(1, 10, 1, [40, 40])[1]
    small, large = (random_images(1, 5, 1, 1, *shape) for shape in ((1, 28, 28), (3, 84, 84)))
    return {
        "sinusoid MLP, 5 steps": (MLP(1, [40, 40], 1), maml(0.01, 5), sinusoids, "mse"),
        "Conv4, 5-way 1-shot 28x28, 1 step": (Conv4(5), maml(0.4, 1), small, "cross_entropy"),
        "ResNet-12, 5-way 1-shot 84x84, 1 step": (ResNet12(5), maml(0.01, 1), large, "cross_entropy"),
    }


def count(network: nn.Module, algorithm: Algorithm, task: TaskBatch, loss: str) -> tuple[int, int]:
    """Floating point operations of a task's meta-gradient, and bytes of the gradient."""
    with FlopCounterMode(display=False) as counter:
        meta_loss(network, algorithm, task, loss=loss, engine="eager").surrogate.backward()
    return counter.get_total_flops(), sum(p.numel() * p.element_size() for p in network.parameters())


def seconds(processes: int, tasks: int, work: float, gradient: float, options: argparse.Namespace) -> float:
    """The model of the module's docstring."""
    compute = options.draw * tasks + math.ceil(tasks / processes) * work / options.flops
    if processes == 1:
        return compute
    messages = 3 * 2 * math.log2(processes) * options.latency
    return compute + messages + 2 * (processes - 1) / processes * gradient / options.bandwidth


def main() -> None:
    parser = command_line(__doc__, writes=False, each=32, all=1024)
    parser.add_argument("--flops", type=float, default=5e12, help="sustained by a device, a second")
    parser.add_argument("--latency", type=float, default=2e-5, help="of a message, in seconds")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="of a process's link, bytes a second")
    parser.add_argument("--draw", type=float, default=2e-6, help="seconds to draw the random numbers of a task")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"| network | GFLOP a task | gradient, kB | | {' | '.join(f'n = {n}' for n in SIZES)} |\n"
        f"|---|--:|--:|---|{'--:|' * len(SIZES)}"
    )
    for name, problem in problems().items():
        work, gradient = count(*problem)
        heads = (
            f"{name} | {work / 1e9:.3g} | {gradient / 1e3:.3g} | {options.each} tasks each",
            f" | | | {options.all} tasks in all",
        )
        for head, all_tasks in zip(heads, ([options.each * n for n in SIZES], [options.all] * len(SIZES)), strict=True):
            cells = []
            for n, tasks in zip(SIZES, all_tasks, strict=True):
                step, alone = (seconds(processes, tasks, work, gradient, options) for processes in (n, 1))
                cells.append(f"{1e3 * step:.3g} ms, {alone / step / n:.0%}")
            print(f"| {head} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
