"""The command line: ``lightning-maml fit|validate|test|predict --config ...``, and ``lightning-maml demo``."""

import argparse
import atexit
import ctypes
import logging
import os
import platform
import re
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_maml import checkpoints, demo, reproduce
from lightning_maml.checks import check_not_negative, check_positive, check_seed, check_whole
from lightning_maml.complaints import complaint, shortened
from lightning_maml.configuration import bounded_parsing, named_in, read_configuration
from lightning_maml.data import TaskStream
from lightning_maml.engine import Engine
from lightning_maml.learner import Algorithm
from lightning_maml.module import MetaModule
from lightning_maml.results import Published
from lightning_maml.rl import MetaRLModule

SUBCOMMANDS = {
    "fit": "meta-train, validating on the way; keeps the best and the last checkpoint",
    "validate": "loss and metric on the validation tasks",
    "test": "loss and metric after each inner step on the test tasks, with 95% intervals; writes metrics.json",
    "predict": "adapt to each task's support set and predict its query rows; writes predictions.pt",
}

HELP = """\
usage: lightning-maml {fit,validate,test,predict} --config FILE [--option VALUE ...]
       lightning-maml reproduce NAME [--option VALUE ...]
       lightning-maml demo [--option VALUE ...]

Meta-train a network so that a few gradient steps fit it to a new task.

subcommands:
  demo       train on sinusoids for about a minute and test, next to the pretrained baseline; needs no data
{subcommands}
  reproduce  train and test by a published protocol, and print measured beside published; --list shows which

examples:
  lightning-maml fit --config configs/sinusoid.yaml
  lightning-maml fit --config configs/sinusoid.yaml --model.algorithm.steps 5 --trainer.max_steps 1000
  lightning-maml fit --config configs/rl_navigation.yaml               reinforcement learning
  lightning-maml fit --config configs/sinusoid.yaml --ckpt_path last   goes on where the last run of it stopped
  lightning-maml test --config configs/sinusoid.yaml --ckpt_path runs/.../checkpoints/best.ckpt

  lightning-maml fit --help                                          all options; each overrides the file's
  lightning-maml fit --data.help lightning_maml.OmniglotTasks        the options of one class
  lightning-maml fit --config configs/sinusoid.yaml --print_config   the complete configuration
  lightning-maml fit --config configs/sinusoid.yaml --debug          an error with its traceback

A configuration names classes and functions to be run: it is code. A checkpoint is data: what it names is run only where
it is the library's or torch's, the configuration's, or that of an option --allow NAME.
""".replace("{subcommands}", "\n".join(f"  {name:<9}  {what}" for name, what in SUBCOMMANDS.items()))

QUIET_WARNINGS = (
    # What these say is true of ordinary data loaders or is Lightning's own business: no user can act on it.
    r"The '\w+' does not have many workers",
    r"(?s).* deprecated in v4\.\d+\.\d+ and will be removed in v5",  # jsonargparse, of what LightningCLI calls
    r"\s*By default only one JsonargparseDeprecationWarning",
    r"\s*Unable to serialize instance",  # said of the string of a `str | Callable`
    r"The dirpath has changed from",
    # of the best, which looks at the files that are there, and at no state
    r"(?s)Be aware that when using `ckpt_path`, .*: \[\"(Model|Best)Checkpoint[^\"]*\"\]",
    r"Checkpoint directory .* exists and is not empty",  # a run that goes on; another one is refused
    r"LightningCLI's args parameter is intended",  # `main` gives them on purpose
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)

# Group titles, which jsonargparse takes from the first line of each class's docstring, and the groups' order.
TITLES = {
    "model": "What is meta-learned, and how",
    "data": "The tasks",
    "trainer": "Lightning's Trainer",
    "checkpoint": "Which checkpoints `fit` keeps",
}


# What Lightning itself does not check: it divides by these, or takes them for something else.
TRAINER_NUMBERS = (
    (check_whole, (1,), ("check_val_every_n_epoch", "accumulate_grad_batches")),
    (check_whole, (0,), ("log_every_n_steps", "min_epochs", "min_steps")),
    (check_whole, (-1,), ("num_sanity_val_steps",)),
    (check_positive, (), ("val_check_interval",)),
    (check_not_negative, (), ("gradient_clip_val",)),
)


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
            with checkpoints.whole_file(Path(self.folder) / self.config_filename) as file:
                file.write(self.parser.dump(self.config, skip_none=False).encode())


