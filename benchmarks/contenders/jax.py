"""JAX, ``jit(grad(vmap))`` in full float32, in a process of its own, on the same arrays. ReLU or sines only."""

import multiprocessing
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.problem import Problem
from lightning_maml import Sine


class _Process:
    def __init__(self, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        context.Process(target=_serve, args=(other, *arguments), daemon=True).start()
        other.close()  # so that a child that dies is an EOFError here, and no wait without end

    def seconds(self, times: int) -> float:
        self.connection.send(times)
        return self.connection.recv()[0]

    def __call__(self) -> list[Tensor]:
        self.connection.send(1)
        return [torch.from_numpy(value) for value in self.connection.recv()[1]]


def prepare(problem: Problem) -> _Process:
    if find_spec("jax") is None:
        raise ModuleNotFoundError("No module named 'jax'")
    between = [layer for layer in problem.network.children() if not isinstance(layer, nn.Linear)]
    if {type(layer) for layer in between} not in ({nn.ReLU}, {Sine}, set()) or problem.loss != "mse":
        raise NotImplementedError("written for perceptrons with ReLU or sines, and mean squared error, only")
    frequencies = [layer.frequency if isinstance(layer, Sine) else None for layer in between]
    theta = {name: value.detach().cpu().numpy() for name, value in problem.network.named_parameters()}
    batch = [value.cpu().numpy() for _, value in problem.tasks.named()]
    return _Process(theta, batch, problem.lr, problem.steps, frequencies)


def _serve(
    connection: Connection,
    theta: dict[str, np.ndarray],
    batch: list[np.ndarray],
    lr: float,
    m: int,
    frequencies: list[float | None],
) -> None:
    import jax
    import jax.numpy as jnp

    names = [name.removesuffix(".weight") for name in theta if name.endswith(".weight")]

    def loss(phi: Any, x: Any, y: Any) -> Any:
        for index, name in enumerate(names):
            if index:
                frequency = frequencies[index - 1]
                x = jax.nn.relu(x) if frequency is None else jnp.sin(frequency * x)
            x = jnp.matmul(x, phi[f"{name}.weight"].T, precision="highest") + phi[f"{name}.bias"]
        return ((x - y) ** 2).mean()

    def one(phi: Any, x: Any, y: Any, xq: Any, yq: Any) -> Any:
        for _ in range(m):
            phi = jax.tree.map(lambda value, g: value - lr * g, phi, jax.grad(loss)(phi, x, y))
        return loss(phi, xq, yq)

    mapped = jax.vmap(one, (None, 0, 0, 0, 0))
    function = jax.jit(jax.grad(lambda theta, *batch: mapped(theta, *batch).mean()))
    start, arrays = {name: jnp.asarray(value) for name, value in theta.items()}, [jnp.asarray(b) for b in batch]
    while True:
        try:
            times = connection.recv()
        except EOFError:
            return
        begin = time.perf_counter()
        for _ in range(times):
            output = jax.block_until_ready(function(start, *arrays))
        connection.send((time.perf_counter() - begin, [np.array(output[name]) for name in theta]))
