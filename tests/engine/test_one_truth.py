"""No engine can be silently wrong: whatever is drawn equals eager in float64, or is refused with a reason."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lightning_maml import (
    MLP,
    SGD,
    Adam,
    Algorithm,
    Batched,
    Conv4,
    FirstOrder,
    Fused,
    Implicit,
    Joint,
    MultiStep,
    OneHead,
    Part,
    Prototypes,
    Rates,
    Reptile,
    SharpnessAware,
    Sign,
    TaskBatch,
    Unrolled,
    ZeroOrder,
    Zeros,
    adapt,
    evaluate,
    meta_loss,
)
from lightning_maml.inner import InnerLoop, tensors_of
from lightning_maml.losses import MeanSquaredError, task_loss

LR = 0.05
WIDTH, OUT = 3, 4


# Loops, parts, rates and rules that the library has never heard of


class Halved(SGD):
    """Half of the gradient."""

    def direction(self, gradients, step, state):
        return {name: 0.5 * g for name, g in super().direction(gradients, step, state).items()}


class Averaging(SGD):
    """The mean of all gradients so far: a loop that keeps a state of its own."""

    def direction(self, gradients, step, state):
        for name, gradient in gradients.items():
            state[name] = gradient + state.get(name, 0.0)
        return {name: state[name] / (step + 1) for name in gradients}


class Shrinking(SGD):
    """A step of its own."""

    @staticmethod
    def update(phi, gradients, rates):
        return {name: 0.9 * value - rates[name] * gradients[name] for name, value in phi.items()}


class Cooling(SGD):
    """A rate of its own."""

    def rate(self, name, step):
        return super().rate(name, step) / (step + 2)


class Doubled(Rates):
    """Twice the learned rate."""

    def at(self, name, step):
        return 2 * super().at(name, step)


@dataclass(frozen=True)
class Smoothed:
    """Somebody's own transformation, with a state and the number of the step."""

    keep: float = 0.5

    def __call__(self, gradients, state, at):
        if state:
            gradients = {n: self.keep * state[n] + (1 - self.keep) * g for n, g in gradients.items()}
        return {n: g / (at.step + 1) + 0.01 * at.phi[n] for n, g in gradients.items()}, gradients


@dataclass(frozen=True)
class Weighted:
    """Somebody's own transformation, with a tensor that asks for a gradient."""

    weight: Tensor

    def __call__(self, gradients, state, at):
        return {n: self.weight * g for n, g in gradients.items()}, state

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Biases:
    """Somebody's own choice of what adapts."""

    def choose(self, names):
        return [name for name in names if name.endswith("bias")] or names


def shifted(theta, predict, targets):
    """Somebody's own start."""
    return {name: value + 0.1 for name, value in theta.items()}


class Doubling(Unrolled):
    """A rule that is derived from a known one."""

    def __call__(self, loop):
        query = super().__call__(loop)
        return query._replace(loss=2 * query.loss)


class EveryStep:
    """A rule that looks at the query sets after every step."""

    def __call__(self, loop):
        path = loop.path(order=2)
        queries = [loop.query_after(phi, step) for step, phi in enumerate(path)]
        return queries[-1]._replace(loss=torch.stack([query.loss for query in queries]).sum())


class TripledLoss(MeanSquaredError):  # noqa: N818  # the base is no exception
    """A loss that is derived from a known one."""

    def __call__(self, predictions, targets):
        return 3 * super().__call__(predictions, targets)


class Tempered(nn.Module):
    """A loss with a parameter that asks for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, predictions, targets):
        return F.mse_loss(self.temperature * predictions, targets)


def closure(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that closes over a tensor that asks for a gradient."""
    return lambda predictions, targets: (weight * (predictions - targets).square()).mean()


# Networks with something the matter


