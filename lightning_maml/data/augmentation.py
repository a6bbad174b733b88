"""Training images mirrored, shifted and tinged at random: drawn on the CPU, applied on the images' device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maml.checks import check_whole


@dataclass(frozen=True)
class Augmentation:
    """Each image mirrored or not, shifted by up to ``crops`` pixels to each side, and changed in its colours.

    Where a shifted image ends its border goes on, as if it were cut out of one with ``crops`` more pixels around it.

    Args:
        flips: mirror half of the images, left to right.
        crops: pixels; 0 for no shift.
        jitter: brightness, contrast and saturation change by factors from ``1 - jitter`` to ``1 + jitter``, in this
            order, as torchvision's ``adjust_brightness`` and the like change them; 0 for none. Images are in [0, 1], in
            colour or grey.

    ValueError where one is out of range.

    Example:
        >>> images = torch.arange(4.0).view(1, 1, 2, 2)
        >>> Augmentation(flips=True).apply(images, (torch.tensor([True]),)).tolist()
        [[[[1.0, 0.0], [3.0, 2.0]]]]
        >>> Augmentation(crops=1).apply(images, (torch.tensor([[0, 1]]),)).tolist()
        [[[[0.0, 1.0], [0.0, 1.0]]]]
    """

    flips: bool = False
    crops: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_whole(0, crops=self.crops)
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"Expected `jitter` to be from 0 to 1 but got {self.jitter!r}.")

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """For images ``[*shape]``, as far as asked for.

        Mirrored or not ``[*shape]``, where cut out ``[*shape, 2]``, and factors of brightness, contrast and saturation
        ``[*shape, 3]``.
        """
        flips = (torch.randint(2, shape, generator=generator).bool(),) if self.flips else ()
        crops = (torch.randint(2 * self.crops + 1, (*shape, 2), generator=generator),) if self.crops else ()
        uniform = (torch.rand(*shape, 3, generator=generator),) if self.jitter else ()
        return flips + crops + tuple(1 + self.jitter * (2 * part - 1) for part in uniform)

    def apply(self, images: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """The images ``[..., C, H, W]``, each by what was drawn for it."""
        if not drawn:
            return images
        height, width = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        parts = iter([part.to(images.device, non_blocking=True) for part in drawn])
        flips = next(parts) if self.flips else None
        rows = height.expand(*images.shape[:-3], -1)
        columns = width.expand(*images.shape[:-3], -1)
        if self.crops:
            shift = next(parts).unsqueeze(-1) - self.crops
            rows = (rows + shift[..., 0, :]).clamp(0, len(height) - 1)
            columns = (columns + shift[..., 1, :]).clamp(0, len(width) - 1)
        if flips is not None:
            columns = torch.where(flips.unsqueeze(-1), columns.flip(-1), columns)
        if self.crops:
            images = images.gather(-2, rows[..., None, :, None].expand_as(images))
        if self.crops or self.flips:
            images = images.gather(-1, columns[..., None, None, :].expand_as(images))
        return _jittered(images, next(parts)) if self.jitter else images


def _jittered(images: Tensor, factors: Tensor) -> Tensor:
    """Images ``[..., C, H, W]`` by factors ``[..., 3]`` of their brightness, contrast and saturation."""
    brightness, contrast, saturation = factors.to(images.dtype)[..., None, None, None].unbind(-4)
    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(_grey(images).mean((-3, -2, -1), keepdim=True), images, contrast).clamp(0, 1)
    return torch.lerp(_grey(images), images, saturation).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """The brightness ``[..., 1, H, W]`` of images ``[..., 1 or 3, H, W]``."""
    if images.shape[-3] == 1:
        return images
    weights = torch.tensor([0.2989, 0.587, 0.114], dtype=images.dtype)
    return (images * weights.to(images.device, non_blocking=True)[:, None, None]).sum(-3, keepdim=True)
