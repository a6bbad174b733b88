"""Which networks the fused operators run, perceptrons and equal blocks of convolutions: by structure, never by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from lightning_maml.inner import Parameters

if TYPE_CHECKING:
    from lightning_maml.kernels.conv_adapt import Network

__all__ = ["Convolutional", "Perceptron", "Recognised", "recognise", "recognise_convolutional"]

Named = list[tuple[str, Any]]  # modules

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.GELU: "gelu"}


@dataclass(frozen=True, eq=False)
class Recognised:
    """A network as an operator takes it: all its parameters in one row of ``P`` numbers."""

    shapes: dict[str, torch.Size]
    """Of the parameters, by name, in the order in which they lie in the row."""

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """``{name: [*shape]}`` -> ``[P]``."""
        return _flatten_dense_tensors([values[name] for name in self.shapes])  # one call for all

    def unpack(self, flat: Tensor, like: Mapping[str, Tensor]) -> list[Tensor]:
        """``[P]`` -> the parameters in turn, in the shapes of those of ``like {name: [*shape]}``, as views."""
        return _unflatten_dense_tensors(flat, [like[name] for name in self.shapes])

    def unpack_tasks(self, flat: Tensor) -> Parameters:
        """``[..., P]`` -> ``{name: [..., *shape]}``, as views."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        tasks = flat.shape[:-1]
        return {name: part.view(*tasks, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


@dataclass(frozen=True, eq=False)
class Perceptron(Recognised):
    """Linear layers with one kind of activation between them."""

    widths: list[int]
    """``[in, hidden ..., out]``."""
    activation: str

    @property
    def outputs(self) -> int:
        return self.widths[-1]


@dataclass(frozen=True, eq=False)
class Convolutional(Recognised):
    """Equal blocks of convolution, batch-norm or none, ReLU, pooling or none, and a linear layer behind them."""

    kind: dict[str, Any]
    """The :class:`Network`, but for the size of the images."""
    features: int
    """That the linear layer expects."""

    @property
    def outputs(self) -> int:
        return self.kind["ways"]

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


def recognise(network: nn.Module) -> Perceptron | str:
    """The perceptron that a network is, by its structure and never by its name; or why it is none.

    Example:
        >>> recognise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))).widths
        [3, 8, 2]
        >>> recognise(nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2)))
        "layer '1' is a Dropout, none of ['GELU', 'Linear', 'ReLU', 'Tanh']"
    """
    found = layers_of(network, {nn.Linear, *_ACTIVATIONS})
    if isinstance(found, str):
        return found
    shapes: dict[str, torch.Size] = {}
    linear: list[nn.Linear] = []
    between: list[str] = []
    for name, module in found:
        if type(module) is nn.Linear:
            if module.bias is None:
                return f"layer {name!r} has no bias"
            if len(linear) > len(between):
                between.append("identity")
            _add(name, module, shapes)
            linear.append(module)
        elif type(module) in _ACTIVATIONS and len(linear) == len(between) + 1:
            if isinstance(module, nn.GELU) and module.approximate != "none":
                return f"layer {name!r} is an approximate GELU"
            between.append(_ACTIVATIONS[type(module)])
        else:
            return f"layer {name!r} does not stand between two linear layers"
    if not linear or len(between) != len(linear) - 1:
        return "its last layer is not linear"
    if len({id(parameter) for layer in linear for parameter in layer._parameters.values()}) < 2 * len(linear):
        return "some of its parameters are tied"
    if len(set(between)) > 1:
        return f"its activations differ: {between}"
    from lightning_maml.kernels.mlp_adapt import MOST_HIDDEN, WIDEST

    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    if len(between) > MOST_HIDDEN or max(widths) > WIDEST:
        return f"its widths {widths} exceed {MOST_HIDDEN} hidden layers or {WIDEST} units"
    return Perceptron(shapes, widths, between[0] if between else "identity")


def recognise_convolutional(network: nn.Module) -> Convolutional | str:
    """The blocks that a network is, by its structure and never by its name; or why it is none.

    Example:
        >>> block = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()
        >>> mean = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        >>> recognise_convolutional(nn.Sequential(*block, *mean, nn.Linear(8, 5))).kind["filters"]
        8
        >>> recognise_convolutional(nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)))
        "layer '0' is no convolution of 3 x 3 with a padding of 1 and a stride of 1 or 2"
    """
    known = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear}
    found = layers_of(network, known, means=True)
    if isinstance(found, str):
        return found
    shapes: dict[str, torch.Size] = {}
    kinds: list[dict[str, Any]] = []
    channels = 0
    while found and isinstance(found[0][1], nn.Conv2d):
        name, layer = found[0]
        if reason := _other_convolution(layer):
            return f"layer {name!r} {reason}"
        if kinds and layer.in_channels != kinds[-1]["filters"]:
            return f"layer {name!r} has other channels than the block before it"
        channels = channels or layer.in_channels
        kind = _block(found, shapes)
        if isinstance(kind, str):
            return kind
        kinds.append(kind)
    if not kinds:
        return "it does not begin with a convolution"
    if any(kind != kinds[0] for kind in kinds):
        return f"its blocks differ: {kinds}"
    flat = _head(found, shapes)
    if isinstance(flat, str):
        return flat
    linear: Any = found[-1][1]
    if not flat and linear.in_features != kinds[0]["filters"]:
        return "its linear layer does not fit its blocks"
    if len({id(dict(network.named_parameters(remove_duplicate=False))[name]) for name in shapes}) < len(shapes):
        return "some of its parameters are tied"
    from lightning_maml.kernels.conv_adapt import MOST_BLOCKS

    if len(kinds) > MOST_BLOCKS:
        return f"it has more than {MOST_BLOCKS} blocks"
    kind = {**kinds[0], "channels": channels, "blocks": len(kinds), "flat": flat, "ways": linear.out_features}
    return Convolutional(shapes, kind, linear.in_features)


def layers_of(module: nn.Module, known: set[type[nn.Module]], name: str = "", means: bool = False) -> Named | str:
    """The layers of nested ``nn.Sequential`` with their names, but for identities; or why it is made of others.

    With ``means``, classes that declare themselves ``spatial_mean`` are known too.
    """
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"layer {name!r} has hooks"
    if type(module).forward is nn.Sequential.forward:
        found: Named = []
        for child, layer in module._modules.items():
            assert layer is not None
            inside = layers_of(layer, known, f"{name}.{child}".lstrip("."), means)
            if isinstance(inside, str):
                return inside
            found += inside
        return found
    if type(module) in known or (means and _is_mean(module)):
        return [(name, module)]
    if type(module) is nn.Identity:
        return []
    return f"layer {name!r} is a {type(module).__name__}, none of {sorted(kind.__name__ for kind in known)}"


def _other_convolution(layer: nn.Conv2d) -> str | None:
    plain = layer.kernel_size == (3, 3) and layer.padding == (1, 1) and layer.stride in ((1, 1), (2, 2))
    if not plain:
        return "is no convolution of 3 x 3 with a padding of 1 and a stride of 1 or 2"
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        return "has groups, a dilation or another padding than zeros"
    return None


def _block(found: Named, shapes: dict[str, torch.Size]) -> dict[str, Any] | str:
    """Takes a block's layers off the list, and adds its parameters."""
    name, conv = found.pop(0)
    _add(name, conv, shapes)
    kind: dict[str, Any] = {"filters": conv.out_channels, "stride": conv.stride[0], "bias": conv.bias is not None}
    kind |= {"pool": False, "norm": False, "affine": False, "eps": 1e-5}
    if found and isinstance(found[0][1], nn.BatchNorm2d):
        name, norm = found.pop(0)
        if norm.num_features != conv.out_channels:
            return f"layer {name!r} does not fit the convolution before it"
        _add(name, norm, shapes)
        kind |= {"norm": True, "affine": norm.affine, "eps": norm.eps}
    if not found or not isinstance(found[0][1], nn.ReLU):
        return f"no ReLU follows on layer {name!r}"
    found.pop(0)
    if found and isinstance(found[0][1], nn.MaxPool2d):
        name, pool = found.pop(0)
        sizes = [value if isinstance(value, int) else tuple(value) for value in (pool.kernel_size, pool.stride)]
        if any(size not in (2, (2, 2)) for size in sizes) or pool.padding or pool.dilation != 1 or pool.ceil_mode:
            return f"layer {name!r} is no plain pooling of 2 x 2"
        kind["pool"] = True
    return kind


def _head(found: Named, shapes: dict[str, torch.Size]) -> bool | str:
    """Whether the linear layer sees all places; adds its parameters."""
    *between, (name, linear) = found or [("", nn.Identity())]
    if not isinstance(linear, nn.Linear) or linear.bias is None:
        return "its last layer is not linear, with a bias"
    kinds = [_Mean if _is_mean(layer) else type(layer) for _, layer in between]
    for _, layer in between:
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            return "it flattens something else than whole images"
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)):
            return "it pools to more than one place"
    means = ([_Mean], [_Mean, nn.Flatten], [nn.AdaptiveAvgPool2d, nn.Flatten])
    if kinds != [nn.Flatten] and kinds not in means:
        return "what stands before its last layer is neither nn.Flatten nor a mean over places"
    _add(name, linear, shapes)
    return kinds == [nn.Flatten]


class _Mean:
    """Stands for any class that declares itself a mean over places."""


def _is_mean(module: nn.Module) -> bool:
    # by the class itself: one derived from it may compute something else
    return bool(vars(type(module)).get("spatial_mean", False))


def _add(name: str, layer: nn.Module, shapes: dict[str, torch.Size]) -> None:
    shapes.update(
        {f"{name}.{key}".lstrip("."): value.shape for key, value in layer._parameters.items() if value is not None}
    )
