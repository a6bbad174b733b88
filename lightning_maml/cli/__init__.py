"""The command line, ``lightning-maml``: what needs neither torch nor Lightning is answered before they are loaded."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from lightning_maml.checks import did_you_mean

SUBCOMMANDS = {
    "fit": "meta-train, validating on the way; keeps the best and the last checkpoint, and tests the best",
    "validate": "loss and metric on the validation tasks",
    "test": "loss and metric after each inner step on the test tasks, with 95% intervals; writes metrics.json",
    "predict": "adapt to each task's support set and predict its query rows; writes predictions.csv",
}

COMMANDS = (*SUBCOMMANDS, "report", "export", "reproduce", "demo")

HELP = """\
usage: lightning-maml {fit,validate,test,predict} --config FILE [--option VALUE ...] [--quiet] [--debug]
       lightning-maml report RUN [--baseline RUN]
       lightning-maml export CKPT --task FILE --to {torch,onnx,safetensors}
       lightning-maml reproduce NAME [--option VALUE ...]
       lightning-maml demo [--option VALUE ...]

Meta-train a network so that a few gradient steps fit it to a new task.

subcommands:
  demo       train on sinusoids for about a minute and test, next to the pretrained baseline; needs no data
{subcommands}
  report     write report.html into a run's folder: learning curves, what inner steps do, tasks in pictures
  export     adapt to a task's examples, a table or a folder of images, and write the network for other programs
  reproduce  train and test by a published protocol, and print measured beside published; --list shows which

examples:
  lightning-maml fit --config configs/sinusoid.yaml
  lightning-maml fit --config configs/rl_navigation.yaml               reinforcement learning
  lightning-maml fit --config configs/sinusoid.yaml --ckpt_path last   goes on where the last run of it stopped
  lightning-maml fit --config configs/sinusoid.yaml --model.algorithm fomaml --baseline
  lightning-maml test --config configs/sinusoid.yaml --ckpt_path best    of the newest run of this configuration
  lightning-maml fit --config configs/sinusoid.yaml --report             ends with a page about the run
  lightning-maml fit --config table --data.path my.csv --data.inputs '[x1, x2]' --data.targets '[y]'   a table
  lightning-maml fit --help                                          all options; each overrides the file's
  lightning-maml fit --data.help lightning_maml.OmniglotTasks        the options of one class
  lightning-maml fit --config configs/sinusoid.yaml --print_config   the complete configuration
  lightning-maml fit --config configs/sinusoid.yaml --debug          an error with its traceback

A configuration names classes and functions to be run: it is code. A checkpoint is data: what it names is run only where
it is the library's or torch's, the configuration's, or that of an option --allow NAME.
""".replace("{subcommands}", "\n".join(f"  {name:<9}  {what}" for name, what in SUBCOMMANDS.items()))

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
        text = f"lightning-maml {version('lightning-maml')}\n" if command == "--version" else HELP
        try:
            print(text, end="", flush=True)
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
