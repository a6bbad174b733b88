"""What really ran: small problems, the engines, and spies on the kernels, on torch's compiler and on the layers.

Nothing here asks an engine what it has done, nor looks at its classes: kernels record that they were called, and the
network's own calls tell one task after another from all tasks at once. ``before/who_ran.json`` holds what came out
before the redesign, ``test_before.py`` looks that it still does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml import (
    MLP,
    SGD,
    Adam,
    Algorithm,
    Batched,
    Conv4,
    FirstOrder,
    Fused,
    Joint,
    MultiStep,
    Part,
    Prototypes,
    Reptile,
    ResNet12,
    TaskBatch,
    Unrolled,
    Zeros,
    adapt,
    anil,
    boil,
    cavia,
    fomaml,
    imaml,
    lora,
    maml,
    maml_pp,
    meta_curvature,
    meta_loss,
    meta_sgd,
    pretrained,
    proto_maml,
    reptile,
)
from lightning_maml.networks import Context, add_lora, step_batch_norm
from lightning_maml.rl import PPO, TRPO, CategoricalPolicy, GaussianPolicy, MetaObjective, Policy, Rollouts
from problems import Attention, ConvModule, Recurrent, Tied

# Engines

ENGINES: dict[str, Any] = {
    "auto": "auto",
    "eager": "eager",
    "batched": "batched",
    "batched in chunks": Batched(chunk_size=2),
    "batched checkpointed": Batched(checkpoint="step"),
    "fused": "fused",
    "fused mlp_adapt": Fused("mlp_adapt"),
    "fused sgd_update": Fused("sgd_update"),
    "fused compiled": Fused(compile=True),
}
POLICY_ENGINES = {
    name: ENGINES[name] for name in ("auto", "eager", "batched", "batched in chunks", "fused", "fused compiled")
}
COMPILING = "batched compiled"  # seconds for each problem, and so for those of `COMPILED` alone

# Problems: what a network is called with, what it puts out, and how it adapts

OUT = 3  # classes, or outputs
LR, STEPS = 0.05, 2


class Case(NamedTuple):
    """All that ``meta_loss`` takes besides the engine."""

    network: nn.Module
    algorithm: Algorithm
    tasks: TaskBatch
    loss: Any
    autocast: bool


def _hooked() -> nn.Module:
    network = MLP(3, [6], OUT, init="default")
    network[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def _frozen(network: nn.Module, name: str) -> nn.Module:
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(not key.startswith(name))
    return network


def _convolutions(*between: Callable[[], nn.Module], bias: bool = True, kernel: int = 3) -> nn.Module:
    blocks = [
        layer
        for channels in (1, 2)
        for layer in (nn.Conv2d(channels, 2, kernel, padding=1, bias=bias), *(make() for make in between), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, OUT))


def _mlp(*hidden: int, activation: str = "tanh") -> nn.Module:
    return MLP(3, hidden, OUT, activation=activation, init="default")


def _layers(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _conv4(size: int = 8, **options: Any) -> nn.Module:
    return Conv4(OUT, hidden=2, image_size=size, **options)


ROW, IMAGE, IMAGE_16, SEQUENCE = (3,), (1, 8, 8), (1, 16, 16), (2, 3)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # perceptrons
    "mlp": (lambda: _mlp(6), ROW),
    "mlp relu": (lambda: _mlp(6, 5, activation="relu"), ROW),
    "mlp gelu": (lambda: _mlp(6, activation="gelu"), ROW),
    "mlp elu": (lambda: _mlp(6, activation="elu"), ROW),
    "mlp of 3 hidden": (lambda: _mlp(4, 5, 6), ROW),
    "mlp of 4 hidden": (lambda: _mlp(4, 4, 4, 4), ROW),
    "mlp of 128": (lambda: _mlp(128), ROW),
    "mlp of 129": (lambda: _mlp(129), ROW),
    "linear": (lambda: nn.Linear(3, OUT), ROW),
    "linear without bias": (lambda: nn.Linear(3, OUT, bias=False), ROW),
    "mlp nested": (lambda: _layers(_layers(nn.Linear(3, 4), nn.Tanh()), nn.Identity(), nn.Linear(4, OUT)), ROW),
    "mlp of identities": (lambda: _layers(nn.Linear(3, 4), nn.Linear(4, OUT)), ROW),
    "mlp mixed": (lambda: _layers(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, OUT)), ROW),
    "mlp approximate": (lambda: _layers(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, OUT)), ROW),
    "mlp dropout": (lambda: _layers(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, OUT)).eval(), ROW),
    "mlp norm": (lambda: _layers(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, OUT)), ROW),
    "mlp frozen": (lambda: _frozen(_mlp(6), "linear1"), ROW),
    "mlp hooked": (_hooked, ROW),
    "mlp context": (lambda: _layers(Context(2), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, OUT)), ROW),
    "mlp lora": (lambda: add_lora(_mlp(6), rank=2), ROW),
    # convolutions
    "conv4": (_conv4, IMAGE),
    "conv4 max_pool": (lambda: _conv4(16, form="max_pool"), IMAGE_16),
    "conv4 none": (lambda: _conv4(norm="none"), IMAGE),
    "conv4 group": (lambda: _conv4(16, norm="group", form="max_pool"), IMAGE_16),
    "conv4 frozen": (lambda: _frozen(_conv4(), "conv1"), IMAGE),
    "conv4 steps": (lambda: step_batch_norm(_conv4(), STEPS), IMAGE),
    "conv4 dropout": (lambda: _layers(*_conv4()[:-1], nn.Dropout(), nn.Linear(2, OUT)).eval(), IMAGE),
    "conv": (lambda: _convolutions(lambda: nn.BatchNorm2d(2)), IMAGE),
    "conv without norm": (lambda: _convolutions(), IMAGE),
    "conv without bias": (lambda: _convolutions(lambda: nn.BatchNorm2d(2), bias=False), IMAGE),
    "conv without affine": (lambda: _convolutions(lambda: nn.BatchNorm2d(2, affine=False)), IMAGE),
    "conv of 5": (lambda: _convolutions(kernel=5), IMAGE),
    "conv module": (lambda: ConvModule(OUT), IMAGE),
    "resnet12": (lambda: ResNet12(OUT, channels=1, widths=(2, 2)), IMAGE),
    # others
    "gru": (lambda: Recurrent(OUT), SEQUENCE),
    "attention": (lambda: Attention(OUT), SEQUENCE),
    "tied": (lambda: Tied(OUT), SEQUENCE),
}

LOSSES: dict[str, Any] = {
    "mse": "mse",
    "ce": "cross_entropy",
    "F.mse": F.mse_loss,
    "F.ce": F.cross_entropy,
    "bce": F.binary_cross_entropy_with_logits,
    "smooth": nn.SmoothL1Loss(),
    "lambda": lambda predictions, targets: (predictions - targets).abs().mean(),
}

CONTEXT = {"conv": r"^[14]\.bias", "mlp": r"linear1\.bias", "mlp context": r"(^|\.)context$"}
RATES = ("shared", "per_step", "per_parameter", "per_parameter_and_step", "per_element", "curvature")

# of the network's name; each as at its meta-update number 1
ALGORITHMS: dict[str, Callable[[str], Algorithm]] = {
    "maml": lambda _: maml(LR, STEPS),
    "fomaml": lambda _: fomaml(LR, STEPS),
    "pretrained": lambda _: pretrained(LR, STEPS),
    "anil": lambda _: anil(LR, STEPS),
    "boil": lambda _: boil(LR, STEPS),
    "meta_sgd": lambda _: meta_sgd(LR, STEPS),
    "meta_curvature": lambda _: meta_curvature(LR, STEPS),
    "meta_curvature first_order": lambda _: meta_curvature(LR, STEPS, first_order=True),
    "reptile": lambda _: reptile(LR, STEPS),
    "reptile sgd": lambda _: reptile(LR, STEPS, "sgd"),
    "reptile batch_size": lambda _: reptile(LR, STEPS, "sgd", batch_size=2),
    "imaml": lambda _: imaml(LR, STEPS),
    "imaml tolerance": lambda _: imaml(LR, STEPS, tolerance=0.1),
    "maml_pp": lambda _: maml_pp(LR, STEPS, multi_step_updates=None),
    "maml_pp off": lambda _: maml_pp(LR, STEPS, multi_step_updates=0),
    "maml_pp annealed": lambda _: maml_pp(LR, STEPS, None, multi_step_updates=4),
    "maml_pp done": lambda _: maml_pp(LR, STEPS, None, multi_step_updates=1),
    "maml_pp first_order": lambda _: maml_pp(LR, STEPS, None, multi_step_updates=4, first_order_updates=2),
    "proto_maml": lambda _: proto_maml(LR, STEPS),
    "proto_maml first_order": lambda _: proto_maml(LR, STEPS, first_order=True, learn_lr="per_parameter"),
    "cavia": lambda network: cavia(LR, STEPS, CONTEXT[network]),
    "lora": lambda _: lora(LR, STEPS),
    "lora first_order": lambda _: lora(LR, STEPS, first_order=True, learn_lr="per_parameter"),
    # rates
    **{kind: partial(lambda kind, _: maml(LR, STEPS, kind), kind) for kind in RATES},
    "per_step list": lambda _: maml([LR, LR / 2], STEPS, "per_step"),
    "fomaml per_element": lambda _: fomaml(LR, STEPS, "per_element"),
    "lr list": lambda _: maml([LR, LR / 2], STEPS),
    "lr list, longer": lambda _: fomaml([LR, LR / 2], STEPS + 1),
    "lr tensor": lambda _: maml(torch.tensor(LR), STEPS),  # type: ignore[arg-type]
    "lr asking": lambda _: maml(torch.tensor(LR, requires_grad=True), STEPS),  # type: ignore[arg-type]
    # steps
    "no steps": lambda _: maml(LR, 0),
    "9 steps": lambda _: maml(LR / 5, 9),
    "momentum": lambda _: maml(LR, STEPS).with_inner(momentum=0.5),
    "max_norm": lambda _: maml(LR, STEPS).with_inner(max_norm=0.5),
    "weight_decay": lambda _: maml(LR, STEPS).with_inner(weight_decay=0.1),
    "all three": lambda _: maml(LR, STEPS, "per_step").with_inner(momentum=0.5, max_norm=0.5, weight_decay=0.1),
    "batch_size": lambda _: maml(LR, STEPS).with_inner(batch_size=2),
    "proximal": lambda _: maml(LR, STEPS).with_inner(proximal=0.5),
    "tolerance": lambda _: maml(LR, STEPS).with_inner(tolerance=0.1),
    # the start, and what adapts
    "zeros": lambda network: maml(LR, STEPS, adapts=CONTEXT[network]).with_inner(start=Zeros()),
    "prototypes": lambda _: fomaml(LR, STEPS).with_inner(start=Prototypes()),
    "regex": lambda _: maml(LR, STEPS, adapts="bias"),
    "predicate": lambda _: maml(LR, STEPS, adapts=lambda name: name.endswith("weight")),
    "head": lambda _: maml(LR, STEPS).with_inner(adapts=Part("head")),
    "body": lambda _: maml(LR, STEPS, "per_parameter").with_inner(adapts=Part("body")),
    "head by name": lambda _: fomaml(LR, STEPS).with_inner(adapts=Part("head", "^head")),
    # other rules
    "momentum first_order": lambda _: Algorithm(SGD(LR, STEPS, momentum=0.5), FirstOrder()),
    "momentum joint": lambda _: Algorithm(SGD(LR, STEPS, momentum=0.5), Joint()),
    "momentum reptile": lambda _: Algorithm(SGD(LR, STEPS, momentum=0.5), Reptile()),
    "max_norm multi_step": lambda _: Algorithm(SGD(LR, STEPS, max_norm=0.5), MultiStep(4)),
    "head reptile": lambda _: Algorithm(SGD(LR, STEPS, adapts=Part("head")), Reptile()),
    "adam first_order": lambda _: Algorithm(Adam(LR, STEPS), FirstOrder()),
    "adam joint": lambda _: Algorithm(Adam(LR, STEPS), Joint()),
    "adam multi_step": lambda _: Algorithm(Adam(LR, STEPS), MultiStep(4, first_order_updates=2)),
    "adam unrolled": lambda _: Algorithm(Adam(LR, STEPS), Unrolled()),
    "running": lambda _: maml(LR, STEPS, batch_norm="running"),
}


@dataclass(frozen=True)
class Data:
    """What sets the tasks of a problem apart from three of float32, four support and three query rows."""

    dtype: torch.dtype = torch.float32
    tasks: int = 3
    support: int = 4
    asking: bool = False
    autocast: bool = False
    further: bool = False
    other_size: bool = False


DATA = {
    "": Data(),
    "float64": Data(torch.float64),
    "bfloat16": Data(torch.bfloat16),
    "asking": Data(asking=True),  # for a gradient of the inputs
    "autocast": Data(autocast=True),
    "1 task": Data(tasks=1),
    "128 rows": Data(support=128),
    "129 rows": Data(support=129),
    "further dimension": Data(further=True),
    "other query size": Data(other_size=True),
}


def build(name: str) -> Case:
    """The problem of a name, ``algorithm / network / loss / data``, always the same and always anew."""
    algorithm_name, network_name, loss, *rest = name.split(" / ")
    data = DATA[rest[0] if rest else ""]
    torch.manual_seed(0)
    make, shape = NETWORKS[network_name]
    network = make().to(data.dtype)

    def part(rows: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        shape = (2, *shape) if data.further else shape
        inputs = torch.randn(data.tasks, rows, *shape).to(data.dtype).requires_grad_(data.asking)
        if loss in ("ce", "F.ce"):
            return inputs, torch.arange(rows).expand(data.tasks, rows) % OUT
        targets = (
            torch.randn(data.tasks, rows, *shape[:-1], OUT) if data.further else torch.randn(data.tasks, rows, OUT)
        )
        return inputs, (targets.sigmoid() if loss == "bce" else targets).to(data.dtype)

    query_shape = (shape[0], *(side + 2 for side in shape[1:])) if data.other_size else shape
    tasks = TaskBatch(*part(data.support, shape), *part(3, query_shape))
    algorithm = ALGORITHMS[algorithm_name](network_name)
    algorithm = algorithm.with_rates(algorithm.initial_rates(network)).at(1)
    return Case(network, algorithm, tasks, LOSSES[loss], data.autocast)


_OF_EVERY_NETWORK = (
    *("maml", "fomaml", "pretrained", "anil", "boil", "meta_sgd", "meta_curvature", "reptile", "reptile sgd"),
    *("reptile batch_size", "imaml", "maml_pp", "cavia", "maml_pp annealed"),
)
_OF_RATES = (*RATES, "lr list", "lr tensor")
_OF_STEPS = ("momentum", "max_norm", "weight_decay", "batch_size", "proximal", "tolerance", "zeros", "regex")

PROBLEMS = [
    *(
        f"{a} / mlp / mse / float64"
        for a in ("maml", "fomaml", "pretrained", "meta_sgd", "reptile", "imaml", "maml_pp")
    ),
    *(f"{algorithm} / mlp / ce" for algorithm in _OF_EVERY_NETWORK),
    *(f"{algorithm} / conv / ce" for algorithm in _OF_EVERY_NETWORK[:-1] if algorithm != "reptile"),
    "reptile / conv / ce / float64",  # Adam makes steps of rounding errors where batch-norm takes a bias away
    *(f"{a} / mlp / ce" for a in ("meta_curvature first_order", "maml_pp off", "maml_pp done", "maml_pp first_order")),
    *(f"{a} / mlp / ce" for a in ("imaml tolerance", "proto_maml", "proto_maml first_order", "prototypes")),
    "maml_pp / conv4 steps / ce",
    "proto_maml / conv / ce",
    "cavia / mlp context / mse",
    "maml / mlp context / mse",
    "lora / mlp lora / mse",
    "lora first_order / mlp lora / ce",
    # options
    *(f"{algorithm} / mlp / mse" for algorithm in (*_OF_RATES, *_OF_STEPS)),
    *(f"{algorithm} / conv / ce" for algorithm in (*_OF_RATES, "momentum", "max_norm", "weight_decay", "regex")),
    *(f"{algorithm} / mlp / mse" for algorithm in ("per_step list", "fomaml per_element", "lr list, longer")),
    *(f"{algorithm} / mlp / mse" for algorithm in ("lr asking", "no steps", "9 steps", "all three")),
    *(f"{algorithm} / mlp / mse" for algorithm in ("predicate", "head", "body", "head by name", "running")),
    *(f"{algorithm} / mlp / mse" for algorithm in ("momentum first_order", "momentum joint", "momentum reptile")),
    *(f"{algorithm} / mlp / mse" for algorithm in ("max_norm multi_step", "head reptile", "adam first_order")),
    *(f"{algorithm} / mlp / mse" for algorithm in ("adam joint", "adam multi_step", "adam unrolled")),
    *(f"{algorithm} / conv / ce" for algorithm in ("running", "all three", "no steps")),
    "running / mlp norm / mse",
    "all three / gru / mse",
    # networks
    *(
        f"maml / {network} / mse"
        for network, (_, shape) in NETWORKS.items()
        if shape != IMAGE and network != "mlp lora"
    ),
    *(f"maml / {network} / ce" for network, (_, shape) in NETWORKS.items() if shape == IMAGE),
    # losses
    *(f"maml / mlp / {loss}" for loss in LOSSES if loss not in ("mse", "ce")),
    *(f"maml / conv / {loss}" for loss in ("mse", "bce", "smooth")),
    # data
    *(f"maml / mlp / mse / {data}" for data in DATA if data not in ("", "float64", "other query size")),
    *(f"maml / conv / ce / {data}" for data in ("float64", "asking", "autocast", "1 task", "other query size")),
    "maml / attention / ce / autocast",
]
PROBLEMS = list(dict.fromkeys(PROBLEMS))

COMPILED = [
    "maml / mlp / mse / float64",
    "fomaml / mlp / ce",
    "pretrained / mlp / ce",
    "anil / mlp / ce",
    "per_parameter / mlp / mse",
    "reptile sgd / mlp / ce",
    "maml / linear / mse",
    "maml / mlp norm / mse",
]

# Policies


class _Subclass(GaussianPolicy):
    """It computes something else, as far as an operator knows."""


def _policy(**options: Any) -> Policy:
    return GaussianPolicy(2, 2, **{"hidden": [5], "activation": "tanh", **options})


class PolicyCase(NamedTuple):
    """What sets a policy's problem apart."""

    algorithm: Callable[[], Algorithm] = lambda: maml(0.1, STEPS)
    policy: Callable[[], Policy] = _policy
    options: dict[str, Any] = {}  # noqa: RUF012  # of MetaObjective; nobody writes to it
    tasks: int = 16  # for any number of lanes
    dtype: torch.dtype = torch.float32


