r"""Inner losses of a policy: surrogates whose gradient, and whose Hessian, estimate those of the expected return.

The meta-gradient of an unrolled inner step holds the Hessian of its loss, so that an estimator has to be judged by
both. Each takes ``log_probs``, the ``old_log_probs`` stored at sampling, ``advantages`` and ``mask``, all
``[T, N, H]``, and returns one loss a task, ``[T]``: minus the mean over trajectories and time steps, ``-J / H`` up to
what the baseline subtracts. With undiscounted advantages, at the parameters that were sampled, every gradient is exact;
what is said of the Hessians holds there, too. ``"first_order"`` is the loss of :func:`maml`, whose gradient the inner
loop takes as a constant, without a Hessian.
"""

from collections.abc import Callable

from torch import Tensor

Estimator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(log_probs, old_log_probs, advantages, mask)``, each ``[T, N, H]``, to losses ``[T]``."""


def lvc(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""Low variance curvature: :math:`-\tfrac1H \sum_t \frac{\pi_\phi(a_t|s_t)}{\pi_{old}(a_t|s_t)} A_t`.
    Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search", ICLR 2019, equation 11.

    Its expected Hessian lacks the products of different time steps, and is exact at horizon 1; its variance is low.
    """
    return mean_loss((log_probs - old_log_probs).exp() * advantages, mask)


def loaded_dice(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""Loaded DiCE, exact to every order: :math:`-\tfrac1H \sum_t (\rho_{\le t} - \rho_{<t}) A_t`, with
    :math:`\rho_{\le t} = \prod_{u \le t} \pi_\phi(a_u|s_u) / \pi_{old}(a_u|s_u)`.
    Farquhar, Whiteson, Foerster, "Loaded DiCE: Trading off Bias and Variance in Any-Order Score Function Estimators for
    Reinforcement Learning", NeurIPS 2019.

    The products run over whole trajectories: after several outer steps on the same rollouts they spread widely,
    and their variance grows with the horizon.
    """
    ratios = (log_probs - old_log_probs) * mask
    before = ratios.cumsum(-1) - ratios
    return mean_loss(before.exp() * ratios.expm1() * advantages, mask)


def maml(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""The original's surrogate, :math:`-\tfrac1H \sum_t \log \pi_\phi(a_t|s_t) A_t`.
    Finn, Abbeel, Levine, ICML 2017, equation 4, with automatic differentiation.

    Its expected Hessian is :math:`-\tfrac1H \mathbb E \sum_t A_t \nabla^2 \log \pi`, which lacks every product of
    gradients. Of a softmax over linear logits it is 0 once the baseline is right: there :math:`\nabla^2 \log \pi`
    depends on the state alone, and the advantages of a state have mean 0.
    """
    return mean_loss(log_probs * advantages, mask)


def mean_loss(gains: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean over all time steps there could have been: their actual number depends on the actions, a bias."""
    return -(gains * mask).mean((1, 2))


ESTIMATORS: dict[str, Estimator] = {"lvc": lvc, "loaded_dice": loaded_dice, "maml": maml, "first_order": maml}
