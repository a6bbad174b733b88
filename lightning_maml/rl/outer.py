"""What the outer loop does with the rollouts after adaptation."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lightning_maml.checks import check_not_negative, check_positive, check_whole
from lightning_maml.rl.estimators import lvc, mean_loss


class Outer(Protocol):
    """An outer objective; log-probabilities are those of the adapted policies."""

    @property
    def epochs(self) -> int:
        """How many outer steps are taken with the same rollouts."""

    def loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """The loss of each task, ``[T, N, H]`` to ``[T]``: its mean over the tasks is descended."""


@dataclass(frozen=True)
class PPO:
    r"""Proximal policy optimisation: several steps of any optimiser on the clipped surrogate.
    Schulman, Wolski, Dhariwal, Radford, Klimov, "Proximal Policy Optimization Algorithms", 2017, equation 7.

    .. math:: -\tfrac1H \sum_t \min\big(r_t A_t, \operatorname{clip}(r_t, 1 - \epsilon, 1 + \epsilon) A_t\big),
              \quad r_t = \pi_\phi(a_t|s_t) / \pi_{old}(a_t|s_t)

    Args:
        clip: epsilon.
        epochs: outer steps with the same rollouts; each adapts anew from the meta-parameters it starts at.

    ValueError where an argument is out of range.
    """

    clip: float = 0.2
    epochs: int = 5

    def __post_init__(self) -> None:
        check_positive(clip=self.clip)
        check_whole(1, epochs=self.epochs)

    def loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        ratios = (log_probs - old_log_probs).exp()
        clipped = ratios.clamp(1 - self.clip, 1 + self.clip)
        return mean_loss(torch.minimum(ratios * advantages, clipped * advantages), mask)


@dataclass(frozen=True)
class TRPO:
    r"""Trust region policy optimisation: one natural-gradient step, as long as the mean divergence allows.
    Schulman, Levine, Moritz, Jordan, Abbeel, "Trust Region Policy Optimization", ICML 2015.

    The direction solves :math:`(F + \text{damping}) x = -g` by conjugate gradients, ``F`` the Hessian of the mean
    :math:`KL(\pi_{old} \| \pi_\phi)` of the policies *after* adaptation; its length is
    :math:`\sqrt{2 \, \text{max\_kl} / x^T F x}`, shortened until the loss falls and the divergence is at most
    ``max_kl``. A step that no shortening makes good is not taken.

    Args:
        max_kl: the largest mean divergence of a step.
        cg_steps: conjugate gradient iterations.
        damping: added to the diagonal.
        backtracks, shrink: how often a step is shortened at most, and by what factor.

    ValueError where an argument is out of range.
    """

    epochs: ClassVar[int] = 1  # where the line search ends, at the trust region's border, old rollouts serve no more
    max_kl: float = 0.01
    cg_steps: int = 10
    damping: float = 1e-5
    backtracks: int = 15
    shrink: float = 0.8

    def __post_init__(self) -> None:
        check_whole(1, cg_steps=self.cg_steps, backtracks=self.backtracks)
        check_positive(max_kl=self.max_kl)
        check_not_negative(damping=self.damping)
        if not 0 < self.shrink < 1:
            raise ValueError(f"Expected `shrink` to lie between 0 and 1 but got {self.shrink!r}.")

    def loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """The unclipped surrogate, see :class:`Outer`."""
        return lvc(log_probs, old_log_probs, advantages, mask)
