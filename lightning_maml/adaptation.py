"""The three things to do with an algorithm: train it, adapt with it, evaluate it."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from lightning_maml.engine import Engine, Graphed, MetaOutput, Problem, in_a_row, run_on
from lightning_maml.engine.base import autocast_on
from lightning_maml.engine.divergence import bad_tasks, diverged, warning_of_divergence
from lightning_maml.engine.functional.statistics import batch_norm_mode, training_is
from lightning_maml.engine.functional.stored import detach_from_mode, say_once
from lightning_maml.engine.fused.in_a_row import InARow
from lightning_maml.engine.loops.graphed import OuterRates, OuterStep
from lightning_maml.engine.misfits import misfit
from lightning_maml.inner import Parameters
from lightning_maml.learner import Algorithm
from lightning_maml.losses import Loss, query_task_loss, task_loss
from lightning_maml.tasks import Inputs, TaskBatch, UnequalTasks, kinds, map_inputs, tensors_in

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Adapted:
    """The adapted networks of a batch of tasks."""

    parameters: Parameters
    """``{name: [T, *shape]}``; under ``batch_norm="support"`` the support sets' statistics, too, as layers' buffers."""
    support_losses: Tensor
    """``[T, steps + 1]``: before each inner step and after the last."""
    problem: Problem
    engine: str | Engine

    @property
    def diverged(self) -> Tensor:
        """``[T]``: whose support loss is, after the last step, not finite or higher than before the first one."""
        return diverged(self.support_losses, self.problem.inner)[:, -1]

    def predict(self, inputs: Inputs, *, dropout: bool = False) -> Tensor:
        """Each task's predictions ``[T, N, ...]`` for its own inputs, ``[T, N, ...]`` each, without a graph.

        In evaluation mode, unless ``dropout`` is to be drawn; batch-norm as the algorithm's ``batch_norm`` says. Under
        ``"batch"``, where predictions depend on the rows beside, it warns of that once. ValueError where the inputs are
        of another number of tasks.
        """
        tasks = len(self.support_losses)
        for value in tree_leaves(inputs):
            if value.ndim < 2 or value.shape[0] != tasks:
                wanted = f"inputs of {tasks} tasks, [{tasks}, rows, ...],"
                raise ValueError(f"Expected {wanted} but got {list(value.shape)}.")
        self._say_by_rows()
        rows, phi = map_inputs(_normal, inputs), self.parameters
        with training_is(dropout, self.problem.modules), _running(self.problem, (rows, None)), torch.no_grad():
            return run_on(self.engine, self.problem, (), lambda engine: engine.predict(self.problem, phi, rows))[1]

    def network(self, task: int) -> nn.Module:
        """A copy of the network with the parameters of one task: an ordinary module, to save or to deploy.

        In either mode its batch-norm layers do what they do in :meth:`predict`, which its predictions equal, but for
        dropout, which training mode draws. Under ``batch_norm="batch"`` they have no running statistics any more, and
        :meth:`predict`'s warning is given; under ``"support"`` they have the task's, under ``"running"`` the network's.

        Example:
            >>> from lightning_maml import maml
            >>> x, network = torch.randn(4, 10, 1), nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
            >>> adapted = adapt(network, maml(0.1, batch_norm="support"), x, 2 * x, loss="mse")
            >>> one = adapted.network(3)(x[3, :1])
            >>> torch.testing.assert_close(one, adapted.predict(x)[3, :1])
        """
        if not -(tasks := len(self.support_losses)) <= task < tasks:
            wanted = f"`task` to be from 0 to {tasks - 1}, as there are {tasks} tasks,"
            raise IndexError(f"Expected {wanted} but got {task}.")
        self._say_by_rows()
        network = with_parameters_of(self.problem.network, self.parameters, task)
        detach_from_mode(network, self.problem.algorithm.batch_norm)
        return network

    def _say_by_rows(self) -> None:
        if self.problem.norms and self.problem.algorithm.batch_norm == "batch":
            say_once(self.problem.network)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A batch of tasks before and after each inner step; everything ``[T, steps + 1]``, and detached."""

    query_losses: Tensor
    """``[T, len(at)]`` where :func:`evaluate` was given ``at``."""
    support_losses: Tensor
    predictions: Tensor
    """``[T, steps + 1, Nq, ...]``, for the query inputs; or ``[T, len(at), Nq, ...]``."""
    diverged: Tensor
    """Whose support loss is, after this step, not finite or higher than before the first one."""


