"""Adam's step in torch's one fused call: of a small network, all else that a step does takes far longer."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as of_optimizers

_DTYPES = {torch.float32, torch.float64}
_DEVICES = {"cpu", "cuda"}
_CLASSES: set[type] = {Parameter}


def fuse_step(optimizer: Optimizer) -> None:
    """Chooses torch's fused step for an Adam that leaves it to torch which one to take.

    Example:
        >>> optimizer = Adam([Parameter(torch.zeros(3))])
        >>> fuse_step(optimizer)
        >>> optimizer.param_groups[0]["fused"]
        True
    """
    if type(optimizer) not in (Adam, AdamW):
        return
    for group in optimizer.param_groups:
        undecided = group["fused"] is None and group["foreach"] is None
        ordinary = not (group["capturable"] or group["differentiable"])
        if undecided and ordinary and all(map(_fusible, group["params"])):
            group["fused"] = True


class StepInOneCall:
    """The steps that an Adam's ``step`` would take, with all that it looks up at each looked up once.

    It is good as long as nobody changes the optimiser's parameters and state, but for their values; rates may change.
    It is an :class:`~lightning_maml.engine.loops.graphed.OuterStep`, too, which can be recorded.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.groups = [(group, _state(optimizer, group)) for group in optimizer.param_groups]
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Self | None:
        """None but for an Adam of fused steps that has taken one already, where no hooks are to see more.

        And where its state lies as its parameters do, which torch looks at on CUDA alone.
        """
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        hooks = hooks or of_optimizers._global_optimizer_pre_hooks or of_optimizers._global_optimizer_post_hooks
        if type(optimizer) not in (Adam, AdamW) or hooks or not all(map(_known, optimizer.param_groups)):
            return None
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not all(parameter in optimizer.state for parameter in trained):
            return None
        for parameter in trained:
            moments = [value for name, value in optimizer.state[parameter].items() if name != "step"]
            if not all(_lies_like(moment, parameter) for moment in moments):
                return None
        return cls(optimizer)

    def take(self, parameters: Any, gradients: Any) -> None:
        """Steps the optimiser's parameters, or what stands for them, by a gradient for each of these."""
        rates = self.rates()
        if not parameters[0].is_cpu:  # as a recording has them: whether a step is recorded changes no number
            rates = torch.tensor(rates, dtype=torch.float32).tolist()
        self._take(parameters, gradients, rates, None)

    def take_unless(self, skipped: Tensor, gradients: Sequence[Tensor], rates: Sequence[Tensor]) -> None:
        """Steps by rates that lie on the device; nothing changes where the scalar ``skipped`` is 1."""
        self._take(self.parameters, gradients, rates, skipped)

    def rates(self) -> list[Any]:
        return [group["lr"] for group, _ in self.groups]

    @property
    def places(self) -> Hashable:
        tensors = chain(self.parameters, *(chain(*states) for _, states in self.groups))
        return (*(tensor.data_ptr() for tensor in tensors), *(_numbers(group) for group, _ in self.groups))

    @torch.no_grad()
    def _take(self, parameters: Any, gradients: Any, rates: Iterable[Any], skipped: Tensor | None) -> None:
        end = 0
        for (group, (exp_avgs, exp_avg_sqs, largest, steps)), rate in zip(self.groups, rates, strict=True):
            start, end = end, end + len(steps)
            call = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            torch._foreach_add_(steps, 1)
            call(
                parameters[start:end], gradients[start:end], exp_avgs, exp_avg_sqs, largest, steps, lr=rate,
                beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=group["amsgrad"], maximize=group["maximize"], found_inf=skipped,
            )  # fmt: skip
            if skipped is not None:
                torch._foreach_sub_(steps, [skipped] * len(steps))


def _fusible(parameter: Tensor) -> bool:
    known = parameter.device.type in _DEVICES and type(parameter) in _CLASSES and parameter.dtype in _DTYPES
    # with gaps between its numbers its state would lie otherwise, where a fused step goes by places
    return known and (parameter.is_contiguous() or _lies_like(torch.empty_like(parameter), parameter))


def _lies_like(one: Tensor, other: Tensor) -> bool:
    steps = zip(other.shape, one.stride(), other.stride(), strict=True)
    return one.shape == other.shape and all(size == 1 or step == its for size, step, its in steps)


def _known(group: dict[str, Any]) -> bool:
    """Whether a group is one whose step is the call below."""
    parameters = group["params"]
    alike = len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1
    numbers = isinstance(group["lr"], float | int) and all(isinstance(one, float | int) for one in _numbers(group))
    return group["fused"] is True and alike and numbers and all(map(_fusible, parameters))


def _numbers(group: dict[str, Any]) -> tuple[Any, ...]:
    """What a group's step computes with besides its rate."""
    names = "weight_decay", "eps", "amsgrad", "maximize", "decoupled_weight_decay"
    return (*group["betas"], *(group[name] for name in names))


def _state(optimizer: Optimizer, group: dict[str, Any]) -> list[list[Tensor]]:
    states = [optimizer.state[parameter] for parameter in group["params"]]
    names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"]
    return [[state[name] for state in states if name in state] for name in names]
