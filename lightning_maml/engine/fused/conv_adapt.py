"""The operator ``conv_adapt``: equal blocks of convolutions, compiled from C on the CPU, on a GPU in Triton."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_maml.engine.base import Problem
from lightning_maml.engine.coverage import CONV_ADAPT, MEANS
from lightning_maml.engine.fused import operator
from lightning_maml.engine.fused.operator import (
    NEEDS_COMPILER,
    Named,
    OperatorLoop,
    Recognised,
    UnrecognisedError,
    require,
)
from lightning_maml.tasks import Set

_KNOWN = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, *MEANS}


@dataclass(frozen=True, eq=False)
class Convolutional(Recognised):
    """Equal blocks of convolution, batch-norm or none, ReLU, pooling or none, and a linear layer behind them."""

    kind: dict[str, Any]
    """The kernels' ``Network``, but for the size of the images."""
    features: int
    """That the linear layer expects."""

    def network(self, images: Tensor) -> Any:
        """The ``Network`` for images ``[T, N, C, H, W]``; UnrecognisedError where they do not fit it."""
        from lightning_maml.kernels.conv_adapt import Network

        channels, shape = self.kind["channels"], list(images.shape)
        require(len(shape) == 5 and shape[2] == channels, f"the inputs {shape} are no images of {channels} channels")
        network = Network(height=images.shape[3], width=images.shape[4], **self.kind)
        height, width = network.places()
        fits = not network.flat or network.filters * height * width == self.features
        require(fits, f"its linear layer does not fit images {shape[3:]}")
        several = not network.norm or shape[1] * network.fewest_places() > 1
        require(several, "batch-norm sees a single value of a channel")
        return network


@dataclass(frozen=True)
class ConvAdapt(operator.Operator):
    """See :class:`~lightning_maml.Fused` for its argument."""

    precision: str = "ieee"
    name = "conv_adapt"
    runs = CONV_ADAPT
    only_compiled = True

    def recognise(self, problem: Problem, *sets: Set) -> Convolutional:
        from lightning_maml.kernels.conv_adapt import MOST_WAYS

        found = recognise(problem.network)
        if not sets[0][1].is_cpu:
            single = next(iter(problem.parameters.values())).dtype == torch.float32
            require(single, "on a GPU it computes in float32 alone")
            require(
                found.outputs <= MOST_WAYS, f"on a GPU it has up to {MOST_WAYS} ways, and the network {found.outputs}"
            )
        sizes = {found.network(inputs) for inputs, _ in sets}
        require(len(sizes) == 1, "images of the support and of the query set differ in size")
        return found

    def unavailable(self, like: Tensor) -> str | None:
        if not like.is_cpu:
            return operator.unavailable_on_a_gpu(self.precision)
        from lightning_maml.kernels.conv_adapt import native

        return (reason := native.unavailable(like.dtype)) and NEEDS_COMPILER.format(reason)

    def adapt(self, loop: OperatorLoop, rates: Tensor, order: int) -> Any:
        from lightning_maml.kernels.conv_adapt import conv_adapt

        network = loop.found.network(loop.batch[0])
        kind = (network, loop.loss.kind, order, rates.requires_grad, self.precision)
        return conv_adapt(loop.theta, rates.detach(), *loop.batch, *kind)

    def trajectory(self, loop: OperatorLoop, rates: Tensor) -> tuple[Tensor, Tensor]:
        from lightning_maml.kernels.conv_adapt import conv_trajectory

        kind = (loop.found.network(loop.batch[0]), loop.loss.kind, self.precision)
        return conv_trajectory(loop.theta, rates, *loop.batch, *kind)

    def predict(self, found: Convolutional, phi: Tensor, inputs: Tensor) -> Tensor | None:
        from lightning_maml.kernels.conv_adapt import predict

        if type(inputs) is not Tensor or inputs.dtype != phi.dtype or not inputs.is_cpu:
            return None
        try:
            network = found.network(inputs)
        except UnrecognisedError:  # images of another size, or a single value of a channel
            return None
        return predict(phi, inputs, network)


