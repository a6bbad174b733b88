"""What one meta-gradient of each algorithm costs in time and in memory, relative to first-order MAML.

    python -m benchmarks.family [--workloads mlp conv4] [--rounds N] [--json FILE]

Every preset takes the same number of inner steps on the same tasks, on the batched engine, in one process. For times
they run in turn, round by round, and are related to ``fomaml`` within each round; memory is the peak of what tensors
hold. A wrong meta-gradient gets neither.
"""

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor, nn

import lightning_maml as lm
from benchmarks.contenders import Run
from benchmarks.measure import in_turn, relative_error, spread
from benchmarks.problem import random_images
from benchmarks.result_file import ResultFile, Row, command_line
from lightning_maml import MLP, Algorithm, Conv4, TaskBatch, meta_loss, presets
from lightning_maml.networks import Context, add_lora, step_batch_norm

LR, STEPS, BASE = 0.01, 5, "fomaml"
TASKS = {"mlp": 32, "conv4": 8}
# cavia's pattern: Context's own parameter on `mlp`, on `conv4` the biases of the norms
ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    **{name: partial(getattr(lm, name), LR, STEPS) for name in presets.__all__},
    "cavia": lambda: lm.cavia(LR, STEPS, adapts=r"(^|\.)context$|norm\d\.bias"),
}
LEFT_OUT = {("conv4", "lora"): "adapters go beside linear layers, of which Conv4 has its head alone"}


def problem(workload: str, preset: str, tasks: int) -> tuple[nn.Module, TaskBatch]:
    """5-way 1-shot with 5 queries a class on random images, and the network as ``preset`` wants it.

    ``mlp`` is the fully connected network of Finn et al. (2017) for Omniglot, without its batch-norm, ``conv4`` their
    convolutional one.
    """
    torch.manual_seed(0)
    batch = random_images(tasks, 5, 1, 5, *((784,) if workload == "mlp" else (1, 28, 28)))
    if workload == "conv4":
        network: nn.Module = Conv4(5)
        return (step_batch_norm(network, STEPS) if preset == "maml_pp" else network), batch
    contexts = 8 if preset == "cavia" else 0
    network = MLP(784 + contexts, [256, 128, 64, 64], 5, init="default")
    if preset == "lora":
        return add_lora(network, rank=4), batch
    return (nn.Sequential(Context(contexts), network) if contexts else network), batch


def meta_gradient(network: nn.Module, algorithm: Algorithm, tasks: TaskBatch, engine: str) -> list[Tensor]:
    """The meta-gradient of all that learns, flat, one tensor a parameter."""
    leaves = [p for p in network.parameters() if p.requires_grad]
    if isinstance(algorithm.inner.lr, nn.Module):
        leaves += algorithm.inner.lr.parameters()
    for leaf in leaves:
        leaf.grad = None
    meta_loss(network, algorithm, tasks, loss="cross_entropy", engine=engine).surrogate.backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def contender(
    workload: str, preset: str, tasks: int, dtype: torch.dtype = torch.float32, engine: str = "batched"
) -> Run:
    """One preset on its workload."""
    network, batch = problem(workload, preset, tasks)
    network, batch = network.to(dtype), batch.to(dtype)
    algorithm = ALGORITHMS[preset]()
    algorithm = algorithm.with_rates(algorithm.initial_rates(network))
    return lambda: meta_gradient(network, algorithm, batch, engine)


def error(workload: str, preset: str) -> float:
    """How far the meta-gradient of 2 tasks is from the eager engine's, both in float64."""
    found, exact = (contender(workload, preset, 2, torch.float64, engine)() for engine in ("batched", "eager"))
    return relative_error(found, exact)


def peak_memory(run: Run) -> float:
    """The largest sum of MB in tensors that live at once, above those that live before: what torch's profiler counts.

    The process's resident memory would differ from run to run, by how the allocator cuts it up.
    """
    run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=itemgetter("ts"))
    return max(accumulate(change["args"]["Bytes"] for change in changes)) / 2**20


def times(runs: dict[str, Run], rounds: int) -> dict[str, Row]:
    """Milliseconds of each, and the ratio to ``fomaml`` in the same round."""
    samples = in_turn(runs, rounds)
    return {
        name: spread(values) | spread([a / b for a, b in zip(values, samples[BASE], strict=True)], "times")
        for name, values in samples.items()
    }


def measure(workload: str, rounds: int, results: ResultFile) -> None:
    """All presets on one workload."""
    point = {"workload": workload, "tasks": TASKS[workload]}
    errors, runs = {}, {}
    for preset in ALGORITHMS:
        if (reason := LEFT_OUT.get((workload, preset))) is None:
            errors[preset] = error(workload, preset)
            if errors[preset] < 1e-7:
                runs[preset] = contender(workload, preset, TASKS[workload])
                continue
            reason = f"its meta-gradient is wrong by {errors[preset]:.1e}"
        results.leave_out(reason, **point, preset=preset)
    if BASE not in runs:
        raise SystemExit(f"Expected {BASE}, which all others are related to, to be right.")
    memory = {preset: peak_memory(run) for preset, run in runs.items()}
    for preset, row in times(runs, rounds).items():
        peak = {"peak_mb": memory[preset], "memory": memory[preset] / memory[BASE]}
        results.add(**point, preset=preset, **row, **peak, error=errors[preset])


def main() -> None:
    parser = command_line(__doc__, rounds=11)
    parser.add_argument("--workloads", nargs="+", choices=list(TASKS), default=list(TASKS))
    options = parser.parse_args()
    # on random images five steps end short of iMAML's optimum; its iterations cost the same
    warnings.filterwarnings("ignore", "The conjugate gradients of the implicit")
    results = ResultFile(options.json, "family", inner_steps=STEPS, rounds=options.rounds)
    for workload in options.workloads:
        measure(workload, options.rounds, results)


if __name__ == "__main__":
    main()
