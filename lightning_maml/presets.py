"""The published algorithms, each a composition of an inner loop and a meta-gradient rule.

Arguments that a preset does not describe are those of :func:`maml`. All raise ValueError where one is out of range, and
TypeError, with what is meant, where one is of another name.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Literal, ParamSpec

from lightning_maml.checks import check_one_of, check_positive
from lightning_maml.inner import SGD, Adam, Adapts, InnerLoop, LearnedRate, OneHead, Part, Prototypes, Zeros
from lightning_maml.learner import Algorithm, BatchNorm, meant
from lightning_maml.meta_gradient import FirstOrder, Implicit, Joint, MultiStep, Reptile, Unrolled

__all__ = ["anil", "boil", "cavia", "fomaml", "imaml", "lora", "maml", "maml_pp", "meta_curvature", "meta_sgd"]
__all__ += ["pretrained", "proto_maml", "reptile", "unicorn_maml"]

Rate = float | Sequence[float]
Learned = LearnedRate | None
Names = str | Callable[[str], bool]
Arguments = ParamSpec("Arguments")


def _preset(function: Callable[Arguments, Algorithm]) -> Callable[Arguments, Algorithm]:
    """A preset that says of an argument it does not have what is meant."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Algorithm:
        for name in kwargs:
            if name not in known:
                own = function.__name__
                raise TypeError(f"Expected an argument of `{own}` but got `{name}`: {meant(function, name)}.")
        return function(*args, **kwargs)

    return checked


@_preset
def maml(
    lr: Rate = 0.01, steps: int = 5, learn_lr: Learned = None, adapts: Adapts = None, batch_norm: BatchNorm = "batch"
) -> Algorithm:
    r"""Model-agnostic meta-learning, with the exact, second-order meta-gradient.
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

    .. math:: \phi_{k+1} = \phi_k - \alpha \nabla L_{support}(\phi_k), \quad
              \nabla_\theta \tfrac1T \sum_t L_{query}(\phi_m(\theta)), \quad \phi_0 = \theta

    Losses are means over a task's rows. Code that sums over the classes' rows (the original's) has gradients N
    times larger: its alpha = 0.4 in 5-way Omniglot is ``lr=2.0`` here.

    Args:
        lr: the inner rate alpha; or one for each step, of which further steps (at test) have the last.
        steps: the number of inner steps m.
        learn_lr: what has a learned rate of its own, see :data:`LearnedRate`; None for a fixed rate.
        adapts: which parameters adapt: None for all, a regular expression or a predicate for names, or :class:`Part`.
        batch_norm: ``"batch"``, ``"running"`` or ``"support"``, see :data:`BatchNorm`.

    Example:
        >>> maml(lr=0.1, steps=3).with_steps(10).inner.steps
        10
    """
    return Algorithm(SGD(lr, steps, learn_lr, adapts), Unrolled(), batch_norm, "maml")


@_preset
def fomaml(
    lr: Rate = 0.01, steps: int = 5, learn_lr: Learned = None, adapts: Adapts = None, batch_norm: BatchNorm = "batch"
) -> Algorithm:
    """First-order :func:`maml` (Finn et al. 2017, section 5.2): inner gradients are constants; less time and memory."""
    return Algorithm(SGD(lr, steps, learn_lr, adapts), FirstOrder(), batch_norm, "fomaml")


@_preset
def pretrained(lr: Rate = 0.01, steps: int = 5, adapts: Adapts = None, batch_norm: BatchNorm = "batch") -> Algorithm:
    """The baseline: one network trained on all tasks jointly (m = 0), fine-tuned at test (Finn et al. 2017, 5.1)."""
    return Algorithm(SGD(lr, steps, None, adapts), Joint(), batch_norm, "pretrained")


@_preset
def anil(
    lr: Rate = 0.01, steps: int = 5, head: str | None = None, learn_lr: Learned = None, batch_norm: BatchNorm = "batch"
) -> Algorithm:
    r"""Almost no inner loop: :func:`maml` in which only the head adapts; the body is meta-learned and shared.
    Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020.

    .. math:: \phi_{k+1} = (\theta_{body}, \; \phi_k^{head} - \alpha \nabla_{head} L_{support}(\phi_k))

    Args:
        head: a regular expression for the head's parameters; None for the last module that has any, as registered.

    Example:
        >>> from lightning_maml import MLP
        >>> anil().inner.adapted(dict(MLP(1, [40, 40], 1).named_parameters()))
        ['head.weight', 'head.bias']
    """
    return Algorithm(SGD(lr, steps, learn_lr, Part("head", head)), Unrolled(), batch_norm, "anil")