def meta_loss(
    network: nn.Module,
    algorithm: Algorithm,
    tasks: TaskBatch,
    *,
    loss: Loss,
    query_loss: Loss | None = None,
    engine: str | Engine = "auto",
) -> MetaOutput:
    """The query loss after adaptation, and the meta-gradient.

    Args:
        network: any module; called with one task's inputs ``[N, ...]``, or a tuple or dictionary of such.
        algorithm, tasks: from a preset such as :func:`maml`; the meta-batch.
        loss: ``"mse"``, ``"cross_entropy"`` or a callable of one task, see :data:`Loss`: what tasks descend on the
            support sets.
        query_loss: what adapted networks are judged by on the query sets, of the same kinds; None for ``loss``. What
            the meta-gradient is of, but for :class:`~lightning_maml.Reptile`'s, which looks at no query set.
        engine: ``"auto"``, ``"eager"``, ``"batched"``, ``"fused"`` or an object, such as ``Batched(compile=True)``.

    Raises:
        ValueError: the tasks do not fit the network or the loss, or hold NaN or infinities.
        NotImplementedError: the engine asked for cannot run this.
        RuntimeError: gradients are disabled; :func:`evaluate` works there.

    Example:
        >>> from lightning_maml import maml
        >>> network, x = nn.Linear(1, 1), torch.randn(4, 10, 1)
        >>> output = meta_loss(network, maml(lr=0.1, steps=2), TaskBatch(x, 2 * x, x, 2 * x), loss="mse")
        >>> output.surrogate.backward()
        >>> network.weight.grad.shape, output.support_losses.shape
        (torch.Size([1, 1]), torch.Size([4, 3]))
    """
    return meta_loss_of(Problem(network, algorithm, task_loss(loss), query_task_loss(query_loss)), tasks, engine)


def meta_loss_of(problem: Problem, tasks: TaskBatch, engine: str | Engine = "auto") -> MetaOutput:
    """:func:`meta_loss` of a problem, which may be that of a meta-batch before."""
    if not torch.is_grad_enabled():
        raise RuntimeError("Expected gradients to be enabled for `meta_loss`; where they are not, use `evaluate`.")
    _check_tasks(tasks)
    problem = problem.with_weights(tasks.task_weights is not None)
    _check_data(problem, [*tasks.named()])
    sets = tasks.sets
    with _running(problem, *sets):
        return run_on(engine, problem, sets, lambda chosen: chosen.meta_loss(problem, tasks))[1]


def in_a_row_of(problem: Problem, batches: Sequence[TaskBatch], engine: str | Engine) -> InARow | None:
    """What takes the :func:`meta_loss` of these meta-batches in turn, if an engine has more for many than for one."""
    if any(batch.task_weights is not None for batch in batches) or len({kinds(*batch.sets) for batch in batches}) > 1:
        return None
    if any(not value.is_cpu for value in (next(iter(problem.names.values())), *tensors_in(*batches[0].sets))):
        return None
    if (found := in_a_row(engine, problem, batches[0])) is not None:
        floats = [value for batch in batches for value in tensors_in(*batch.sets) if value.is_floating_point()]
        if not math.isfinite(torch.stack(torch._foreach_norm(floats, 1)).sum().item()):
            for batch in batches:  # unless a sum of finite numbers overflowed
                _check_data(problem, [*batch.named()])
    return found


def recorded_updates_of(
    problem: Problem, batches: Sequence[TaskBatch], engine: Graphed, step: OuterStep, rates: OuterRates
) -> list[MetaOutput]:
    """Meta-updates by these meta-batches in turn as one launch, each with its step, up to the first that is not finite.

    None of them where the engine does not run the problem, or has no one recording for all.
    """
    sets = batches[0].sets
    if any(batch.task_weights is not None for batch in batches) or len({kinds(*batch.sets) for batch in batches}) > 1:
        return []
    problem = problem.with_weights(False)
    if engine.unsupported(problem, *sets) is not None:
        return []
    for batch in batches:
        _check_data(problem, [*batch.named()])
    with _running(problem, *sets):
        return engine.updates(problem, batches, step, rates)


