"""Problems of the kernels, run by the emulator, against references in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import rounded
from lightning_maml.kernels.adaptation import Adaptation
from lightning_maml.kernels.emulator import Emulation
from lightning_maml.kernels.inspect import Variant
from lightning_maml.kernels.mlp_adapt import naive, recursion, size

OUTPUTS = ("task_losses", "predictions", "support_losses", "of_theta", "of_rates", "trajectory")
LIMITS = {"ieee": 1e-5, "tf32": 2e-3, "bf16": 2e-3}
"""How far an output may be off its reference, of its largest number. That of "tf32" and "bf16" rounds operands as
tensor cores do: a sum in another order may flip the last bit of one of those."""


@dataclass(frozen=True)
class Problem:
    """A batch of tasks for ``mlp_adapt``, and how they adapt."""

    name: str
    widths: tuple[int, ...]
    activation: str = "relu"
    loss: str = "mse"
    rows: int = 5
    queries: int = 10
    steps: int = 5
    order: int = 2
    rates: str = "shared"
    """Or ``"own"`` of each element."""
    rates_grad: bool = False
    query: bool = True
    tasks: int = 2
    rate: float = 0.01
    frequency: float = 1.5
    """Of the first hidden layer, where the activation is the sine; the others have less."""

    def __str__(self) -> str:
        return self.name

    def data(self) -> tuple[Tensor, ...]:
        """theta, rates, support inputs and targets, query inputs and targets; float32."""
        draw = torch.Generator().manual_seed(0)
        widths, tasks = self.widths, self.tasks
        parts = []
        steep = [1.0, *self.frequencies[1:], *[1.0] * len(widths)]  # weights behind a sine are as Sitzmann's (2020)
        for a, b, frequency in zip(widths, widths[1:], steep, strict=False):
            for shape, bound in (((b * a,), (3 / a) ** 0.5 / frequency), ((b,), a**-0.5)):
                parts.append((torch.rand(shape, generator=draw) * 2 - 1) * bound)
        rates = torch.full((self.steps, 1), self.rate)
        if self.rates == "own":
            rates = self.rate * (0.5 + torch.rand(self.steps, size(widths), generator=draw))
        batch = []
        for n in (self.rows, self.queries):
            x = torch.randn(tasks, n, widths[0], generator=draw)
            x = torch.rand(tasks, n, 1, generator=draw) * 10 - 5 if widths[0] == 1 else x  # as the sinusoid's
            if self.loss == "cross_entropy":
                y = torch.randint(widths[-1], (tasks, n), generator=draw)
            elif self.loss == "bce":
                y = torch.randint(2, (tasks, n, widths[-1]), generator=draw).float()
            else:
                y = torch.sin(x[..., :1].expand(tasks, n, widths[-1]) + torch.arange(float(widths[-1])))
            batch += [x, y]
        return torch.cat(parts), rates, *batch

    @property
    def kind(self) -> tuple[list[int], str, str, int, bool]:
        """What the operator is told of it."""
        return list(self.widths), self.activation, self.loss, self.order, self.rates_grad

    @property
    def frequencies(self) -> list[float]:
        layers = range(len(self.widths) - 2) if self.activation == "sine" else ()
        return [self.frequency * (1 - layer % 3 / 4) for layer in layers]

    def launch(self, precision: str) -> Adaptation:
        from lightning_maml.kernels.mlp_adapt.kernel import launch

        data = self.data()
        query = data[4:] if self.query else (None, None)
        return launch(*data[:4], *query, kind=self.kind, precision=precision)

    def variants(self, precision: str) -> list[tuple[str, dict[str, Any]]]:
        """The kernels that it launches, with their compile-time arguments."""
        from lightning_maml.kernels.mlp_adapt.kernel import options

        kind = {"ACTIVATION": self.activation, "LOSS": self.loss, **options(self.widths, precision)}
        found: list[tuple[str, dict[str, Any]]] = [("mlp_forward", {**kind, "QUERY": int(self.query)})]
        if self.query and self.steps and (self.order == 2 or self.rates_grad):
            rates_grad = 0 if not self.rates_grad else 1 if self.rates == "shared" else 2
            found.append(("mlp_backward", {**kind, "ORDER": self.order, "RATES_GRAD": rates_grad}))
        return found

    def reference(self) -> Adaptation:
        """In float64; of a trajectory by the recursion, which the formula is tested against elsewhere."""
        data = [part.double() if part.is_floating_point() else part for part in self.data()]
        if not self.query:
            return recursion.adapt(*data[:4], None, None, kind=self.kind, frequencies=self.frequencies)
        found = naive.mlp_adapt(*data, *self.kind[:4], frequencies=self.frequencies)
        nothing = data[1].new_empty(0)
        return found._replace(of_rates=found.of_rates if self.rates_grad else nothing, trajectory=nothing)


def of(variant: Variant) -> Problem:
    """One that launches a variant of ``mlp_adapt``."""
    kind = variant.constants
    hidden = 20 if kind["BN"] == 32 else 128 if kind["BC"] == 128 else 40
    widths = (128, 128, 128) if hidden == 128 else (3, hidden, 4)
    rates_grad = kind.get("RATES_GRAD", 0)
    return Problem(
        f"{variant}", widths, kind["ACTIVATION"], kind["LOSS"], 7, 18, 2, kind.get("ORDER", 1),
        "own" if rates_grad == 2 else "shared", rates_grad > 0, kind.get("QUERY", 1) == 1, rate=0.1,
    )  # fmt: skip


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, of the largest number."""
    assert found.shape == wanted.shape
    if not wanted.numel():
        return 0.0
    if not found.isfinite().all():
        return float("inf")
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def complaints(
    problem: Problem,
    precision: str,
    arch: int,
    schedules: Sequence[str | int],
    operands: str = "cut",
    scratch: int | None = None,
    change: Callable[[str], str] | None = None,
) -> list[str]:
    """What is wrong with the kernels on a problem: numbers, faults, lanes that disagree, orders of warps that matter.

    ``operands``, ``change``: see :class:`Emulation`; where tf32 cuts nothing off, all is as exact as float32, or in a
    wrong place.
    ``scratch``: numbers of scratch that a launch may take.
    """
    from lightning_maml.kernels.mlp_adapt import kernel

    results, found = [], []
    kept, kernel.SCRATCH_NUMBERS = kernel.SCRATCH_NUMBERS, scratch or kernel.SCRATCH_NUMBERS
    try:
        for schedule in schedules:
            with Emulation(arch, schedule, operands=operands, change=change) as emulation:
                results.append(problem.launch(precision))
            found += emulation.faults()
            found += [remark for remark in emulation.remarks() if "different values" in remark]
            launched = {launch.kernel for launch in emulation.launches}
            found += [f"no {name} was launched" for name, _ in problem.variants(precision) if name not in launched]
    finally:
        kernel.SCRATCH_NUMBERS = kept
    rounding = {"tf32": rounded.cut, "bf16": rounded.bf16}.get(precision) if operands == "cut" else None
    limit = LIMITS[precision if operands == "cut" else "ieee"]
    wanted = problem.reference()
    if rounding:
        data = problem.data()
        wanted = rounded.adapt(*data[:4], *(data[4:] if problem.query else (None, None)), *problem.kind, rounding)
    for name in OUTPUTS[:5] if problem.query else ("support_losses", "trajectory"):
        off = error(getattr(results[0], name), getattr(wanted, name))
        if not off <= limit:
            found.append(f"{name} is off by {off:.1e}, where {limit:.0e} may be")
    for schedule, result in zip(schedules[1:], results[1:], strict=True):
        pairs = zip(results[0], result, strict=True)
        if not all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs):
            found.append(f"the order {schedule} of warps gives other bits than {schedules[0]}")
    return found


