"""Whole inner loops as one operator, and inner steps as one launch: Triton on a GPU, C or plain torch on the CPU.

``lightning_maml.kernels`` is imported inside the functions that need it: ``import lightning_maml`` loads no kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml.engine.base import Engine, MetaOutput, Problem, attach
from lightning_maml.engine.batched import Batched
from lightning_maml.engine.chunks import meta_loss_in_chunks
from lightning_maml.engine.loop import TaskLoop
from lightning_maml.engine.recognition import Convolutional, Perceptron, recognise, recognise_convolutional
from lightning_maml.inner import SGD, Parameters, Rates
from lightning_maml.losses import CrossEntropy, MeanSquaredError, TaskLoss
from lightning_maml.meta_gradient import FirstOrder, Joint, Unrolled
from lightning_maml.tasks import TaskBatch

__all__ = ["Fused"]

Precision = Literal["tf32x3", "ieee", "tf32", "bf16"]

_ORDERS: dict[type, int] = {Unrolled: 2, FirstOrder: 1, Joint: 1}


def _recognised(problem: Problem, convolutional: bool) -> Perceptron | Convolutional | str:
    """:func:`recognise` or :func:`recognise_convolutional`, once for a problem."""
    known, key = vars(problem), "convolutional" if convolutional else "perceptron"
    if key not in known:
        known[key] = (recognise_convolutional if convolutional else recognise)(problem.network)
    return known[key]


def _loss_name(loss: TaskLoss) -> str | None:
    if type(loss) is MeanSquaredError:
        return "mse"
    if type(loss) is CrossEntropy:
        return "cross_entropy"
    known = type(loss) is TaskLoss and loss.function is F.binary_cross_entropy_with_logits
    return "bce" if known else None


@dataclass(frozen=True)
class Fused(Engine):
    """The engine of the project's own kernels; the CPU runs the same operators in plain torch, or compiled from C.

    On a multilayer perceptron the operator ``mlp_adapt`` runs all inner steps, the query loss and the exact
    meta-gradient, and ``conv_adapt`` on a convolutional network where ``compile=True`` on a CPU (:meth:`supports` says
    where). Any other network runs as on :class:`Batched`, with the inner update of all parameters as one operator,
    ``sgd_update``.

    Args:
        kernel: ``"auto"``; ``"mlp_adapt"`` raises where that operator does not cover the problem;
            ``"sgd_update"`` leaves it out.
        precision: of ``mlp_adapt``'s products on a GPU: ``"tf32x3"`` and ``"ieee"`` are exact to about 1e-6, ``"tf32"``
            to 1e-3, ``"bf16"`` to 1e-2. The CPU computes in the parameters' dtype.
        compile: on a CPU, these operators compiled by the machine's C compiler: some seconds, once on a machine. What
            they do not cover is refused. A GPU's kernels are compiled in any case.

    Raises:
        ValueError: an argument is out of range.
    """

    kernel: Literal["auto", "mlp_adapt", "sgd_update"] = "auto"
    precision: Precision = "tf32x3"
    compile: bool = False
    name = "fused"

    def __post_init__(self) -> None:
        if self.kernel not in ("auto", "mlp_adapt", "sgd_update"):
            raise ValueError(f"Expected `kernel` to be 'auto', 'mlp_adapt' or 'sgd_update' but got {self.kernel!r}.")
        if self.precision not in get_args(Precision):
            raise ValueError(f"Expected `precision` to be one of {get_args(Precision)} but got {self.precision!r}.")
        if self.compile and self.kernel == "sgd_update":
            raise ValueError(
                "Expected `compile=False` for kernel='sgd_update': what is compiled are whole inner loops."
            )

    def unsupported(self, problem: Problem, device: torch.device) -> str | None:
        if device.type not in ("cpu", "cuda"):
            return f"its operators run on the CPU and on CUDA devices, not on {device.type!r}."
        if device.type == "cuda" and find_spec("triton") is None:
            return "on a GPU it needs Triton, which is not installed."
        if device.type == "cuda" and torch.version.hip is not None and "tf32" in self.precision:
            return f"AMD's GPUs have no products of {self.precision!r}. Use precision='ieee' or 'bf16'."
        if what := problem.beyond_steps_of_sgd:
            return f"it has kernels of plain SGD steps alone, and not for {what}."
        kinds = {(problem.parameters[name].dtype, problem.parameters[name].device) for name in problem.adapted}
        if len(kinds) > 1 or not {dtype for dtype, _ in kinds} <= {torch.float32, torch.float64}:
            names = sorted(str(dtype) for dtype, _ in kinds)
            return f"all adapted parameters have to be of one dtype, float32 or float64, but are {names}."
        if self.compile and device.type == "cpu":
            for dtype, _ in kinds:
                if (reason := self._uncompiled(problem, dtype)) is not None:
                    return f"compile=True needs a C compiler, but {reason}. Use compile=False."
        return None

    def _uncompiled(self, problem: Problem, dtype: torch.dtype) -> str | None:
        """Why the operator that the problem needs cannot be compiled, or None."""
        if isinstance(_recognised(problem, convolutional=False), Perceptron):
            from lightning_maml.kernels.mlp_adapt import native

            return native.unavailable(dtype)
        if isinstance(_recognised(problem, convolutional=True), Convolutional):
            from lightning_maml.kernels.conv_adapt import native as convolutional

            return convolutional.unavailable(dtype)
        return None  # it needs none: `meta_loss` refuses such a network

    def supports(self, problem: Problem, tasks: TaskBatch) -> str | None:
        """Why no operator covers the whole problem, or None where one does."""
        return found if isinstance(found := self._found(problem, tasks), str) else None

    def _found(self, problem: Problem, tasks: TaskBatch) -> Perceptron | Convolutional | str:
        if self.kernel == "sgd_update":
            return "kernel='sgd_update' leaves it out"
        if what := problem.beyond_plain_steps:
            return f"it has no {what}"
        if type(problem.algorithm.meta_gradient) not in _ORDERS:
            return f"the meta-gradient rule is {problem.rule}"
        loss = _loss_name(problem.loss)
        if loss is None:
            return "the loss is neither 'mse', 'cross_entropy' nor F.binary_cross_entropy_with_logits"
        device = tasks.support_inputs.device
        found = _recognised(problem, convolutional=False)
        images = self.compile and self.kernel == "auto" and device.type == "cpu"
        if isinstance(found, str) and images and any(isinstance(layer, nn.Conv2d) for layer in problem.modules):
            found = _recognised(problem, convolutional=True)
        if isinstance(found, str):
            return found
        dtypes = {value.dtype for value in problem.parameters.values()}
        dtypes |= {value.dtype for _, value in tasks.named() if value.is_floating_point() or loss != "cross_entropy"}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, *([torch.float64] if device.type == "cpu" else [])}:
            return (
                f"parameters, inputs and targets are not of one dtype that it computes in: {sorted(map(str, dtypes))}"
            )
        if torch.is_autocast_enabled(device.type):
            return "autocast is on"
        if any(value.requires_grad for _, value in tasks.named()):
            return "inputs or targets ask for a gradient"
        other = _other_rows if isinstance(found, Perceptron) else _other_images
        return other(found, problem, tasks, loss) or found  # type: ignore[arg-type]

    def _covered(self, problem: Problem, tasks: TaskBatch) -> Perceptron | Convolutional | None:
        found = self._found(problem, tasks)
        if not isinstance(found, str):
            return found
        if self.kernel == "mlp_adapt" or self.compile:
            advice = " Batched(compile=True) compiles any network." if self.compile else ""
            operators = (
                "`mlp_adapt`" if self.kernel == "mlp_adapt" or not self.compile else "`mlp_adapt` or `conv_adapt`"
            )
            raise NotImplementedError(f"Expected a problem that {operators} covers but {found}.{advice}")
        return None

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        found = self._covered(problem, tasks)
        if found is None:
            return meta_loss_in_chunks(problem, tasks, len(tasks), lambda chunk: _FlatLoop(problem, chunk))
        _check(problem, found, tasks)
        rule = problem.algorithm.meta_gradient
        steps = 0 if isinstance(rule, Joint) else problem.inner.steps
        rates = _rates(problem, found, steps)
        output = self._adapt(found, _theta(problem, found), rates, tasks, _loss_name(problem.loss), _ORDERS[type(rule)])
        leaves, parameters = problem.leaves(), problem.parameters
        parts = found.unpack(output.of_theta, parameters)
        gradients = {id(parameters[name]): part for name, part in zip(found.names, parts, strict=True)}
        if learned := [leaf for leaf in leaves if id(leaf) not in gradients]:
            pulled: Any = [torch.zeros_like(leaf) for leaf in learned]
            if rates.requires_grad:
                pulled = torch.autograd.grad(rates, learned, output.of_rates, materialize_grads=True)
            gradients.update({id(leaf): part for leaf, part in zip(learned, pulled, strict=True)})
        loss = output.task_losses.mean()
        surrogate = attach(loss, [gradients[id(leaf)] for leaf in leaves], leaves)
        return MetaOutput(loss, surrogate, output.task_losses, output.predictions, output.support_losses)

    def _adapt(
        self,
        found: Perceptron | Convolutional,
        theta: Tensor,
        rates: Tensor,
        tasks: TaskBatch,
        loss: str | None,
        order: int,
    ) -> Any:
        batch = [value for _, value in tasks.named()]
        if isinstance(found, Convolutional):
            from lightning_maml.kernels.conv_adapt import conv_adapt

            network = found.network(tasks.support_inputs)
            return conv_adapt(theta, rates.detach(), *batch, network, loss, order, rates.requires_grad)
        from lightning_maml.kernels.mlp_adapt import mlp_adapt, mlp_adapt_undispatched

        kind = (found.widths, found.activation, loss, order, rates.requires_grad)
        if self.compile and theta.device.type == "cpu":
            return mlp_adapt_undispatched(theta, rates.detach(), batch, *kind)
        return mlp_adapt(theta, rates.detach(), *batch, *kind, self.precision)

    def trajectory(self, problem: Problem, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Parameters, Tensor]]:
        tasks = TaskBatch(inputs, targets, inputs, targets)
        found = self._covered(problem, tasks)
        if found is None:
            yield from Batched().trajectory(problem, inputs, targets)
            return
        _check(problem, found, tasks)
        theta = _theta(problem, found)
        rates = _rates(problem, found, problem.inner.steps).detach()
        path, losses = self._trajectory(found, theta, rates, tasks, _loss_name(problem.loss))
        names, _ = problem.split()
        for step in range(problem.inner.steps + 1):
            named = found.unpack_tasks(theta.expand(len(tasks), -1) if step == 0 else path[:, step - 1])
            yield {name: named[name] for name in names}, losses[:, step]

    def _trajectory(
        self, found: Perceptron | Convolutional, theta: Tensor, rates: Tensor, tasks: TaskBatch, loss: str | None
    ) -> tuple[Tensor, Tensor]:
        batch = (tasks.support_inputs.detach(), tasks.support_targets.detach())
        if isinstance(found, Convolutional):
            from lightning_maml.kernels.conv_adapt import conv_trajectory

            return conv_trajectory(theta, rates, *batch, found.network(tasks.support_inputs), loss)
        from lightning_maml.kernels.mlp_adapt import mlp_trajectory

        kind = (found.widths, found.activation, loss)
        return mlp_trajectory(theta, rates, *batch, *kind, precision=self.precision, compiled=self.compile)

    def predict(self, problem: Problem, phi: Parameters, inputs: Tensor, step: int | None = None) -> Tensor:
        return Batched().predict(problem, phi, inputs, step)


def _other_rows(found: Perceptron, problem: Problem, tasks: TaskBatch, loss: str) -> str | None:
    """Why the data are not for ``mlp_adapt``, or None."""
    from lightning_maml.kernels.mlp_adapt import MOST_ROWS

    for inputs, targets in (tasks.support_inputs, tasks.support_targets), (tasks.query_inputs, tasks.query_targets):
        if inputs.ndim != 3 or inputs.shape[2] != found.widths[0]:
            return f"the inputs {list(inputs.shape)} are not [tasks, rows, {found.widths[0]}]"
        if inputs.shape[1] > MOST_ROWS:
            return f"a task has {inputs.shape[1]} rows, more than {MOST_ROWS}"
        if loss == "bce" and targets.shape != (*inputs.shape[:2], found.widths[-1]):
            return f"the targets {list(targets.shape)} are not [tasks, rows, {found.widths[-1]}]"
    return None


def _other_images(found: Convolutional, problem: Problem, tasks: TaskBatch, loss: str) -> str | None:
    """Why network, loss or data are not for ``conv_adapt``, or None."""
    if loss == "bce":
        return "the loss is F.binary_cross_entropy_with_logits"
    if found.kind["norm"] and problem.algorithm.batch_norm != "batch":
        return f"batch_norm is {problem.algorithm.batch_norm!r}"
    try:
        if found.network(tasks.support_inputs) != found.network(tasks.query_inputs):
            return "images of the support and of the query set differ in size"
    except ValueError as error:
        return str(error)
    return None


def _check(problem: Problem, found: Perceptron | Convolutional, tasks: TaskBatch) -> None:
    for inputs, targets in (tasks.support_inputs, tasks.support_targets), (tasks.query_inputs, tasks.query_targets):
        problem.loss.check_shapes((*inputs.shape[:2], found.outputs), targets)
        problem.loss.check_values(found.outputs, targets)


def _theta(problem: Problem, found: Perceptron | Convolutional) -> Tensor:
    """All parameters in one row, ``[P]``, detached."""
    with torch.no_grad():
        return found.pack(problem.parameters)


def _rates(problem: Problem, found: Perceptron | Convolutional, steps: int) -> Tensor:
    """The rates ``[steps, 1]`` where all parameters share one, or ``[steps, P]``, 0 for parameters that do not adapt.

    Differentiable with respect to learned ones.
    """
    inner, names, adapted = problem.inner, found.names, set(problem.adapted)
    like = problem.parameters[names[0]].detach()
    if adapted == set(names) and (not isinstance(inner.lr, Rates) or inner.lr.kind in ("shared", "per_step")):
        if isinstance(inner.lr, int | float):
            return like.new_full((steps, 1), float(inner.lr))
        alphas = [inner.rate(names[0], step) for step in range(steps)]
        rows = [torch.as_tensor(alpha, dtype=like.dtype, device=like.device).reshape(1) for alpha in alphas]
    else:

        def full(name: str, step: int) -> Tensor:
            parameter = problem.parameters[name].detach()
            if name not in adapted:
                return torch.zeros_like(parameter)
            return torch.as_tensor(inner.rate(name, step), dtype=like.dtype, device=like.device).expand(parameter.shape)

        rows = [found.pack({name: full(name, step) for name in names}) for step in range(steps)]
    return torch.stack(rows).to(like) if rows else like.new_empty(0, 1)


class _FlatLoop(TaskLoop):
    """:class:`TaskLoop` on one row of numbers a task, ``[T, P]``, of which the parameters are views."""

    def unroll(self, order: int) -> Parameters:
        from lightning_maml.kernels.sgd_update import sgd_update

        inner = self.problem.inner
        momentum = inner.momentum if isinstance(inner, SGD) else 0.0
        flat, buffer = torch.cat([value.flatten() for value in self.theta.values()]), None
        for step in range(inner.steps):
            rows = flat if flat.ndim == 2 else flat.expand(len(self.tasks), -1)
            losses, _ = self.losses(self._views(rows), self.tasks.support_inputs, self.tasks.support_targets)
            (gradient,) = torch.autograd.grad(
                losses.sum(), rows, create_graph=order == 2, materialize_grads=True, retain_graph=order == 2
            )
            self.support_losses.append(losses.detach())
            norms = None if inner.max_norm is None else torch.linalg.vector_norm(gradient, dim=1)
            factors = None if norms is None else inner.clipping(norms)
            rate = self._rate(step, flat)
            flat, buffer = sgd_update(flat, gradient, rate, factors, inner.weight_decay, buffer, momentum)
        return self._views(flat if flat.ndim == 2 else flat.expand(len(self.tasks), -1))

    def _views(self, rows: Tensor) -> Parameters:
        parts = rows.split([value.numel() for value in self.theta.values()], dim=1)
        return {
            name: part.view(len(rows), *value.shape)
            for (name, value), part in zip(self.theta.items(), parts, strict=True)
        }

    def _rate(self, step: int, like: Tensor) -> Tensor:
        """The rate of a step, ``[]`` where all parameters share it, or ``[P]``."""
        inner = self.problem.inner
        if not isinstance(inner.lr, Rates) or inner.lr.kind in ("shared", "per_step"):
            rate = inner.rate(next(iter(self.theta)), step)
            return torch.as_tensor(rate, dtype=like.dtype, device=like.device).reshape(())
        rates = [inner.lr.at(name, step).to(like.dtype).expand(value.shape) for name, value in self.theta.items()]
        return torch.cat([rate.flatten() for rate in rates])
