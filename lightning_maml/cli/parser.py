"""The parser of the command line: its help of options, and its errors in one line."""

import re
import sys
from argparse import ArgumentError
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_maml.cli import HELP
from lightning_maml.cli.complaints import shortened

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
