"""Where a task starts from, if not from the meta-parameters themselves: see :data:`lightning_maml.inner.Start`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.inner import Parameters, head_names

__all__ = ["Prototypes", "Zeros"]


@dataclass(frozen=True)
class Zeros:
    """Zeros for all that adapts, as for CAVIA's context parameters: nothing of them is meta-learned."""

    def __call__(
        self, theta: Parameters, predict: Callable[[Parameters], Tensor], support_targets: Tensor
    ) -> Parameters:
        return {name: torch.zeros_like(value) for name, value in theta.items()}


@dataclass(frozen=True)
class Prototypes:
    r"""The classifier of a prototypical network as each task's head (Triantafillou et al. 2020, equation 5).

    .. math:: W_c = 2 c_c, \quad b_c = -\lVert c_c \rVert^2, \quad c_c = \text{mean of the features of class } c

    The features are what reaches the head, an ``nn.Linear`` with a bias, which has to be the network's last operation:
    they are read off by running the support rows through it with the identity as weight. The head's own
    meta-parameters are not used.

    Args:
        head: a regular expression for the head's weight and bias; None for the last module that has parameters.

    Raises:
        ValueError: the head is no weight matrix and bias that both adapt, or the targets are no class labels.
    """

    head: str | None = None

    def __call__(
        self, theta: Parameters, predict: Callable[[Parameters], Tensor], support_targets: Tensor
    ) -> Parameters:
        if support_targets.is_floating_point() or support_targets.ndim != 2:
            raise ValueError(
                "Expected class labels [tasks, rows] to make prototypes of but got targets of shape "
                f"{list(support_targets.shape)} and {support_targets.dtype}."
            )
        names = head_names(theta, self.head)
        kinds = sorted(name.rpartition(".")[2] for name in names)
        if kinds != ["bias", "weight"]:
            raise ValueError(
                f"Expected a linear head with a weight and a bias to put prototypes into but got {names}: name it by "
                "`head`, a regular expression."
            )
        bias, weight = sorted(names, key=lambda name: name.rpartition(".")[2])
        *tasks, classes, features = theta[weight].shape
        like = theta[weight]
        identity = torch.eye(features, dtype=like.dtype, device=like.device).expand(*tasks, features, features)
        rows = predict({**theta, weight: identity, bias: like.new_zeros(*tasks, features)})  # [T, Ns, features]
        members = F.one_hot(support_targets, classes).to(rows.dtype)  # [T, Ns, classes]
        counts = members.sum(1).clamp(min=1).unsqueeze(-1)
        means = members.mT @ rows / counts
        return {
            **theta,
            weight: (2 * means).reshape(theta[weight].shape),
            bias: -means.square().sum(-1).reshape(theta[bias].shape),
        }
