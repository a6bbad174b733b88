"""The four-block convolutional network of the few-shot image experiments."""

from typing import Literal

from torch import nn

from lightning_maml.checks import check_one_of, check_whole
from lightning_maml.networks.layers import Layers, Norm, SpatialMean, make_norm


class Conv4(Layers):
    """Four blocks of 3x3 convolution, norm and ReLU, then a linear layer: ``[N, C, H, W] -> [N, ways]``.

    Two forms of Finn et al. (2017, https://arxiv.org/abs/1703.03400):

    - ``"stride"``: convolutions of stride 2, then the mean over what is left of the image (the paper's for Omniglot);
    - ``"max_pool"``: convolutions of stride 1, each followed by 2x2 max-pooling, then everything flattened.

    The last layer is named ``head``. ValueError where an argument is out of range, or four poolings leave no image.

    Args:
        ways: number of classes of a task, the outputs.
        channels: channels of the images.
        hidden: filters of each convolution.
        image_size: height and width of the images; the form ``"max_pool"`` needs it to size the linear layer.
        form: ``"stride"`` or ``"max_pool"``.
        norm: ``"batch"``, the paper's, ``"group"``, ``"layer"`` or ``"none"``, see :func:`make_norm`.

    Example:
        >>> import torch
        >>> Conv4(ways=5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])
        >>> Conv4(ways=5, channels=3, hidden=32, image_size=84, form="max_pool").head
        Linear(in_features=800, out_features=5, bias=True)
    """

    def __init__(
        self,
        ways: int,
        channels: int = 1,
        hidden: int = 64,
        image_size: int = 28,
        form: Literal["stride", "max_pool"] = "stride",
        norm: Norm = "batch",
    ) -> None:
        check_whole(1, ways=ways, channels=channels, hidden=hidden, image_size=image_size)
        check_one_of(("stride", "max_pool"), form=form)
        pooled = form == "max_pool"
        side = image_size // 2**4  # what four poolings leave
        if pooled and side == 0:
            raise ValueError(f"Expected `image_size` to be at least 16 for four poolings but got {image_size}.")
        super().__init__()
        for block, width in enumerate((channels, hidden, hidden, hidden), start=1):
            self.add_module(f"conv{block}", nn.Conv2d(width, hidden, 3, stride=1 if pooled else 2, padding=1))
            self.add_module(f"norm{block}", make_norm(norm, hidden))
            self.add_module(f"relu{block}", nn.ReLU())
            if pooled:
                self.add_module(f"pool{block}", nn.MaxPool2d(2))
        self.add_module("flatten" if pooled else "mean", nn.Flatten() if pooled else SpatialMean())
        self.head = nn.Linear(hidden * side**2 if pooled else hidden, ways)
