"""The command line: ``lightning-maml fit|validate|test|predict --config ...``, ``report``, ``export``, ``reproduce``,
``demo``.
"""

import argparse
import ctypes
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from lightning_maml import saving
from lightning_maml.cli import COMMANDS, SUBCOMMANDS, demo, export, report, reproduce
from lightning_maml.cli.arguments import CONFIG, as_meant, options_in
from lightning_maml.cli.bases import read_chain
from lightning_maml.cli.complaints import complaint
from lightning_maml.cli.demo import quiet
from lightning_maml.cli.meta_cli import MetaCLI
from lightning_maml.rl import MetaRLModule
from lightning_maml.saving.configuration import named_in
from lightning_maml.training.module import MetaModule

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


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, up to a gigabyte: each step frees what the next one needs again.

    To map it anew takes a fifth of a step of the RL example. A library must not do that to somebody else's process.
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
    parser = argparse.ArgumentParser(prog="lightning-maml", add_help=False, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--allow", action="append", default=[], metavar="NAME")
    parser.add_argument("--quiet", action="store_true")
    options, given = parser.parse_known_args(args)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # as with `python -m`: networks, losses and data of one's own stand beside the YAML
    keep_freed_memory()
    with warnings.catch_warnings():
        for message in QUIET_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
            logging.getLogger(name).addFilter(_is_news)
        try:
            with quiet("lightning.pytorch", "lightning.fabric") if options.quiet else nullcontext():
                status = _run(given, options.allow, options.quiet)
        except KeyboardInterrupt:
            status = _stopped()
        except SystemExit as stop:
            if options.debug and stop.__cause__ is not None:  # the parser's
                raise stop.__cause__ from None
            # which a trainer ends with a status of its own, unless it came at the end of a training step
            if not isinstance(stop.__context__, KeyboardInterrupt) and stop.code != 128 + signal.SIGINT:
                if status := _flushed(0):
                    return status
                raise
            status = _stopped()
        except Exception as error:
            if options.debug:
                raise
            status = _failed(error)
        return _flushed(status)


def _run(given: Sequence[str], allowed: Sequence[str], is_quiet: bool) -> int:
    command, *rest = given
    if command == "demo":
        demo.main(rest, is_quiet)
    elif command == "report":
        report.main(rest, allowed)
    elif command == "export":
        export.main(rest, allowed)
    elif command == "reproduce":
        return reproduce.main(rest, partial(MetaCLI, is_quiet=is_quiet, tests_best=False))
    elif command.startswith("-") and not {*SUBCOMMANDS, "-h", "--help"}.intersection(given):
        raise ValueError(f"Expected one of {list(COMMANDS)} to come first but got {command}.")
    else:
        shown = given[1:]
        given = [*as_meant(given)]
        files = [value for option, value, _ in options_in(given) if option in CONFIG and value]
        # before jsonargparse reads them, which knows no bounds
        contents = [content for file in files if Path(file).is_file() for content in read_chain(Path(file))]
        learns_policy = any("policy" in (content.get("model") or ()) for content in contents)
        with saving.allowing([*allowed, *named_in(contents)]):
            MetaCLI(given, MetaRLModule if learns_policy else MetaModule, is_quiet, shown=shown)
    return 0


def _stopped() -> int:
    print("\nlightning-maml: stopped by Ctrl-C", file=sys.stderr)
    return 130


def _failed(error: Exception) -> int:
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
        return not_written(error, status)
    return status


def not_written(error: OSError, status: int = 0) -> int:
    """The exit status where what was printed cannot be written out; says why, where nothing else has failed before."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again, at its end
    return status or _failed(error)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available"))