def complaints_of_sgd(arch: int, tasks: int, length: int, chosen: tuple[bool, ...]) -> list[str]:
    """As :func:`complaints`, of ``sgd_update``.

    ``chosen``: own parameters, own rates, factors, decay, momentum, a buffer.
    """
    from lightning_maml.kernels.sgd_update import kernel
    from lightning_maml.kernels.sgd_update.naive import sgd_update as formula

    own_phi, own_rate, with_factors, with_decay, with_momentum, with_buffer = chosen
    draw = torch.Generator().manual_seed(length)
    phi = torch.randn(*((tasks,) if own_phi else ()), length, generator=draw)
    gradient = torch.randn(tasks, length, generator=draw)
    rate = torch.randn(length, generator=draw) if own_rate else torch.tensor(0.1)
    factors = torch.randn(tasks, generator=draw) if with_factors else None
    buffer = torch.randn(tasks, length, generator=draw) if with_buffer else None
    decay, momentum = 0.01 * with_decay, 0.9 * with_momentum
    results, found = [], []
    for schedule in ("forward", "backward", 1, 2):
        with Emulation(arch, schedule, megabytes=2) as emulation:
            results.append(kernel.launch(phi, gradient, rate, factors, decay, buffer, momentum))
        found += emulation.faults() + emulation.remarks()
    doubles = [None if value is None else value.double() for value in (phi, gradient, rate, factors, buffer)]
    wanted = formula(*doubles[:4], decay, doubles[4], momentum)
    for name, value, right in zip(("parameters", "buffer"), results[0], wanted, strict=True):
        if right is not None and (off := error(value, right)) > 1e-6:
            found.append(f"{name} are off by {off:.1e}")
    if any(not torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True)):
        found.append("the order of warps matters")
    return found


