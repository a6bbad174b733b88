"""One inner step of all parameters of all tasks alone, ``phi - rate * gradient``: ``sgd_update`` beside torch's ways.

    python -m benchmarks.update [--tasks 32] [--device cpu|cuda] [--rounds N] [--json FILE]

On the parameters of Omniglot's Conv4, ``[T, P]``. Each result is checked against float64 first; a wrong one gets no
time, and the exit code is 1. Contenders run in turn, round by round. The share is that of the rate at which this
machine copies memory: two numbers are read and one written for each parameter.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import copy_rate, known_device
from benchmarks.measure import in_turn, relative_error, spread
from benchmarks.result_file import ResultFile, command_line
from lightning_maml import Conv4
from lightning_maml.kernels.sgd_update import sgd_update

RATE = 0.4
TOLERANCE = 1e-6


def contenders(phi: Tensor, gradient: Tensor, sizes: list[int]) -> dict[str, Callable[[], list[Tensor]]]:
    """Each returns the next parameters, in one piece or in parts ``[T, n]``."""
    rate = torch.tensor(RATE, device=phi.device)
    parts, gradients = ([part.contiguous() for part in value.split(sizes, 1)] for value in (phi, gradient))
    return {
        "parameter by parameter": lambda: [p - RATE * g for p, g in zip(parts, gradients, strict=True)],
        "torch._foreach_add": lambda: list(torch._foreach_add(parts, gradients, alpha=-RATE)),
        "torch.add, flat": lambda: [torch.add(phi, gradient, alpha=-RATE)],
        "sgd_update": lambda: [sgd_update(phi, gradient, rate)[0]],
    }


def main() -> int:
    parser = command_line(__doc__, tasks=32, rounds=21)
    parser.add_argument("--device", type=known_device, default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = [parameter.numel() for parameter in Conv4(5).parameters()]
    phi, gradient = (torch.randn(options.tasks, sum(sizes), device=options.device) for _ in range(2))
    exact = (phi.double() - RATE * gradient.double()).cpu()
    results = ResultFile(options.json, "update", tasks=options.tasks, device=options.device)
    runs = {}
    for name, run in contenders(phi, gradient, sizes).items():
        error = relative_error([torch.cat(run(), 1)], [exact])
        if error <= TOLERANCE:
            runs[name] = run
        else:
            results.leave_out(f"WRONG, off by {error:.1e}", contender=name)
    copied = copy_rate(options.device)
    print(f"{options.tasks} tasks of {sum(sizes)} parameters; copy {copied / 1e9:.1f} GB/s")
    for name, values in in_turn(runs, options.rounds).items():
        results.add(contender=name, **spread(values), copy_share=3 * phi.nbytes / statistics.median(values) / copied)
    return int(bool(results.left_out))


if __name__ == "__main__":
    sys.exit(main())
