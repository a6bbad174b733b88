"""The engine of the project's own kernels, imported where they are needed: ``import lightning_maml`` loads none."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_maml.checks import check_one_of
from lightning_maml.engine.base import MetaOutput, Problem, autocast_on
from lightning_maml.engine.coverage import SGD_UPDATE, refused
from lightning_maml.engine.fused import first_call
from lightning_maml.engine.fused.conv_adapt import ConvAdapt
from lightning_maml.engine.fused.in_a_row import InARow
from lightning_maml.engine.fused.mlp_adapt import MlpAdapt, Precision
from lightning_maml.engine.fused.operator import Operator, OperatorLoop, UnrecognisedError, without_triton
from lightning_maml.engine.fused.sgd_update import FlatLoop
from lightning_maml.engine.loops.batched import Batched, LoopEngine
from lightning_maml.inner import Parameters
from lightning_maml.tasks import Set, TaskBatch, kinds

KernelName = Literal["auto", "mlp_adapt", "conv_adapt", "sgd_update"]


@dataclass(frozen=True)
class Fused(LoopEngine):
    """The engine of the project's own kernels; the CPU runs the same operators in plain torch, or compiled from C.

    On a multilayer perceptron the operator ``mlp_adapt`` runs all inner steps, the query loss and the exact
    meta-gradient, and ``conv_adapt`` on a convolutional network; on a CPU that one where ``compile=True``. Any other
    network runs as on :class:`Batched`, with the inner update of all parameters as one operator, ``sgd_update``.

    Args:
        kernel: ``"auto"``; ``"mlp_adapt"`` and ``"conv_adapt"`` raise where that operator does not cover the problem;
            ``"sgd_update"`` leaves both out.
        precision: of these operators' products on a GPU. Of the sinusoid's meta-gradients ``"ieee"``, float32's own,
            was up to 2e-6 off, ``"tf32"`` 9e-2 and ``"bf16"`` 3e-1, relative to the largest element: measured in an
            emulation of the kernels. The CPU computes in the parameters' dtype.
        compile: on a CPU, these operators compiled by the machine's C compiler: some seconds, once on a machine. What
            they do not cover is refused. A GPU's kernels are compiled in any case.
        verify: on a GPU, compare each kernel once in a process with :class:`Batched`, on the first 8 tasks it gets.

    Raises:
        ValueError: an argument is out of range.
        KernelError: of a call, where a GPU's kernel differs from :class:`Batched` twice, by more than a thousandth.
    """

    kernel: KernelName = "auto"
    precision: Precision = "ieee"
    compile: bool = False
    verify: bool = True
    name = "fused"

    def __post_init__(self) -> None:
        check_one_of(get_args(KernelName), kernel=self.kernel)
        check_one_of(get_args(Precision), precision=self.precision)
        if self.precision == "tf32x3":
            object.__setattr__(self, "precision", "ieee")
        if self.compile and self.kernel == "sgd_update":
            raise ValueError("Expected `compile=False` for kernel='sgd_update': whole inner loops are compiled.")

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """Those that run whole adaptations, in the order in which they are tried."""
        both = MlpAdapt(self.precision, self.compile), ConvAdapt(self.precision)
        return tuple([operator for operator in both if self.kernel in ("auto", operator.name)])

    def unsupported(self, problem: Problem, *sets: Set) -> str | None:
        key = self, kinds(*sets)
        found = problem.memo.get(key) or problem.memo.setdefault(key, self._find(problem, *sets))
        operator, _, reason = problem.memo[self] = found
        if operator is not None:
            return reason
        if self.kernel in ("mlp_adapt", "conv_adapt") or self.compile:
            names = " or ".join(f"`{operator.name}`" for operator in self.operators)
            advice = " Batched(compile=True) compiles any network." if self.compile else ""
            return f"expected a problem that {names} covers but {reason}.{advice}"
        if (what := refused(problem.needs(*sets), SGD_UPDATE)) is not None:
            return f"{what}. Use engine='batched'."
        return None if sets[0][1].is_cpu else without_triton()

    def covers(self, problem: Problem, *sets: Set) -> bool:
        """Whether an operator runs the whole problem here."""
        return self.unsupported(problem, *sets) is None and self.why_not_covered(problem, *sets) is None

    def why_not_covered(self, problem: Problem, *sets: Set) -> str | None:
        """Why no operator covers the whole problem, or None where one does."""
        return self._found(problem, *sets)[2]

    def _found(self, problem: Problem, *sets: Set) -> tuple[Operator | None, Any, str | None]:
        """What :meth:`_find` found, once for a problem."""
        return problem.memo.get(self) or problem.memo.setdefault(self, self._find(problem, *sets))

    def _find(self, problem: Problem, *sets: Set) -> tuple[Operator | None, Any, str | None]:
        """The first operator that covers the problem, the network as it sees it, and why it cannot run, or only why."""
        needs, loss, reasons = problem.needs(*sets), problem.loss.kind, []
        uncompiled = sets[0][1].is_cpu and not self.compile
        for operator in self.operators:
            if uncompiled and operator.only_compiled:
                if self.kernel == operator.name:
                    reasons.append("on a CPU it is always compiled: set compile=True")
                continue
            try:
                if (reason := refused(needs, operator.runs)) is not None:
                    raise UnrecognisedError(reason)
                found = operator.recognise(problem, *sets)
                for _, targets in sets if loss == "cross_entropy" else ():
                    if targets.dtype != torch.int64:  # as which the kernels read labels
                        raise UnrecognisedError(f"the labels are of {targets.dtype}, and not of torch.int64")
            except ValueError as error:
                reasons.append(str(error))
            else:
                return operator, found, operator.unavailable(next(iter(problem.parameters.values())))
        return None, None, "; ".join(dict.fromkeys(reasons)) or f"kernel={self.kernel!r} leaves them out"

    def loop(self, problem: Problem, support: Set, query: Set) -> Any:
        operator, found, _ = self._found(problem, support, query)
        if operator is None:
            return FlatLoop(problem, support, query)
        return OperatorLoop(problem, operator, found, support, query)

    def meta_loss(self, problem: Problem, tasks: TaskBatch) -> MetaOutput:
        agrees = self._agrees(first_call.meta_gradient, problem, *tasks.sets)
        return super().meta_loss(problem, tasks) if agrees else Batched().meta_loss(problem, tasks)

    def in_a_row(self, problem: Problem, tasks: TaskBatch) -> InARow | None:
        """What runs meta-batches like this one in turn; None but for a whole operator on a CPU, of parameters alone."""
        operator, found, reason = self._found(problem, *tasks.sets)
        if operator is None or reason is not None or not tasks.support_targets.is_cpu:
            return None
        loop = OperatorLoop(problem, operator, found, *tasks.sets)
        leaves, own = problem.leaves(*tasks.sets), [*loop.parameters.values()]
        if loop.starts is not loop.parameters or [*map(id, leaves)] != [*map(id, own)]:
            return None
        return InARow(loop)

    def trajectory(self, problem: Problem, support: Set) -> Iterator[tuple[Parameters, Tensor]]:
        operator, found, _ = self._found(problem, support)
        if operator and self._agrees(first_call.adaptation, problem, support):
            return OperatorLoop(problem, operator, found, support).trajectory()
        return super().trajectory(problem, support)

    def predict(self, problem: Problem, phi: Parameters, inputs: Any, step: int | None = None) -> Tensor:
        operator, found, _ = problem.memo.get(self) or (None, None, None)  # what the adaptation found
        if operator is not None and found is not None and not (torch.is_grad_enabled() or autocast_on(inputs.device)):
            every = {name: problem.parameters[name] for name in found.shapes} | phi
            rows = [value.expand(len(inputs), *found.shapes[name]).flatten(1) for name, value in every.items()]
            if (predicted := operator.predict(found, torch.cat(rows, 1), inputs)) is not None:
                return predicted
        return super().predict(problem, phi, inputs, step)

    def _agrees(self, numbers: Any, problem: Problem, *sets: Set) -> bool:
        """Whether a kernel may run this, see :func:`first_call.agrees`."""
        if not self.verify or sets[0][0].device.type not in first_call.CHECKED_ON:
            return True
        operator, found, _ = self._found(problem, *sets)
        precision = self.precision if operator else "ieee"
        kernel = (operator.name, found.variant) if operator else ("sgd_update", problem.inner.shared_rates)
        rule = type(problem.algorithm.meta_gradient).__name__
        variant = (*kernel, problem.loss.kind, precision, rule, next(iter(problem.parameters.values())).dtype)
        return first_call.agrees(variant, precision, numbers, replace(self, verify=False), problem, *sets)