POLICY_PROBLEMS = {
    "maml": PolicyCase(),
    "3 tasks": PolicyCase(tasks=3),
    "float64": PolicyCase(dtype=torch.float64),
    **{f"estimator {e}": PolicyCase(options={"estimator": e}) for e in ("loaded_dice", "maml", "first_order")},
    "estimator of Python": PolicyCase(
        options={"estimator": lambda new, old, advantages, mask: -(new * advantages).mean((1, 2))}
    ),
    "PPO": PolicyCase(options={"outer": PPO(clip=0.1, epochs=1)}),
    "TRPO": PolicyCase(options={"outer": TRPO()}),
    "penalties": PolicyCase(options={"kl_penalty": 0.1, "exploration": 0.1}),
    "fixed deviation": PolicyCase(policy=partial(_policy, learn_std=False)),
    "categorical": PolicyCase(policy=lambda: CategoricalPolicy(2, 3, hidden=[5])),
    "linear": PolicyCase(policy=lambda: CategoricalPolicy(2, 3, hidden=[])),
    "gelu": PolicyCase(policy=partial(_policy, activation="gelu")),
    "elu": PolicyCase(policy=partial(_policy, activation="elu")),
    "3 hidden": PolicyCase(policy=partial(_policy, hidden=[3, 4, 5])),
    "4 hidden": PolicyCase(policy=partial(_policy, hidden=[3, 3, 3, 3])),
    "subclass": PolicyCase(policy=lambda: _Subclass(2, 2, hidden=[5])),
    "fomaml": PolicyCase(lambda: fomaml(0.1, STEPS)),
    "pretrained": PolicyCase(lambda: pretrained(0.1, STEPS)),
    "meta_sgd": PolicyCase(lambda: meta_sgd(0.1, STEPS)),
    "per_step": PolicyCase(lambda: maml([0.1, 0.05], STEPS, "per_step")),
    "curvature": PolicyCase(lambda: meta_curvature(0.1, STEPS)),
    "maml_pp": PolicyCase(lambda: maml_pp(0.1, STEPS)),
    "mean": PolicyCase(lambda: maml(0.1, STEPS, adapts="^(?!deviation)")),
    "head": PolicyCase(lambda: maml(0.1, STEPS, adapts="^head")),
    "momentum": PolicyCase(lambda: maml(0.1, STEPS).with_inner(momentum=0.5)),
    "imaml": PolicyCase(lambda: imaml(0.1, STEPS)),
}


