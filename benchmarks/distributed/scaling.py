"""Meta-updates under DDP: how long one takes, and whether its numbers are those of one process.

    torchrun --nproc-per-node 2 -m benchmarks.distributed.scaling [--problem sinusoid|conv4] [--tasks 64] [--json FILE]

Run by `two_hosts.sh`, beside it, in one process, in two, and on two hosts. The tasks are those of the whole meta-batch.
"""

import hashlib
import os
import statistics

import torch
from torch import Tensor

from benchmarks.result_file import ResultFile, command_line
from benchmarks.trainer import Clock, quiet_trainer
from lightning_maml import MLP, Conv4, MetaModule, TaskBatch, maml
from lightning_maml.data import SinusoidTasks, TaskStream

WARM_UP = 5


class RandomImages(TaskStream):
    """5-way 1-shot tasks of random images, one query an image class: the work of Omniglot without its files."""

    def draw(self, stage: str, tasks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(tasks, 10, 1, 28, 28, generator=generator),)

    def build(self, stage: str, drawn: tuple[Tensor, ...], device: torch.device) -> TaskBatch:
        images = drawn[0].to(device)
        labels = torch.arange(5, device=device).expand(len(images), 5)
        return TaskBatch(images[:, :5], labels, images[:, 5:], labels)


def main() -> None:
    parser = command_line(__doc__, tasks=64, updates=30)
    parser.add_argument("--problem", choices=["sinusoid", "conv4"], default="sinusoid")
    parser.add_argument("--float64", action="store_true", help="in which the parameters hardly depend on the processes")
    options = parser.parse_args()
    processes, here = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.manual_seed(0)
    clock = Clock()
    if options.problem == "sinusoid":
        module = MetaModule(MLP(1, [40, 40], 1), maml(0.001, 5))
        data: TaskStream = SinusoidTasks(tasks_per_batch=options.tasks, val_tasks=0)
    else:
        module = MetaModule(Conv4(5), maml(0.4, 1), loss="cross_entropy")
        data = RandomImages(options.tasks, val_tasks=0)
    with quiet_trainer(
        devices=here,
        num_nodes=processes // here,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true" if options.float64 else "32-true",
        max_steps=WARM_UP + options.updates,
        callbacks=[clock],
    ) as trainer:
        trainer.fit(module, data)
    if not trainer.is_global_zero:
        return
    values = torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])
    ResultFile(options.json, "distributed", key=()).add(
        problem=options.problem,
        tasks=options.tasks,
        processes=processes,
        hosts=processes // here,
        ms_per_update=1e3 * statistics.median(clock.seconds[WARM_UP:]),
        best_ms_per_update=1e3 * min(clock.seconds[WARM_UP:]),
        gradient_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
        parameters_norm=values.norm().item(),
        parameters_digest=hashlib.sha256(values.numpy().round(10).tobytes()).hexdigest()[:16],
    )


if __name__ == "__main__":
    main()
