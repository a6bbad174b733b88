"""Inner gradients of policies of all tasks by the operator ``policy_gradient``."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_maml.engine.functional.structure import changed
from lightning_maml.engine.fused.mlp_adapt import Perceptron, recognise
from lightning_maml.engine.fused.operator import UnrecognisedError, unpack_tasks
from lightning_maml.inner import Parameters
from lightning_maml.rl.environments import Rollouts
from lightning_maml.rl.estimators import Estimator
from lightning_maml.rl.outer import PPO, Outer
from lightning_maml.rl.policies import CategoricalPolicy, Deviation, GaussianPolicy, Policy

_KINDS = {"lvc": "ratio", "maml": "log_probability", "first_order": "log_probability"}  # of the estimators


@dataclass(frozen=True, eq=False)
class PolicyGradient:
    """The gradient of the estimator's losses, for a policy whose parameters lie in the order of ``perceptron``."""

    perceptron: Perceptron
    distribution: str
    kind: str

    def __call__(self, phi: Parameters, constants: Mapping[str, Tensor], rollouts: Rollouts) -> Parameters:
        """``{name: [T, *shape]}`` of what adapts to the same of the gradients; differentiable once."""
        from lightning_maml.kernels.policy_gradient import policy_gradient

        shapes, tasks = self.perceptron.shapes, len(rollouts)
        each = [phi[name] if name in phi else constants[name].expand(tasks, -1) for name in shapes]
        flat = torch.cat([value.flatten(1) for value in each], 1)
        weights = rollouts.advantages * rollouts.mask / rollouts.mask[0].numel()
        rows = (rollouts.observations, rollouts.actions, weights, rollouts.log_probs)
        kind = (self.perceptron.widths, self.perceptron.activation, self.distribution, self.kind)
        gradient = policy_gradient(flat, *(part.flatten(1, 2) for part in rows), *kind)
        named = unpack_tasks(gradient, shapes)
        return {name: named[name] for name in phi}

    def lanes(self, rollouts: Rollouts) -> int:
        """How many tasks run at once."""
        from lightning_maml.kernels.policy_gradient import native

        return native.lanes(rollouts.rewards.dtype)

    def fills(self, rollouts: Rollouts) -> bool:
        """Whether there are tasks for most lanes of its vectors; where not, the engine ``batched`` is faster."""
        tasks, lanes = len(rollouts), self.lanes(rollouts)
        return tasks >= 0.8 * lanes * math.ceil(tasks / lanes)

    def unsupported(self, theta: Parameters, like: Tensor) -> str | None:
        """Why it does not run for parameters and rollouts such as these, or None; compiles the operator."""
        from lightning_maml.kernels.policy_gradient import native

        dtypes = {value.dtype for value in theta.values()} | {like.dtype}
        if like.device.type != "cpu":
            return f"its operator for policies runs on the CPU, not on {like.device.type!r}."
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            return f"parameters and rollouts are not of one dtype that it computes in: {sorted(map(str, dtypes))}."
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on."
        if (reason := native.unavailable(like.dtype)) is not None:
            return f"its operator for policies needs a C compiler, but {reason}."
        return None


def find(policy: Policy, estimator: str | Estimator, outer: Outer, adapted: Parameters) -> PolicyGradient | str:
    """What computes the inner gradients of an objective whose tasks have parameters ``adapted`` of their own.

    Or why nothing here does.
    """
    if type(policy) not in (GaussianPolicy, CategoricalPolicy):
        return f"the policy is a {type(policy).__name__}, neither a GaussianPolicy nor a CategoricalPolicy."
    if (what := changed(policy)) is not None:
        return f"the policy has {what}."
    if not isinstance(estimator, str) or estimator not in _KINDS:
        return f"the estimator is {estimator!r}, none of {sorted(_KINDS)}."
    if type(outer) is not PPO:
        return f"the outer loss is {type(outer).__name__}: TRPO takes third derivatives, and its operator has none."
    if not {name for name, _ in policy.named_parameters()} - adapted.keys() <= {"deviation.log_std"}:
        return "a part of the policy other than its deviation does not adapt."
    layers, distribution = OrderedDict(policy.named_children()), "categorical"
    if isinstance(policy, GaussianPolicy):
        deviation, distribution = layers.pop("deviation", None), "gaussian"
        if type(deviation) is not Deviation or changed(deviation):
            return "the policy's deviation was changed."
    from lightning_maml.kernels.policy_gradient import LIMITS

    try:
        found = recognise(nn.Sequential(layers), LIMITS)
    except UnrecognisedError as error:
        return str(error)
    shapes = found.shapes | {name: value.shape for name, value in policy.named_parameters()}  # with log_std at the end
    return PolicyGradient(replace(found, shapes=shapes), distribution, _KINDS[estimator])
