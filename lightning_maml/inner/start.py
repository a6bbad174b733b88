"""Where a task starts from, the meta-parameters or what is made of them, and what pulls its steps back to these."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_maml.inner.adapts import head_names
from lightning_maml.inner.base import Parameters, norms

Predict = Callable[[Parameters], Tensor]

Start = Callable[[Parameters, Predict, Tensor], Parameters]
"""Where each task starts, differentiably, ``(theta, predict, support_targets) -> phi_0``: from the meta-parameters that
adapt ``{name: [T, *shape]}``, the networks on the support rows under any parameters, and targets ``[T, Ns, ...]``."""


@dataclass(frozen=True)
class FromMeta:
    """The meta-parameters themselves."""

    stays: ClassVar[bool] = True

    def __call__(self, theta: Parameters, predict: Predict, support_targets: Tensor) -> Parameters:
        return theta


@dataclass(frozen=True)
class Zeros:
    """Zeros for all that adapts, as for CAVIA's context parameters: nothing of them is meta-learned."""

    def __call__(self, theta: Parameters, predict: Predict, support_targets: Tensor) -> Parameters:
        return {name: torch.zeros_like(value) for name, value in theta.items()}


@dataclass(frozen=True)
class Prototypes:
    r"""The classifier of a prototypical network as each task's head (Triantafillou et al. 2020, equation 5).

    .. math:: W_c = 2 c_c, \quad b_c = -\lVert c_c \rVert^2, \quad c_c = \text{mean of the features of class } c

    The features are what reaches the head, an ``nn.Linear`` with a bias and the network's last operation: the support
    rows run through it with the identity as weight. The head's own meta-parameters are not used. A class without a
    support row takes no part in the task: its bias is so low that the softmax leaves it out, as in the authors' code.
    ``head`` is a regular expression for weight and bias; None for the last module that has parameters. ValueError where
    these are no weight matrix and bias that both adapt, or the targets no class labels.
    """

    head: str | None = None

    def __call__(self, theta: Parameters, predict: Predict, support_targets: Tensor) -> Parameters:
        if support_targets.is_floating_point() or support_targets.ndim != 2:
            got = f"targets of shape {list(support_targets.shape)} and {support_targets.dtype}"
            raise ValueError(f"Expected class labels [tasks, rows] to make prototypes of but got {got}.")
        names = sorted(head_names(theta, self.head), key=lambda name: name.rpartition(".")[2])
        if [name.rpartition(".")[2] for name in names] != ["bias", "weight"]:
            raise ValueError(
                f"Expected a linear head with a weight and a bias to put prototypes into but got {names}: name it by "
                "`head`, a regular expression."
            )
        bias, weight = names
        like = theta[weight]
        tasks, classes, features = like.shape
        identity = torch.eye(features, dtype=like.dtype, device=like.device).expand(tasks, features, features)
        rows = predict({**theta, weight: identity, bias: like.new_zeros(tasks, features)})  # [T, Ns, features]
        members = F.one_hot(support_targets, classes).to(rows.dtype)  # [T, Ns, classes]
        counts = members.sum(1)
        means = members.mT @ rows / counts.clamp(min=1).unsqueeze(-1)
        # finite, and far from overflowing: weight decay or momentum must not make NaN of it
        absent = torch.finfo(rows.dtype).min / 4
        return {**theta, weight: 2 * means, bias: torch.where(counts > 0, -means.square().sum(-1), absent)}


@dataclass(frozen=True)
class OneHead:
    """The head's first output for each of its outputs (Ye, Chao 2022): no order of the classes is better than another.

    Differentiably: the meta-gradients of all outputs, added up, are that of the first. Those of the others are zero.

    Args:
        head: a regular expression for the head's parameters; None for the last module that has parameters.
    """

    head: str | None = None

    def __call__(self, theta: Parameters, predict: Predict, support_targets: Tensor) -> Parameters:
        head = {name: theta[name] for name in head_names(theta, self.head)}
        return {**theta, **{name: value[:, :1].expand_as(value) for name, value in head.items()}}


@dataclass(frozen=True)
class Nothing:
    """Nothing pulls the parameters back."""

    def __call__(self, gradients: Parameters, phi: Parameters, origin: Parameters) -> Parameters:
        return gradients

    def height(self, phi: Parameters, origin: Parameters) -> float:
        return 0.0


@dataclass(frozen=True)
class Proximal:
    r"""The gradient of :math:`\tfrac\lambda2 |\phi - \theta|^2`, added to that of the loss (Rajeswaran et al. 2019)."""

    strength: float | Tensor

    def __call__(self, gradients: Parameters, phi: Parameters, origin: Parameters) -> Parameters:
        return {name: g + self.strength * (phi[name] - origin[name]) for name, g in gradients.items()}

    def height(self, phi: Parameters, origin: Parameters) -> Tensor:
        """What it adds to the losses, ``[T]``: what its gradient is of."""
        return self.strength / 2 * norms({name: value - origin[name] for name, value in phi.items()}).square()
