"""The operator ``conv_adapt``: equal blocks of convolutions, compiled from C on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_maml.coverage import CONV_ADAPT, MEANS, Runs
from lightning_maml.engine.base import Problem
from lightning_maml.engine.fused.operator import (
    Named,
    Operator,
    Recognised,
    UnrecognisedError,
    layers_of,
    needs_compiler,
    other_labels,
    shapes_of,
)
from lightning_maml.tasks import Set

if TYPE_CHECKING:
    from lightning_maml.kernels.conv_adapt import Network

_KNOWN = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, *MEANS}


@dataclass(frozen=True, eq=False)
class Convolutional(Recognised):
    """Equal blocks of convolution, batch-norm or none, ReLU, pooling or none, and a linear layer behind them."""

    kind: dict[str, Any]
    """The :class:`Network`, but for the size of the images."""
    features: int
    """That the linear layer expects."""

    def network(self, images: Tensor) -> Network:
        """For images ``[T, N, C, H, W]``.

        Raises:
            ValueError: they do not fit the network.
        """
        from lightning_maml.kernels.conv_adapt import Network

        if images.ndim != 5 or images.shape[2] != self.kind["channels"]:
            raise ValueError(f"the inputs {list(images.shape)} are no images of {self.kind['channels']} channels")
        network = Network(height=images.shape[3], width=images.shape[4], **self.kind)
        height, width = network.places()
        if network.flat and self.kind["filters"] * height * width != self.features:
            raise ValueError(f"its linear layer does not fit images {list(images.shape[3:])}")
        if network.norm and images.shape[1] * network.fewest_places() < 2:
            raise ValueError("batch-norm sees a single value of a channel")
        return network


@dataclass(frozen=True)
class ConvAdapt(Operator):
    """Compiled by the machine's C compiler."""

    name = "conv_adapt"

    @property
    def runs(self) -> Runs:
        return CONV_ADAPT

    def recognise(self, network: nn.Module) -> Convolutional:
        return recognise(network)

    def refuse(self, found: Convolutional, problem: Problem, *sets: Set) -> str | None:
        if found.kind["norm"] and problem.algorithm.batch_norm != "batch":
            return f"batch_norm is {problem.algorithm.batch_norm!r}"
        for _, targets in sets:
            if (reason := other_labels(problem, targets)) is not None:
                return reason
        try:
            sizes = {found.network(inputs) for inputs, _ in sets}
        except ValueError as error:
            return str(error)
        return "images of the support and of the query set differ in size" if len(sizes) > 1 else None

    def unavailable(self, like: Tensor) -> str | None:
        from lightning_maml.kernels.conv_adapt import native

        return needs_compiler(native.unavailable(like.dtype))

    def adapt(
        self, found: Convolutional, theta: Tensor, rates: Tensor, sets: Sequence[Set], loss: str, order: int
    ) -> Any:
        from lightning_maml.kernels.conv_adapt import conv_adapt

        batch, network = [value for pair in sets for value in pair], found.network(sets[0][0])
        return conv_adapt(theta, rates.detach(), *batch, network, loss, order, rates.requires_grad)

    def trajectory(
        self, found: Convolutional, theta: Tensor, rates: Tensor, support: Set, loss: str
    ) -> tuple[Tensor, Tensor]:
        from lightning_maml.kernels.conv_adapt import conv_trajectory

        return conv_trajectory(theta, rates, *support, found.network(support[0]), loss)


