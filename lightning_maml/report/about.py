"""What a run was: in a heading, in sentences where something is missing or went wrong, and in full."""

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import yaml

from lightning_maml.report.page import Section
from lightning_maml.report.run import Run


def heading(run: Run) -> tuple[str, str]:
    """What was trained, and how well it does, in a title and a sentence."""
    algorithm = str((run.results or {}).get("algorithm") or run.named("model", "algorithm") or "A meta-trained network")
    network = run.named("model", "network") or run.named("model", "policy")
    environment = run.section("data").get("init_args", {}).get("environment")
    whole = environment.get("class_path", "") if isinstance(environment, dict) else run.named("data")
    tasks = whole.rpartition(".")[2]
    title = f"{algorithm}{f' on {tasks}' if tasks else ''}"
    unit = "outer steps" if run.learns_policy else "meta-updates"
    done = f"{run.updates:,} {unit}{f' of {network}' if network else ''}"
    return title, f"{done}. {_how_well(run)}"


def _how_well(run: Run) -> str:
    value = run.value
    found = (run.results or {}).get(value)
    if not found:
        series = run.series.get(f"val/{value}")
        return f"The last validation: {value} {series[1][-1]:.4g}." if series else "No test tells how well."
    numbers = [_shown(value, found["mean"][at], found["ci95"][at]) for at in (0, -1)]
    tasks = f"{run.results['tasks']:,} test tasks" if run.results else ""
    last = len(found["mean"]) - 1
    steps = f"{last} inner step{'' if last == 1 else 's'}"
    return f"On {tasks} the {value} is {numbers[0]} before adapting and {numbers[1]} after {steps}."


def _shown(value: str, mean: float | None, ci95: float | None) -> str:
    if mean is None:
        return "not finite"
    factor, unit = (100, " %") if value == "accuracy" else (1, "")
    digits = 1 if value == "accuracy" else 3
    return f"{factor * mean:.{digits}f}" + (f" ± {factor * ci95:.{digits}f}" if ci95 is not None else "") + unit


def notes(run: Run) -> Iterator[str]:
    """A sentence for each thing that a reader has to know before looking at the pictures."""
    trained = any(name.startswith("train/") for name in run.series)
    if run.results is not None and not trained and not (run.folder / "checkpoints").is_dir():
        yield "This is the folder of a test alone: how the network was trained is in another one."
    elif not run.series:
        yield "There is no metrics.csv, which Lightning's CSVLogger writes: the page has no learning curves."
    elif run.of_updates is not None and run.updates < run.of_updates:
        again = "; --ckpt_path last goes on with it" if run.saved_updates else ", and left no last checkpoint"
        done = f"{run.updates:,} of {run.of_updates:,} updates"
        if run.time_was_up:
            yield f"Training ended as its time was up, trainer.max_time, after {done}{again}."
        else:
            yield (
                f"Training did not reach its end: the log stops after {done}. "
                f"The run was stopped or killed, ended early, or still goes on{again}."
            )
    yield from _not_finite(run)
    if trained and not any(name.startswith("val/") for name in run.series):
        yield "There was no validation: nothing says which weights on the way were the best."
    if run.results is None:
        yield "The run was not tested: it has no metrics.json, which fit writes at its end, as does test."
    elif any(mean is None for mean in run.results.get(run.value, {}).get("mean", [])):
        yield f"The test's mean {run.value} is not a finite number after some inner steps: at least one task ran away."
    if run.results and (count := (run.results.get("diverged") or [0])[-1]):
        what = "their support loss is higher after the last inner step than before the first, or not finite"
        yield f"{count:,} of {run.results['tasks']:,} test tasks diverged: {what}."


def _not_finite(run: Run) -> Iterator[str]:
    for name in (f"{part}/{value}" for part in ("train", "val") for value in dict.fromkeys(("loss", run.value))):
        steps, values = run.series.get(name, ([], []))
        bad = [step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)]
        if bad:
            where = f"{len(bad):,} of {len(steps):,} lines of the log, first at meta-update {bad[0]:,}"
            yield f"{name} was no finite number in {where}."


def about(run: Run, made_by: Mapping[str, str]) -> Section:
    """Configuration, commit, machine and versions, of the run and of the page."""
    known = {**{name: str(value) for name, value in (run.origin or {}).items()}}
    results = run.results or {}
    facts = {"folder": str(run.folder), "checkpoint": run.checkpoint.name if run.checkpoint else "none"}
    facts |= {"seed": str(run.configuration.get("seed_everything", results.get("seed", "unknown")))}
    facts |= {f"run: {name}": value for name, value in known.items()} or {"run": "does not say on which machine it was"}
    facts |= {f"page: {name}": value for name, value in made_by.items() if known.get(name) != value}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    body = f"<dl>{rows}</dl>"
    if run.configuration:
        text: Any = yaml.safe_dump(dict(run.configuration), sort_keys=False, allow_unicode=True)
        body += (
            f'<details><summary>The complete configuration</summary><pre tabindex="0">{escape(text)}</pre></details>'
        )
    return Section("What it was", "Enough to do it again: the configuration, and where it ran.", body)