def rollouts(policy: Policy, tasks: int) -> list[Rollouts]:
    """Made of random numbers, before each inner step and after the last."""
    shape, found = (tasks, 2, 4), []
    like = next(policy.parameters()).dtype
    for _ in range(STEPS + 1):
        seen = torch.randn(*shape, 2, dtype=like)
        with torch.no_grad():
            outputs = policy(seen.flatten(0, 2)).view(*shape, -1)
            actions = policy.sample(outputs)
        rewards, mask = torch.randn(shape, dtype=like), (torch.rand(shape) < 0.8).to(like)
        parts = (seen, actions, outputs, policy.log_probs(outputs, actions), rewards * mask, mask)
        found.append(Rollouts(*parts, torch.randn(shape, dtype=like)))
    return found


# Spies

_SPIED = {  # where each is looked up when it is called
    ("lightning_maml.kernels.mlp_adapt.recursion", "adapt"): "mlp_adapt",
    ("lightning_maml.kernels.mlp_adapt.native", "adapt"): "mlp_adapt compiled",
    ("lightning_maml.kernels.conv_adapt.native", "adapt"): "conv_adapt compiled",
    ("lightning_maml.kernels.sgd_update.op", "step"): "sgd_update",
    ("lightning_maml.kernels.policy_gradient.native", "run"): "policy_gradient",
    ("torch._inductor.compile_fx", "_compile_fx_inner"): "compiled",
}


