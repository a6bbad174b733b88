"""Training images that are mirrored and shifted at random: drawn on the CPU, applied on the images' device."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maml.checks import check_whole


class Augmentation(NamedTuple):
    """Each image mirrored or not, and shifted by up to ``crops`` pixels to each side.

    Where a shifted image ends its border goes on, as if it were cut out of one with ``crops`` more pixels around it.

    Args:
        flips: mirror half of the images, left to right.
        crops: pixels; 0 for no shift.

    Raises:
        ValueError: ``crops`` is not a whole number of at least 0, when it is first drawn.

    Example:
        >>> images = torch.arange(4.0).view(1, 1, 2, 2)
        >>> Augmentation(flips=True).apply(images, (torch.tensor([True]),)).tolist()
        [[[[1.0, 0.0], [3.0, 2.0]]]]
        >>> Augmentation(crops=1).apply(images, (torch.tensor([[0, 1]]),)).tolist()
        [[[[0.0, 1.0], [0.0, 1.0]]]]
    """

    flips: bool = False
    crops: int = 0

    def check(self) -> None:
        """Raise ValueError where an option is out of range."""
        check_whole(0, crops=self.crops)

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """For images ``[*shape]``, as far as asked for: mirrored or not ``[*shape]``, where cut out ``[*shape, 2]``."""
        flips = (torch.randint(2, shape, generator=generator).bool(),) if self.flips else ()
        crops = (torch.randint(2 * self.crops + 1, (*shape, 2), generator=generator),) if self.crops else ()
        return flips + crops

    def apply(self, images: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """The images ``[..., C, H, W]``, each by what was drawn for it."""
        if not drawn:
            return images
        height, width = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        drawn = tuple(part.to(images.device, non_blocking=True) for part in drawn)
        rows = height.expand(*images.shape[:-3], -1)
        columns = width.expand(*images.shape[:-3], -1)
        if self.crops:
            shift = drawn[-1].unsqueeze(-1) - self.crops
            rows = (rows + shift[..., 0, :]).clamp(0, len(height) - 1)
            columns = (columns + shift[..., 1, :]).clamp(0, len(width) - 1)
        if self.flips:
            columns = torch.where(drawn[0].unsqueeze(-1), columns.flip(-1), columns)
        images = images.gather(-2, rows[..., None, :, None].expand_as(images))
        return images.gather(-1, columns[..., None, None, :].expand_as(images))
