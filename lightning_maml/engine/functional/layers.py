"""Layers of all tasks at once: each task with weights of its own, as one batched matrix product.

Images keep the shape ``[T, N, C, H, W]`` that the user's layers expect, but lie in memory channels last, so that a
convolution is a copy of its patches and one ``bmm``, and its output is the next one's input without a copy.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml.inner import Parameters
from lightning_maml.networks.sine import Sine

Layer = Callable[[Any, Parameters, Parameters, Tensor], Tensor | None]
"""``(module, its adapted parameters, its shared ones, inputs [T, N, ...]) -> outputs [T, N, ...]``; None: it cannot."""

POINTWISE = {nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh}
POINTWISE |= {nn.Identity, Sine}
"""Layers without parameters that act on every number by itself, in any mode."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``inputs [T, ..., in]``, ``weight [T, out, in]``, ``bias [T, out]`` or ``[out]`` -> ``[T, ..., out]``."""
    rows = inputs.flatten(1, -2)
    outputs = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-2), rows, weight.mT)
    return outputs.view(*inputs.shape[:-1], weight.shape[1])


def conv2d(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """``inputs [T, N, C, H, W]``, ``weight [T, O, C, kh, kw]``, ``bias [T, O]`` or ``[O]`` -> ``[T, N, O, H', W']``."""
    tasks, out_channels, _, *kernel = weight.shape
    images = inputs.permute(0, 1, 3, 4, 2)
    height, width = _places(images.shape[2:4], kernel, stride, padding)
    columns = patches(images, kernel, list(stride), list(padding))
    matrix = weight.permute(0, 3, 4, 2, 1).reshape(tasks, -1, out_channels)
    outputs = torch.bmm(columns, matrix) if bias is None else torch.baddbmm(bias.unsqueeze(-2), columns, matrix)
    return outputs.view(tasks, -1, height, width, out_channels).permute(0, 1, 4, 2, 3)


# Patches and their adjoint are operators of their own, so that a compiler sees one call and not nine shifted sums.


@torch.library.custom_op("lightning_maml::patches", mutates_args=())
def patches(images: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """``images [T, N, H, W, C]`` -> the patches of a convolution, ``[T, N * H' * W', kh * kw * C]``. Linear."""
    padded = F.pad(images, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [T, N, H', W', C, kh, kw]
    windows = windows.permute(0, 1, 2, 3, 5, 6, 4).clone(memory_format=torch.contiguous_format)
    return windows.flatten(4).flatten(1, 3)


@patches.register_fake
def _(images: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    down, across = _places(images.shape[2:4], kernel, stride, padding)
    tasks, rows, *_, channels = images.shape
    return images.new_empty(tasks, rows * down * across, kernel[0] * kernel[1] * channels)


@torch.library.custom_op("lightning_maml::scatter", mutates_args=())
def scatter(columns: Tensor, shape: list[int], kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """The adjoint of :func:`patches`: every patch added back to where it was taken from, ``shape [T, N, H, W, C]``."""
    tasks, rows, height, width, channels = shape
    padded = columns.new_zeros(tasks, rows, height + 2 * padding[0], width + 2 * padding[1], channels)
    places = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [T, N, H', W', C, kh, kw]
    windows = columns.reshape(*places.shape[:4], *kernel, channels)
    for i, j in product(*map(range, kernel)):
        places[..., i, j] += windows[:, :, :, :, i, j]
    return padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width].contiguous()


@scatter.register_fake
def _(columns: Tensor, shape: list[int], kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return columns.new_empty(shape)


def _places(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [(s + 2 * p - k) // d + 1 for s, k, d, p in zip(size, kernel, stride, padding, strict=True)]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    tensor, *ctx.arguments = inputs
    ctx.shape = list(tensor.shape)


patches.register_autograd(lambda ctx, v: (scatter(v, ctx.shape, *ctx.arguments), *[None] * 3), setup_context=_save)
scatter.register_autograd(lambda ctx, v: (patches(v, *ctx.arguments[1:]), *[None] * 4), setup_context=_save)


def batch_norm(inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``inputs [T, N, C, ...]``, ``weight`` and ``bias`` ``[T, C]`` or ``[C]`` -> ``[T, N, C, ...]``."""
    last = inputs.movedim(2, -1)
    rows = last.reshape(len(inputs), -1, last.shape[-1])
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()  # statistics of half precision numbers are not to be trusted
    outputs, _ = _Normalise.apply(rows, eps)
    outputs = outputs if weight is None else outputs * weight.unsqueeze(-2)
    outputs = outputs if bias is None else outputs + bias.unsqueeze(-2)
    return outputs.view(last.shape).movedim(-1, 2)


class _Normalise(torch.autograd.Function):
    r"""``rows [T, R, C]`` -> ``(normalised [T, R, C], inverse deviations [T, 1, C])``.

    .. math:: \hat x = (x - \mu) s, \; s = (\sigma^2 + \epsilon)^{-1/2}, \quad
              \partial x = s (\partial\hat x - \overline{\partial\hat x} - \hat x \overline{\partial\hat x \hat x})
              - \partial s \, s^2 \hat x / R

    Both outputs are saved as the graph's own, and backward is plain autograd code: differentiable to any order.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Any:
        centred = rows - rows.mean(1, keepdim=True)  # two passes: as exact as torch.var_mean, four times as fast here
        inverse = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
        normalised = centred.mul_(inverse)
        ctx.save_for_backward(normalised, inverse)
        return normalised, inverse

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, of_inverse: Tensor) -> Any:
        normalised, inverse = ctx.saved_tensors
        along = (upstream * normalised).mean(1, keepdim=True) * inverse
        along = along + of_inverse * inverse * inverse / normalised.shape[1]
        return (upstream - upstream.mean(1, keepdim=True)) * inverse - normalised * along, None


def _linear_layer(module: nn.Linear, own: Parameters, shared: Parameters, inputs: Tensor) -> Tensor | None:
    fits = "weight" in own and inputs.ndim > 2
    return linear(inputs, own["weight"], own.get("bias", shared.get("bias"))) if fits else None


def _conv_layer(module: nn.Conv2d, own: Parameters, shared: Parameters, inputs: Tensor) -> Tensor | None:
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    if "weight" not in own or not plain or isinstance(module.padding, str) or inputs.ndim != 5:
        return None
    return conv2d(inputs, own["weight"], own.get("bias", shared.get("bias")), module.stride, module.padding)


def _batch_norm_layer(module: nn.BatchNorm2d, own: Parameters, shared: Parameters, inputs: Tensor) -> Tensor | None:
    if not module.training or inputs.ndim != 5 or inputs[0, :, 0].numel() < 2:
        return None  # running statistics need no batched form, and torch has the words for a single value
    every = shared | own
    return batch_norm(inputs, every.get("weight"), every.get("bias"), module.eps)


def _pool_layer(module: nn.AdaptiveAvgPool2d, own: Parameters, shared: Parameters, inputs: Tensor) -> Tensor | None:
    return inputs.mean((-2, -1), keepdim=True) if module.output_size in (1, (1, 1)) and inputs.ndim == 5 else None


def _flatten_layer(module: nn.Flatten, own: Parameters, shared: Parameters, inputs: Tensor) -> Tensor | None:
    return inputs.flatten(2) if (module.start_dim, module.end_dim) == (1, -1) and inputs.ndim > 2 else None


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: _linear_layer,
    nn.Conv2d: _conv_layer,
    nn.BatchNorm2d: _batch_norm_layer,
    nn.AdaptiveAvgPool2d: _pool_layer,
    nn.Flatten: _flatten_layer,
}
