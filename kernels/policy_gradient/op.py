"""The operator ``lightning_maml::policy_gradient``, on the CPU.

Called with a direction it gives the product of Hessians and direction, and is the backward of the call without one. The
backward of that raises.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_maml.kernels.checks import check_choices
from lightning_maml.kernels.mlp_adapt import ACTIVATIONS, MOST_HIDDEN, Limits
from lightning_maml.kernels.mlp_adapt.layout import size
from lightning_maml.kernels.policy_gradient import native
from lightning_maml.kernels.policy_gradient.native import DISTRIBUTIONS, KINDS

LIMITS = Limits(MOST_HIDDEN, 128, None, ACTIVATIONS)

_policy_gradient = torch.library.custom_op(
    "lightning_maml::policy_gradient",
    lambda *arguments: native.run(*arguments),
    mutates_args=(),
    device_types="cpu",
    schema=torch.library.infer_schema(native.run, mutates_args=()),
)
_policy_gradient.register_fake(lambda phi, *_: torch.empty_like(phi, memory_format=torch.contiguous_format))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    phi, direction, *rows, ctx.widths, ctx.activation, ctx.distribution, ctx.kind = inputs
    ctx.once = direction is None
    ctx.save_for_backward(phi, *rows)


def _backward(ctx: Any, upstream: Tensor) -> Any:
    if not ctx.once:
        raise RuntimeError("Expected `policy_gradient` to be differentiated once: it has no third derivative.")
    phi, *rows = ctx.saved_tensors
    kind = (ctx.widths, ctx.activation, ctx.distribution, ctx.kind)
    return _policy_gradient(phi, upstream, *rows, *kind), *[None] * 9


_policy_gradient.register_autograd(_backward, setup_context=_setup_context)


def policy_gradient(
    phi: Tensor,
    observations: Tensor,
    actions: Tensor,
    weights: Tensor,
    old_log_probs: Tensor,
    widths: Sequence[int],
    activation: str = "relu",
    distribution: str = "gaussian",
    kind: str = "ratio",
) -> Tensor:
    r"""The gradient ``[T, P]`` of each task's :math:`-\sum_i w_i f_i(\phi)` at its parameters, differentiable once.

    :math:`f_i` is :math:`\log \pi_\phi(a_i|s_i)`, or its ratio :math:`\pi_\phi(a_i|s_i) / \pi_{old}(a_i|s_i)`. The
    policy is a perceptron of the observations: of the logits of a softmax, or of the mean of a normal distribution,
    whose log-deviations are parameters of their own, the last ones.

    Args:
        phi: ``[T, P]``, each layer's weight ``[out, in]`` and bias ``[out]``, then the ``out`` log-deviations of a
            Gaussian.
        observations: ``[T, R, in]``.
        actions: ``[T, R, out]``, or numbers ``[T, R]`` of a categorical policy.
        weights: w, ``[T, R]``: the advantages over the number of rows, 0 where a row does not count.
        old_log_probs: of the policy that acted, ``[T, R]``.
        widths: ``[in, hidden ..., out]``.
        activation: between the layers: one of ``lightning_maml.kernels.mlp_adapt.ACTIVATIONS``.
        distribution: one of :data:`DISTRIBUTIONS`.
        kind: one of :data:`KINDS`.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, or an argument outside of what is covered.
        RuntimeError: on differentiating it twice; no compiler; an action out of range.
    """
    check_choices(activation=(activation, ACTIVATIONS), distribution=(distribution, DISTRIBUTIONS), kind=(kind, KINDS))
    if not 2 <= len(widths) <= MOST_HIDDEN + 2 or min(widths) < 1:
        raise ValueError(f"Expected `widths` of at most {MOST_HIDDEN} hidden layers but got {list(widths)}.")
    gaussian = distribution == "gaussian"
    T, R = weights.shape if weights.ndim == 2 else (0, 0)
    expected = {
        "phi": (phi, (T, size(widths) + widths[-1] * gaussian)),
        "observations": (observations, (T, R, widths[0])),
        "actions": (actions, (T, R, widths[-1]) if gaussian else (T, R)),
        "weights": (weights, (T, R)),
        "old_log_probs": (old_log_probs, (T, R)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"Expected `{name}` {list(shape)} for widths {list(widths)} but got {list(tensor.shape)}, with weights "
                f"{list(weights.shape)}."
            )
        dtype = torch.int64 if name == "actions" and not gaussian else phi.dtype
        if tensor.dtype != dtype or phi.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Expected `{name}` of {dtype}, parameters of float32 or float64, but got {tensor.dtype}.")
        if name != "phi" and tensor.requires_grad:
            raise ValueError(f"Expected `{name}` without a gradient: it is differentiable in `phi` alone.")
    rows = (observations, actions, weights, old_log_probs)
    return _policy_gradient(phi, None, *rows, list(widths), activation, distribution, kind)