class MetaCLI(LightningCLI):
    """LightningCLI for :class:`MetaModule`, or :class:`MetaRLModule`, and any data module.

    ``fit`` keeps the best checkpoint by ``val/loss`` and the last one; ``--checkpoint.monitor`` and its neighbours
    change that. The seed is 0 unless ``--seed_everything`` says otherwise.

    Args:
        args: what would stand on the command line; None for what does.
        module: what is trained, with what `data` gives.
    """

    def __init__(self, args: Sequence[str] | None = None, module: type[MetaModule | MetaRLModule] = MetaModule) -> None:
        # Both are dataclasses or have some as subclasses, of which jsonargparse takes the base class alone by itself.
        jsonargparse.set_parsing_settings(subclasses_enabled=[Algorithm, Engine])
        bounded_parsing()
        super().__init__(
            module,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # MetaModule takes its optimiser as an argument
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},  # which would not write it in one piece
            parser_class=MetaParser,
            parser_kwargs={
                "prog": "lightning-maml",
                "description": HELP,
                **{
                    name: {"usage": f"lightning-maml {name} --config FILE [--option VALUE ...]", "description": what}
                    for name, what in SUBCOMMANDS.items()
                },
            },
            args=None if args is None else list(args),
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Lightning's own puts the trainer's hundred lines first.
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=self.subclass_mode_model)
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=self.subclass_mode_data)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(checkpoints.BestCheckpoint, "checkpoint")
        what = "what was published for this protocol, for `lightning-maml reproduce`"
        parser.add_argument("--published", type=Published | None, default=None, help=what)
        if self._model_class is MetaRLModule:
            parser.link_arguments("data", "model.environment", lambda data: data.environment, apply_on="instantiate")
            parser.set_defaults({"checkpoint.monitor": "val/return", "checkpoint.mode": "max"})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
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
        self._refuse_untrained(self.config.subcommand, options)

    def _refuse_untrained(self, subcommand: str, options: Any) -> None:
        """Numbers of a network that nobody has trained look like any others."""
        if subcommand == "fit":
            return
        if options.untrained and options.ckpt_path is not None:
            raise ValueError(f"Expected no --untrained with a checkpoint but got --ckpt_path {options.ckpt_path}.")
        if not options.untrained and options.ckpt_path is None:
            raise ValueError(
                f"Expected a trained network to {subcommand} but got no checkpoint: add --ckpt_path last, or a file's "
                "path, or --untrained for the network as it is before any training."
            )

    def after_instantiate_classes(self) -> None:
        """Refuses more processes than there are tasks before they are started, where the data are a stream.

        Tells the module what was asked for, by which its checkpoints know their run.
        """
        if isinstance(self.datamodule, TaskStream):
            self.datamodule.check_processes(self.trainer.num_devices * self.trainer.num_nodes)
        parts = ("model", "data", "seed_everything")
        self.model.configuration = checkpoints.as_plain(
            {part: self.config_dump[part] for part in parts if part in self.config_dump}
        )

    def predict(self, **kwargs: Any) -> None:
        """Saves what ``Trainer.predict`` returns, a list of ``[T, Nq, ...]``, one a batch, as ``predictions.pt``."""
        predictions = self.trainer.predict(**kwargs)
        rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / f"predictions{rank}.pt"
        with checkpoints.whole_file(path) as file:
            torch.save(predictions, file)
        print(f"Written to {path}")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """``--ckpt_path last`` is the newest one of this configuration's runs: Lightning looks at the new run alone.

        It is None, said aloud, where `fit` finds none: one command can then start a run and go on with it.
        """
        options = super()._prepare_subcommand_kwargs(subcommand)
        if options.get("ckpt_path") != "last":
            return options
        trainer, logger = self.trainer, self.trainer.logger
        given = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        if given and given[0]:
            folder, pattern = Path(given[0]), "last*.ckpt"
        elif logger is not None:
            folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
            pattern = "*/checkpoints/last*.ckpt"
        else:
            folder, pattern = Path(trainer.default_root_dir), "checkpoints/last*.ckpt"
        training = subcommand == "fit"
        found = checkpoints.last_of_this_run(folder, pattern, self.model.configuration, training=training)
        if found is None and not training:
            raise FileNotFoundError(f"Expected a checkpoint for --ckpt_path last but {folder} has no {pattern}.")
        if found is None:
            rank_zero_info(f"No {folder / pattern}: training starts from the beginning.")
            return {**options, "ckpt_path": None}
        path, content = found
        if training:
            done = content["global_step"]
            left = ": none is left to train" if 0 <= trainer.max_steps <= done else ""
            rank_zero_info(f"Going on from {path}, after {done:,} of {trainer.max_steps:,} meta-updates{left}.")
            if trainer.is_global_zero:  # the run may be going on in another process
                lock = checkpoints.FolderLock(path.parent)
                lock.acquire()
                atexit.register(lock.release)
        return {**options, "ckpt_path": str(path)}

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyper-parameters over what the user has asked for.
        pass


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to a gigabyte: each step frees what the next one needs again.

    It would give buffers of megabytes back to the system, which takes a fifth of a step of the RL example to map them
    anew. The process is ours: a library must not do that to somebody else's.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-1, 1 << 30), (-3, 1 << 25)):  # M_TRIM_THRESHOLD; M_MMAP_THRESHOLD, its largest
            libc.mallopt(parameter, value)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Whatever goes wrong is said in a line on stderr: status 2 where the command line could not be read, 130 where
    Ctrl-C ended it, 141 where nobody reads what it prints, else 1. With ``--debug`` the exception comes as it is.
    """
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    _keep_freed_memory()
    with warnings.catch_warnings():
        for message in QUIET_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
            logging.getLogger(name).addFilter(_has_something_to_say)
        try:
            status = _run(given)
        except KeyboardInterrupt:
            status = _interrupted()
        except SystemExit as stop:
            if debug and stop.__cause__ is not None:  # the parser's
                raise stop.__cause__ from None
            # which a trainer ends with a status of its own, unless it came at the end of a training step
            if not isinstance(stop.__context__, KeyboardInterrupt) and stop.code != 128 + signal.SIGINT:
                if status := _flushed(0):
                    return status
                raise
            status = _interrupted()
        except Exception as error:
            if debug:
                raise
            status = _said(error)
        return _flushed(status)


def _run(given: Sequence[str]) -> int:
    if given[0] == "demo":
        demo.main(given[1:])
    elif given[0] == "reproduce":
        return reproduce.main(given[1:], MetaCLI)
    elif given[0].startswith("-") and not {*SUBCOMMANDS, "-h", "--help"}.intersection(given):
        raise ValueError(f"Expected one of {[*SUBCOMMANDS, 'reproduce', 'demo']} to come first but got {given[0]}.")
    else:
        given, allowed = _allowed(given)
        contents = list(_configurations(given))
        learns_policy = any("policy" in (content.get("model") or ()) for content in contents)
        with checkpoints.allowing([*allowed, *named_in(contents)]):
            MetaCLI(given, MetaRLModule if learns_policy else MetaModule)
    return 0


def _interrupted() -> int:
    print("\nlightning-maml: stopped by Ctrl-C", file=sys.stderr)
    return 130


def _said(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # whoever read, such as `head`, has had enough
        return 128 + 13  # as a shell reports SIGPIPE
    print(f"lightning-maml: error: {complaint(error)}", file=sys.stderr)
    return 1


def _flushed(status: int) -> int:
    """The exit status, after all that was printed is written out: here it can still be said that this fails."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again, at its end
        return status or _said(error)
    return status


def _configurations(args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The contents of the files that ``--config`` names, read before jsonargparse does, which knows no bounds."""
    for option, value in zip(args, [*args[1:], ""], strict=True):
        path = Path(value if option in ("--config", "-c") else option.removeprefix("--config="))
        if (option in ("--config", "-c") or option.startswith("--config=")) and path.is_file():
            yield read_configuration(path)


def _allowed(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without each ``--allow NAME``, and these names."""
    parser = argparse.ArgumentParser(prog="lightning-maml", add_help=False, allow_abbrev=False)
    parser.add_argument("--allow", action="append", default=[], metavar="NAME")
    options, rest = parser.parse_known_args(args)
    return rest, options.allow


def _has_something_to_say(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available"))


if __name__ == "__main__":
    sys.exit(main())
