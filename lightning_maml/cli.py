"""The command line: ``lightning-maml fit|validate|test|predict --config ...``, and ``lightning-maml demo``."""

import argparse
import ctypes
import logging
import platform
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_maml import checkpoints, demo, reproduce
from lightning_maml.configuration import bounded_parsing, named_in, read_configuration
from lightning_maml.module import MetaModule
from lightning_maml.results import Published
from lightning_maml.rl import MetaRLModule
from lightning_maml.training import parse_as_the_command_line

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


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the logs; without a logger there is no folder of the run's own to put it in."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class MetaCLI(LightningCLI):
    """LightningCLI for :class:`MetaModule`, or :class:`MetaRLModule`, and any data module.

    ``fit`` keeps the best checkpoint by ``val/loss`` and the last one; ``--checkpoint.monitor`` and its neighbours
    change that. The seed is 0 unless ``--seed_everything`` says otherwise.

    Args:
        args: what would stand on the command line; None for what does.
        module: what is trained, with what `data` gives.
    """

    def __init__(self, args: Sequence[str] | None = None, module: type[MetaModule | MetaRLModule] = MetaModule) -> None:
        parse_as_the_command_line()
        bounded_parsing()
        super().__init__(
            module,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # MetaModule takes its optimiser as an argument
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
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
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        what = "what was published for this protocol, for `lightning-maml reproduce`"
        parser.add_argument("--published", type=Published | None, default=None, help=what)
        parser.set_defaults(
            {"checkpoint.filename": "best", "checkpoint.save_last": True, "checkpoint.monitor": "val/loss"}
        )
        if self._model_class is MetaRLModule:
            parser.link_arguments("data", "model.environment", lambda data: data.environment, apply_on="instantiate")
            parser.set_defaults({"checkpoint.monitor": "val/return", "checkpoint.mode": "max"})

    def predict(self, **kwargs: Any) -> None:
        """Saves what ``Trainer.predict`` returns, a list of ``[T, Nq, ...]``, one a batch, as ``predictions.pt``."""
        predictions = self.trainer.predict(**kwargs)
        rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / f"predictions{rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(predictions, path)
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
        if found := max(folder.glob(pattern), key=lambda path: path.stat().st_mtime, default=None):
            return {**options, "ckpt_path": str(found)}
        if subcommand != "fit":
            raise FileNotFoundError(f"Expected a checkpoint for --ckpt_path last but {folder} has no {pattern}.")
        rank_zero_info(f"No {folder / pattern}: training starts from the beginning.")
        return {**options, "ckpt_path": None}

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

    What the user got wrong is said in one message; the traceback of anything else is left alone.
    """
    given = list(sys.argv[1:] if args is None else args) or ["--help"]
    _keep_freed_memory()
    with warnings.catch_warnings():
        for message in QUIET_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
            logging.getLogger(name).addFilter(_has_something_to_say)
        try:
            if given[0] == "demo":
                demo.main(given[1:])
            elif given[0] == "reproduce":
                return reproduce.main(given[1:], MetaCLI)
            else:
                given, allowed = _allowed(given)
                contents = list(_configurations(given))
                module = (
                    MetaRLModule
                    if any("policy" in (content.get("model") or ()) for content in contents)
                    else MetaModule
                )
                with checkpoints.allowing([*allowed, *named_in(contents)]):
                    MetaCLI(given, module)
        except (ValueError, TypeError, FileNotFoundError, NotImplementedError) as error:
            # what this package raises is meant for the user
            file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            if not isinstance(error, FileNotFoundError) and Path(__file__).parent not in file.parents:
                raise
            print(f"lightning-maml: error: {error}", file=sys.stderr)
            return 1
    return 0


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
