"""One exact meta-gradient by every contender, in one run.

    python -m benchmarks --workload sinusoid --tasks 25 256 --inner-steps 5 [--contenders a,b,c] [--json FILE]
    python -m benchmarks --workload mini_imagenet
    python -m benchmarks compare OLD NEW
    python -m benchmarks sweep FILE [--svg FOLDER]
    python -m benchmarks training --root FOLDER

First each contender's meta-gradient is checked against float64: one that is wrong gets no time, and the exit code is 1.
Contenders then run in turn, round by round. Those that are not installed or cannot run are named, with the reason.
What takes long is bounded: --seconds says when no contender and no round begins any more, and rows say their rounds.
"""

import argparse
import sys
from itertools import product

from benchmarks import compare, sweep, training
from benchmarks.contenders import CONTENDERS, ENGINES, ON_A_GPU
from benchmarks.machine import known_device
from benchmarks.measure import measure, steady
from benchmarks.problem import TASKS, WORKLOADS
from benchmarks.result_file import ResultFile, at_least, command_line

COMMANDS = {"compare": compare.main, "sweep": sweep.main, "training": training.main}
SHOWN = ("contender", "median_ms", "p10_ms", "p90_ms", "times_learn2learn", "first_call_s", "meta_gradient_rel_error")


def known_contenders(argument: str) -> list[str]:
    """Names separated by commas, as an argument of the command line."""
    names = argument.split(",")
    if unknown := sorted(set(names) - set(CONTENDERS)):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CONTENDERS)} but got {', '.join(unknown)}")
    return names


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]](sys.argv[2:])
    parser = command_line(__doc__, "python -m benchmarks", inner_steps=[5], rounds=11)
    tasks_of = ", ".join(f"{tasks} of {workload}" for workload, tasks in TASKS.items())
    parser.add_argument("--tasks", type=at_least(1), nargs="+", help=f"25, but {tasks_of}")
    parser.add_argument("--seconds", type=at_least(1), default=300, help="of contenders and rounds, about; 300")
    parser.add_argument("--workload", choices=WORKLOADS, default="sinusoid")
    parser.add_argument("--contenders", type=known_contenders, help="separated by commas; all that run on the device")
    parser.add_argument("--device", type=known_device, default="cpu")
    parser.add_argument("--add", action="store_true", help="leave what another commit measured in the file")
    options = parser.parse_args()
    names = options.contenders or [name for name in CONTENDERS if options.device != "cpu" or name not in ON_A_GPU]
    key = (*compare.POINT, "contender", "commit") if options.add else None
    shown = (*SHOWN, "peak_share", "peak_memory_mb")
    results, failed = ResultFile(options.json, "meta_gradient", key=key, shown=shown), False
    for tasks, steps in product(options.tasks or [TASKS.get(options.workload, 25)], options.inner_steps):
        problem, exact = steady(options.workload, tasks, steps)
        rows, missing, wrong = measure(problem.to(options.device), exact, names, options.rounds, options.seconds)
        failed |= bool(wrong) or not rows
        point = {"workload": options.workload, "device": options.device, "tasks": tasks, "inner_steps": steps}
        print(f"\n{options.workload}, {tasks} tasks, {steps} inner steps")
        for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
            results.add(**point, contender=name, **row)
        for name, reason in (missing | wrong).items():
            results.leave_out(reason, contender=name, **point)
        ours, theirs = (
            min((row["median_ms"] for name, row in rows.items() if (name in ENGINES) == own), default=None)
            for own in (True, False)
        )
        if ours and theirs:
            print(f"our best beside the best other: {theirs / ours:.2f} times as fast")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
