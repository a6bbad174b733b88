"""``lightning-maml reproduce NAME``: trains and tests by a published protocol, and prints measured beside published."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI

from lightning_maml.checks import check_whole
from lightning_maml.cli.arguments import packaged
from lightning_maml.saving.configuration import read_configuration
from lightning_maml.training.results import Published, aligned, write_json


@dataclass(frozen=True)
class Comparison:
    """A measured number beside a published one; ``value`` is ``"loss"`` or ``"accuracy"``."""

    value: str
    inner_steps: int
    measured: float
    measured_ci95: float
    published: float
    published_ci95: float | None = None

    @property
    def verdict(self) -> str:
        """``"reproduced"`` where the two 95% intervals meet, otherwise ``"better"`` or ``"worse"``.

        Example:
            >>> Comparison("accuracy", 3, 0.984, 0.004, 0.987, 0.004).verdict
            'reproduced'
            >>> Comparison("loss", 1, 0.80, 0.05, 0.67, None).verdict
            'worse'
        """
        gain = (self.published - self.measured) if self.value == "loss" else (self.measured - self.published)
        if abs(gain) <= self.measured_ci95 + (self.published_ci95 or 0.0):
            return "reproduced"
        return "better" if gain > 0 else "worse"  # as is a number that is not finite

    def cells(self) -> list[str]:
        """Inner steps, measured and published, to be printed."""
        factor, digits, unit = (100, 2, " %") if self.value == "accuracy" else (1, 3, "")
        pairs = (self.measured, self.measured_ci95), (self.published, self.published_ci95)
        shown = [[f"{factor * number:.{digits}f}" for number in pair if number is not None] for pair in pairs]
        return [str(self.inner_steps), *(" ± ".join(numbers) + unit for numbers in shown)]


def protocols() -> dict[str, Path]:
    """The configurations of the package that say what was published for them, by name."""
    return {name: path for name, path in packaged().items() if "published" in read_configuration(path)}


def main(arguments: Sequence[str], command_line: Callable[[list[str]], LightningCLI]) -> int:
    """The command, on ``lightning-maml``'s own command line; returns 1 where something published was not reached."""
    parser = argparse.ArgumentParser(
        prog="lightning-maml reproduce",
        description="Train and test by a published protocol, and print measured beside published. All further options "
        "are those of `lightning-maml fit`, such as --data.root FOLDER or --trainer.accelerator cpu.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="a protocol's name, or a configuration with a section `published`")
    parser.add_argument("--list", action="store_true", help="the protocols, and what was published for them")
    parser.add_argument("--max_updates", type=int, help="train on fewer meta-updates: no verdict then")
    options, overrides = parser.parse_known_args(arguments)
    if options.max_updates is not None:
        check_whole(1, max_updates=options.max_updates)
    known = protocols()
    if overrides and options.name is None:
        parser.error(f"expected the name of a protocol before {overrides[0]}")
    if options.list or options.name is None:
        _print_protocols(known)
        return 0
    path = known.get(options.name, Path(options.name))
    if not path.is_file():
        wanted = f"the name of a protocol, one of {list(known)}, or the file of one"
        raise FileNotFoundError(f"Expected {wanted} but got {options.name!r}.")
    content = read_configuration(path)
    if "published" not in content:
        raise ValueError(f"Expected {path} to have a section `published` with what to compare with but it has none.")
    if any(override.startswith("--trainer.max_steps") for override in overrides):
        raise ValueError("Expected fewer updates to be asked for by `--max_updates` but got `--trainer.max_steps`.")
    try:
        of, epoch = content["trainer"]["max_steps"], content["data"]["init_args"].get("batches_per_epoch", 0)
        updates = min(options.max_updates or of, of)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"Expected {path} to say `trainer.max_steps` and `data.init_args` but it does not.") from None

    start = time.perf_counter()
    budget = [f"--trainer.max_steps={updates}"]
    if updates < epoch:
        budget.append(f"--data.batches_per_epoch={updates}")  # or it would end before the first validation
    cli = command_line(["fit", "--config", str(path), *overrides, *budget])
    seconds, trainer = time.perf_counter() - start, cli.trainer
    checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
    (tested,) = trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False)
    published = cli.config["fit"]["published"]
    comparisons = list(_compare(published, tested))
    verdicts = [row.verdict if updates == of else None for row in comparisons]
    table = aligned([["inner steps", "measured", "published"], *(row.cells() for row in comparisons)])
    print(f"\n{options.name}: {' and '.join(sorted({row.value for row in comparisons}))}, beside {published.source}\n")
    for line, verdict in zip(table, ["", *verdicts], strict=True):
        print(f"{line}  {'(no verdict)' if verdict is None else verdict}".rstrip())
    if updates < of:
        print(f"\nTrained on {updates:,} of {of:,} updates: no verdict on the protocol.")
    if overrides:
        print(f"\nWith {' '.join(overrides)}")
    written = Path(trainer.log_dir or trainer.default_root_dir) / "reproduction.json"
    about = {"protocol": options.name, "source": published.source, "updates": updates, "of_updates": of}
    about |= {"overrides": overrides, "seed": cli.config["fit"]["seed_everything"]}
    about |= {"training_seconds": round(seconds), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    results = [{**vars(row), "verdict": verdict} for row, verdict in zip(comparisons, verdicts, strict=True)]
    write_json(written, {**about, "results": results})
    print(f"Written to {written}")
    return 1 if "worse" in verdicts else 0


def _compare(published: Published, results: Mapping[str, float]) -> Iterator[Comparison]:
    for value in ("loss", "accuracy"):
        for steps, numbers in getattr(published, value).items():
            name = f"test/{value}_step_{steps}"
            if name not in results:
                raise ValueError(f"Expected a test with {steps} inner steps and {value} but it has {sorted(results)}.")
            yield Comparison(value, steps, results[name], results[f"{name}_ci95"], *numbers)


def _print_protocols(known: Mapping[str, Path]) -> None:
    print("Protocols, with what was published after so many inner steps:\n")
    for name, path in known.items():
        content = read_configuration(path)
        published = content["published"]
        numbers = [
            f"{value} " + ", ".join(f"{mean:g} ({steps})" for steps, (mean, *_) in published[value].items())
            for value in ("loss", "accuracy")
            if value in published
        ]
        updates = f"{content['trainer']['max_steps']:,} updates"
        print(f"  {name:<24} {updates:>15}  {'; '.join(numbers):<36} {published['source']}")