class Own(nn.Module):
    """A layer in between, whose forward is the function it is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


class Backwards(nn.Sequential):
    """Layers in the other order."""

    def __iter__(self):
        return reversed(self._modules.values())


class Scaled(torch.Tensor):
    """A tensor that is added as twice itself."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return 2 * F.linear(*(value.as_subclass(torch.Tensor) for value in args))
        return super().__torch_function__(func, types, args, kwargs or {})


class Squares(nn.Module):
    """Says that it is a mean over places, and is another one."""

    spatial_mean = True

    def forward(self, images):
        return images.square().mean((-2, -1))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, OUT))


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = perceptron()
        change(network)
        return network

    return build


def with_layer(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(WIDTH, 5), *(layer() for layer in layers), nn.Linear(5, OUT))


def own_forward(network: nn.Sequential) -> None:
    network[0].forward = lambda inputs: 2 * F.linear(inputs, network[0].weight, network[0].bias)


def own_activation(network: nn.Sequential) -> None:
    network[1].forward = torch.sin


def tied(network: nn.Sequential) -> None:
    network.insert(2, nn.Linear(5, 5))
    network.insert(3, nn.Tanh())
    network.insert(4, nn.Linear(5, 5))
    network[4].weight = network[2].weight


def subclassed(network: nn.Sequential) -> None:
    del network[0].weight
    network[0].register_parameter("weight", nn.Parameter(torch.randn(5, WIDTH).as_subclass(Scaled)))


def of_a_hook(kind: str, hook: Callable[..., Any]) -> Callable[[nn.Sequential], None]:
    return lambda network: getattr(network[1], kind)(hook)


def item(values: Tensor) -> Tensor:
    return values * (2.0 if values.sum().item() > 0 else 1.5)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(WIDTH, [5, 4], OUT, activation="tanh", init="default"),
    "perceptron": perceptron,
    "frozen": changed(lambda network: network[0].weight.requires_grad_(False)),
    "own forward": changed(own_forward),
    "own activation": changed(own_activation),
    "forward of the whole": changed(lambda n: setattr(n, "forward", lambda x: n[2](torch.sin(n[0](x))))),
    "forward hook": changed(of_a_hook("register_forward_hook", lambda m, i, o: 2 * o)),
    "forward pre-hook": changed(of_a_hook("register_forward_pre_hook", lambda m, i: (2 * i[0],))),
    "backward hook": changed(of_a_hook("register_full_backward_hook", lambda m, i, o: (2 * i[0],))),
    "backward pre-hook": changed(of_a_hook("register_full_backward_pre_hook", lambda m, o: (2 * o[0],))),
    "global hook": perceptron,
    "weight norm": changed(lambda network: nn.utils.parametrizations.weight_norm(network[0])),
    "orthogonal": changed(lambda network: nn.utils.parametrizations.spectral_norm(network[0].eval())),
    "backwards": lambda: Backwards(nn.Linear(5, OUT), nn.Tanh(), nn.Linear(WIDTH, 5)),
    "tensor subclass": changed(subclassed),
    "tied": changed(tied),
    "repeated": lambda: (lambda layer: nn.Sequential(nn.Linear(WIDTH, 5), layer, layer, nn.Linear(5, OUT)))(nn.Tanh()),
    ".item()": with_layer(lambda: Own(item)),
    "rrelu": with_layer(nn.RReLU),
    "numpy": with_layer(lambda: Own(lambda v: v * float(abs(v.detach().numpy()).mean()))),
    "boolean mask": with_layer(lambda: Own(lambda v: torch.where(v > v.detach()[v.detach() > -9].mean(), v, 0.5 * v))),
    "in place behind batch-norm": with_layer(lambda: nn.BatchNorm1d(5, affine=False), lambda: nn.ELU(inplace=True)),
    "batch-norm": with_layer(lambda: nn.BatchNorm1d(5), nn.Tanh),
    "gelu": with_layer(nn.GELU),
}
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "conv4": lambda: Conv4(OUT, channels=1, hidden=3, image_size=8),
    "own mean": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), Squares(), nn.Linear(3, OUT)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(108, OUT)
    ),
    "in place behind batch-norm 2d": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, affine=False), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(108, OUT)
    ),
}