def recognise(network: nn.Module) -> Convolutional:
    """The blocks that a network is, by its structure and never by its name; UnrecognisedError where it is none.

    Example:
        >>> block = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()
        >>> mean = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        >>> recognise(nn.Sequential(*block, *mean, nn.Linear(8, 5))).kind["filters"]
        8
        >>> recognise(nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Linear(8, 5)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_maml...UnrecognisedError: layer '0' is no convolution of 3 x 3 with a padding of 1 and ...
    """
    from lightning_maml.kernels.conv_adapt import MOST_BLOCKS

    found, shapes = operator.known_layers(network, _KNOWN)
    kinds: list[dict[str, Any]] = []
    channels: list[int] = []
    while found and isinstance(found[0][1], nn.Conv2d):
        name, layer = found[0]
        channels.append(layer.weight.shape[1])
        fits = not kinds or channels[-1] == kinds[-1]["filters"]
        kinds.append(_block(found))
        require(fits, f"layer {name!r} has other channels than the block before it")
    require(bool(kinds), "it does not begin with a convolution")
    require(all(kind == kinds[0] for kind in kinds), f"its blocks differ: {kinds}")
    flat = _is_flat(found)
    ways, features = found[-1][1].weight.shape
    require(flat or features == kinds[0]["filters"], "its linear layer does not fit its blocks")
    require(len(kinds) <= MOST_BLOCKS, f"it has more than {MOST_BLOCKS} blocks")
    kind = {**kinds[0], "channels": channels[0], "blocks": len(kinds), "flat": flat, "ways": ways}
    return Convolutional(shapes, ways, tuple(kind.items()), kind, features)


def _block(found: Named) -> dict[str, Any]:
    """Takes a block's layers off the list."""
    name, conv = found.pop(0)
    small = conv.weight.shape[2:] == (3, 3) and conv.padding == (1, 1) and conv.stride in ((1, 1), (2, 2))
    require(small, f"layer {name!r} is no convolution of 3 x 3 with a padding of 1 and a stride of 1 or 2")
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    require(plain, f"layer {name!r} has groups, a dilation or another padding than zeros")
    kind: dict[str, Any] = {"filters": conv.weight.shape[0], "stride": conv.stride[0], "bias": conv.bias is not None}
    kind |= {"pool": False, "norm": False, "affine": False, "eps": 1e-5}
    if found and isinstance(found[0][1], nn.BatchNorm2d):
        name, norm = found.pop(0)
        own = [value.shape for value in norm.parameters()]
        require(own in ([], [conv.weight.shape[:1]] * 2), f"layer {name!r} does not fit the convolution before it")
        kind |= {"norm": True, "affine": bool(own), "eps": norm.eps}
    require(bool(found) and isinstance(found[0][1], nn.ReLU), f"no ReLU follows on layer {name!r}")
    found.pop(0)
    if found and isinstance(found[0][1], nn.MaxPool2d):
        name, pool = found.pop(0)
        sizes = [value if isinstance(value, int) else tuple(value) for value in (pool.kernel_size, pool.stride)]
        plain = all(size in (2, (2, 2)) for size in sizes) and not pool.padding and pool.dilation == 1
        require(plain and not pool.ceil_mode, f"layer {name!r} is no plain pooling of 2 x 2")
        kind["pool"] = True
    return kind


def _is_flat(found: Named) -> bool:
    """Whether the linear layer, behind the blocks, sees all places."""
    *between, (_, linear) = found or [("", None)]
    require(isinstance(linear, nn.Linear) and linear.bias is not None, "its last layer is not linear, with a bias")
    for _, layer in between:
        if isinstance(layer, nn.Flatten):
            require((layer.start_dim, layer.end_dim) == (1, -1), "it flattens something else than whole images")
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            require(layer.output_size in (1, (1, 1)), "it pools to more than one place")
    kinds = tuple(type(layer) for _, layer in between)
    means: list[tuple[type, ...]] = [(mean,) for mean in MEANS]
    means += [(mean, nn.Flatten) for mean in (nn.AdaptiveAvgPool2d, *MEANS)]
    known = kinds == (nn.Flatten,) or kinds in means
    require(known, "what stands before its last layer is neither nn.Flatten nor a mean over places")
    return kinds == (nn.Flatten,)
