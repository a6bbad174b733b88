"""LightningCLI for meta-learning."""

import atexit
import re
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_maml import saving, trained
from lightning_maml.checks import check_not_negative, check_positive, check_seed, check_whole
from lightning_maml.cli import HELP, SUBCOMMANDS, predictions, report
from lightning_maml.cli.arguments import fill_sizes, without
from lightning_maml.cli.bases import with_bases, without_base
from lightning_maml.cli.complaints import shortened
from lightning_maml.cli.origin import origin
from lightning_maml.cli.progress import ProgressLines, is_interactive
from lightning_maml.data import TaskStream
from lightning_maml.engine import Engine
from lightning_maml.learner import Algorithm
from lightning_maml.report.run import ORIGIN
from lightning_maml.rl import MetaRLModule
from lightning_maml.saving.configuration import bounded_parsing
from lightning_maml.saving.resume import as_plain, last_of_this_run
from lightning_maml.training.module import MetaModule
from lightning_maml.training.results import Published, side_by_side, write_json

# What Lightning itself does not check: it divides by these, or takes them for something else.
TRAINER_NUMBERS = (
    (check_whole, (1,), ("check_val_every_n_epoch", "accumulate_grad_batches")),
    (check_whole, (0,), ("log_every_n_steps", "min_epochs", "min_steps")),
    (check_whole, (-1,), ("num_sanity_val_steps",)),
    (check_positive, (), ("val_check_interval",)),
    (check_not_negative, (), ("gradient_clip_val",)),
)
# Titles of groups, which jsonargparse takes from the first line of each class's docstring.
TITLES = {
    "model": "What is meta-learned, and how",
    "data": "The tasks",
    "trainer": "Lightning's Trainer",
    "checkpoint": "Which checkpoints `fit` keeps",
}


