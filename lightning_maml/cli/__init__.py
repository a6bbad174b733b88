"""The command line, ``lightning-maml``."""

from lightning_maml.cli.command_line import QUIET_WARNINGS, keep_freed_memory, main
from lightning_maml.cli.meta_cli import MetaCLI
from lightning_maml.cli.parser import HELP

__all__ = ["HELP", "QUIET_WARNINGS", "MetaCLI", "keep_freed_memory", "main"]