def adapt(
    network: nn.Module,
    algorithm: Algorithm,
    support_inputs: Inputs,
    support_targets: Tensor,
    *,
    loss: Loss,
    engine: str | Engine = "auto",
    safeguard: bool = False,
) -> Adapted:
    """Adapt to new tasks, without touching the network. Works under ``no_grad`` and ``inference_mode``.

    Args:
        network, algorithm, loss, engine: as in :func:`meta_loss`.
        support_inputs, support_targets: ``[T, Ns, ...]``; inputs may be a tuple or dictionary of such tensors.
        safeguard: halve a task's step where it does not lower the task's support loss (on the rows that the step sees,
            with the term of ``proximal``), up to ten times, and where that does not help, leave the task where it is.
            What steps remember, such as momentum, is that of the step as proposed. Without it, divergence is warned of.

    Example:
        >>> from lightning_maml import maml
        >>> x = torch.randn(4, 10, 1)
        >>> adapted = adapt(nn.Linear(1, 1), maml(lr=0.1, steps=2), x, 2 * x, loss="mse")
        >>> adapted.predict(x).shape
        torch.Size([4, 10, 1])
    """
    problem = Problem(network, algorithm, task_loss(loss), safeguard=safeguard)
    support = map_inputs(_normal, support_inputs), _normal(support_targets)
    named = TaskBatch(*support, *support).named()
    _check_data(problem, [(name, value) for name, value in named if name.startswith("support")])

    def run(chosen: Engine) -> tuple[Parameters, list[Tensor]]:
        losses = []
        for phi, step_losses in chosen.trajectory(problem, support):  # noqa: B007
            losses.append(step_losses)
        return phi, losses

    with _running(problem, support):
        chosen, (phi, losses) = run_on(engine, problem, (support,), run)
    parameters = {name: value.clone() for name, value in phi.items()}
    adapted = Adapted(parameters, torch.stack(losses, 1), problem, chosen)
    if not safeguard and (said := warning_of_divergence(adapted.diverged)):
        warnings.warn(said, stacklevel=2)
    return adapted


def evaluate(
    network: nn.Module,
    algorithm: Algorithm,
    tasks: TaskBatch,
    *,
    loss: Loss,
    query_loss: Loss | None = None,
    engine: str | Engine = "auto",
    steps: int | None = None,
    at: Sequence[int] | None = None,
    safeguard: bool = False,
) -> Evaluation:
    """Query loss and predictions before and after each inner step. Works under ``no_grad`` and ``inference_mode``.

    Args:
        network, algorithm, tasks, loss, query_loss, engine: as in :func:`meta_loss`.
        steps: the number of inner steps; None for the algorithm's own.
        at: after how many inner steps the query sets are predicted, ``[0, 5]`` for before them and after five; None for
            after each. What is not asked for is not computed.
        safeguard: as in :func:`adapt`.

    Example:
        >>> from lightning_maml import maml
        >>> x = torch.randn(4, 10, 1)
        >>> result = evaluate(nn.Linear(1, 1), maml(lr=0.1), TaskBatch(x, x, x, x), loss="mse", steps=3)
        >>> result.query_losses.shape
        torch.Size([4, 4])
    """
    _check_tasks(tasks)
    algorithm = algorithm if steps is None else algorithm.with_steps(steps)
    problem = Problem(network, algorithm, task_loss(loss), safeguard=safeguard)
    judge = query_task_loss(query_loss) or problem.loss
    tasks = tasks.each(_normal)
    _check_data(problem, [*tasks.named()])

    asked = [*range(problem.inner.steps + 1)] if at is None else [*at]
    if not asked or not {*asked} <= {*range(problem.inner.steps + 1)}:
        raise ValueError(f"Expected `at` to name some of the steps 0 to {problem.inner.steps} but got {at}.")

    def run(chosen: Engine) -> tuple[list[Tensor], dict[int, tuple[Tensor, Tensor]]]:
        support: list[Tensor] = []
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for step, (phi, losses) in enumerate(chosen.trajectory(problem, tasks.sets[0])):
            support.append(losses)
            if step not in asked:
                continue
            with torch.no_grad():
                predicted = chosen.predict(problem, phi, tasks.query_inputs, step)
                if not found:
                    judge.check_shapes(predicted.shape, tasks.query_targets)
                    judge.check_values(predicted.shape[-1], tasks.query_targets)
                found[step] = judge(predicted, tasks.query_targets), predicted
        return support, found

    query = tasks.query_inputs, tasks.query_targets if query_loss is None else None
    with _running(problem, tasks.sets[0], query):
        _, (support, found) = run_on(engine, problem, tasks.sets, run)
    support_losses = torch.stack(support, 1)
    query_losses, predictions = (torch.stack([found[step][i] for step in asked], 1) for i in (0, 1))
    return Evaluation(query_losses, support_losses, predictions, diverged(support_losses, problem.inner))