@dataclass
class Seen:
    """What the spies saw."""

    operators: set[str] = field(default_factory=set)
    one_by_one: int = 0
    """Calls of the whole network with the rows of one task."""
    at_once: int = 0
    """The most tasks that a layer, or the network under vmap, was called with."""

    @property
    def name(self) -> str:
        """What did the work. Layers of all tasks at once may leave no trace: it is what else there is."""
        ways = ["eager"] if self.one_by_one else []
        if "compiled" in self.operators:  # whose tracing calls the layers
            ways = []
        elif self.operators & {"mlp_adapt", "mlp_adapt compiled", "conv_adapt compiled"} and self.at_once:
            ways.append("batched")
        return " + ".join([*sorted(self.operators), *ways]) or "batched"


@contextmanager
def spying(network: nn.Module, rank: int) -> Iterator[Seen]:
    """Looks at what runs. ``rank`` is the number of dimensions of one task's inputs."""
    seen = Seen()

    layers = {id(module) for module in network.modules()}  # a loss may be a module, too
    call = nn.Module.__call__

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(module) in layers and args and isinstance(args[0], Tensor):
            inputs = args[0]
            if torch._C._functorch.is_batchedtensor(inputs):
                place = torch._C._functorch.maybe_get_bdim(inputs)
                seen.at_once = max(seen.at_once, torch._C._functorch.get_unwrapped(inputs).shape[place])
            elif module is network and inputs.ndim == rank:
                seen.one_by_one += 1
            elif not seen.one_by_one:  # or it is a layer inside of that
                seen.at_once = max(seen.at_once, inputs.shape[0])
        return call(module, *args, **kwargs)

    def recorded(function: Any, name: str) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.operators.add(name)
            return function(*args, **kwargs)

        return wrapper

    with ExitStack() as stack:
        for (module, attribute), name in _SPIED.items():
            origin = importlib.import_module(module)
            stack.enter_context(patch.object(origin, attribute, recorded(getattr(origin, attribute), name)))
        stack.enter_context(patch.object(nn.Module, "__call__", called))  # a hook would change what engines run
        yield seen