# What is drawn: (words, how often in place of the plain one)

LOOPS = {"SGD": SGD, "Adam": Adam, "InnerLoop": InnerLoop, "own direction": Halved, "own state": Averaging}
LOOPS |= {"own update": Shrinking, "own rate": Cooling}
RATES = ["number", "list", "tensor", "shared", "per_step", "per_parameter", "per_parameter_and_step", "per_element"]
RATES += ["curvature", "own rates"]
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "momentum": lambda: {"momentum": 0.7},
    "clipped": lambda: {"max_norm": 0.3},
    "decay": lambda: {"weight_decay": 0.1},
    "mini-batches": lambda: {"batch_size": 2},
    "pulled": lambda: {"proximal": 0.5},
    "pulled by a tensor": lambda: {"proximal": torch.tensor(0.5, dtype=torch.float64, requires_grad=True)},
    "tolerance": lambda: {"tolerance": 0.05},
    "sign": lambda: {"transformations": (Sign(),)},
    "sharpness": lambda: {"transformations": (SharpnessAware(0.1),)},
    "own part": lambda: {"transformations": (Smoothed(),)},
    "own part with a tensor": lambda: {
        "transformations": (Weighted(torch.tensor(0.8, dtype=torch.float64, requires_grad=True)),)
    },
}
STARTS = {"meta": None, "zeros": Zeros(), "prototypes": Prototypes(), "one head": OneHead(), "own start": shifted}
ADAPTS = {"all": None, "regex": "bias|weight", "predicate": lambda name: "weight" in name, "head": Part("head")}
ADAPTS |= {"body": Part("body"), "own choice": Biases()}
RULES: dict[str, Callable[[], Any]] = {
    "unrolled": Unrolled,
    "first order": FirstOrder,
    "joint": Joint,
    "reptile": Reptile,
    "multi-step": lambda: MultiStep(None),
    "multi-step annealed": lambda: MultiStep(4, 2, update=3),
    "implicit": lambda: Implicit(cg_steps=3),
    "zero order": lambda: ZeroOrder(directions=2),
    "derived rule": Doubling,
    "own rule": EveryStep,
}
LOSSES: dict[str, Callable[[], Any]] = {
    "mse": lambda: "mse",
    "cross_entropy": lambda: "cross_entropy",
    "function": lambda: F.smooth_l1_loss,
    "module": lambda: nn.HuberLoss(delta=0.5),
    "derived loss": TripledLoss,
    "loss with a parameter": Tempered,
    "closure": lambda: closure(torch.tensor(0.7, dtype=torch.float64, requires_grad=True)),
    "loss with .item()": lambda: lambda p, t: (p - t).square().mean() * (1.0 if p.sum().item() > 0 else 0.9),
}
ENGINES = {
    "auto": "auto",
    "batched": Batched(),
    "in chunks": Batched(chunk_size=2),
    "checkpoint": Batched(checkpoint="step"),
    "fused": Fused(),
    "mlp_adapt": Fused(kernel="mlp_adapt"),
    "sgd_update": Fused(kernel="sgd_update"),
    "fused, compiled": Fused(compile=True),
    "compiled": Batched(compile=True),
}


@dataclass
class Drawn:
    """Words for all that a problem is made of."""

    network: str
    loop: str
    rates: str
    options: tuple[str, ...]
    start: str
    adapts: str
    rule: str
    loss: str
    engine: str
    steps: int
    tasks: int
    training: bool
    seed: int

    @property
    def words(self) -> list[str]:
        named = (self.network, self.loop, self.rates, self.start, self.adapts, self.rule, self.loss, self.engine)
        return [*named, *self.options]


