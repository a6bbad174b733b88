"""The meta-gradient on rollouts, and TRPO's step, against references written out by hand in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.func import functional_call

from lightning_maml import (
    SGD,
    Adam,
    Algorithm,
    Batched,
    Eager,
    Fused,
    anil,
    fomaml,
    imaml,
    maml,
    maml_pp,
    meta_sgd,
    pretrained,
)
from lightning_maml.meta_gradient import MultiStep
from lightning_maml.rl import (
    PPO,
    TRPO,
    Advantages,
    CategoricalPolicy,
    Collector,
    GaussianPolicy,
    MetaObjective,
    Navigation2D,
    Policy,
    Rollouts,
)
from lightning_maml.rl.trust_region import trust_region_step

TASKS, TRAJECTORIES, HORIZON = 3, 2, 5


@pytest.fixture
def policy() -> GaussianPolicy:
    return GaussianPolicy(2, 2, hidden=[7], activation="tanh", init_std=0.6).double()


def _collected(objective: MetaObjective, tasks: int = TASKS, trajectories: int = TRAJECTORIES) -> list[Rollouts]:
    environment = Navigation2D(horizon=HORIZON)
    goals = environment.sample_tasks(tasks, torch.Generator().manual_seed(1)).double()
    _, constants = objective.split()
    collect = Collector(environment, objective.policy, goals, trajectories, constants)
    return [rollouts for _, rollouts in objective.adapt(collect, tasks, objective.training_steps)]


def _moved(policy: Policy) -> None:
    """As after an outer step: what was sampled is no longer what the policy would do."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def _by_hand(objective: MetaObjective, rollouts: list[Rollouts], rate: float, clip: float) -> Tensor:
    """The outer loss of LVC inside and PPO outside, task by task, with torch's own distributions."""
    losses = []
    for task in range(len(rollouts[0])):
        phi: dict[str, Any] = dict(objective.policy.named_parameters())
        for step, part in enumerate(rollouts):
            outputs = functional_call(objective.policy, phi, (part.observations[task],))
            mean, log_std = outputs[..., :2], outputs[..., 2:]
            log_probs = Independent(Normal(mean, log_std.exp()), 1).log_prob(part.actions[task])
            ratios = (log_probs - part.log_probs[task]).exp() * part.mask[task]
            advantages = part.advantages[task]
            if step < len(rollouts) - 1:
                loss = -(ratios * advantages).sum() / (TRAJECTORIES * HORIZON)
                gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {n: v - rate * g for (n, v), g in zip(phi.items(), gradients, strict=True)}
            else:
                clipped = ratios.clamp(1 - clip, 1 + clip)
                losses.append(-torch.min(ratios * advantages, clipped * advantages).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("engine", ["auto", "batched", "fused", "eager", Batched(chunk_size=2), Eager()])
def test_meta_gradient_is_that_of_a_loop_by_hand(policy: GaussianPolicy, engine: Any, steps: int) -> None:
    objective = MetaObjective(policy, maml(0.3, steps), engine=engine, outer=PPO(clip=0.02))
    rollouts = _collected(objective)
    _moved(policy)
    value = objective(rollouts)
    loss = _by_hand(objective, rollouts, 0.3, 0.02)
    torch.testing.assert_close(value.loss, loss.detach())
    for got, expected in zip(value.gradients, torch.autograd.grad(loss, objective.leaves), strict=True):
        torch.testing.assert_close(got, expected)


POLICIES: dict[str, Callable[[], Policy]] = {
    "gaussian": lambda: GaussianPolicy(2, 2, hidden=[7, 5], init_std=0.6),
    "fixed deviation": lambda: GaussianPolicy(2, 2, hidden=[5], init_std=0.6, learn_std=False),
    "categorical": lambda: CategoricalPolicy(2, 3, hidden=[6], activation="gelu"),
    "linear": lambda: CategoricalPolicy(2, 2, hidden=[]),
}


def _made_up(policy: Policy, tasks: int, trajectories: int, steps: int) -> list[Rollouts]:
    """Rollouts of nothing but random numbers, of which some do not count."""
    shape = (tasks, trajectories, HORIZON)
    rollouts = []
    for _ in range(steps + 1):
        seen = torch.randn(*shape, 2).double()
        with torch.no_grad():
            outputs = policy(seen.flatten(0, 2)).view(*shape, -1)
            actions = policy.sample(outputs)
            log_probs = policy.log_probs(outputs, actions)
        mask = (torch.rand(shape) < 0.8).double()
        parts = (seen, actions, outputs, log_probs, torch.randn(shape).double() * mask, mask)
        rollouts.append(Rollouts(*parts, torch.randn(shape).double()))
    return rollouts


@pytest.mark.parametrize("tasks, trajectories", [(1, 1), (13, 3)])
@pytest.mark.parametrize("estimator", ["lvc", "maml", "first_order"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_the_fused_engine_gives_the_same_numbers(name: str, estimator: str, tasks: int, trajectories: int) -> None:
    policy = POLICIES[name]().double()
    more = {"kl_penalty": 0.1, "exploration": 0.3 if tasks > 1 else 0.0}
    mean = maml([0.3, 0.1], 2, adapts="^(?!deviation)")  # the deviation is meta-learned, but does not adapt
    for algorithm in (maml(0.3, 2), fomaml(0.3, 1), maml_pp(0.3, 2), meta_sgd(0.3, 1), mean):
        adapted = algorithm.with_rates(algorithm.initial_rates(policy))
        objectives = [MetaObjective(policy, adapted, estimator, engine=e, **more) for e in ("batched", "fused")]
        torch.manual_seed(0)
        rollouts = _made_up(policy, tasks, trajectories, algorithm.inner.steps)
        _moved(policy)
        expected, got = (objective(rollouts) for objective in objectives)
        torch.testing.assert_close(got.loss, expected.loss)
        torch.testing.assert_close(got.kl, expected.kl)
        for a, b in zip(got.gradients, expected.gradients, strict=True):
            torch.testing.assert_close(a, b)
        paths = [
            list(o.adapt(lambda _, step, rollouts=rollouts: rollouts[step], tasks, algorithm.inner.steps))
            for o in objectives
        ]
        for (phi, _), (other, _) in zip(*paths, strict=True):
            assert phi.keys() == other.keys()
            for key in phi:
                torch.testing.assert_close(other[key], phi[key])


def test_auto_fuses_where_there_are_tasks_for_the_lanes(
    policy: GaussianPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_maml.kernels import compiler
    from lightning_maml.kernels.policy_gradient import native

    objective = MetaObjective(policy, maml(0.3, 1))
    lanes = native.lanes(torch.float64)
    for tasks, fused in ((lanes, True), (lanes + 1, False), (2 * lanes, True), (9 * lanes + 1, True)):
        rollouts = _made_up(policy, tasks, 1, 0)[0]
        assert (objective.fused(rollouts) is not None) is fused
    with torch.autocast("cpu"):
        assert objective.fused(rollouts) is None
        with pytest.raises(NotImplementedError, match="Engine 'fused' cannot run this: autocast is on"):
            MetaObjective(policy, maml(), engine="fused").fused(rollouts)
    with pytest.raises(NotImplementedError, match="are not of one dtype"):
        MetaObjective(POLICIES["gaussian"](), maml(), engine="fused").fused(rollouts)
    monkeypatch.setattr(compiler, "load", lambda *_: "there is no C compiler")
    assert objective.fused(rollouts) is None
    with pytest.raises(NotImplementedError, match="needs a C compiler, but there is no C compiler"):
        MetaObjective(policy, maml(), engine=Fused(compile=True)).fused(rollouts)


class _Clipped(GaussianPolicy):
    """It computes something else, as far as an operator knows."""


def _slope(objective: MetaObjective, rollouts: list[Rollouts], eps: float = 1e-6) -> tuple[float, float]:
    """The outer loss's slope along a random direction: by central differences, and by the gradient."""
    leaves = objective.leaves
    directions = [torch.randn_like(leaf) for leaf in leaves]
    gradients = objective(rollouts).gradients
    expected = float(sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)))
    losses = []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf += sign * eps * direction
        losses.append(float(objective(rollouts).loss))
    return (losses[0] - losses[1]) / (2 * eps), expected


@pytest.mark.parametrize("estimator", ["lvc", "loaded_dice", "maml"])
@pytest.mark.parametrize(
    "algorithm",
    [
        maml(0.3, 1),
        maml(0.3, 0),
        anil(0.3, 2, head="^(head|deviation)"),
        pretrained(0.3, 2),
        Algorithm(SGD(0.3, 2), MultiStep(10)),
    ],
    ids=["maml", "no steps", "anil", "pretrained", "multi-step"],
)
def test_meta_gradient_is_the_slope_of_the_loss(policy: GaussianPolicy, algorithm: Algorithm, estimator: str) -> None:
    objective = MetaObjective(policy, algorithm, estimator, kl_penalty=0.7 if algorithm.inner.steps == 1 else 0.0)
    rollouts = _collected(objective)
    _moved(policy)
    numeric, exact = _slope(objective, rollouts)
    assert numeric == pytest.approx(exact, rel=1e-5, abs=1e-8)


def test_learned_rates_get_their_gradient(policy: GaussianPolicy) -> None:
    algorithm = meta_sgd(0.3, 1)
    objective = MetaObjective(policy, algorithm.with_rates(algorithm.initial_rates(policy)))
    rollouts = _collected(objective)
    assert len(objective.leaves) == 2 * len(list(policy.parameters()))
    numeric, exact = _slope(objective, rollouts)
    assert numeric == pytest.approx(exact, rel=1e-5)


def test_first_order_differs_from_second(policy: GaussianPolicy) -> None:
    second = MetaObjective(policy, maml(0.3, 1))
    rollouts = _collected(second)
    first = MetaObjective(policy, fomaml(0.3, 1))(rollouts)
    torch.testing.assert_close(first.loss, second(rollouts).loss)
    assert not torch.allclose(first.gradients[0], second(rollouts).gradients[0])


def test_promp_penalises_the_divergence_before_the_inner_step(policy: GaussianPolicy) -> None:
    plain = MetaObjective(policy, maml(0.3, 1))
    penalised = MetaObjective(policy, maml(0.3, 1), kl_penalty=0.7)
    rollouts = _collected(plain)
    torch.testing.assert_close(penalised(rollouts).loss, plain(rollouts).loss)  # nothing has moved yet
    _moved(policy)
    old, new = rollouts[0].outputs, policy(rollouts[0].observations).detach()
    kl = kl_divergence(*(Independent(Normal(x[..., :2], x[..., 2:].exp()), 1) for x in (old, new)))
    expected = 0.7 * (kl * rollouts[0].mask).sum() / rollouts[0].mask.sum()
    torch.testing.assert_close(penalised(rollouts).loss - plain(rollouts).loss, expected)


@pytest.mark.parametrize("algorithm", [maml(0.3, 1), fomaml(0.3, 1)], ids=["maml", "fomaml"])
def test_exploration_credits_the_inner_rollouts_with_what_came_of_them(
    policy: GaussianPolicy, algorithm: Algorithm
) -> None:
    plain, exploring = MetaObjective(policy, algorithm), MetaObjective(policy, algorithm, exploration=0.5)
    rollouts = _collected(plain)
    returns = rollouts[1].rewards.sum(2).mean(1)
    credit = (returns - returns.mean()) / returns.std()
    log_probs = policy.log_probs(policy(rollouts[0].observations), rollouts[0].actions)
    term = -0.5 * ((log_probs * rollouts[0].mask).sum((1, 2)) / HORIZON * credit).mean()
    expected = torch.autograd.grad(term, list(policy.parameters()))
    for with_term, without, part in zip(
        exploring(rollouts).gradients, plain(rollouts).gradients, expected, strict=True
    ):
        torch.testing.assert_close(with_term - without, part, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="at least 2 tasks"):
        exploring([part[:1] for part in rollouts])


@pytest.mark.parametrize("tasks, trajectories", [(1, 1), (5, 3)])
def test_awkward_sizes(policy: GaussianPolicy, tasks: int, trajectories: int) -> None:
    batched = MetaObjective(policy, maml(0.3, 1), engine=Batched(chunk_size=2))
    rollouts = _collected(batched, tasks, trajectories)
    eager = MetaObjective(policy, maml(0.3, 1), engine="eager")
    for got, expected in zip(batched(rollouts).gradients, eager(rollouts).gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_adaptation_takes_the_rates_it_is_given_and_collects_anew(policy: GaussianPolicy) -> None:
    objective = MetaObjective(policy, maml(0.3, 1), advantages=Advantages(normalize=False))
    first = _collected(objective)[0]
    seen: list[int] = []

    def collect(parameters: dict[str, Tensor], step: int) -> Rollouts:
        seen.append(step)
        assert all(len(value) == TASKS for value in parameters.values())
        return first

    path = list(objective.adapt(collect, TASKS, 2, rates=[0.3, 0.0]))
    assert seen == [0, 1, 2]
    before, after, same = (phi["head.bias"] for phi, _ in path)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, same)


# TRPO


def _dense(objective: MetaObjective, rollouts: list[Rollouts], rate: float) -> tuple[Tensor, Tensor]:
    """The gradient of the surrogate ``[P]`` and the Hessian of the mean divergence ``[P, P]``, by autograd, densely."""
    policy = objective.policy
    shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}

    def unflatten(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def after(flat: Tensor, what: Callable[[Tensor, int], Tensor]) -> Tensor:
        total = flat.new_zeros(())
        for task in range(TASKS):
            phi = unflatten(flat)
            outputs = functional_call(policy, phi, (rollouts[0].observations[task],))
            ratios = (policy.log_probs(outputs, rollouts[0].actions[task]) - rollouts[0].log_probs[task]).exp()
            loss = -(ratios * rollouts[0].advantages[task] * rollouts[0].mask[task]).mean()
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: v - rate * g for (n, v), g in zip(phi.items(), gradients, strict=True)}
            total = total + what(functional_call(policy, phi, (rollouts[1].observations[task],)), task)
        return total

    def loss(outputs: Tensor, task: int) -> Tensor:
        ratios = (policy.log_probs(outputs, rollouts[1].actions[task]) - rollouts[1].log_probs[task]).exp()
        return -(ratios * rollouts[1].advantages[task] * rollouts[1].mask[task]).mean() / TASKS

    def kl(outputs: Tensor, task: int) -> Tensor:
        divergence = policy.kl(rollouts[1].outputs[task], outputs) * rollouts[1].mask[task]
        return divergence.sum() / rollouts[1].mask.sum()

    theta = torch.cat([parameter.detach().reshape(-1) for parameter in policy.parameters()]).requires_grad_()
    (gradient,) = torch.autograd.grad(after(theta, loss), theta)
    return gradient, torch.autograd.functional.hessian(lambda flat: after(flat, kl), theta.detach())


def test_trust_region_step_is_the_natural_gradient_after_adaptation() -> None:
    policy = GaussianPolicy(2, 2, hidden=[3], activation="tanh").double()
    outer = TRPO(cg_steps=200, damping=1e-3, max_kl=1e-4)
    objective = MetaObjective(policy, maml(0.3, 1), outer=outer)
    rollouts = _collected(objective)
    gradient, fisher = _dense(objective, rollouts, 0.3)
    damped = fisher + 1e-3 * torch.eye(len(fisher), dtype=fisher.dtype)
    direction = torch.linalg.solve(damped, -gradient)
    full = direction * (2 * 1e-4 / (direction @ damped @ direction)).sqrt()
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    steps, loss, kl = trust_region_step(objective, rollouts)
    step = torch.cat([part.reshape(-1) for part in steps])
    shortened = float(step.norm() / full.norm())
    assert any(shortened == pytest.approx(0.8**n, rel=1e-3) for n in range(15))
    torch.testing.assert_close(step, shortened * full, rtol=1e-2, atol=1e-2 * float(step.abs().max()))
    assert 0 < float(kl) <= 1e-4
    for parameter, value in zip(policy.parameters(), before, strict=True):
        assert torch.equal(parameter, value)  # the step is returned, not taken
    surrogate, _ = objective.loss_and_kl(rollouts)
    assert float(loss) < float(surrogate.detach())


def test_trust_region_step_stays_where_nothing_is_to_be_gained(policy: GaussianPolicy) -> None:
    objective = MetaObjective(policy, maml(0.3, 1), outer=TRPO())
    before, after = _collected(objective)
    rollouts = [before, after.with_advantages(torch.zeros_like(after.advantages))]
    steps, _, kl = trust_region_step(objective, rollouts)
    assert all((step == 0).all() for step in steps)
    assert float(kl) == 0


def test_trust_region_step_needs_trpo(policy: GaussianPolicy) -> None:
    with pytest.raises(ValueError, match="Expected an objective with TRPO outside but got PPO"):
        trust_region_step(MetaObjective(policy, maml()), [])


# Policies


def test_gaussian_policy_is_torchs_distribution(policy: GaussianPolicy) -> None:
    outputs, others = policy(torch.randn(11, 2).double()), torch.randn(11, 4).double()
    one, other = (Independent(Normal(x[:, :2], x[:, 2:].exp()), 1) for x in (outputs, others))
    actions = policy.sample(outputs)
    torch.testing.assert_close(policy.log_probs(outputs, actions), one.log_prob(actions))
    torch.testing.assert_close(policy.kl(outputs, others), kl_divergence(one, other))
    many = policy.sample(outputs[:1].expand(20_000, -1))
    torch.testing.assert_close(many.mean(0), one.mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(many.std(0), one.stddev[0], rtol=0.03, atol=0)


def test_categorical_policy_is_torchs_distribution() -> None:
    policy = CategoricalPolicy(3, 5, hidden=[4]).double()
    outputs, others = policy(torch.randn(7, 3).double()), torch.randn(7, 5).double()
    one, other = Categorical(logits=outputs), Categorical(logits=others)
    actions = policy.sample(outputs)
    torch.testing.assert_close(policy.log_probs(outputs, actions), one.log_prob(actions))
    torch.testing.assert_close(policy.kl(outputs, others), kl_divergence(one, other))
    counts = policy.sample(outputs[:1].expand(20_000, -1)).bincount(minlength=5)
    torch.testing.assert_close(counts / 20_000, one.probs[0].float(), rtol=0, atol=0.02)
    assert torch.equal(policy.mode(outputs), outputs.argmax(-1))


def test_batched_policies_are_the_policies_of_the_tasks(policy: GaussianPolicy) -> None:
    phi = {n: p.detach() + torch.randn(TASKS, *p.shape).double() for n, p in policy.named_parameters()}
    observations = torch.randn(TASKS, 4, 5, 2).double()
    got = policy.outputs(phi, {}, observations)
    for task in range(TASKS):
        own = {name: value[task] for name, value in phi.items()}
        torch.testing.assert_close(got[task], functional_call(policy, own, (observations[task],)))
    torch.testing.assert_close(policy.outputs(phi, {}, observations, eager=True), got)


# What is refused


def test_bad_objectives_are_refused(policy: GaussianPolicy) -> None:
    with pytest.raises(ValueError, match="Expected `estimator` to be one of .* but got 'dice'"):
        MetaObjective(policy, maml(), "dice")
    with pytest.raises(ValueError, match="Expected `kl_penalty` to be finite and not negative but got -1"):
        MetaObjective(policy, maml(), kl_penalty=-1)
    with pytest.raises(ValueError, match="Expected inner steps in training for `exploration`"):
        MetaObjective(policy, pretrained(), exploration=1.0)
    with pytest.raises(NotImplementedError, match="Expected an inner loop of plain gradient steps"):
        MetaObjective(policy, Algorithm(Adam(), fomaml().meta_gradient))
    with pytest.raises(NotImplementedError, match="the inner loop has the part Proximal"):
        MetaObjective(policy, imaml())
    for options, reason in (
        ({"estimator": "loaded_dice"}, "the estimator is 'loaded_dice'"),
        ({"estimator": lambda *_: 0}, "the estimator is <function"),
        ({"outer": TRPO()}, "TRPO takes third derivatives"),
        ({"algorithm": maml(adapts="head")}, "a part of the policy other than its deviation does not adapt"),
        ({"policy": GaussianPolicy(2, 2, hidden=[200])}, r"its widths \[2, 200, 2\] exceed"),
        ({"policy": _Clipped(2, 2)}, "the policy is a _Clipped"),
        ({"engine": Fused()}, r"Expected the engine for rollouts to be .* but got Fused\("),
        ({"engine": "jax"}, r"Expected the engine for rollouts to be one of \('auto', .* but got 'jax'"),
        ({"engine": Batched(compile=True)}, r"or Fused\(compile=True\), .* but got Batched\("),
    ):
        arguments: dict[str, Any] = {"policy": policy, "algorithm": maml(), "engine": "fused", **options}
        with pytest.raises(NotImplementedError, match=reason):
            MetaObjective(**arguments)
    with pytest.raises(ValueError, match="2 of them, but got 1"):
        MetaObjective(policy, maml(steps=1))(_collected(MetaObjective(policy, maml(steps=0))))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PPO(clip=0), "Expected `clip` to be positive"),
        (lambda: PPO(epochs=0), "Expected `epochs` to be a whole number of at least 1"),
        (lambda: TRPO(shrink=1.0), "Expected `shrink` to lie between 0 and 1"),
        (lambda: TRPO(max_kl=0), "Expected `max_kl` to be positive"),
        (lambda: TRPO(damping=-1), "Expected `damping` to be finite"),
        (lambda: TRPO(cg_steps=0), "Expected `cg_steps` to be a whole number of at least 1"),
        (lambda: GaussianPolicy(2, 2, init_std=0), "Expected `init_std` to be positive"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rollouts_that_do_not_fit_are_refused() -> None:
    parts = [torch.zeros(1, 2, 3, *shape) for shape in ((2,), (2,), (4,), (), (), (), ())]
    Rollouts(*parts)
    for position in itertools.chain(range(4), range(5, 7)):
        wrong = [part[:, :1] if number == position else part for number, part in enumerate(parts)]
        with pytest.raises(ValueError, match=r"to begin with \[tasks, trajectories, steps\]"):
            Rollouts(*wrong)
