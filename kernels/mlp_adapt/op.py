"""The operators ``lightning_maml::mlp_adapt`` and ``lightning_maml::mlp_trajectory``."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, operators
from lightning_maml.kernels.checks import check_batch, check_choices, check_parameters, check_targets
from lightning_maml.kernels.mlp_adapt import native, recursion
from lightning_maml.kernels.mlp_adapt.layout import (
    LOSSES,
    ON_CPU,
    ON_GPU,
    ON_NVIDIA,
    WITH_FREQUENCIES,
    Kind,
    Limits,
    size,
)

PRECISIONS = ("ieee", "tf32", "bf16")


def _run(*arguments: Any) -> Adaptation:
    operands, (widths, activation, loss, frequencies), how = arguments[:6], arguments[6:10], arguments[10:]
    order, rates_grad, precision, compiled = how
    kind = widths, activation, loss, order, rates_grad
    if operands[0].is_cpu:
        return (native if compiled else recursion).adapt(*operands, kind=kind, frequencies=frequencies)
    from lightning_maml.kernels.mlp_adapt import cuda

    with torch.cuda.device(operands[0].device):
        if compiled_for_it := cuda.covering(*operands, kind=kind, precision=precision, frequencies=frequencies):
            return cuda.launch(compiled_for_it, *operands, kind=kind)
        from lightning_maml.kernels.mlp_adapt.kernel import launch  # Triton is not on every machine

        return launch(*operands, kind=kind, precision=precision)


_mlp_adapt, _mlp_trajectory = operators(
    "mlp",
    "int[] widths, str activation, str loss, float[] frequencies",
    ", str precision, bool compiled",
    _run,
    ("cpu", "cuda"),
)


def mlp_adapt(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    query_inputs: Tensor,
    query_targets: Tensor,
    widths: Sequence[int],
    activation: str = "relu",
    loss: str = "mse",
    order: int = 2,
    rates_grad: bool = False,
    precision: str = "ieee",
    compiled: bool = False,
    frequencies: Sequence[float] = (),
) -> Adaptation:
    """The inner loops of all tasks on a multilayer perceptron, and the meta-gradient of the mean query loss.

    Args:
        theta: ``[P]``: of each layer the weight ``[out, in]``, then the bias ``[out]``, as torch has them.
        rates: ``[m, 1]``, a rate for each of the m inner steps, or ``[m, P]``, one for each element too. A rate of 0
            keeps an element out of the inner loop.
        support_inputs: ``[T, N, in]``; N up to 128 where Triton runs it.
        support_targets: ``[T, N, out]``, or labels ``[T, N]`` for the cross-entropy.
        query_inputs: ``[T, Nq, in]``.
        query_targets: ``[T, Nq, out]``, or labels ``[T, Nq]``.
        widths: ``[in, hidden ..., out]``, up to 8 hidden layers, up to 256 each; 3 and 128 where Triton runs it. On
            an NVIDIA GPU the kernel in CUDA does, where weights fit into a program's shared memory (README.md).
        activation: one of :data:`ACTIVATIONS`, between the layers, or ``"sine"``, which Triton's kernels do not have.
        loss: one of :data:`LOSSES`, as means over a task's rows; ``"bce"`` takes logits.
        order: 2, or 1 for inner gradients taken as constants.
        rates_grad: whether to return the gradient of the rates too.
        precision: of the products on a GPU, one of :data:`PRECISIONS`; sums and parameters stay in float32. Of the
            sinusoid's meta-gradients ``"ieee"``, float32's own, was up to 2e-6 off, ``"tf32"`` 9e-2 and ``"bf16"``
            3e-1, relative to the largest element (README.md). The CPU computes in the dtype of ``theta``.
        compiled: on the CPU, run ``native.c`` or ``wide.c``, which the machine's C compiler builds on the first call,
            instead of torch's own products. On a GPU the kernels are compiled in any case.
        frequencies: of ``"sine"``, which is the sine of a frequency times a sum: one for each hidden layer.

    Raises:
        ValueError: shapes that do not fit each other, or an argument outside of what is covered.
        RuntimeError: on differentiating an output, which the operator refuses; no compiler for ``compiled=True``.
    """
    batch = (support_inputs, support_targets, query_inputs, query_targets)
    kind = (list(widths), activation, loss, order, rates_grad)
    _check(theta, rates, batch, kind, precision, frequencies)
    kind_and_how = (*kind[:3], list(frequencies), *kind[3:], precision, compiled)
    return Adaptation(*_mlp_adapt(theta, rates, *batch, *kind_and_how), theta.new_empty(0))


def mlp_trajectory(
    theta: Tensor,
    rates: Tensor,
    support_inputs: Tensor,
    support_targets: Tensor,
    widths: Sequence[int],
    activation: str = "relu",
    loss: str = "mse",
    precision: str = "ieee",
    compiled: bool = False,
    frequencies: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """The parameters ``[T, m, P]`` after each inner step and the losses ``[T, m + 1]``, as :func:`mlp_adapt`."""
    batch = (support_inputs, support_targets)
    _check(theta, rates, batch, (widths, activation, loss, 1, False), precision, frequencies)
    kind = list(widths), activation, loss, list(frequencies)
    return _mlp_trajectory(theta, rates, *batch, *kind, precision, compiled)


def limits(
    device: torch.device, precision: str, widths: Sequence[int], activation: str, frequencies: Sequence[float],
    loss: str, rows: int, queries: int,
) -> Limits:  # fmt: skip
    """Those of the implementation that runs such a perceptron on a device; 0 ``queries`` for a trajectory."""
    if device.type == "cpu":
        return ON_CPU
    from lightning_maml.kernels.mlp_adapt import cuda

    network = widths, activation, frequencies, loss
    return ON_NVIDIA if cuda.runs(device, precision, *network, rows, queries) else ON_GPU


def _check(
    theta: Tensor,
    rates: Tensor,
    batch: Sequence[Tensor],
    kind: Kind,
    precision: str,
    frequencies: Sequence[float],
) -> None:
    """Raise ValueError for what the operator does not cover; ``batch`` are inputs and targets, of one set or of two."""
    widths, activation, loss, order, _ = kind
    check_choices(loss=(loss, LOSSES), precision=(precision, PRECISIONS))
    rows = [inputs.shape[1] if inputs.ndim == 3 else 1 for inputs in batch[::2]]
    most = limits(theta.device, precision, widths, activation, frequencies, loss, *rows, *[0] * (2 - len(rows)))
    check_choices(activation=(activation, most.activations))
    if not 2 <= len(widths) <= most.hidden + 2 or not all(1 <= width <= most.width for width in widths):
        raise ValueError(
            f"Expected `widths` to be inputs, up to {most.hidden} hidden layers and outputs, of 1 to {most.width} "
            f"each, but got {list(widths)}."
        )
    if len(frequencies) != (expected := len(widths) - 2 if activation in WITH_FREQUENCIES else 0):
        raise ValueError(f"Expected {expected} `frequencies` for {activation!r} but got {list(frequencies)}.")
    check_parameters(theta, rates, size(widths), f"the widths {list(widths)}")
    if not all(abs(frequency) <= torch.finfo(theta.dtype).max for frequency in frequencies):
        raise ValueError(f"Expected `frequencies` that are finite in {theta.dtype} but got {list(frequencies)}.")
    if not theta.is_cpu and theta.dtype != torch.float32:
        raise ValueError(f"Expected float32 on a GPU but got {theta.dtype}.")
    for inputs, targets in zip(batch[::2], batch[1::2], strict=True):
        if inputs.ndim != 3 or inputs.shape[2] != widths[0] or not 1 <= inputs.shape[1] <= (most.rows or math.inf):
            n = "N of at least 1" if most.rows is None else f"N from 1 to {most.rows}"
            raise ValueError(f"Expected inputs [T, N, {widths[0]}] with {n} but got {list(inputs.shape)}.")
        check_targets(theta, rates, inputs, targets, widths[-1], loss, "inputs")
    check_batch(batch, order)