class Ran(NamedTuple):
    """What did the work, how many tasks were seen at once (0: none were), and what came out."""

    name: str
    at_once: int
    numbers: list[Tensor]


def _ran(network: nn.Module, rank: int, function: Callable[[], list[Tensor]]) -> Ran:
    with spying(network, rank) as seen:
        try:
            numbers = function()
        except NotImplementedError:
            return Ran("refused", 0, [])
    return Ran(seen.name, seen.at_once, [number.detach() for number in numbers])


def what_ran(name: str, engine: Any) -> tuple[Ran, Ran]:
    """What ran in ``meta_loss``, and what in ``adapt``, of a problem on an engine.

    The numbers are the losses of the tasks, those before each inner step, and the meta-gradient; then the latter losses
    and the adapted parameters.
    """
    network, algorithm, tasks, loss, autocast = build(name)
    rank = tasks.support_inputs.ndim - 1
    lr: Any = algorithm.inner.lr
    learned = [lr] if isinstance(lr, Tensor) else list(lr.parameters()) if isinstance(lr, nn.Module) else []
    inputs = [tasks.support_inputs, tasks.query_inputs]
    leaves = [leaf for leaf in (*network.parameters(), *learned, *inputs) if leaf.requires_grad]

    def meta() -> list[Tensor]:
        output = meta_loss(network, algorithm, tasks, loss=loss, engine=engine)
        output.surrogate.backward()
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return [output.task_losses, output.support_losses, *gradients]

    def adapted() -> list[Tensor]:
        found = adapt(network, algorithm, tasks.support_inputs, tasks.support_targets, loss=loss, engine=engine)
        return [found.support_losses, *found.parameters.values()]

    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        return _ran(network, rank, meta), _ran(network, rank, adapted)