class MetaParser(LightningArgumentParser):
    """Lightning's parser, with help that fits on a screen."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        if self.description == HELP:
            return HELP
        for key, title in TITLES.items():
            if self.groups and key in self.groups:
                self.groups[key].title = title
        # nn.Module alone has some two hundred known subclasses: of more than 8 none is named.
        instead = "any class or\n" + " " * 24 + "function by its import path)"
        return re.sub(r"known\s+subclasses:[^,)]*(,[^,)]*){8,}\)", instead, super().format_help(*args, **kwargs))

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parses a configuration without its ``base``, which has been parsed before it."""
        return super().parse_string(without_base(content), *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line in place of the tree of all that was tried; the cause goes along, for ``--debug``."""
        if not self.exit_on_error:  # the parser of a class within another's: that one says it
            super().error(message, ex)
        parsers = [self, *(self._subcommands_action.choices.values() if self._subcommands_action else ())]
        options = {option for parser in parsers for option in parser._option_string_actions}
        print(f"lightning-maml: error: {shortened(message, options)}", file=sys.stderr)
        raise SystemExit(2) from ex or ArgumentError(None, message)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the logs; without a logger there is no folder of the run's own to put it in."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.log_dir if trainer.loggers else None  # all processes ask for it together
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.folder is not None:
            with saving.whole_file(Path(self.folder) / self.config_filename) as file:
                file.write(self.parser.dump(self.config, skip_none=False).encode())
            if stage == "fit":
                write_json(Path(self.folder) / ORIGIN, origin())


class MetaCLI(LightningCLI):
    """LightningCLI for :class:`MetaModule`, or :class:`MetaRLModule`, and any data module.

    ``fit`` keeps the best checkpoint, as ``--checkpoint.monitor`` and its neighbours say, and the last one. The seed is
    0 unless ``--seed_everything`` says otherwise. ``args`` are None for the command line's.
    """

    resumed: Path | None = None
    """The checkpoint that `fit` has found for ``--ckpt_path last``."""

    def __init__(
        self,
        args: Sequence[str] | None = None,
        module: type[MetaModule | MetaRLModule] = MetaModule,
        is_quiet: bool = False,
        tests_best: bool = True,
        shown: Sequence[str] | None = None,
    ) -> None:
        self.is_quiet, self.tests_best = is_quiet, tests_best
        self.given = list(sys.argv[1:] if args is None else args)
        self.shown = self.given[1:] if shown is None else shown
        # Both are dataclasses or have some as subclasses, of which jsonargparse takes the base class alone by itself.
        jsonargparse.set_parsing_settings(subclasses_enabled=[Algorithm, Engine])
        bounded_parsing()
        usage = "lightning-maml {} --config FILE [--option VALUE ...]"
        expanded = [*with_bases(self.given)]
        about = {name: {"usage": usage.format(name), "description": SUBCOMMANDS[name]} for name in self.subcommands()}
        super().__init__(
            module,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # MetaModule takes its optimiser as an argument
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},  # which would not write it in one piece
            parser_class=MetaParser,
            parser_kwargs={"prog": "lightning-maml", "description": HELP, **about},
            args=None if args is None and expanded == self.given else expanded,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        """The one that is given, where one is: a parser takes a third of a second to build."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in self.given[:1] if name in every} or every

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Lightning's own puts the trainer's hundred lines first.
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=self.subclass_mode_model)
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=self.subclass_mode_data)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(saving.BestCheckpoint, "checkpoint")
        what = "what was published for this protocol, for `lightning-maml reproduce`"
        parser.add_argument("--published", type=Published | None, default=None, help=what)
        if self._model_class is MetaRLModule:
            parser.link_arguments("data", "model.environment", lambda data: data.environment, apply_on="instantiate")
            parser.set_defaults({"checkpoint.monitor": "val/return", "checkpoint.mode": "max"})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            what = "train the pretrained baseline, too, and print both tests side by side"
            parser.add_argument("--baseline", action="store_true", help=what)
            what = "write report.html, a page about the run, into its folder at the end"
            parser.add_argument("--report", action="store_true", help=what)
        else:
            what = "take the network as it is before any training, where there is no --ckpt_path"
            parser.add_argument("--untrained", action="store_true", help=what)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuses, before anything is built, what Lightning would take and make nothing sensible of."""
        super().parse_arguments(parser, args)
        options = self.config[self.config.subcommand]
        if not isinstance(options.seed_everything, bool):
            check_seed(seed_everything=options.seed_everything)
        for check, least, names in TRAINER_NUMBERS:
            given = {f"trainer.{name}": options.trainer[name] for name in names}
            check(*least, **{name: value for name, value in given.items() if isinstance(value, int | float)})
        untrained, command = getattr(options, "untrained", None), self.config.subcommand
        if untrained and options.ckpt_path is not None:
            raise ValueError(f"Expected no --untrained with a checkpoint but got --ckpt_path {options.ckpt_path}.")
        if untrained is False and options.ckpt_path is None:  # its numbers would look like any others
            raise ValueError(
                f"Expected a trained network to {command} but got no checkpoint: add --ckpt_path last, or a file's "
                "path, or --untrained for the network as it is before any training."
            )
        if command == "fit" and options.ckpt_path == "best":
            raise ValueError("Expected --ckpt_path last, or a file's path, to go on training from but got best.")
        if command == "fit" and options.report and options.trainer.logger is False:
            raise ValueError("Expected a logger for --report, whose folder the page is for, but got none.")
        fill_sizes(options)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """A bar in a terminal, else a line a minute, and with ``--quiet`` neither."""
        if self.is_quiet or (config["enable_progress_bar"] is None and not is_interactive()):
            config["enable_progress_bar"] = False
            callbacks = callbacks if self.is_quiet else [*callbacks, ProgressLines()]
        return super()._instantiate_trainer(config, callbacks)

    def after_instantiate_classes(self) -> None:
        """Tells the module what was asked for, by which its checkpoints know their run; refuses too many processes."""
        if isinstance(self.datamodule, TaskStream):
            self.datamodule.check_processes(self.trainer.num_devices * self.trainer.num_nodes)
        parts = (part for part in ("model", "data", "seed_everything") if part in self.config_dump)
        self.model.configuration = as_plain({part: self.config_dump[part] for part in parts})

    def fit(self, **kwargs: Any) -> None:
        """Trains, then tests the best checkpoint, says where it is and what to type next."""
        self.trainer.fit(**kwargs)
        if self.trainer.interrupted:
            return
        folder, baseline = self.trainer.log_dir, None  # on every process: Lightning broadcasts it
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if self.tests_best and best and getattr(self.datamodule, "test_tasks", 1) > 0:
            baseline = self._test(best)
        if self.tests_best and self.config["fit"].report and self.trainer.is_global_zero and folder:
            report.write(folder, baseline=baseline, module=self.model, stream=self.datamodule)

    def _test(self, best: str) -> str | None:
        """Tests the best checkpoint and, where it was asked for, the baseline, whose folder it returns."""
        folder = None
        (results,) = self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best)
        if self.config["fit"].baseline:
            args = [
                *without(self.given, "--baseline", "--report", "--ckpt_path"),
                "--model.algorithm=lightning_maml.pretrained",
            ]
            other = MetaCLI(args, type(self.model), self.is_quiet, tests_best=False)
            found = getattr(other.trainer.checkpoint_callback, "best_model_path", "")
            (baseline,) = other.trainer.test(other.model, datamodule=other.datamodule, ckpt_path=found, verbose=False)
            folder = other.trainer.log_dir
            if self.trainer.is_global_zero:
                print(side_by_side({self.model.algorithm.name: results, "pretrained": baseline}))
        if self.trainer.is_global_zero:
            again = shlex.join(without(self.shown, "--baseline", "--report", "--ckpt_path"))
            print(f"\nBest checkpoint: {best}\nNext: lightning-maml predict {again} --ckpt_path best")
        return folder

    def predict(self, **kwargs: Any) -> None:
        """Writes what is predicted, see :func:`~lightning_maml.cli.predictions.write`."""
        outputs = self.trainer.predict(**kwargs)
        rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        for path in predictions.write(folder, rank, self.datamodule, getattr(self.model, "loss", None), outputs or []):
            print(f"Written to {path}")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """``--ckpt_path last`` or ``best`` is the newest of this configuration's runs; None where `fit` finds none.

        A name is of weights that ship with the package.
        """
        options = super()._prepare_subcommand_kwargs(subcommand)
        which = options.get("ckpt_path")
        if which in trained.names() and not Path(which).exists():
            return {**options, "ckpt_path": str(trained.path_of(which))}
        if which not in ("last", "best"):
            return options
        trainer, logger, training = self.trainer, self.trainer.logger, subcommand == "fit"
        given = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        folder, pattern = Path(trainer.default_root_dir), f"checkpoints/{which}*.ckpt"
        if given and given[0]:
            folder, pattern = Path(given[0]), f"{which}*.ckpt"
        elif logger is not None:
            folder, pattern = Path(logger.save_dir or folder) / str(logger.name), f"*/{pattern}"
        found = last_of_this_run(folder, pattern, self.model.configuration, training=training)
        if found is None and not training:
            raise FileNotFoundError(f"Expected a checkpoint for --ckpt_path {which} but {folder} has no {pattern}.")
        if found is None:
            rank_zero_info(f"No {folder / pattern}: training starts from the beginning.")
            return {**options, "ckpt_path": None}
        path, content = found
        if training:
            self.resumed, done = path, content["global_step"]
            left = ": none is left to train" if 0 <= trainer.max_steps <= done else ""
            rank_zero_info(f"Going on from {path}, after {done:,} of {trainer.max_steps:,} meta-updates{left}.")
            if trainer.is_global_zero:  # the run may be going on in another process
                lock = saving.FolderLock(path.parent)
                lock.acquire()
                atexit.register(lock.release)
        return {**options, "ckpt_path": str(path)}

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would put the checkpoint's hyper-parameters over what the user has asked for."""
