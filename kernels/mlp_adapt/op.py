"""The operators ``lightning_maml::mlp_adapt`` and ``lightning_maml::mlp_trajectory``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, operators
from lightning_maml.kernels.checks import check_batch, check_choices, check_parameters, check_targets
from lightning_maml.kernels.mlp_adapt import native, recursion
from lightning_maml.kernels.mlp_adapt.layout import ACTIVATIONS, LOSSES, MOST_HIDDEN, Kind, size

PRECISIONS = ("ieee", "tf32", "bf16")
WIDEST = 128
MOST_ROWS = 128


def _run(*arguments: Any) -> Adaptation:
    operands, kind, (precision, compiled) = arguments[:6], arguments[6:11], arguments[11:]
    if operands[0].is_cpu:
        return (native if compiled else recursion).adapt(*operands, kind=kind)
    from lightning_maml.kernels.mlp_adapt import cuda

    with torch.cuda.device(operands[0].device):
        if compiled_for_it := cuda.covering(*operands, kind=kind, precision=precision):
            return cuda.launch(compiled_for_it, *operands, kind=kind)
        from lightning_maml.kernels.mlp_adapt.kernel import launch  # Triton is not on every machine

        return launch(*operands, kind=kind, precision=precision)


_mlp_adapt, _mlp_trajectory = operators(
    "mlp", "int[] widths, str activation, str loss", ", str precision, bool compiled", _run, ("cpu", "cuda")
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
) -> Adaptation:
    """The inner loops of all tasks on a multilayer perceptron, and the meta-gradient of the mean query loss.

    Args:
        theta: ``[P]``: of each layer the weight ``[out, in]``, then the bias ``[out]``, as torch has them.
        rates: ``[m, 1]``, a rate for each of the m inner steps, or ``[m, P]``, one for each element too. A rate of 0
            keeps an element out of the inner loop.
        support_inputs: ``[T, N, in]``; N up to 128.
        support_targets: ``[T, N, out]``, or labels ``[T, N]`` for the cross-entropy.
        query_inputs: ``[T, Nq, in]``.
        query_targets: ``[T, Nq, out]``, or labels ``[T, Nq]``.
        widths: ``[in, hidden ..., out]``, up to 3 hidden layers, up to 128 each.
        activation: one of :data:`ACTIVATIONS`, between the layers.
        loss: one of :data:`LOSSES`, as means over a task's rows; ``"bce"`` takes logits.
        order: 2, or 1 for inner gradients taken as constants.
        rates_grad: whether to return the gradient of the rates too.
        precision: of the products on a GPU, one of :data:`PRECISIONS`; sums and parameters stay in float32. Of the
            sinusoid's meta-gradients ``"ieee"``, float32's own, was up to 2e-6 off, ``"tf32"`` 9e-2 and ``"bf16"``
            3e-1, relative to the largest element (README.md). The CPU computes in the dtype of ``theta``.
        compiled: on the CPU, run ``native.c``, which the machine's C compiler builds on the first call, instead of
            torch's own products. On a GPU the kernels are compiled in any case.

    Raises:
        ValueError: shapes that do not fit each other, or an argument outside of what is covered.
        RuntimeError: on differentiating an output, which the operator refuses; no compiler for ``compiled=True``.
    """
    batch = (support_inputs, support_targets, query_inputs, query_targets)
    kind = (list(widths), activation, loss, order, rates_grad)
    _check(theta, rates, batch, kind, precision)
    return Adaptation(*_mlp_adapt(theta, rates, *batch, *kind, precision, compiled), theta.new_empty(0))


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
) -> tuple[Tensor, Tensor]:
    """The parameters ``[T, m, P]`` after each inner step and the losses ``[T, m + 1]``, as :func:`mlp_adapt`."""
    batch = (support_inputs, support_targets)
    _check(theta, rates, batch, (widths, activation, loss, 1, False), precision)
    return _mlp_trajectory(theta, rates, *batch, list(widths), activation, loss, precision, compiled)


def _check(theta: Tensor, rates: Tensor, batch: Sequence[Tensor], kind: Kind, precision: str) -> None:
    """Raise ValueError for what the operator does not cover; ``batch`` are inputs and targets, of one set or of two."""
    widths, activation, loss, order, _ = kind
    check_choices(activation=(activation, ACTIVATIONS), loss=(loss, LOSSES), precision=(precision, PRECISIONS))
    if not 2 <= len(widths) <= MOST_HIDDEN + 2 or not all(1 <= width <= WIDEST for width in widths):
        raise ValueError(
            f"Expected `widths` to be inputs, up to {MOST_HIDDEN} hidden layers and outputs, of 1 to {WIDEST} each, "
            f"but got {list(widths)}."
        )
    check_parameters(theta, rates, size(widths), f"the widths {list(widths)}")
    if not theta.is_cpu and theta.dtype != torch.float32:
        raise ValueError(f"Expected float32 on a GPU but got {theta.dtype}.")
    for inputs, targets in zip(batch[::2], batch[1::2], strict=True):
        if inputs.ndim != 3 or inputs.shape[2] != widths[0] or not 1 <= inputs.shape[1] <= MOST_ROWS:
            raise ValueError(
                f"Expected inputs [T, N, {widths[0]}] with N from 1 to {MOST_ROWS} but got {list(inputs.shape)}."
            )
        check_targets(theta, rates, inputs, targets, widths[-1], loss, "inputs")
    check_batch(batch, order)
