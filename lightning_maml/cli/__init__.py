"""The command line, ``lightning-maml``: what needs neither torch nor Lightning is answered before they are loaded."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from lightning_maml.checks import did_you_mean
from lightning_maml.cli.help import COMMANDS, HELP

_WHERE = {"MetaCLI": "meta_cli", "QUIET_WARNINGS": "command_line", "keep_freed_memory": "command_line"}

__all__ = ["COMMANDS", "HELP", "QUIET_WARNINGS", "MetaCLI", "keep_freed_memory", "main"]


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, see :func:`lightning_maml.cli.command_line.main`."""
    given = list(sys.argv[1:] if args is None else args)
    command = next(iter(given), "--help")
    if command not in COMMANDS and not command.startswith("-"):
        hint = did_you_mean(command, COMMANDS)
        print(f"lightning-maml: error: Expected one of {list(COMMANDS)} but got {command!r}{hint}.", file=sys.stderr)
        return 2
    if command in ("-h", "--help", "--version"):
        try:
            print(
                f"lightning-maml {version('lightning-maml')}\n" if command == "--version" else HELP, end="", flush=True
            )
            return 0
        except OSError as error:
            from lightning_maml.cli import command_line

            return command_line.not_written(error)
    from lightning_maml.cli import command_line

    return command_line.main(given)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