def draw(chance: random.Random, engine: str) -> Drawn:
    """Mostly plain, but for a thing or two: where everything is odd, everything is refused."""
    picky = engine in ("fused", "fused, compiled", "mlp_adapt", "compiled")
    odd = chance.choice([0.05, 0.15, 0.4] if picky else [0.1, 0.3, 0.6])

    def pick(known, plain):
        return chance.choice(list(known)) if chance.random() < odd else plain

    images = [] if engine == "compiled" else [*IMAGES]  # which take a minute
    network = chance.choice([*NETWORKS, *images]) if chance.random() < 2 * odd else chance.choice(["mlp", *images[:1]])
    start = pick(STARTS, "meta")
    options = [name for name in OPTIONS if chance.random() < odd / 5]
    loop = pick(LOOPS, "SGD")
    if "norm" in network or network in ("conv4", "own mean"):
        # a bias before a norm has a gradient of 0 and a bit, of which these make a step
        options = [name for name in options if name != "sign"]
        loop = "SGD" if loop == "Adam" else loop
    return Drawn(
        network=network,
        loop=loop,
        rates=pick(RATES, "number"),
        options=tuple(options),
        start=start,
        adapts="all" if start == "prototypes" else pick(ADAPTS, "all"),
        rule=pick(RULES, "unrolled"),
        loss="cross_entropy" if start == "prototypes" else pick(LOSSES, chance.choice(["mse", "cross_entropy"])),
        engine=engine,
        steps=2 if engine == "compiled" else chance.choice([0, 1, 2, 3, 9]),
        tasks=chance.choice([1, 2, 3]),
        training=chance.random() < 0.5 and network != "rrelu",
        seed=chance.randrange(2**31),
    )