SINUSOID = Problem("sinusoid, 5 steps", (1, 40, 40, 1))
SIZES = [
    SINUSOID,
    replace(SINUSOID, name="sinusoid, 1 step, a rate's gradient", steps=1, rates_grad=True),
    replace(SINUSOID, name="sinusoid, own rates and their gradients", rates="own", rates_grad=True, steps=3),
    replace(SINUSOID, name="sinusoid, first order, rates' gradients", order=1, rates_grad=True),
    replace(SINUSOID, name="sinusoid, first order", order=1),
    replace(SINUSOID, name="25 tasks", activation="tanh", tasks=25),
    replace(SINUSOID, name="sinusoid, no steps", steps=0),
    replace(SINUSOID, name="trajectory", query=False, rows=10),
    Problem("5-way, 5 shots", (16, 40, 5), "relu", "cross_entropy", 25, 15, 3, rate=0.1),
    Problem("40 classes", (8, 24, 40), "relu", "cross_entropy", 20, 20, 2, rate=0.1),
    Problem("odd sizes, tanh", (6, 13, 11, 4), "tanh", "cross_entropy", 7, 9, 3, 2, "own", True, rate=0.1),
    Problem("odd sizes, gelu", (6, 13, 11, 4), "gelu", "cross_entropy", 7, 9, 3, rates_grad=True, rate=0.1),
    Problem("bce, tanh", (3, 20, 2), "tanh", "bce", 17, 33, 2, rates="own", rates_grad=True, rate=0.1),
    Problem("bce, gelu", (3, 20, 2), "gelu", "bce", 6, 6, 2, rate=0.1),
    Problem("linear", (4, 3), "relu", "mse", 5, 6, 2, rates_grad=True, rate=0.1),
    Problem("identity, 1 hidden layer", (2, 9, 1), "identity", "mse", 1, 1, 2, rates_grad=True, rate=0.05),
    Problem("3 hidden layers", (2, 17, 33, 12, 3), "gelu", "mse", 18, 20, 3, rates="own", rates_grad=True, rate=0.02),
    Problem("3 hidden layers of 128", (128, 128, 128, 128, 128), "relu", "cross_entropy", 20, 20, 1, tasks=1, rate=0.1),
    Problem("widest", (128, 128, 128), "tanh", "cross_entropy", 128, 128, 1, 2, "own", True, tasks=1, rate=0.1),
    Problem("widest, gelu", (128, 128, 128), "gelu", "cross_entropy", 20, 20, 1, tasks=1, rate=0.1),
    *(Problem(f"{n} classes", (3, n), "relu", "cross_entropy", 20, 20, 1, rate=0.1) for n in (5, 32, 33, 64, 65, 128)),
]  # fmt: skip
"""Awkward sizes, each with every precision."""
CHUNKS = replace(SINUSOID, name="sinusoid, chunks of one task", tasks=3, rates="own", rates_grad=True, steps=2)
