"""Implicit MAML: the meta-gradient at the inner optimum, whatever way led there."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_maml.checks import check_not_negative, check_whole
from lightning_maml.inner import ClipByNorm, Momentum, Proximal, SecondMoment, Tolerance
from lightning_maml.meta_gradient.base import Loop, Query

_SAME_OPTIMUM = {ClipByNorm, Momentum, SecondMoment, Tolerance}


@dataclass(frozen=True)
class Implicit:
    r"""The gradient through ``phi* = argmin_phi L_support(phi) + lambda/2 |phi - theta|^2``, whatever way led to it.

    .. math:: \nabla_\theta L_{query}(\phi^*) = \big(I + \tfrac1\lambda \nabla^2 L_{support}(\phi^*)\big)^{-1}
              \nabla L_{query}(\phi^*)

    By the implicit function theorem (Rajeswaran et al. 2019, equation 6). Conjugate gradients solve the system, all
    tasks at once, with Hessian-vector products: memory does not depend on the number of inner steps. It needs an inner
    loop with ``proximal`` = lambda that comes close to the optimum. Shared parameters, and inputs that ask for a
    gradient, get theirs by the same theorem; learned inner rates, on which the optimum does not depend, get zeros.

    Iterations start at the first-order gradient over 1 + damping, and the iterate with the smallest residual counts.
    A task that is found, by a direction of negative curvature, not to be at a minimum of the proximal loss falls back
    towards first order: more iterations do not change that, a longer inner loop or a smaller rate does. A warning tells
    which it is.

    Args:
        cg_steps: conjugate gradient iterations.
        damping: added to the diagonal, ``(1 + damping) I + H / lambda``: 0 is exact, more is steadier where the
            Hessian has negative eigenvalues, and shortens the meta-gradient, by 1 + damping in flat directions. (The
            authors' code also adds 10 to the lambda that divides H.)
        tolerance: a relative residual above this is warned of, once for each of its causes.

    ValueError where an argument is out of range, or the inner loop is not proximal.
    """

    cg_steps: int = 5
    damping: float = 1.0
    tolerance: float = 0.1
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_whole(1, cg_steps=self.cg_steps)
        check_not_negative(damping=self.damping, tolerance=self.tolerance)

    def __call__(self, loop: Loop) -> Query:
        parts = loop.inner.parts
        if type(parts.pull) is not Proximal:
            wanted = "a proximal inner loop for the implicit meta-gradient, as of SGD(proximal=2.0),"
            raise ValueError(f"Expected {wanted} but got proximal={loop.inner.proximal!r}.")
        if moving := [part for part in parts.chain if type(part) not in _SAME_OPTIMUM]:
            raise ValueError(
                "Expected no `weight_decay` for the implicit meta-gradient, nor transformations that move the optimum: "
                f"it knows the support loss and the proximal term alone, but got {moving[0]!r}."
            )
        strength = parts.pull.strength
        known = strength.detach() if isinstance(strength, Tensor) else strength
        phi = {name: value.detach().requires_grad_() for name, value in loop.unroll(order=1).items()}
        at, theta = list(phi.values()), list(loop.initial().values())
        query = loop.query(phi)
        tasks = len(query.task_losses)

        def flat(values: Iterable[Tensor]) -> Tensor:
            return torch.cat([value.reshape(tasks, -1) for value in values], 1)  # [T, P], of one task [1, P]

        b = flat(torch.autograd.grad(query.loss * tasks, at, retain_graph=True, materialize_grads=True))
        support = flat(torch.autograd.grad(loop.support(phi).sum(), at, create_graph=True, materialize_grads=True))

        def multiply(v: Tensor) -> Tensor:
            product = torch.autograd.grad(support, at, v, retain_graph=True, materialize_grads=True)
            return (1 + self.damping) * v + flat(product) / known

        solution, residuals, saddle = conjugate_gradients(multiply, b, self.cg_steps, start=b / (1 + self.damping))
        self._warn(residuals, saddle)
        # The slope of the proximal loss is 0 at phi, whatever moves: theta's gradient is the solution, and that of all
        # else that the slope depends on, lambda too, is -d<solution, slope>/lambda.
        slope = support + strength * (flat(at).detach() - flat(theta))
        along = -(solution * slope).sum() / (tasks * known)
        return query._replace(loss=query.loss + along - along.detach())

    def _warn(self, residuals: Tensor, saddle: Tensor) -> None:
        if (residuals <= self.tolerance).all():
            return
        lost = ~residuals.isfinite()
        short = ~lost & (residuals > self.tolerance)
        stuck, few = short & saddle, short & ~saddle
        causes = {
            "their inner loop has diverged. Use a smaller `lr`: below 2 / (lambda + the largest curvature).": lost,
            "their inner loop ends where the proximal loss has negative curvature, short of a minimum: they fall "
            "to first order. Use a smaller `lr`, more inner `steps`, a larger lambda or `damping`; "
            "more `cg_steps` do not help.": stuck,
            f"{self.cg_steps} iterations are too few. Use more `cg_steps`, or a larger `damping` or lambda.": few,
        }
        for cause, tasks in causes.items():
            if cause not in self._warned and tasks.any():
                self._warned.add(cause)
                warnings.warn(
                    "The conjugate gradients of the implicit meta-gradient have not converged for "
                    f"{int(tasks.sum())} of {len(tasks)} tasks (relative residual {float(residuals[tasks].max()):.2g}, "
                    f"tolerance {self.tolerance}): {cause} This is said once.",
                    stacklevel=2,
                )


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], b: Tensor, steps: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves ``A x = b`` for each task, ``A`` symmetric and given by ``multiply [T, P] -> [T, P]``, from ``start``.

    Returns the iterates of the smallest residual ``[T, P]``, these residuals relative to ``b``, ``[T]``, and which
    tasks met a direction of negative curvature, ``[T]``, where they stay: conjugate gradients may go anywhere from it.

    Example:
        >>> A = torch.tensor([[[3.0, 1.0], [1.0, 2.0]]])
        >>> b = torch.tensor([[5.0, 5.0]])
        >>> x, residuals, saddle = conjugate_gradients(lambda v: (A @ v[..., None])[..., 0], b, 2, start=b)
        >>> x.round(decimals=4), bool(residuals < 1e-5), bool(saddle)
        (tensor([[1., 2.]]), True, False)
    """
    x, r = start, b - multiply(start)
    p, squared = r, r.square().sum(1, keepdim=True)
    best, least = x, squared
    saddle = torch.zeros_like(squared, dtype=torch.bool)
    for _ in range(steps):
        product = multiply(p)
        curvature = (p * product).sum(1, keepdim=True)
        moves = (curvature > 0) & (squared > 0)
        saddle = saddle | ((curvature < 0) & (squared > 0))
        alpha = torch.where(moves, squared / torch.where(moves, curvature, 1), 0)
        x, r = x + alpha * p, r - alpha * product
        before, squared = squared, r.square().sum(1, keepdim=True)
        p = torch.where(moves, r + squared / torch.where(moves, before, 1) * p, p)
        better = squared < least
        best, least = torch.where(better, x, best), torch.where(better, squared, least)
    length = b.square().sum(1, keepdim=True)
    return best, (least / torch.where(length > 0, length, 1)).sqrt().squeeze(1), saddle.squeeze(1)