@_preset
def boil(
    lr: Rate = 0.01, steps: int = 5, head: str | None = None, learn_lr: Learned = None, batch_norm: BatchNorm = "batch"
) -> Algorithm:
    r"""Body only in the inner loop: :func:`maml` in which all but the head adapts; the head is meta-learned and shared.
    Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021.

    .. math:: \phi_{k+1} = (\phi_k^{body} - \alpha \nabla_{body} L_{support}(\phi_k), \; \theta_{head})

    Args:
        head: what does not adapt, as in :func:`anil`.

    Example:
        >>> from lightning_maml import MLP
        >>> boil().inner.adapted(dict(MLP(1, [40], 1).named_parameters()))
        ['linear1.weight', 'linear1.bias']
    """
    return Algorithm(SGD(lr, steps, learn_lr, Part("body", head)), Unrolled(), batch_norm, "boil")


@_preset
def meta_sgd(lr: float = 0.01, steps: int = 1, adapts: Adapts = None, batch_norm: BatchNorm = "batch") -> Algorithm:
    r"""Meta-SGD: :func:`maml` with a learned inner rate for every single element of the parameters.
    Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, arXiv:1707.09835.

    .. math:: \phi_{k+1} = \phi_k - \alpha \circ \nabla L_{support}(\phi_k), \quad
              \nabla_{(\theta, \alpha)} \tfrac1T \sum_t L_{query}(\phi_m(\theta, \alpha))

    Rates may become negative. The paper draws their initial values at random and takes one step. Test with as many
    steps as in training: on the sinusoid the largest rates grow above 1, and from where one such step leads a second
    one overshoots.

    Args:
        lr: the initial value of all inner rates.

    Example:
        >>> from torch import nn
        >>> {name: tuple(rate.shape) for name, rate in meta_sgd().initial_rates(nn.Linear(3, 2)).named_parameters()}
        {'weight': (2, 3), 'bias': (2,)}
    """
    return Algorithm(SGD(lr, steps, "per_element", adapts), Unrolled(), batch_norm, "meta_sgd")


@_preset
def meta_curvature(
    lr: float = 0.01, steps: int = 5, first_order: bool = False, adapts: Adapts = None, batch_norm: BatchNorm = "batch"
) -> Algorithm:
    r"""Meta-Curvature: :func:`maml` in which learned matrices transform each gradient before the step.
    Park, Oliva, "Meta-Curvature", NeurIPS 2019.

    .. math:: \phi_{k+1} = \phi_k - \alpha \, M_o \nabla L_{support}(\phi_k) \, M_i \; M_f

    with matrices for a weight's outputs, inputs and places, from the identity, and a factor for each element of a bias.

    Args:
        lr: the inner rate alpha, which stays fixed.
        first_order: inner gradients as constants, as in :func:`fomaml`; the matrices learn all the same.

    Example:
        >>> from torch import nn
        >>> [name for name, _ in meta_curvature().initial_rates(nn.Conv2d(3, 8, 3)).named_parameters()]
        ['weight/outputs', 'weight/inputs', 'weight/places', 'bias/elements']
    """
    return Algorithm(SGD(lr, steps, "curvature", adapts), _unrolled(first_order), batch_norm, "meta_curvature")


