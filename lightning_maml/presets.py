"""The published algorithms, each a composition of an inner loop and a meta-gradient rule."""

from __future__ import annotations

from collections.abc import Callable

from lightning_maml.inner import SGD, LearnedRate
from lightning_maml.learner import Algorithm, BatchNorm
from lightning_maml.meta_gradient import FirstOrder, Joint, Unrolled

__all__ = ["fomaml", "maml", "pretrained"]


def maml(
    lr: float = 0.01,
    steps: int = 5,
    learn_lr: LearnedRate | None = None,
    adapts: str | Callable[[str], bool] | None = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""Model-agnostic meta-learning, with the exact, second-order meta-gradient.

    .. math:: \phi_{k+1} = \phi_k - \alpha \nabla L_{support}(\phi_k), \quad
              \nabla_\theta \tfrac1T \sum_t L_{query}(\phi_m(\theta)), \quad \phi_0 = \theta

    Losses are means over a task's rows. Code that sums over the classes' rows (the original's) has gradients N
    times larger: its alpha = 0.4 in 5-way Omniglot is ``lr=2.0`` here.

    Args:
        lr: the inner rate alpha.
        steps: the number of inner steps m.
        learn_lr: what has a learned rate of its own (see :data:`LearnedRate`); None for a fixed rate.
        adapts: which parameters adapt in the inner loop: None for all, a regular expression, or a predicate.
        batch_norm: ``"batch"`` or ``"running"``, see :data:`BatchNorm`.

    Reference:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

    Example:
        >>> maml(lr=0.1, steps=3).with_steps(10).inner.steps
        10
    """
    return Algorithm(SGD(lr, steps, learn_lr, adapts), Unrolled(), batch_norm, "maml")


def fomaml(
    lr: float = 0.01,
    steps: int = 5,
    learn_lr: LearnedRate | None = None,
    adapts: str | Callable[[str], bool] | None = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    """First-order MAML: :func:`maml` with the inner gradients as constants; cheaper in time and memory.

    Reference:
        Finn, Abbeel, Levine, ICML 2017, section 5.2.
    """
    return Algorithm(SGD(lr, steps, learn_lr, adapts), FirstOrder(), batch_norm, "fomaml")


def pretrained(
    lr: float = 0.01,
    steps: int = 5,
    adapts: str | Callable[[str], bool] | None = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    """The baseline: one network trained on all tasks jointly (m = 0), fine-tuned by ``steps`` of ``lr`` at test.

    Reference:
        Finn, Abbeel, Levine, ICML 2017, section 5.1, "pretraining on all of the tasks".
    """
    return Algorithm(SGD(lr, steps, None, adapts), Joint(), batch_norm, "pretrained")
