"""Where scaling ends, by a model of one meta-update on n processes; the table of docs/distributed.md.

    python -m benchmarks.distributed.sizing [--flops 5e12] [--latency 2e-5] [--bandwidth 25e9] [--draw 2e-6]

    t(n) = draw T + ceil(T / n) work / flops + [n > 1] (3 * 2 log2(n) latency + 2 (n - 1) / n bytes / bandwidth)

T tasks in all, of which each process adapts its share and draws the random numbers of all. `work` is counted, the
floating point operations of one task's meta-gradient (eager engine, torch's own counter), and so are the bytes of the
gradient. The three small messages are the gradient's all-reduce, the counts of tasks, and Lightning's word on SIGTERM.
What a device and a network sustain are assumptions, the options: this predicts nothing that they do not say.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_maml import MLP, Algorithm, Conv4, ResNet12, TaskBatch, maml, meta_loss

SIZES = (1, 2, 8, 64, 256, 1024)


def problems() -> dict[str, tuple[nn.Module, Algorithm, TaskBatch, str]]:
    """One task of each."""

    def images(ways: int, support: int, query: int, *shape: int) -> TaskBatch:
        labels = [torch.arange(ways).repeat(rows).unsqueeze(0) for rows in (support, query)]
        return TaskBatch(
            torch.randn(1, ways * support, *shape), labels[0], torch.randn(1, ways * query, *shape), labels[1]
        )

    return {
        "sinusoid MLP, 5 steps": (
            MLP(1, [40, 40], 1),
            maml(0.01, 5),
            TaskBatch(*(torch.randn(1, 10, 1) for _ in range(4))),
            "mse",
        ),
        "Conv4, 5-way 1-shot 28x28, 1 step": (Conv4(5), maml(0.4, 1), images(5, 1, 1, 1, 28, 28), "cross_entropy"),
        "ResNet-12, 5-way 1-shot 84x84, 1 step": (
            ResNet12(5),
            maml(0.01, 1),
            images(5, 1, 1, 3, 84, 84),
            "cross_entropy",
        ),
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=5e12, help="sustained by a device, a second")
    parser.add_argument("--latency", type=float, default=2e-5, help="of a message, in seconds")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="of a process's link, bytes a second")
    parser.add_argument("--draw", type=float, default=2e-6, help="seconds to draw the random numbers of a task")
    parser.add_argument("--each", type=int, default=32, help="tasks of a process, where the meta-batch grows with them")
    parser.add_argument("--all", type=int, default=1024, help="tasks of all processes, where it does not")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"| network | GFLOP a task | gradient, kB | | {' | '.join(f'n = {n}' for n in SIZES)} |\n"
        f"|---|--:|--:|---|{'--:|' * len(SIZES)}"
    )
    for name, problem in problems().items():
        work, gradient = count(*problem)
        for what in (f"{options.each} tasks each", f"{options.all} tasks in all"):
            cells = []
            for n in SIZES:
                tasks = options.each * n if what.endswith("each") else options.all
                step = seconds(n, tasks, work, gradient, options)
                alone = seconds(1, tasks, work, gradient, options)
                cells.append(f"{1e3 * step:.3g} ms, {alone / step / n:.0%}")
            head = f"{name} | {work / 1e9:.3g} | {gradient / 1e3:.3g}" if what.endswith("each") else " | | "
            print(f"| {head} | {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
