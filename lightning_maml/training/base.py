"""The base of training on batches of tasks and on rollouts: all of Lightning but the training step."""

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.core.saving import _default_map_location
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_maml import saving
from lightning_maml.checks import check_not_negative, check_one_of, check_positive, check_whole
from lightning_maml.learner import Algorithm
from lightning_maml.metrics import Interval, TaskMean
from lightning_maml.saving.pretrained import path_of, read_module
from lightning_maml.saving.resume import CONFIGURATION
from lightning_maml.saving.states import check_fits, check_optimization, check_states
from lightning_maml.training.fused_step import fuse_step
from lightning_maml.training.results import results_table, test_results, write_json

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]
ClipAlgorithm = Literal["norm", "value"]


class MetaTraining(LightningModule):
    """Optimisers, evaluation of tasks by inner steps, tables and checkpoints of a meta-training.

    What is ``learned`` becomes the attribute ``name``; learned rates stand behind it, as optimisers know parameters by
    their order. ``values`` are the names of what tasks are judged by, and ``may_diverge`` says whether
    :meth:`_evaluated` tells which have diverged. All other arguments are those of ``MetaModule``.
    """

    def __init__(
        self,
        name: str,
        learned: nn.Module,
        algorithm: Algorithm,
        *,
        values: Sequence[str],
        may_diverge: bool,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        test_steps: int | None,
        gradient_clip_val: float | None,
        gradient_clip_algorithm: ClipAlgorithm,
    ) -> None:
        super().__init__()
        if not callable(optimizer):
            raise TypeError(
                "Expected `optimizer` to be a function from parameters to an optimizer, such as "
                f"`lambda parameters: torch.optim.Adam(parameters, lr=1e-3)`, but got {type(optimizer).__name__}."
            )
        if scheduler is not None and not callable(scheduler):
            raise TypeError(
                "Expected `scheduler` to be a function from an optimizer to a scheduler, such as "
                f"`lambda optimizer: StepLR(optimizer, 1000)`, but got {type(scheduler).__name__}."
            )
        test_steps = algorithm.inner.steps if test_steps is None else test_steps
        check_whole(0, test_steps=test_steps)
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"Expected `gradient_clip_val` to be positive or None but got {gradient_clip_val!r}.")
        check_one_of(get_args(ClipAlgorithm), gradient_clip_algorithm=gradient_clip_algorithm)
        self.add_module(name, learned)
        self.rates = algorithm.initial_rates(learned)
        self.algorithm = algorithm.with_rates(self.rates)
        self.optimizer, self.scheduler, self.test_steps = optimizer, scheduler, test_steps
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        means = nn.ModuleDict({name: TaskMean(test_steps + 1) for name in values})
        self.task_means: dict[str, TaskMean] = means  # type: ignore[assignment]
        self.task_divergence = TaskMean(test_steps + 1) if may_diverge else None
        self.configuration: dict[str, Any] | None = None  # of the command line, as plain data
        # of a module that was read: what its card says, and the hyper-parameters of the file
        self.measured: dict[str, Any] | None = None
        self.described: dict[str, Any] | None = None
        self._last = saving.LastCheckpoint()
        self._random_states: list[Any] | None = None
        self._resumed: dict[str, Any] | None = None

    @abstractmethod
    def _evaluated(self, batch: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        """Values before and after each inner step, and whether tasks diverged, if they may: ``[T, test_steps + 1]``."""

    @abstractmethod
    def _place(self) -> dict[str, float]:
        """Where training is, as loggers get it beside what was validated."""

    def _about_test(self) -> dict[str, Any]:
        """What ``metrics.json`` says besides, as plain data."""
        return {}

    def _trained(self) -> list[Tensor]:
        """What the outer optimiser trains."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        """The outer optimiser, over learned rates too, and the scheduler, which advances by meta-update."""
        if not (trained := self._trained()):
            raise ValueError(
                "Expected something to meta-train but no parameter of the network is trainable: use a network with "
                "parameters, and requires_grad_(True) where they are frozen."
            )
        optimizer = self.optimizer(trained)
        if not hasattr(optimizer, "param_groups"):
            got = f"one that returns {type(optimizer).__name__}"
            raise TypeError(f"Expected `optimizer` to be a function that returns a torch optimizer but got {got}.")
        _check_half_precision(optimizer)
        fuse_step(optimizer)
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        if self._resumed is not None:  # what the checkpoint has for these is loaded next
            check_optimization(self._resumed, optimizer, scheduler, self.trainer.ckpt_path)
            self._resumed = None
        check = check_positive if scheduler is None else check_not_negative  # a rate of 0 is where a warm-up starts
        for group in optimizer.param_groups:
            check(**{"lr of the optimizer": float(group["lr"])})
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "Expected a `scheduler` that advances by meta-update but got ReduceLROnPlateau, which waits for a "
                "validation value; use CosineAnnealingLR, MultiStepLR or another one."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Automatic and manual optimisation come here, with gradients unscaled and not yet clipped by the trainer.
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Any]:
        """What saves the last checkpoint, at SIGTERM if at nothing else."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        made = [callback.last for callback in callbacks if isinstance(callback, saving.BestCheckpoint)]
        self._last = next(filter(None, made), self._last)
        # attached already where a trainer goes on with this module: Lightning would say that one overrides the other
        return [] if self._last in callbacks else [self._last]

    def setup(self, stage: str) -> None:
        """Checkpoints that are written in one piece and read as plain data, where no others were asked for."""
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = saving.SafeCheckpointIO()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._restore_random_state()

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:  # a run that goes on may begin with a validation, which is of rollouts
            self._restore_random_state()

    def _restore_random_state(self) -> None:
        states, self._random_states = self._random_states, None  # now, as Lightning, too, may draw before a first batch
        if states is not None and len(states) == self.trainer.world_size:
            saving.restore_random_state(states[self.trainer.global_rank])

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.trainer.world_size > 1:
            return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum").to(values.device)
        return values

    def _counts(self, *own: float) -> list[float]:
        """Sums over all processes; on the way all learn whether one was told to end, and the first has to save."""
        if self.trainer.world_size == 1:
            return list(own)
        last, first = self._last, self.trainer.is_global_zero
        words = last.received is not None, first and last.time_is_up
        *counts, told, due = self._sum(torch.tensor([*own, *words], dtype=torch.float64)).tolist()
        last.agreed, last.due_for_all = last.agreed or told > 0, last.due_for_all or due > 0
        return counts

    def on_validation_epoch_start(self) -> None:
        for mean in filter(None, (*self.task_means.values(), self.task_divergence)):
            mean.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        values, diverged = self._evaluated(batch)
        for name, each in values.items():
            self.task_means[name].update(each)
        if self.task_divergence is not None and diverged is not None:
            self.task_divergence.update(diverged)

    def on_validation_epoch_end(self) -> None:
        values: dict[str, Tensor] = {}
        for name, interval in self._intervals().items():
            values |= {f"val/{name}": interval.mean[-1], f"val/{name}_step_0": interval.mean[0]}
        if (diverged := self._diverged()) is not None:
            values["val/diverged"] = diverged[-1]
        self._log_evaluation(values)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        values: dict[str, Tensor] = {}
        for name, interval in self._intervals().items():
            for step, mean in enumerate(interval.mean):
                of_step = {"": mean, "_ci95": interval.ci95[step], "_median": interval.median[step]}
                values |= {f"test/{name}_step_{step}{what}": value for what, value in of_step.items()}
        if (diverged := self._diverged()) is not None:
            values |= {f"test/diverged_step_{step}": count for step, count in enumerate(diverged)}
        self._log_evaluation(values)

    def on_test_end(self) -> None:
        """Prints the table and writes ``metrics.json`` into the logger's folder, or the trainer's root folder."""
        # to the host at once, and not number by number
        intervals = {name: Interval(*(part.cpu() for part in one)) for name, one in self._intervals().items()}
        diverged = None if (counts := self._diverged()) is None else counts.cpu()
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # on every process: Lightning broadcasts it
        if not self.trainer.is_global_zero or next(iter(intervals.values())).tasks == 0:
            return
        if self.trainer.test_loop.verbose:
            named = {"query loss" if name == "loss" else name: interval for name, interval in intervals.items()}
            print(results_table(named, f"\n{self._tested(intervals)}, mean ± 95% interval:", diverged))
            self.trainer.test_loop.verbose = False  # ours stands for Lightning's own list of the same numbers
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        checkpoint, seed = self.trainer.ckpt_path, os.environ.get("PL_GLOBAL_SEED")
        about = {"algorithm": self.algorithm.name, **self._about_test(), "seed": int(seed) if seed else None}
        about["data_seed"] = getattr(getattr(self.trainer, "datamodule", None), "seed", None)
        about["checkpoint"] = str(checkpoint) if checkpoint else None
        path = Path(folder) / "metrics.json"
        write_json(path, test_results(intervals, diverged, **about))
        rank_zero_info(f"Written to {path}")

    def _tested(self, intervals: dict[str, Interval]) -> str:
        """The title of a test's table."""
        return f"Test of {self.algorithm.name} on {int(next(iter(intervals.values())).tasks)} tasks"

    def _intervals(self) -> dict[str, Interval]:
        return {name: Interval(*map(torch.atleast_1d, mean.compute())) for name, mean in self.task_means.items()}

    def _diverged(self) -> Tensor | None:
        """How many tasks have diverged after which inner step, ``[test_steps + 1]``."""
        if self.task_divergence is None:
            return None
        share = self.task_divergence.compute()
        return (torch.atleast_1d(share.mean).nan_to_num() * share.tasks).round()

    def _log_evaluation(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            shown = name.removeprefix("val/") in self.task_means
            # Equal on all processes; sync_dist only keeps Lightning from warning that it might not be.
            self.log(name, value.float(), prog_bar=shown, sync_dist=True, batch_size=1)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_dict(self._place(), sync_dist=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = [saving.random_state()] * self.trainer.world_size
        if len(states) > 1:  # every process comes here, the first one writes
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["random_states"] = states
        if self.configuration is not None:
            checkpoint[CONFIGURATION] = self.configuration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path = self._trainer.ckpt_path if self._trainer else None
        if self.strict_loading:
            check_fits(checkpoint["state_dict"], self.state_dict(), path)
        if self._trainer:
            check_states(checkpoint, self.trainer, path)
            if self.trainer.training:
                self._random_states, self._resumed = checkpoint.get("random_states"), checkpoint

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        allow: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The module of a checkpoint, as :meth:`LightningModule.load_from_checkpoint`, but read as plain data.

        What the hyper-parameters name is imported and called only where it is the library's or torch's, and what its
        parameter's annotation wants: networks, presets, losses, optimisers, engines. ``allow`` adds modules,
        ``["my_package.losses"]``, or full names to these; ``kwargs`` are given here, whatever the file says of them.
        FileNotFoundError where there is no such file, ValueError where it is damaged, names what is not allowed, or
        holds objects other than plain data, which ``weights_only=False`` reads.
        """
        place = map_location or _default_map_location
        content = saving.read_checkpoint(checkpoint_path, place, weights_only is not False)
        config = saving.hyper_parameters(content, "hyper_parameters", hparams_file)
        module = saving.build(cls, config, kwargs, allow)
        once_more = content.get("hparams_name")  # all of them under the name of one argument
        module.described = {name: value for name, value in config.items() if name not in (once_more, *kwargs)}
        module.configure_model()
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"], strict=module.strict_loading if strict is None else strict)
        tensors = (value for value in content["state_dict"].values() if isinstance(value, Tensor))
        device = next((value.device for value in tensors), torch.device("cpu"))
        return module.to(device)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, *, allow: Sequence[str] = (), **kwargs: Any) -> Self:
        """The trained module of a name that ships with the package, or of a folder of :meth:`save_pretrained`.

        It is in evaluation mode; ``measured`` is what its card says. A repository of the Hugging Face Hub is a folder
        once it is here: ``from_pretrained(huggingface_hub.snapshot_download("owner/name"))``.

        Args:
            name_or_folder: as ``"cifar_fs_5w1s"``, or a path; a folder wins over a name.
            allow, kwargs: as of :meth:`load_from_checkpoint`: what the configuration may name besides, and arguments
                in the place of its own.

        Raises:
            FileNotFoundError: a file of the folder is missing.
            ValueError: there is neither such a folder nor such a name; a file is damaged, or is of another module; or
                the configuration names what is not allowed.
            TypeError: the module was built in Python, whose objects the configuration lacks, and ``kwargs`` do, too.
        """
        folder = Path(name_or_folder)
        if folder.is_dir():
            module, content = read_module(cls, folder, kwargs, allow)
            module.described = {name: one for name, one in content["hyper_parameters"].items() if name not in kwargs}
            module.measured = content["measured"]
            return module.eval()
        if folder.name != str(name_or_folder):
            raise ValueError(f"Expected a folder of save_pretrained but there is none at {folder}.")
        path = path_of(folder.name)
        module = cls.load_from_checkpoint(path, allow=allow, **kwargs).eval()
        module.measured = json.loads(path.with_suffix(".json").read_text())
        return module

    def save_pretrained(self, folder: str | Path, measured: str | Path | Mapping[str, Any] | None = None) -> Path:
        """Writes ``model.safetensors``, ``config.json`` and the card ``README.md`` into a folder; returns it.

        By the mixin of huggingface_hub, the extra ``hub``. The configuration is that of the command line: a module
        that was built in Python is read with its parts given, ``from_pretrained(folder, network=..., algorithm=...)``.

        Args:
            folder: it is made if there is none; what an earlier call wrote there is replaced.
            measured: what the card is made of: a run's ``reproduction.json`` or ``metrics.json``, or its content; by
                default that of a module that was read by :meth:`from_pretrained`.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: what was measured is of other weights.
        """
        self._on_hub(measured).save_pretrained(folder)
        return Path(folder)

    def push_to_hub(self, repo_id: str, measured: str | Path | Mapping[str, Any] | None = None, **options: Any) -> str:
        """Uploads what :meth:`save_pretrained` writes; returns the address of the commit.

        ``options`` are those of ``huggingface_hub.ModelHubMixin.push_to_hub``: ``private``, ``token``, ``branch`` and
        others. Raises as :meth:`save_pretrained`.
        """
        return str(self._on_hub(measured).push_to_hub(repo_id, **options))

    def _on_hub(self, measured: Any) -> Any:
        try:
            from lightning_maml.training.hub import HubModule
        except ModuleNotFoundError as error:
            needs = "Expected huggingface_hub to be installed but it is not: pip install 'lightning-maml[hub]'"
            raise ImportError(f"{needs} ({error}).") from None
        if isinstance(measured, str | Path):
            measured = json.loads(Path(measured).read_text())
        return HubModule(self, self._hyper_parameters(), self.measured if measured is None else measured)

    def _hyper_parameters(self) -> dict[str, Any]:
        """What the configuration of a file says of the module: what it was read by, or the command line's."""
        return dict(self.hparams if self.described is None else self.described)


def _check_half_precision(optimizer: Optimizer) -> None:
    """Raise ValueError where what an optimiser adds to a divisor is 0 in float16, so that a first step is infinite."""
    for group in optimizer.param_groups:
        eps = group.get("eps")
        half = any(parameter.dtype is torch.float16 for parameter in group["params"])
        if half and isinstance(eps, float) and not group.get("fused") and not torch.tensor(eps, dtype=torch.float16):
            raise ValueError(
                f"Expected an `eps` of the optimizer above 0 in float16 but got {eps}: use precision='16-mixed' or "
                "'bf16-true', or Adam(..., eps=1e-4)."
            )
