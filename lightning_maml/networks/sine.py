"""The activation of networks that represent signals."""

import torch
from torch import Tensor, nn

from lightning_maml.checks import check_positive


class Sine(nn.Module):
    r"""The activation :math:`\sin(\omega x)` of SIREN, Sitzmann et al. (2020, https://arxiv.org/abs/2006.09661).

    It takes and gives numbers of any shape. The paper has :math:`\omega = 30` behind each linear layer, and draws the
    weights of all but the first from a uniform distribution within :math:`\sqrt{6 / n} / \omega`, n numbers in.

    Args:
        frequency: :math:`\omega`.

    Raises:
        ValueError: the frequency is not positive and finite.

    Example:
        >>> Sine(frequency=2.0)(torch.tensor([0.0, torch.pi / 4])).tolist()
        [0.0, 1.0]
    """

    def __init__(self, frequency: float = 30.0) -> None:
        check_positive(frequency=frequency)
        super().__init__()
        self.frequency = float(frequency)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sin(self.frequency * inputs)

    def extra_repr(self) -> str:
        return f"frequency={self.frequency}"
