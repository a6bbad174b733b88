"""Contenders: ``prepare(problem) -> run``, where ``run()`` is the meta-gradient, in the network's order.

``prepare`` or the first ``run`` raises where the contender is not installed or cannot run the problem. A contender in a
process of its own times itself: its ``run.seconds(times)`` are the seconds that so many meta-gradients take.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.contenders import jax, libraries
from benchmarks.problem import Problem
from lightning_maml import Batched, Fused, Graphed, maml, meta_loss

Run = Callable[[], list[Tensor]]

ENGINES: dict[str, Any] = {
    "eager": "eager",
    "batched": Batched(),
    "batched_checkpoint": Batched(checkpoint="step"),
    "batched_graph": Graphed(Batched()),
    "fused": Fused(kernel="mlp_adapt"),
    "fused_tf32": Fused(kernel="mlp_adapt", precision="tf32"),
    "fused_graph": Graphed(Fused(kernel="mlp_adapt")),
    "conv_adapt": Fused(kernel="conv_adapt"),
    "fused_compile": Fused(compile=True),
    "batched_compile": Batched(compile=True),  # whose first call takes minutes where a network is large
}


def of_engine(problem: Problem, engine: Any) -> Run:
    """One of this library's engines."""
    algorithm = maml(problem.lr, problem.steps)

    def backward() -> None:
        meta_loss(problem.network, algorithm, problem.tasks, loss=problem.loss, engine=engine).surrogate.backward()

    return libraries.gradients(problem, backward)


CONTENDERS: dict[str, Callable[[Problem], Run]] = {
    "learn2learn": libraries.learn2learn,
    "higher": libraries.higher,
    "torchopt": libraries.torchopt,
    "vmap": libraries.vmapped,
    "vmap_compile": libraries.compiled_vmap,
    "vmap_graph": libraries.graphed_vmap,
    "vmap_compile_graph": partial(libraries.compiled_vmap, mode="reduce-overhead"),
    "jax": jax.prepare,
    **{name: partial(of_engine, engine=engine) for name, engine in ENGINES.items()},
}
ON_A_GPU = ("vmap_graph", "vmap_compile_graph", "batched_graph", "fused_tf32", "fused_graph", "conv_adapt")
"""Those that differ from others, or run, on a GPU alone."""
TOLERANCES = {"fused_tf32": 1e-2}
"""Of those that round more than float32 does."""
