"""What one meta-gradient of each algorithm costs in time and in memory, relative to first-order MAML.

    python -m benchmarks.family [--workloads mlp conv4] [--rounds N] [--json FILE]

Every preset takes the same number of inner steps on the same tasks, on the batched engine, in one process. For times
they run in turn, round by round, and are related to ``fomaml`` within each round; memory is the peak of what tensors
hold. A wrong meta-gradient gets neither.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_maml as lm
from lightning_maml import MLP, Algorithm, Conv4, TaskBatch, meta_loss
from lightning_maml.networks import Context, add_lora, step_batch_norm

LR, STEPS, BASE = 0.01, 5, "fomaml"
TASKS = {"mlp": 32, "conv4": 8}
# cavia's pattern: Context's own parameter on `mlp`, on `conv4` the biases of the norms
ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "maml": lambda: lm.maml(LR, STEPS),
    "fomaml": lambda: lm.fomaml(LR, STEPS),
    "reptile": lambda: lm.reptile(LR, STEPS),
    "imaml": lambda: lm.imaml(LR, STEPS),
    "anil": lambda: lm.anil(LR, STEPS),
    "boil": lambda: lm.boil(LR, STEPS),
    "meta_sgd": lambda: lm.meta_sgd(LR, STEPS),
    "meta_curvature": lambda: lm.meta_curvature(LR, STEPS),
    "maml_pp": lambda: lm.maml_pp(LR, STEPS),
    "proto_maml": lambda: lm.proto_maml(LR, STEPS),
    "cavia": lambda: lm.cavia(LR, STEPS, adapts=r"(^|\.)context$|norm\d\.bias"),
    "lora": lambda: lm.lora(LR, STEPS),
    "pretrained": lambda: lm.pretrained(LR, STEPS),
}
LEFT_OUT = {("conv4", "lora"): "adapters go beside linear layers, of which Conv4 has its head alone"}

Run = Callable[[], list[Tensor]]


def problem(workload: str, preset: str, tasks: int) -> tuple[nn.Module, TaskBatch]:
    """5-way 1-shot with 5 queries a class on random images, and the network as ``preset`` wants it.

    ``mlp`` is the fully connected network of Finn et al. (2017) for Omniglot, without its batch-norm, ``conv4`` their
    convolutional one.
    """
    torch.manual_seed(0)
    labels = torch.arange(5).repeat(tasks, 1)
    shape = (784,) if workload == "mlp" else (1, 28, 28)
    batch = TaskBatch(torch.randn(tasks, 5, *shape), labels, torch.randn(tasks, 25, *shape), labels.repeat(1, 5))
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
    """The distance of the meta-gradient of 2 tasks to the eager engine's, both in float64, relative to its length."""
    found, exact = (contender(workload, preset, 2, torch.float64, engine)() for engine in ("batched", "eager"))
    distance = sum((a - b).square().sum().item() for a, b in zip(found, exact, strict=True))
    return (distance / sum(b.square().sum().item() for b in exact)) ** 0.5


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
    changes = sorted(
        ((event["ts"], event["args"]) for event in events if event["name"] == "[memory]"), key=lambda pair: pair[0]
    )
    held = [change["Total Allocated"] for _, change in changes]
    return (max(held) - held[0] + changes[0][1]["Bytes"]) / 2**20


def times(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, and the ratio to ``fomaml`` in the same round: medians, 10th and 90th percentiles."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, values in seconds.items():
        rows[name] = spread("ms", [1e3 * value for value in values])
        rows[name] |= spread("times", [a / b for a, b in zip(values, seconds[BASE], strict=True)])
    return rows


def spread(unit: str, values: list[float]) -> dict[str, float]:
    """The median and the outer deciles."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {unit: statistics.median(values), f"{unit}_p10": deciles[0], f"{unit}_p90": deciles[-1]}


def measure(workload: str, rounds: int) -> dict[str, Any]:
    """All presets on one workload."""
    left_out = {preset: why for (where, preset), why in LEFT_OUT.items() if where == workload}
    errors = {preset: error(workload, preset) for preset in ALGORITHMS if preset not in left_out}
    for preset, wrong in errors.items():
        if not wrong < 1e-7:
            left_out[preset] = f"its meta-gradient is wrong by {wrong:.1e}"
    if BASE in left_out:
        raise SystemExit(f"{BASE}, which all others are related to: {left_out[BASE]}.")
    presets = [preset for preset in errors if preset not in left_out]
    runs = {preset: contender(workload, preset, TASKS[workload]) for preset in presets}
    memory = {preset: peak_memory(run) for preset, run in runs.items()}
    rows = times(runs, rounds)
    for preset, row in rows.items():
        row |= {"peak_mb": memory[preset], "memory": memory[preset] / memory[BASE], "error": errors[preset]}
    return {"tasks": TASKS[workload], "rows": rows, "left_out": left_out}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # on random images five steps end short of iMAML's optimum; its iterations cost the same
    warnings.filterwarnings("ignore", "The conjugate gradients of the implicit")
    results: dict[str, Any] = {
        "benchmark": "family",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "inner_steps": STEPS,
        "rounds": options.rounds,
        "workloads": {},
    }
    for workload in options.workloads:
        results["workloads"][workload] = found = measure(workload, options.rounds)
        for preset, row in found["rows"].items():
            print(
                f"{workload:6} {preset:15} {row['ms']:8.1f} ms  {row['times']:5.2f} times {BASE}'s "
                f"({row['times_p10']:.2f} to {row['times_p90']:.2f})  "
                f"{row['peak_mb']:7.1f} MB, {row['memory']:5.2f} times",
                flush=True,
            )
        for preset, why in found["left_out"].items():
            print(f"{workload:6} {preset:15} left out: {why}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