def what_ran_of_policy(name: str, engine: Any) -> tuple[Ran, Ran]:
    """The same of a :class:`MetaObjective`: its meta-gradient, and its inner steps."""
    algorithm, make, options, tasks, dtype = POLICY_PROBLEMS[name]
    torch.manual_seed(0)
    policy = make().to(dtype)
    parts = rollouts(policy, tasks)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)

    def objective() -> MetaObjective:
        own = algorithm()
        return MetaObjective(policy, own.with_rates(own.initial_rates(policy)), engine=engine, **options)

    def meta() -> list[Tensor]:
        made = objective()
        value = made(parts[: made.training_steps] + parts[-1:])
        return [value.loss, value.kl, *value.gradients]

    def adapted() -> list[Tensor]:
        *_, (phi, _) = objective().adapt(lambda _, step: parts[step], tasks, STEPS)
        return list(phi.values())

    return _ran(policy, 2, meta), _ran(policy, 2, adapted)


def summary(ran: tuple[Ran, Ran]) -> list[float | None]:
    """The mean loss, and the norms of the meta-gradient and of the adapted parameters; None of what was refused."""
    (_, _, meta), (_, _, adapted) = ran
    values: list[Tensor | None] = [None, None, None]
    if meta:
        values[:2] = meta[0].double().mean(), torch.nn.utils.get_total_norm([part.double() for part in meta[2:]])
    if adapted:
        values[2] = torch.nn.utils.get_total_norm([part.double() for part in adapted])
    return [None if value is None else float(f"{float(value):.8g}") for value in values]


def engines_of(name: str) -> dict[str, Callable[[], tuple[Ran, Ran]]]:
    """Of each engine that a problem is tried on, what finds out what ran; names of policies' begin with ``policy``."""
    if (policy := name.removeprefix("policy: ")) != name:
        return {engine: partial(what_ran_of_policy, policy, value) for engine, value in POLICY_ENGINES.items()}
    compiling = {COMPILING: Batched(compile=True)} if name in COMPILED else {}
    return {engine: partial(what_ran, name, value) for engine, value in (ENGINES | compiling).items()}


NAMES = [*PROBLEMS, *(f"policy: {name}" for name in POLICY_PROBLEMS)]