def recognise(network: nn.Module) -> Convolutional:
    """The blocks that a network is, by its structure and never by its name.

    Raises:
        UnrecognisedError: it is none.

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
    found = layers_of(network, _KNOWN)
    shapes: dict[str, torch.Size] = {}
    kinds: list[dict[str, Any]] = []
    channels = 0
    while found and isinstance(found[0][1], nn.Conv2d):
        name, layer = found[0]
        if reason := _other_convolution(layer):
            raise UnrecognisedError(f"layer {name!r} {reason}")
        if kinds and layer.weight.shape[1] != kinds[-1]["filters"]:
            raise UnrecognisedError(f"layer {name!r} has other channels than the block before it")
        channels = channels or layer.weight.shape[1]
        kinds.append(_block(found, shapes))
    if not kinds:
        raise UnrecognisedError("it does not begin with a convolution")
    if any(kind != kinds[0] for kind in kinds):
        raise UnrecognisedError(f"its blocks differ: {kinds}")
    flat = _head(found, shapes)
    ways, features = found[-1][1].weight.shape
    if not flat and features != kinds[0]["filters"]:
        raise UnrecognisedError("its linear layer does not fit its blocks")
    if len({id(dict(network.named_parameters(remove_duplicate=False))[name]) for name in shapes}) < len(shapes):
        raise UnrecognisedError("some of its parameters are tied")
    from lightning_maml.kernels.conv_adapt import MOST_BLOCKS

    if len(kinds) > MOST_BLOCKS:
        raise UnrecognisedError(f"it has more than {MOST_BLOCKS} blocks")
    kind = {**kinds[0], "channels": channels, "blocks": len(kinds), "flat": flat, "ways": ways}
    return Convolutional(shapes, ways, kind, features)


def _other_convolution(layer: nn.Conv2d) -> str | None:
    plain = layer.weight.shape[2:] == (3, 3) and layer.padding == (1, 1) and layer.stride in ((1, 1), (2, 2))
    if not plain:
        return "is no convolution of 3 x 3 with a padding of 1 and a stride of 1 or 2"
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        return "has groups, a dilation or another padding than zeros"
    return None


def _block(found: Named, shapes: dict[str, torch.Size]) -> dict[str, Any]:
    """Takes a block's layers off the list, and adds its parameters."""
    name, conv = found.pop(0)
    shapes |= shapes_of(name, conv)
    kind: dict[str, Any] = {"filters": conv.weight.shape[0], "stride": conv.stride[0], "bias": conv.bias is not None}
    kind |= {"pool": False, "norm": False, "affine": False, "eps": 1e-5}
    if found and isinstance(found[0][1], nn.BatchNorm2d):
        name, norm = found.pop(0)
        own = shapes_of(name, norm)
        if any(shape != conv.weight.shape[:1] for shape in own.values()) or len(own) not in (0, 2):
            raise UnrecognisedError(f"layer {name!r} does not fit the convolution before it")
        shapes |= own
        kind |= {"norm": True, "affine": bool(own), "eps": norm.eps}
    if not found or not isinstance(found[0][1], nn.ReLU):
        raise UnrecognisedError(f"no ReLU follows on layer {name!r}")
    found.pop(0)
    if found and isinstance(found[0][1], nn.MaxPool2d):
        name, pool = found.pop(0)
        sizes = [value if isinstance(value, int) else tuple(value) for value in (pool.kernel_size, pool.stride)]
        if any(size not in (2, (2, 2)) for size in sizes) or pool.padding or pool.dilation != 1 or pool.ceil_mode:
            raise UnrecognisedError(f"layer {name!r} is no plain pooling of 2 x 2")
        kind["pool"] = True
    return kind


def _head(found: Named, shapes: dict[str, torch.Size]) -> bool:
    """Whether the linear layer sees all places; adds its parameters."""
    *between, (name, linear) = found or [("", nn.Identity())]
    if not isinstance(linear, nn.Linear) or linear.bias is None:
        raise UnrecognisedError("its last layer is not linear, with a bias")
    kinds = [type(layer) for _, layer in between]
    for _, layer in between:
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            raise UnrecognisedError("it flattens something else than whole images")
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)):
            raise UnrecognisedError("it pools to more than one place")
    means = [nn.AdaptiveAvgPool2d, nn.Flatten], *([mean] for mean in MEANS), *([mean, nn.Flatten] for mean in MEANS)
    if kinds != [nn.Flatten] and kinds not in means:
        raise UnrecognisedError("what stands before its last layer is neither nn.Flatten nor a mean over places")
    shapes |= shapes_of(name, linear)
    return kinds == [nn.Flatten]
