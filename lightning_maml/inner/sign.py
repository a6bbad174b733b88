"""The sign of the gradient, as of signSGD."""

from dataclasses import dataclass

from lightning_maml.inner.base import At, Parameters, State


@dataclass(frozen=True)
class Sign:
    r""":math:`\operatorname{sign}(g)`, whose own derivative is 0: a second-order meta-gradient is that of first order.

    Reference:
        Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", 2018.

    Example:
        >>> from lightning_maml import fomaml
        >>> fomaml(lr=1e-3, steps=5).with_inner(transformations=(Sign(),)).inner.transformations
        (Sign(),)
    """

    def __call__(self, gradients: Parameters, state: State, at: At) -> tuple[Parameters, State]:
        return {name: gradient.sign() for name, gradient in gradients.items()}, state
