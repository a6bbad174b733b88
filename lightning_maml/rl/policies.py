"""Policies: what they put out are the numbers that a distribution over actions is made of."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_maml.checks import check_positive
from lightning_maml.engine.functional.forward import Networks
from lightning_maml.engine.functional.layers import LAYERS
from lightning_maml.inner import Parameters
from lightning_maml.networks.layers import Layers
from lightning_maml.networks.mlp import MLP


class Policy(Layers):
    """A network ``[N, O] -> [N, P]`` whose outputs stand for a distribution over actions.

    Everything below is differentiable in the outputs, and works with any leading dimensions ``...``.
    """

    discrete: ClassVar[bool]
    observation_size: int
    action_size: int

    @abstractmethod
    def sample(self, outputs: Tensor) -> Tensor:
        """Actions drawn at random, ``[..., P] -> [..., A]``, or ``[...]`` where they are numbers."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable actions, as :meth:`sample` gives them."""

    @abstractmethod
    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """The log-probabilities (or their densities) of actions, ``[...]``."""

    @abstractmethod
    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        """The divergence ``KL(outputs || others)``, exact, ``[...]``."""

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool = False) -> Tensor:
        """Actions for observations ``[..., O]``: drawn, or the most probable ones."""
        outputs = self(observations)
        return self.mode(outputs) if deterministic else self.sample(outputs)

    def outputs(
        self, phi: Parameters, constants: Mapping[str, Tensor], observations: Tensor, eager: bool = False
    ) -> Tensor:
        """The outputs of each task's policy: ``phi {name: [T, *shape]}``, ``[T, ..., O] -> [T, ..., P]``.

        ``eager`` runs one task after another as the module is written, what the batched form is tested against.
        """
        outputs = Networks(self, constants, None, one=eager)(phi, observations.flatten(1, -2))
        return outputs.view(*observations.shape[:-1], outputs.shape[-1])


class GaussianPolicy(Policy):
    r"""Actions from a normal distribution: a perceptron gives the mean; the deviation is a parameter of its own.

    .. math:: a \sim \mathcal N\big(\mu_\phi(s), \operatorname{diag}(e^{2 \log\sigma})\big)

    ``log_std`` does not depend on the state, and adapts like any other parameter, or stays as it is. Outputs are the
    mean and then ``log_std``: ``P = 2 A``. Actions are not bounded; environments clip them. ValueError where an
    argument is out of range.

    Args:
        observation_size, action_size: O and A.
        hidden: width of each hidden layer.
        activation: as of :class:`~lightning_maml.networks.MLP`.
        init_std: the deviation at the start.
        learn_std: whether it is learned, and adapts; if not, it stays.

    Example:
        >>> policy = GaussianPolicy(2, 2, hidden=[8])
        >>> policy(torch.zeros(5, 2)).shape, policy.act(torch.zeros(5, 2)).shape
        (torch.Size([5, 4]), torch.Size([5, 2]))
        >>> [name for name, _ in policy.named_parameters()]
        ['linear1.weight', 'linear1.bias', 'head.weight', 'head.bias', 'deviation.log_std']
    """

    discrete = False

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (100, 100),
        activation: str = "relu",
        init_std: float = 1.0,
        learn_std: bool = True,
    ) -> None:
        check_positive(init_std=init_std)
        mean = MLP(observation_size, hidden, action_size, activation, init="default")
        deviation = Deviation(action_size, init_std, learn_std)
        super().__init__(OrderedDict([*mean.named_children(), ("deviation", deviation)]))
        self.observation_size, self.action_size = observation_size, action_size

    def sample(self, outputs: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        return mean + log_std.exp() * torch.randn_like(mean)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.chunk(2, -1)[0]

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, -1)
        return -(((actions - mean) * torch.exp(-log_std)).square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)

    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        (mean, log_std), (other, log_other) = outputs.chunk(2, -1), others.chunk(2, -1)
        variances = torch.exp(2 * (log_std - log_other)) + ((mean - other) * torch.exp(-log_other)).square()
        return ((variances - 1) / 2 + log_other - log_std).sum(-1)


class CategoricalPolicy(Policy):
    """Actions are numbers from 0: a perceptron gives the logits of a softmax, ``P = A``.

    Args:
        observation_size, action_size: O and A, how many actions there are.
        hidden: width of each hidden layer; an empty sequence makes the logits linear in the observation.
        activation: as of :class:`~lightning_maml.networks.MLP`.

    ValueError where an argument is out of range.

    Example:
        >>> policy = CategoricalPolicy(3, 4, hidden=[])
        >>> policy.act(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    discrete = True

    def __init__(
        self, observation_size: int, action_size: int, hidden: Sequence[int] = (100, 100), activation: str = "relu"
    ) -> None:
        logits = MLP(observation_size, hidden, action_size, activation, init="default")
        super().__init__(OrderedDict(logits.named_children()))
        self.observation_size, self.action_size = observation_size, action_size

    def sample(self, outputs: Tensor) -> Tensor:
        uniform = torch.rand_like(outputs).clamp_min(torch.finfo(outputs.dtype).tiny)
        return (outputs - (-uniform.log()).log()).argmax(-1)  # Gumbel's maximum is distributed as the softmax

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return F.log_softmax(outputs, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        log_p, log_q = F.log_softmax(outputs, -1), F.log_softmax(others, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class Deviation(nn.Module):
    """Appends ``log_std``, the same for every observation, to the mean: ``[N, A] -> [N, 2 A]``."""

    def __init__(self, action_size: int, init_std: float, learned: bool) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(init_std)), requires_grad=learned)

    def forward(self, mean: Tensor) -> Tensor:
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def _deviation_layer(module: nn.Module, own: Parameters, shared: Mapping[str, Tensor], mean: Tensor) -> Tensor:
    log_std = own["log_std"].unsqueeze(1) if "log_std" in own else shared["log_std"]  # [T, 1, A] or [A]
    return torch.cat([mean, log_std.expand_as(mean)], -1)


LAYERS[Deviation] = _deviation_layer  # of all tasks at once, as the engine's own layers
