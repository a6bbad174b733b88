"""The parser of the command line: its subcommands, its help, and its errors in one line."""

import re
import sys
from argparse import ArgumentError
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_maml.cli.complaints import shortened

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

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line in place of the tree of all that was tried; the cause goes along, for ``--debug``."""
        if not self.exit_on_error:  # the parser of a class within another's: that one says it
            super().error(message, ex)
        parsers = [self, *(self._subcommands_action.choices.values() if self._subcommands_action else ())]
        options = {option for parser in parsers for option in parser._option_string_actions}
        print(f"lightning-maml: error: {shortened(message, options)}", file=sys.stderr)
        raise SystemExit(2) from ex or ArgumentError(None, message)