def build(drawn: Drawn) -> tuple[nn.Module, Algorithm, Any, TaskBatch]:
    torch.manual_seed(drawn.seed)
    network = {**NETWORKS, **IMAGES}[drawn.network]().double().train(drawn.training)
    options: dict[str, Any] = {}
    transformations: tuple[Any, ...] = ()
    for name in drawn.options:
        own = OPTIONS[name]()
        transformations += own.pop("transformations", ())
        options |= own
    kind = LOOPS[drawn.loop]
    if not hasattr(kind, "momentum"):
        options.pop("momentum", None)
    if drawn.rule == "implicit":
        options.setdefault("proximal", 2.0)
    lr: Any = {"list": [LR, LR / 2], "tensor": torch.tensor(LR, dtype=torch.float64, requires_grad=True)}.get(
        drawn.rates, LR
    )
    inner = kind(
        lr,
        drawn.steps,
        adapts=ADAPTS[drawn.adapts],
        start=STARTS[drawn.start],
        transformations=transformations,
        **options,
    )
    if drawn.rates in RATES[3:]:
        adapted = {
            name: p for name, p in network.named_parameters() if name in inner.adapted(dict(network.named_parameters()))
        }
        own = Doubled if drawn.rates == "own rates" else Rates
        rates = own("per_parameter" if own is Doubled else drawn.rates, LR, max(drawn.steps, 1), adapted)
        inner = replace(inner, lr=rates)
    shape = (WIDTH,) if drawn.network in NETWORKS else (1, 8, 8)

    def part(rows: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(drawn.tasks, rows, *shape, dtype=torch.float64)
        labels = torch.arange(rows).expand(drawn.tasks, rows) % OUT
        values = torch.randn(drawn.tasks, rows, OUT, dtype=torch.float64)
        return inputs, labels if drawn.loss == "cross_entropy" else values

    return network, Algorithm(inner, RULES[drawn.rule]()), LOSSES[drawn.loss](), TaskBatch(*part(5), *part(6))


def measure(drawn: Drawn, engine: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The meta-gradient of all that asks for one, and what else comes out."""
    network, algorithm, loss, tasks = build(drawn)
    torch.manual_seed(drawn.seed)
    held = [*network.parameters(), *tensors_of(algorithm.holders), *tensors_of(task_loss(loss).holders)]
    leaves = list({id(value): value for value in held if value.requires_grad}.values())
    output = meta_loss(network, algorithm, tasks, loss=loss, engine=engine)
    output.surrogate.backward()
    found = evaluate(network, algorithm, tasks, loss=loss, engine=engine)
    adapted = adapt(network, algorithm, tasks.support_inputs, tasks.support_targets, loss=loss, engine=engine)
    assert all(leaf.grad is not None for leaf in leaves), "something asked for a gradient, and got none"
    gradients = [leaf.grad for leaf in leaves]
    predicted = adapted.predict(tasks.query_inputs)
    return gradients, [output.task_losses, output.support_losses, found.query_losses, found.predictions, predicted]


def agree(drawn: Drawn) -> str:
    """``"equal"``, ``"refused"``, or ``"eager refuses"``; anything else fails."""
    hook = register_module_forward_hook(lambda m, i, o: 2 * o if isinstance(m, nn.Tanh) else None)
    if drawn.network != "global hook":
        hook.remove()
    try:
        return compare(drawn)
    finally:
        hook.remove()


def compare(drawn: Drawn) -> str:
    try:
        gradients, values = measure(drawn, "eager")
    except (ValueError, NotImplementedError, RuntimeError) as error:
        with pytest.raises((type(error), NotImplementedError)):  # an engine may look first at what it runs
            measure(drawn, ENGINES[drawn.engine])
        return "eager refuses"
    try:
        ours, others = measure(drawn, ENGINES[drawn.engine])
    except NotImplementedError as error:
        assert drawn.engine != "auto", f"auto refuses what eager runs: {drawn}"
        assert len(str(error)) > 40  # noqa: PT017  # a reason
        return "refused"
    scale = max([1e-3, *(g[g.isfinite()].abs().max().item() if g.isfinite().any() else 0.0 for g in gradients)])
    for actual, expected in zip(ours, gradients, strict=True):
        torch.testing.assert_close(
            actual / scale, expected / scale, rtol=0, atol=1e-8, equal_nan=True, msg=lambda m: f"{m}\n{drawn}"
        )
    for actual, expected in zip(others, values, strict=True):
        torch.testing.assert_close(
            actual, expected, rtol=1e-8, atol=1e-8, equal_nan=True, msg=lambda m: f"{m}\n{drawn}"
        )
    return "equal"


def try_many(engines: list[str], seed: int) -> tuple[Counter[str], Counter[str]]:
    chance = random.Random(seed)
    verdicts: Counter[str] = Counter()
    words: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for engine in engines:
            drawn = draw(chance, engine)
            try:
                verdict = agree(drawn)
            except (Exception, pytest.fail.Exception) as error:
                raise AssertionError(f"{type(error).__name__}: {error}\n{drawn}") from error
            verdicts[verdict] += 1
            verdicts[f"{verdict}: {engine}"] += 1
            words.update(drawn.words)
    return verdicts, words


ROUND = ["auto", "batched", "in chunks", "checkpoint", "fused", "mlp_adapt", "sgd_update"]


def test_what_is_drawn_is_right_or_refused() -> None:
    verdicts, _ = try_many(["fused, compiled"] * 60 + [ROUND[index % len(ROUND)] for index in range(134)], seed=19)
    print(verdicts)
    assert verdicts["equal"] > 90
    assert verdicts["equal: fused, compiled"] > 8
    assert verdicts["refused"] > 30


def test_what_is_drawn_is_right_or_refused_compiled() -> None:
    verdicts, _ = try_many(["compiled"] * 6, seed=33)
    print(verdicts)
    assert verdicts["equal"] >= 4


@pytest.mark.slow
def test_what_is_drawn_is_right_or_refused_often() -> None:
    rounds = ["fused, compiled"] * 300 + ["compiled"] * 30 + [ROUND[index % len(ROUND)] for index in range(2670)]
    verdicts, words = try_many(rounds, seed=1)
    print(verdicts, words)
    everything = (NETWORKS, IMAGES, LOOPS, RATES, OPTIONS, STARTS, ADAPTS, RULES, LOSSES)
    rare = {word: words[word] for known in everything for word in known if words[word] < 20}
    assert not rare