@_preset
def reptile(
    lr: Rate = 1e-3,
    steps: int = 5,
    optimizer: Literal["adam", "sgd"] = "adam",
    batch_size: int | None = None,
    adapts: Adapts = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""Reptile: train on each task's support set, then move the meta-parameters towards where that led.
    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv:1803.02999.

    .. math:: \theta \leftarrow \theta + \epsilon \tfrac1T \sum_t (\phi_m - \theta)

    The rate epsilon is that of the outer optimiser, and its schedule the outer scheduler's; the paper's are
    ``optimizer=lambda p: torch.optim.SGD(p, lr=1.0)`` and ``scheduler=lambda o:
    torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, updates)``; one task in a batch is its serial version. Learning uses
    the support set alone: give it the queries' rows, too. (The authors' Adam carries its moments from task to task.)

    Args:
        optimizer: ``"adam"``, the paper's, without momentum (see :class:`Adam`), or ``"sgd"``.
        batch_size: how many support rows a step sees; None for all.
        adapts: which parameters adapt. The others do not learn at all.

    Example:
        >>> reptile(lr=1e-3, steps=5, batch_size=10).inner.rows(step=0, support=25).shape
        torch.Size([10])
    """
    check_one_of(("adam", "sgd"), optimizer=optimizer)
    kind: type[InnerLoop] = Adam if optimizer == "adam" else SGD
    return Algorithm(kind(lr, steps, None, adapts, batch_size), Reptile(), batch_norm, "reptile")


@_preset
def imaml(
    lr: Rate = 0.1,
    steps: int = 16,
    proximal: float = 2.0,
    cg_steps: int = 5,
    damping: float = 1.0,
    tolerance: float = 0.0,
    adapts: Adapts = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""Implicit MAML: the inner loop minimises a proximal loss, and the meta-gradient needs its end alone.
    Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019.

    .. math:: \phi^* = \arg\min_\phi L_{support}(\phi) + \tfrac\lambda2 \lVert \phi - \theta \rVert^2, \quad
              \big((1 + \delta) I + \tfrac1\lambda \nabla^2 L_{support}(\phi^*)\big) \, g = \nabla L_{query}(\phi^*)

    ``damping=0`` and enough of ``steps`` and ``cg_steps`` give the exact meta-gradient of the optimum;
    :class:`Implicit` warns where the conjugate gradients do not converge. The defaults are those of the paper's
    Omniglot 5-way 1-shot. On the sinusoid curvatures reach 60, so that ``lr=0.1`` diverges; early in training 16 steps
    of 0.02 end short of the optimum for one task in fifty, where no ``cg_steps`` help, 200 for none. On CIFAR-FS they
    reach 30 to 170 under lambda 2, where ``lr=0.1`` allows 18: the loop ends at no optimum, the implicit gradient has
    nothing to do with the unrolled one (a cosine of 0.00; of 0.94 with ``lr=0.03``), and training falls to chance after
    200 updates. ``steps=10, proximal=0.5`` train there.

    Args:
        lr: the inner rate; below 2 / (lambda + the largest curvature), or the inner loop diverges.
        steps: the number of inner steps, enough to come close to the optimum.
        proximal: lambda.
        cg_steps: iterations of conjugate gradients.
        damping: delta, see :class:`Implicit`.
        tolerance: tasks whose proximal gradient has this norm or a smaller one take no further steps.

    Example:
        >>> imaml(proximal=0.5).inner.proximal
        0.5
    """
    check_positive(proximal=proximal)
    inner = SGD(lr, steps, None, adapts, proximal=proximal, tolerance=tolerance)
    return Algorithm(inner, Implicit(cg_steps, damping), batch_norm, "imaml")


@_preset
def maml_pp(
    lr: Rate = 0.1,
    steps: int = 5,
    learn_lr: Learned = "per_parameter_and_step",
    multi_step_updates: int | None = 5000,
    first_order_updates: int = 0,
    adapts: Adapts = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""MAML++: :func:`maml` with what makes it train more steadily, each by a switch of its own.
    Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.

    - rates per layer and step, learned: ``learn_lr``, None for a fixed rate;
    - the multi-step loss and its annealing: ``multi_step_updates``, 0 to switch it off;
    - derivative-order annealing: ``first_order_updates``, 0 to switch it off. The paper has half of the training
      (25,000 updates), its published configurations have none;
    - batch-norm with a scale and a bias for every inner step, from :func:`~lightning_maml.networks.step_batch_norm`;
    - the cosine schedule: ``scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, updates, eta_min=1e-5)``.

    What changes as training goes on comes in by :meth:`Algorithm.at`: ``MetaModule`` calls it, a loop of your own has
    to. Test with as many steps as in training: further ones take the last step's rates, learned for a step that nothing
    follows. On the sinusoid, without batch-norm to bound the curvature, use a rate of 0.01.

    Args:
        lr: the initial inner rates; the default is the paper's, for images and a network with batch-norm.
        multi_step_updates: meta-updates until only the loss after the last step counts, see :class:`MultiStep`.
        first_order_updates: meta-updates of first order before those of second.

    Example:
        >>> maml_pp(steps=2, multi_step_updates=10).at(5).meta_gradient.weights(steps=2)
        [0.25, 0.75]
    """
    rule = MultiStep(multi_step_updates, first_order_updates)
    return Algorithm(SGD(lr, steps, learn_lr, adapts), rule, batch_norm, "maml_pp")


@_preset
def proto_maml(
    lr: Rate = 0.01,
    steps: int = 5,
    head: str | None = None,
    first_order: bool = False,
    learn_lr: Learned = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""Proto-MAML: :func:`maml` in which each task's linear head starts as the classifier of a prototypical network.
    Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", ICLR 2020.

    .. math:: W_c = 2 c_c, \; b_c = -\lVert c_c \rVert^2, \quad c_c = \text{mean support feature of class } c

    The meta-gradient goes through the prototypes, too. A task may have fewer classes than the head has outputs.

    Args:
        head: the head's weight and bias, as in :func:`anil`: an ``nn.Linear``, the network's last operation.
        first_order: inner gradients as constants, as in :func:`fomaml`; prototypes are differentiated all the same.

    Example:
        >>> import torch
        >>> from lightning_maml import MLP, adapt
        >>> images, labels = torch.randn(4, 10, 3), torch.arange(10).expand(4, 10) % 5
        >>> adapted = adapt(MLP(3, [8], 5), proto_maml(steps=1), images, labels, loss="cross_entropy")
        >>> adapted.parameters["head.bias"].shape
        torch.Size([4, 5])
    """
    return Algorithm(SGD(lr, steps, learn_lr, start=Prototypes(head)), _unrolled(first_order), batch_norm, "proto_maml")


