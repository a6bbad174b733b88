"""The form of a convolutional network, and where its parameters lie in a flat row of ``P`` numbers."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache, lru_cache
from math import prod

import torch
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation

MOST_BLOCKS = 8


@dataclass(frozen=True)
class Network:
    """Equal blocks, 3x3 convolution (padding 1), batch-norm, ReLU, 2x2 max-pooling, and a linear layer behind them.

    Args:
        channels, height, width: of the images.
        filters, stride: of each convolution; the stride is 1 or 2.
        blocks: how many blocks there are, up to 8.
        pool, norm: whether blocks have max-pooling, and batch-norm by the statistics of the batch.
        bias: whether convolutions have one; a batch-norm behind them takes it away again.
        affine, eps: whether batch-norm has a weight and a bias; and what it adds to the variance.
        flat: whether the linear layer sees all places of the last block's output, or their mean.
        ways: outputs of the linear layer.

    ValueError where a size is not positive, a number out of range, or pooling leaves nothing of the images.
    """

    channels: int
    height: int
    width: int
    filters: int
    blocks: int
    stride: int
    pool: bool
    norm: bool
    bias: bool
    affine: bool
    flat: bool
    ways: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width", "filters", "blocks", "ways"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` to be positive but got {getattr(self, name)}.")
        if self.blocks > MOST_BLOCKS:
            raise ValueError(f"Expected up to {MOST_BLOCKS} blocks but got {self.blocks}.")
        if self.stride not in (1, 2):
            raise ValueError(f"Expected `stride` to be 1 or 2 but got {self.stride}.")
        if not self.norm and self.affine:
            raise ValueError("Expected `affine` for networks with batch-norm alone.")
        if not all(self.places()):
            raise ValueError(f"Expected images that {self.blocks} poolings leave something of but got {self}.")

    def places(self, blocks: int | None = None) -> tuple[int, int]:
        """Height and width of what so many blocks leave; None for all."""
        size = self.height, self.width
        for _ in range(self.blocks if blocks is None else blocks):
            size = tuple(((side - 1) // self.stride + 1) // (2 if self.pool else 1) for side in size)  # type: ignore[assignment]
        return size

    def fewest_places(self) -> int:
        """How many places of an image the smallest output of a convolution has."""
        return min(prod((side - 1) // self.stride + 1 for side in self.places(block)) for block in range(self.blocks))

    def most_numbers(self, images: int) -> int:
        """How many numbers the largest array of a layer has, for so many images."""
        sides = [[(side - 1) // self.stride + 2 for side in self.places(block)] for block in range(self.blocks)]
        return images * max(self.channels * self.height * self.width, self.filters * max(map(prod, sides)))

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the parameters in turn: each block's convolution and batch-norm, then the linear layer's."""
        found: list[tuple[int, ...]] = []
        for block in range(self.blocks):
            found.append((self.filters, self.filters if block else self.channels, 3, 3))
            found += [(self.filters,)] * (self.bias + 2 * self.affine)
        return [*found, (self.ways, self.filters * (prod(self.places()) if self.flat else 1)), (self.ways,)]

    @property
    def size(self) -> int:
        """The number of parameters, ``P``."""
        return sum(prod(shape) for shape in self.shapes())

    def plain(self) -> list[int]:
        """All but ``eps``, as the whole numbers that an operator takes."""
        return [int(value) for value in astuple(self)[:-1]]


