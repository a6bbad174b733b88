"""One meta-gradient of the sinusoid by the fused engine, beside the alternatives, in one run.

    python -m benchmarks.fused [--tasks 25 256 4096] [--steps 5] [--rounds N] [--device cuda] [--json FILE]

Contenders run in turn, round by round, after a warm-up, and a wrong meta-gradient gets no time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.machine import device_name, known_device, synchronize
from lightning_maml import MLP, Batched, Fused, Graphed, TaskBatch, maml, meta_loss
from lightning_maml.data import import_learn2learn

LR = 0.01
Run = Callable[[], list[Tensor]]


def problem(tasks: int, device: str) -> tuple[nn.Module, TaskBatch]:
    """The sinusoid's network and random tasks of 10 + 10 points."""
    torch.manual_seed(0)
    network = MLP(1, [40, 40], 1, init="default").to(device)
    return network, TaskBatch(*(torch.randn(tasks, 10, 1).to(device) for _ in range(4)))


def engine_run(network: nn.Module, tasks: TaskBatch, steps: int, engine: Any) -> Run:
    """An engine of the library."""

    def run() -> list[Tensor]:
        network.zero_grad()
        meta_loss(network, maml(LR, steps), tasks, loss="mse", engine=engine).surrogate.backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    return run


def functional(network: nn.Module, tasks: TaskBatch, steps: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The meta-gradient as a function of the parameters: grad of the mean over vmapped tasks."""

    def loss(phi: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(network, phi, (x,)), y)

    def one(theta: dict[str, Tensor], x: Tensor, y: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        phi = theta
        for _ in range(steps):
            gradients = grad(loss)(phi, x, y)
            phi = {name: value - LR * gradients[name] for name, value in phi.items()}
        return loss(phi, xq, yq)

    batch = [value for _, value in tasks.named()]
    return grad(lambda theta: vmap(one, (None, 0, 0, 0, 0))(theta, *batch).mean())


def compiled_vmap(network: nn.Module, tasks: TaskBatch, steps: int, mode: str | None = None) -> Run:
    """The above, by torch.compile; ``mode="reduce-overhead"`` puts it into a CUDA graph."""
    function = torch.compile(functional(network, tasks, steps), mode=mode, fullgraph=True)
    theta = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return lambda: [value.clone() for value in function(theta).values()]


def graphed_vmap(network: nn.Module, tasks: TaskBatch, steps: int) -> Run:
    """The above without a compiler, recorded once as a CUDA graph."""
    function = functional(network, tasks, steps)
    theta = {name: parameter.detach() for name, parameter in network.named_parameters()}
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            function(theta)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = list(function(theta).values())

    def run() -> list[Tensor]:
        graph.replay()
        return outputs

    return run


def jax_run(network: nn.Module, tasks: TaskBatch, steps: int) -> Run:
    """JAX, ``jit(grad(vmap))``, in full float32."""
    import jax
    import jax.numpy as jnp

    theta = {name: jnp.asarray(value.detach().cpu().numpy()) for name, value in network.named_parameters()}
    batch = [jnp.asarray(value.cpu().numpy()) for _, value in tasks.named()]
    names = [name.removesuffix(".weight") for name in theta if name.endswith(".weight")]

    def loss(phi: Any, x: Any, y: Any) -> Any:
        for index, name in enumerate(names):
            x = jax.nn.relu(x) if index else x
            x = jnp.matmul(x, phi[f"{name}.weight"].T, precision="highest") + phi[f"{name}.bias"]
        return ((x - y) ** 2).mean()

    def one(theta: Any, x: Any, y: Any, xq: Any, yq: Any) -> Any:
        phi = theta
        for _ in range(steps):
            phi = jax.tree.map(lambda value, g: value - LR * g, phi, jax.grad(loss)(phi, x, y))
        return loss(phi, xq, yq)

    mapped = jax.vmap(one, (None, 0, 0, 0, 0))
    function = jax.jit(jax.grad(lambda theta, *batch: mapped(theta, *batch).mean()))

    def run() -> list[Tensor]:
        output = jax.block_until_ready(function(theta, *batch))
        run.output = output  # type: ignore[attr-defined]
        return []

    def exact() -> list[Tensor]:
        run()
        return [torch.tensor(run.output[name].tolist()) for name in theta]  # type: ignore[attr-defined]

    run.exact = exact  # type: ignore[attr-defined]
    return run


def learn2learn(network: nn.Module, tasks: TaskBatch, steps: int) -> Run:
    """learn2learn's own loop, one task after another."""
    l2l = import_learn2learn()

    def run() -> list[Tensor]:
        network.zero_grad()
        learner = l2l.algorithms.MAML(network, lr=LR, first_order=False)
        for t in range(len(tasks)):
            clone = learner.clone()
            for _ in range(steps):
                clone.adapt(F.mse_loss(clone(tasks.support_inputs[t]), tasks.support_targets[t]))
            (F.mse_loss(clone(tasks.query_inputs[t]), tasks.query_targets[t]) / len(tasks)).backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    return run


def contenders(count: int, steps: int, device: str, compiled: bool) -> tuple[dict[str, Run], dict[str, str], Any]:
    """What runs at this number of tasks, what does not and why, and the problem."""
    network, tasks = problem(count, device)
    makers: dict[str, Callable[[], Run]] = {}
    if count <= 256:  # which take a task at a time
        makers["learn2learn"] = lambda: learn2learn(network, tasks, steps)
        makers["eager"] = lambda: engine_run(network, tasks, steps, "eager")
    makers["batched"] = lambda: engine_run(network, tasks, steps, "batched")
    for precision in ("ieee",) if device == "cpu" else ("ieee", "tf32", "bf16"):
        name = "fused" if device == "cpu" else f"fused, {precision}"
        fused: Any = Fused(kernel="mlp_adapt", precision=precision)  # type: ignore[arg-type]
        makers[name] = lambda fused=fused: engine_run(network, tasks, steps, fused)
    if device == "cuda":
        for engine in (Batched(), Fused(kernel="mlp_adapt")):
            made: Any = Graphed(engine)
            makers[f"{engine.name}, CUDA graph"] = lambda made=made: engine_run(network, tasks, steps, made)
    if compiled:
        makers["batched, compile"] = lambda: engine_run(network, tasks, steps, Batched(compile=True))
        makers["torch.compile(vmap)"] = lambda: compiled_vmap(network, tasks, steps)
        if device == "cuda":
            makers["torch.compile(vmap), CUDA graph"] = lambda: compiled_vmap(network, tasks, steps, "reduce-overhead")
            makers["vmap, CUDA graph"] = lambda: graphed_vmap(network, tasks, steps)
        makers["JAX jit"] = lambda: jax_run(network, tasks, steps)
    runs, left_out = {}, {}
    for name, make in makers.items():
        try:
            runs[name] = make()
            runs[name]()
        except Exception as error:  # a contender that does not run is named, with the reason
            runs.pop(name, None)
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return runs, left_out, (network, tasks)


def check(runs: dict[str, Run], network: nn.Module, tasks: TaskBatch, steps: int) -> dict[str, float]:
    """Each contender's largest error against float64, over the largest entry, on these tasks."""
    double = MLP(1, [40, 40], 1).double()
    double.load_state_dict({name: value.cpu().double() for name, value in network.state_dict().items()})
    exact = engine_run(double, tasks.to("cpu", torch.float64), steps, "batched")()
    scale = max(value.abs().max().item() for value in exact)
    errors = {}
    for name, run in runs.items():
        found = getattr(run, "exact", run)()
        errors[name] = max((a.cpu().double() - b).abs().max().item() for a, b in zip(found, exact, strict=True)) / scale
    return errors


def measure(runs: dict[str, Run], count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: median, 10th and 90th percentile over rounds that all take part in."""

    def timed(run: Run, times: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        synchronize()
        return (time.perf_counter() - start) / times

    times = {}
    for name, run in runs.items():
        run()
        times[name] = max(1, min(50, int(0.1 / timed(run, 1))))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            seconds[name].append(timed(run, times[name]))
    rows = {}
    for name, values in seconds.items():
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        rows[name] = {
            "median_ms": 1e3 * statistics.median(values),
            "p10_ms": 1e3 * deciles[0],
            "p90_ms": 1e3 * deciles[-1],
        }
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[25, 256])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", type=known_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compiled", action="store_true", help="torch.compile, CUDA graphs and JAX too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    about = {
        "benchmark": "fused, sinusoid 1-40-40-1, 10 + 10 points, exact meta-gradient",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "rounds": options.rounds,
    }
    for count in options.tasks:
        runs, left_out, (network, tasks) = contenders(count, options.steps, options.device, options.compiled)
        errors = check(runs, network, tasks, options.steps)
        for name, error in errors.items():
            if not error < 1e-2:
                left_out[name] = f"its meta-gradient is wrong by {error:.1e}: no time is reported"
                del runs[name]
        rows = measure(runs, options.rounds)
        for name, row in rows.items():
            row["error"] = errors[name]
            print(f"T={count:5} {name:32}", "  ".join(f"{key} {value:9.3g}" for key, value in row.items()), flush=True)
        for name, reason in left_out.items():
            print(f"T={count:5} {name:32} left out: {reason}", flush=True)
        results.append({"tasks": count, "rows": rows, "left_out": left_out})
        if options.json:  # after each size: what is measured stays, whatever happens next
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
