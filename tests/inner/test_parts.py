"""Parts of inner loops: sharpness-aware and sign steps against autograd written out, and how parts go together."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from lightning_maml import (
    SGD,
    Adam,
    Algorithm,
    Batched,
    FirstOrder,
    SharpnessAware,
    Sign,
    Unrolled,
    adapt,
    fomaml,
    imaml,
    maml,
    meta_loss,
)
from lightning_maml.inner import ClipByNorm, FromMeta, MiniBatches, Momentum, Nothing, Proximal, Scale
from problems import make_problem, meta_gradient, relative_error

LR, STEPS, RHO = 0.1, 3, 0.2
ENGINES = {"eager": "eager", "batched": Batched(), "checkpoint": Batched(checkpoint="step"), "auto": "auto"}


def sharp(gradient_at, phi):
    """The gradient of each step, uphill by RHO."""
    gradients = gradient_at(phi)
    length = torch.cat([g.flatten() for g in gradients.values()]).norm() + 1e-12
    return gradient_at({name: value + RHO * gradients[name] / length for name, value in phi.items()})


def signs(gradient_at, phi):
    return {name: gradient.sign() for name, gradient in gradient_at(phi).items()}


def reference(module, tasks, step, first_order):
    theta = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tasks)):

        def gradient_at(phi, t=t):
            phi = {name: value if value.requires_grad else value.requires_grad_() for name, value in phi.items()}
            loss = F.mse_loss(functional_call(module, phi, (tasks.support_inputs[t],)), tasks.support_targets[t])
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
            return dict(zip(phi, gradients, strict=True))

        phi = dict(theta)
        for _ in range(STEPS):
            at = {name: value.detach().requires_grad_() for name, value in phi.items()} if first_order else phi
            direction = step(gradient_at, at)
            phi = (
                {name: value - LR * direction[name].detach() for name, value in phi.items()}
                if first_order
                else {name: value - LR * direction[name] for name, value in phi.items()}
            )
        query = F.mse_loss(functional_call(module, phi, (tasks.query_inputs[t],)), tasks.query_targets[t])
        total = total + query / len(tasks)
    return list(torch.autograd.grad(total, list(theta.values())))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("preset", [maml, fomaml])
@pytest.mark.parametrize(("part", "step"), [(SharpnessAware(RHO), sharp), (Sign(), signs)], ids=["sharpness", "sign"])
def test_a_step_of_one_new_file(part, step, preset, engine):
    module, tasks = make_problem("mlp", "mse")
    algorithm = preset(LR, STEPS).with_inner(transformations=(part,))
    output = meta_loss(module, algorithm, tasks, loss="mse", engine=ENGINES[engine])
    expected = reference(module, tasks, step, preset is fomaml)
    assert relative_error(meta_gradient(module, output), expected) < 1e-9


@dataclass(frozen=True)
class Counting:
    """Remembers how often it was asked, and what it saw last."""

    def __call__(self, gradients, state, at):
        asked = state["asked"] + 1 if state else next(iter(gradients.values())).new_ones(())
        assert int(asked) == at.step + 1
        kept = {"asked": asked, "last": (gradients,)}
        return {name: gradient / asked for name, gradient in gradients.items()}, kept


@pytest.mark.parametrize("steps", [2, 11])
@pytest.mark.parametrize("engine", ["batched", "checkpoint"])
def test_a_state_may_be_any_nest_of_tensors(engine, steps):
    module, tasks = make_problem("mlp", "mse")
    algorithm = maml(LR, steps).with_inner(transformations=(Counting(), Momentum(0.5), Sign()))
    gradients = [
        meta_gradient(module, meta_loss(module, algorithm, tasks, loss="mse", engine=e))
        for e in ("eager", ENGINES[engine])
    ]
    assert relative_error(*gradients) < 1e-9


def test_arguments_stand_for_parts():
    parts = SGD(0.1, 5, max_norm=1.0, momentum=0.9, batch_size=5, proximal=0.5, transformations=(Sign(),)).parts
    assert (type(parts.start), parts.rows, parts.pull) == (FromMeta, MiniBatches(5, 0), Proximal(0.5))
    assert parts.chain == (Sign(), ClipByNorm(1.0))
    assert (parts.memory, parts.rates) == ((Momentum(0.9),), Scale(0.1))
    assert SGD(0.1).parts.pull == Nothing()
    assert SGD(0.1).needs != SGD(0.1, momentum=0.9).needs
    assert SGD(0.1).needs == SGD(0.2, 3).needs  # numbers are nobody's business


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD(transformations=(1.0,)), TypeError, "Expected `transformations` such as SharpnessAware"),
        (lambda: SGD(transformations=(Sign,)), TypeError, "Expected `transformations` such as SharpnessAware"),
        (
            lambda: run(imaml().with_inner(transformations=(SharpnessAware(),))),
            ValueError,
            "nor transformations that move the optimum",
        ),
        (lambda: run(Algorithm(Adam(LR, 2), Unrolled())), NotImplementedError, "Adam, which has no second order"),
    ],
)
def test_rejects(make, error, message):
    with pytest.raises(error, match=message):
        make()


def run(algorithm):
    module, tasks = make_problem("mlp", "mse")
    return meta_loss(module, algorithm, tasks, loss="mse", engine="batched")


def test_a_part_of_ones_own_is_in_nobodys_set():
    module, tasks = make_problem("mlp", "mse")
    algorithm = Algorithm(SGD(LR, 2, transformations=(Counting(),)), FirstOrder())
    for engine in ("fused", Batched(compile=True)):
        with pytest.raises(NotImplementedError, match="has the part Counting"):
            adapt(module, algorithm, tasks.support_inputs, tasks.support_targets, loss="mse", engine=engine)