@_preset
def unicorn_maml(
    lr: Rate = 0.1,
    steps: int = 15,
    head: str | None = None,
    first_order: bool = True,
    learn_lr: Learned = None,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""UNICORN-MAML: :func:`maml` with one head vector, learned, that each task's classes all start from.
    Ye, Chao, "How to Train Your MAML to Excel in Few-Shot Classification", ICLR 2022.

    .. math:: W_c = w, \; b_c = b \quad \text{for each class } c

    A softmax does not see what all classes share: w has no gradient, and stays what it is initialised as, but for
    weight decay. The authors' published commands take a pretrained ResNet-12, and on mini-ImageNet 5 inner steps of
    rate 0.1 for one shot and 20 for five; their query loss has a temperature of 0.5, which ``query_loss`` can do.

    Args:
        head: the head's weight and bias, as in :func:`anil`.
        first_order: inner gradients as constants, as in :func:`fomaml`.

    Example:
        >>> import torch
        >>> from lightning_maml import MLP, adapt
        >>> images, labels = torch.randn(4, 10, 3), torch.arange(10).expand(4, 10) % 5
        >>> adapted = adapt(MLP(3, [8], 5), unicorn_maml(steps=0), images, labels, loss="cross_entropy")
        >>> adapted.parameters["head.bias"].unique(dim=1).shape
        torch.Size([4, 1])
    """
    return Algorithm(SGD(lr, steps, learn_lr, start=OneHead(head)), _unrolled(first_order), batch_norm, "unicorn_maml")


@_preset
def cavia(
    lr: Rate = 1.0, steps: int = 1, adapts: Names = r"(^|\.)context$", batch_norm: BatchNorm = "batch"
) -> Algorithm:
    r"""CAVIA: only context parameters adapt, from zero in each task; all other parameters are meta-learned and shared.
    Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019.

    .. math:: \phi_0 = 0, \quad \phi_{k+1} = \phi_k - \alpha \nabla_\phi L_{support}(\phi_k, \theta), \quad
              \nabla_\theta \tfrac1T \sum_t L_{query}(\phi_m(\theta), \theta)

    Args:
        lr: the inner rate; contexts are few, and the paper's is 1.
        adapts: the context; by default parameters named ``context``, as of :class:`~lightning_maml.networks.Context`.

    Example:
        >>> from torch import nn
        >>> from lightning_maml.networks import Context
        >>> cavia().inner.adapted(dict(nn.Sequential(Context(4), nn.Linear(1 + 4, 1)).named_parameters()))
        ['0.context']
    """
    return Algorithm(SGD(lr, steps, None, adapts, start=Zeros()), Unrolled(), batch_norm, "cavia")


@_preset
def lora(
    lr: Rate = 0.01,
    steps: int = 5,
    learn_lr: Learned = None,
    adapts: Names = r"(^|\.)lora_[abAB](\.|$)",
    first_order: bool = False,
    batch_norm: BatchNorm = "batch",
) -> Algorithm:
    r"""MAML on low-rank adapters: only ``A`` and ``B`` of each layer's ``W + (s / r) B A`` adapt.
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, for the adapters.

    .. math:: (A, B)_{k+1} = (A, B)_k - \alpha \nabla_{(A, B)} L_{support}

    :func:`~lightning_maml.networks.add_lora` puts them into a network; what it does not freeze is learned and shared.

    Args:
        adapts: which parameters are the adapters; by default those of ``add_lora``, and of peft.
        first_order: as in :func:`meta_curvature`.

    Example:
        >>> from torch import nn
        >>> from lightning_maml.networks import add_lora
        >>> network = add_lora(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), rank=2)
        >>> lora().inner.adapted(dict(network.named_parameters()))
        ['0.lora_a', '0.lora_b', '2.lora_a', '2.lora_b']
    """
    return Algorithm(SGD(lr, steps, learn_lr, adapts), _unrolled(first_order), batch_norm, "lora")


def _unrolled(first_order: bool) -> FirstOrder | Unrolled:
    return FirstOrder() if first_order else Unrolled()
