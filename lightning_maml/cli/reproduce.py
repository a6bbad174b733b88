"""``lightning-maml reproduce NAME``: trains and tests by a published protocol, and prints measured beside published."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_maml.checks import check_whole, did_you_mean
from lightning_maml.cli.arguments import options_in, packaged, without
from lightning_maml.cli.bases import latest, read_chain
from lightning_maml.cli.complaints import complaint
from lightning_maml.cli.meta_cli import MetaCLI
from lightning_maml.cli.reproduction import FILE, about_test, about_training, commit, compared, done_before
from lightning_maml.saving.configuration import read_configuration
from lightning_maml.saving.resume import last_of_this_run
from lightning_maml.training.results import aligned, write_json

CommandLine = Callable[[list[str]], MetaCLI]
# Its interval is named: the default is an object, which no configuration can hold.
TIMER = '{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"interval": "step"}}'


@dataclass(frozen=True)
class Protocol:
    """A configuration to be reproduced, and how; ``contents`` are those of its files, see :func:`read_chain`."""

    name: str
    path: Path
    contents: list[dict[str, Any]]
    max_updates: int | None = None
    overrides: Sequence[str] = field(default_factory=list)

    @property
    def of_updates(self) -> int:
        """How many meta-updates the protocol has."""
        return int(latest(self.contents, "trainer", "max_steps"))

    @property
    def updates(self) -> int:
        """How many are asked for."""
        return min(self.max_updates or self.of_updates, self.of_updates)

    @property
    def folder(self) -> Path:
        """Where its runs are, by its first logger."""
        loggers = latest(self.contents, "trainer", "logger")
        options = loggers[0].get("init_args", {}) if isinstance(loggers, list) and loggers else {}
        return Path(options.get("save_dir") or ".") / str(options.get("name", "lightning_logs"))

    def asked(self) -> dict[str, Any]:
        """What tells its runs apart: the protocol, what differs from it but where the data lie, and whose code runs."""
        where = [option for option, _, _ in options_in(self.overrides) if option in ("--data.root", "--data.download")]
        own = {"protocol": self.name, "max_updates": self.max_updates, "overrides": without(self.overrides, *where)}
        return {**own, "version": version("lightning-maml"), "commit": commit()}

    def arguments(self, resumes: bool) -> list[str]:
        """Of `fit`."""
        args = ["fit", "--config", str(self.path), *self.overrides, f"--trainer.max_steps={self.updates}"]
        given = {option for option, _, _ in options_in(self.overrides)}
        epoch = latest(self.contents, "data", "init_args", "batches_per_epoch")
        if isinstance(epoch, int) and self.updates < epoch and "--data.batches_per_epoch" not in given:
            args.append(f"--data.batches_per_epoch={self.updates}")  # or it would end before the first validation
        if "--trainer.max_time" not in given and latest(self.contents, "trainer", "max_time") is None:
            args.append(f"--trainer.callbacks+={TIMER}")  # with a limit the trainer has one
        return [*args, "--ckpt_path=last"] if resumes else args


def protocols() -> dict[str, Path]:
    """The configurations of the package that say what was published for them, or that nothing was, by name."""
    return {name: path for name, path in packaged().items() if "published" in read_configuration(path)}


def main(arguments: Sequence[str], command_line: CommandLine) -> int:
    """The command, on ``lightning-maml``'s own command line; returns 1 where something published was not reached."""
    parser = argparse.ArgumentParser(
        prog="lightning-maml reproduce",
        description="Train and test by a published protocol, and print measured beside published. All further options "
        "are those of `lightning-maml fit`, such as --data.root FOLDER or --trainer.accelerator cpu.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="a protocol's name, or a configuration with a section `published`")
    parser.add_argument("--list", action="store_true", help="the protocols, and what was published for them")
    what = "all protocols whose names begin so, all there are by default, but for those whose result is there"
    parser.add_argument("--all", nargs="?", const="", metavar="BEGINNING", help=what)
    parser.add_argument("--resume", action="store_true", help="go on where the last run of the same stopped")
    parser.add_argument("--max_updates", type=int, help="train on fewer meta-updates: no verdict then")
    options, overrides = parser.parse_known_args(arguments)
    if options.max_updates is not None:
        check_whole(1, max_updates=options.max_updates)
    known = protocols()
    several = options.all is not None
    if several and options.name is not None:
        parser.error(f"expected the name of a protocol or --all but got both, {options.name} and --all")
    if overrides and options.name is None and not several:
        parser.error(f"expected the name of a protocol before {overrides[0]}")
    if options.resume and options.name is None and not several:
        parser.error("expected the name of a protocol, or --all, to go on with but got none")
    if options.list or (options.name is None and not several):
        _print_protocols(known)
        return 0
    if any(override.startswith("--trainer.max_steps") for override in overrides):
        raise ValueError("Expected fewer updates to be asked for by `--max_updates` but got `--trainer.max_steps`.")
    protocol_of = partial(_protocol, known=known, max_updates=options.max_updates, overrides=overrides)
    if not several:
        return int("worse" in run(protocol_of(options.name), command_line, options.resume))
    chosen = [name for name in known if name.startswith(options.all)]
    if not chosen:
        hint = did_you_mean(options.all, known)
        raise ValueError(f"Expected --all with how the names of protocols begin but got {options.all!r}{hint}.")
    return _all([protocol_of(name) for name in chosen], command_line, options.resume)


def run(protocol: Protocol, command_line: CommandLine, resumes: bool = False) -> list[str | None]:
    """Trains, tests, prints, and writes ``reproduction.json``; returns the verdicts, None where there are none."""
    asked = protocol.asked()  # before the training, in which files may change
    cli = command_line(protocol.arguments(resumes))
    trainer, config = cli.trainer, cli.config["fit"]
    best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
    if best is None and cli.resumed is not None:  # none was left to train, so that none was taken along
        found = last_of_this_run(cli.resumed.parent, "best*.ckpt", cli.model.configuration, training=True)
        best = found and str(found[0])
    about = {**asked, "of_updates": protocol.of_updates, "seed": config["seed_everything"], **about_training(cli)}
    (tested,) = trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
    about |= about_test(cli)

    published = config["published"]
    rows = list(compared(published, tested, about["inner_steps"]))
    is_whole = about["updates"] == protocol.of_updates
    verdicts = [row.verdict if is_whole else None for row in rows]
    beside = f"beside {published.source}" if published else "without a published number"
    print(f"\n{protocol.name}: {' and '.join(sorted({row.value for row in rows}))}, {beside}\n")
    table = aligned([["inner steps", "measured", "published"], *(row.cells() for row in rows)])
    for line, verdict in zip(table, ["", *verdicts], strict=True):
        print(f"{line}  {'(no verdict)' if verdict is None else verdict}".rstrip())
    print(f"\n{_in_words(about)}")
    if not is_whole:
        print("No verdict on the protocol, which has more updates.")
    if about["overrides"]:
        print(f"With {' '.join(about['overrides'])}")
    written = Path(trainer.log_dir or trainer.default_root_dir) / FILE
    results = [{**vars(row), "verdict": verdict} for row, verdict in zip(rows, verdicts, strict=True)]
    write_json(written, {**about, "source": published and published.source, "results": results})
    print(f"Written to {written}")
    return verdicts


def _all(chosen: Sequence[Protocol], command_line: CommandLine, resumes: bool) -> int:
    """One after another; what fails is said at once, and again at the end."""
    ends: dict[str, str] = {}
    failed = False
    for number, protocol in enumerate(chosen, start=1):
        if (path := done_before(protocol.folder, protocol.asked())) is not None:
            ends[protocol.name] = f"is there: {path}"
            continue
        print(f"\n{protocol.name}, {number} of {len(chosen)}", flush=True)
        try:
            verdicts = run(protocol, command_line, resumes)
            ends[protocol.name] = ", ".join(sorted({verdict or "no verdict" for verdict in verdicts}))
            failed = failed or "worse" in verdicts
        except (Exception, SystemExit) as error:
            failed = True
            said = "its options could not be read" if isinstance(error, SystemExit) else complaint(error)
            ends[protocol.name] = f"failed: {said}"
            print(f"{protocol.name} {ends[protocol.name]}", flush=True)
    print("\nAll of them:\n")
    for name, end in ends.items():
        print(f"  {name:<28} {end}")
    return int(failed)


def _protocol(name: str, known: Mapping[str, Path], max_updates: int | None, overrides: Sequence[str]) -> Protocol:
    """The protocol of this name, or in this file; FileNotFoundError or ValueError where it is none."""
    path = known.get(name, Path(name))
    if not path.is_file():
        wanted = "the name of a protocol, one of `lightning-maml reproduce --list`, or the file of one"
        raise FileNotFoundError(f"Expected {wanted} but got {name!r}{did_you_mean(name, known)}.")
    contents = read_chain(path)
    if "published" not in contents[-1]:  # what another was published for is nothing to compare with
        raise ValueError(f"Expected {path} to have a section `published` with what to compare with but it has none.")
    if not isinstance(latest(contents, "trainer", "max_steps"), int):
        raise ValueError(f"Expected {path} to say `trainer.max_steps` but it does not.")
    return Protocol(name, path, contents, max_updates, overrides)


def _in_words(about: Mapping[str, Any]) -> str:
    """What a result is of."""
    short = ", cut short by max_time" if about["cut_short"] else ""
    queries = "" if about["test_queries"] is None else f" of {about['test_queries']} queries"
    queries += " a class" if about["ways"] else ""
    kind = "transductive" if about["transductive"] else "not transductive"
    return (
        f"{about['updates']:,} of {about['of_updates']:,} updates in {about['minutes']:g} minutes{short}; seed "
        f"{about['seed']}; {about['test_tasks']:,} test tasks{queries}, {kind}; weights {about['weights'][:12]}."
    )


def _print_protocols(known: Mapping[str, Path]) -> None:
    print("Protocols, with what was published after so many inner steps:\n")
    for name, path in known.items():
        contents = read_chain(path)
        published = contents[-1]["published"] or {}
        numbers = [
            f"{value} " + ", ".join(f"{mean:g} ({steps})" for steps, (mean, *_) in published[value].items())
            for value in ("loss", "accuracy")
            if value in published
        ]
        updates = f"{latest(contents, 'trainer', 'max_steps'):,} updates"
        print(f"  {name:<31} {updates:>15}  {'; '.join(numbers):<36} {published.get('source', 'no number at hand')}")