def with_parameters_of(network: Network, parameters: Parameters, task: int) -> Network:
    """A copy of the network with the tensors of one task, of those of all tasks, ``{name: [T, *shape]}``."""
    network = copy.deepcopy(network)
    named = dict(network.named_buffers()) | dict(network.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            named[name].copy_(value[task])
    return network


@contextmanager
def _running(problem: Problem, *sets: tuple[Any, Any]) -> Iterator[None]:
    """While an engine runs, gradients are on, and every forward is twice differentiable.

    Where it ends with an error because network, loss and ``sets`` do not fit together, the error says so.
    """
    off = torch.is_inference_mode_enabled() or not torch.is_grad_enabled()
    try:
        with torch.inference_mode(False) if off else nullcontext():  # which turns gradients on, too
            hooked = [value for value in problem.parameters.values() if value._backward_hooks]
            if problem.plain and not hooked and not autocast_on(next(iter(problem.names.values())).device):
                yield  # nothing of the below concerns it
                return
            with ExitStack() as stack:
                for parameter in hooked:  # its hooks see the meta-gradient once, when `.backward()` hands it out
                    hooks: Any = parameter._backward_hooks
                    stack.callback(hooks.update, dict(hooks))
                    hooks.clear()
                stack.enter_context(batch_norm_mode(problem.modules, problem.algorithm.batch_norm))
                # the fused attention kernels have no second derivative, nor has cuDNN's or oneDNN's recurrence
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if any(isinstance(module, nn.RNNBase) for module in problem.modules):
                    stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                    stack.callback(torch.backends.mkldnn.set_flags, torch.backends.mkldnn.set_flags(False)[0])
                # a cast cached where gradients were off would have no gradient where they are on
                stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
                torch.set_autocast_cache_enabled(False)
                yield
    except Exception as error:
        if (explained := misfit(problem, sets, error)) is None:
            raise
        raise explained from error


def _normal(tensor: Tensor) -> Tensor:
    """The tensor as one that autograd can save: those made under inference mode are copied."""
    if not isinstance(tensor, Tensor) or not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _check_tasks(tasks: Any) -> None:
    if not isinstance(tasks, TaskBatch):
        how = "the batches of its `groups` in turn" if isinstance(tasks, UnequalTasks) else "TaskBatch(...) to make one"
        raise TypeError(f"Expected `tasks` to be a TaskBatch but got {type(tasks).__name__}: use {how}.")


def _check_data(problem: Problem, named: Sequence[tuple[str, Tensor]]) -> None:
    """Raise ValueError where network and data lie on different devices, or data is not finite."""
    parameter = next(iter(problem.names.values()), None)
    if parameter is None:
        raise ValueError(f"Expected a network with parameters to adapt but {type(problem.network).__name__} has none.")
    for name, value in named:
        if value.device != parameter.device:
            got = f"{parameter.device} and, of `{name}`, {value.device}"
            raise ValueError(f"Expected network and tasks on one device but got {got}.")
    # an accelerator would be waited for: MetaModule looks there once a loss is not finite
    floats = [(name, value) for name, value in named if value.is_cpu and value.is_floating_point()]
    if all(math.isfinite(value.sum().item()) for _, value in floats):
        return
    for name, value in floats:  # a sum of finite numbers may overflow
        if bad := bad_tasks(value):
            raise ValueError(f"Expected finite numbers but `{name}` holds NaN or infinities in tasks {bad[:10]}.")
