"""The fully connected network of the sinusoid experiment."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from lightning_maml.checks import check_one_of, check_whole, check_wholes
from lightning_maml.networks.layers import Layers

ACTIVATIONS = {"elu": nn.ELU, "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLP(Layers):
    """Linear layers with an activation between them: ``[N, in_features] -> [N, out_features]``.

    The sinusoid network of Finn et al. (2017, https://arxiv.org/abs/1703.03400) is ``MLP(1, [40, 40], 1)``. It is an
    ``nn.Sequential`` of ``nn.Linear`` and activations alone; the last layer is named ``head``. ValueError where an
    argument is out of range.

    Args:
        in_features: size of an input row.
        hidden: width of each hidden layer; an empty sequence makes a linear model.
        out_features: size of an output row.
        activation: ``"relu"``, ``"tanh"``, ``"elu"``, ``"gelu"`` or ``"silu"``.
        init: ``"paper"`` draws the weights as the paper's code does, from a normal of deviation 0.01 truncated at two
            deviations, with zero biases: gradients are so tiny at first that a few hundred iterations bring little.
            ``"default"``, that of ``nn.Linear``, starts at once and suits networks of more than three layers.

    Example:
        >>> sum(parameter.numel() for parameter in MLP(1, [40, 40], 1).parameters())
        1761
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: str = "relu",
        init: Literal["paper", "default"] = "paper",
    ) -> None:
        check_whole(1, in_features=in_features, out_features=out_features)
        check_wholes(1, hidden=hidden)
        check_one_of(list(ACTIVATIONS), activation=activation)
        check_one_of(("paper", "default"), init=init)
        super().__init__()
        widths = [in_features, *hidden]
        for number, (width, following) in enumerate(pairwise(widths), start=1):
            self.add_module(f"linear{number}", nn.Linear(width, following))
            self.add_module(f"{activation}{number}", ACTIVATIONS[activation]())
        self.head = nn.Linear(widths[-1], out_features)
        if init == "paper":
            for layer in self.children():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
                    nn.init.zeros_(layer.bias)