def parameters_of(flat: Tensor, network: Network) -> list[Tensor]:
    """The parameters ``[..., *shape]`` in turn, as views of ``flat [..., P]``."""
    shapes = network.shapes()
    parts = flat.split([prod(shape) for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


@lru_cache
def places_of(network: Network, block: int) -> tuple[Tensor, Tensor]:
    """The places that ``native.c`` takes its numbers from, in ``[*flat, 0, 1]``; and those of ``flat`` in its row.

    Its row has of each block the weights ``[filters / block, 9, in, block]``, then gamma and beta, and of the linear
    layer ``[ways, places, filters]``; zeros fill ``filters`` up to a multiple of ``block``. A bias that batch-norm
    takes away is not in it: its gradient is the 0 that stands behind the row that comes back.
    """
    zero, one = network.size, network.size + 1
    numbers = iter(parameters_of(torch.arange(network.size), network))
    width = -(-network.filters // block) * block

    def filled(values: Tensor, to: int) -> Tensor:
        return torch.cat([values, values.new_full((to - len(values), *values.shape[1:]), zero)])

    parts = []
    for _ in range(network.blocks):
        weight = filled(next(numbers).flatten(2), width)  # [out, in, 9]
        parts.append(weight.unflatten(0, (-1, block)).permute(0, 3, 2, 1))
        bias = next(numbers) if network.bias else torch.full((network.filters,), zero)
        gamma, beta = torch.full((network.filters,), one), torch.full((network.filters,), zero)
        if network.affine:
            gamma, beta = next(numbers), next(numbers)
        parts += [filled(gamma, width), filled(beta if network.norm else bias, width)]
    head = next(numbers).unflatten(1, (network.filters, -1)).permute(1, 2, 0)  # [filters, places, ways]
    parts += [filled(head, width).permute(2, 1, 0), next(numbers)]
    there = torch.cat([part.flatten() for part in parts])
    back = torch.full((network.size + 2,), len(there))
    back[there] = torch.arange(len(there))
    return there, back[: network.size]


@cache  # for good: a CUDA graph reads it where it lies
def _places_on(network: Network, block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        there, back = places_of(network, block)
        return there.to(device), back.to(device)


def in_row(theta: Tensor, network: Network, block: int) -> Tensor:
    """Parameters ``[..., P]`` as :func:`places_of` orders them."""
    there, _ = _places_on(network, block, theta.device)
    return _behind(theta, 0, 1)[..., there]


def in_rows(theta: Tensor, rates: Tensor, network: Network, block: int) -> tuple[Tensor, Tensor]:
    """``theta`` and ``rates`` as :func:`places_of` orders numbers.

    What a kernel has weights for and the network has not stays as it is, by a rate of 0.
    """
    if rates.shape[1] > 1 or not _has_all(network):
        there, _ = _places_on(network, block, theta.device)
        rates = _behind(rates.expand(len(rates), network.size), 0, 0)[:, there]
    return in_row(theta, network, block), rates


def in_torchs_order(result: Adaptation, theta: Tensor, rates: Tensor, network: Network, block: int) -> Adaptation:
    """What a kernel gives for the ``theta`` and ``rates`` of :func:`in_rows`, as torch has parameters."""
    there, back = _places_on(network, block, theta.device)
    of_theta, of_rates, trajectory = result[3:]
    if of_theta.numel():
        of_theta = _behind(of_theta, 0)[back]
    if of_rates.ndim > 1 and not (rates.shape[1] == 1 and _has_all(network)):
        of_rates = _behind(of_rates, 0)[:, back]
        of_rates = of_rates.sum(1, keepdim=True) if rates.shape[1] == 1 else of_rates
    if trajectory.ndim > 1:
        stays = back == len(there)  # the biases that batch-norm takes away
        trajectory = torch.where(stays, theta, _behind(trajectory, 0)[..., back])
    return result._replace(of_theta=of_theta, of_rates=of_rates, trajectory=trajectory)


def _has_all(network: Network) -> bool:
    """Whether the network has a weight and a bias behind each convolution, as a kernel has."""
    return network.affine if network.norm else network.bias


def _behind(values: Tensor, *numbers: int) -> Tensor:
    """The ``values [..., n]`` with these numbers behind each row."""
    behind = [values.new_full((*values.shape[:-1], 1), number) for number in numbers]
    return torch.cat([values, *behind], -1)
