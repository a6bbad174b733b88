"""Finds the last checkpoint of a run by its configuration."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_maml.saving.files import whole_or_previous

# Where a checkpoint has what its run was asked for: {"model": ..., "data": ..., "seed_everything": ...}.
CONFIGURATION = "configuration"
# Settings that change no number: how it is computed, and where the data lie.
ASIDE = {"engine", "accumulate_tasks", "root", "download"}
# What of the section `model` a test has to share with the training.
LEARNED = ("network", "policy", "algorithm", "loss", "query_loss")
PLAIN = (dict, list, tuple, str, int, float, bool, type(None))


def as_plain(value: Any) -> Any:
    """A configuration as plain data: what is linked to another part of it is an object, and goes without saying."""
    if isinstance(value, dict):
        return {name: as_plain(part) for name, part in value.items() if isinstance(part, PLAIN)}
    return [as_plain(part) for part in value] if isinstance(value, list | tuple) else value


def last_of_this_run(
    folder: Path, pattern: str, own: Mapping[str, Any], *, training: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` of a run that was asked for the same; a damaged one by the whole one before.

    Compared with the configuration ``own`` are model, data and seed, where ``training`` goes on; else what was learned,
    alone. Returns where it is and what it holds; None where no files are of this ``pattern``. ValueError, with what
    differs, where all that are belong to other runs, or are damaged.
    """
    reasons: list[str] = []
    for path in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            whole, content = whole_or_previous(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if not (different := [*_different(content, own, training)]):
            return whole, content
        reasons.append(f"{path} differs in {', '.join(different[:3])}{', ...' if len(different) > 3 else ''}.")
    if not reasons:
        return None
    which = "best" if "best" in pattern else "last"
    what = "leave out --ckpt_path to start this one" if training else "name the one that you mean"
    raise ValueError(
        f"Expected a run of this configuration for --ckpt_path {which} but found none. The newest: {reasons[0]} "
        f"Either {what}, or go on with that one by --ckpt_path FILE."
    )


def _different(content: Mapping[str, Any], own: Mapping[str, Any], training: bool) -> Iterator[str]:
    found = content.get(CONFIGURATION)
    # an older version's holds the model's alone
    found = as_plain(found if isinstance(found, dict) else {"model": content.get("hyper_parameters") or {}})
    if training:
        return differences(found, own)
    learned = {name: value for name, value in found["model"].items() if name in LEARNED}
    return differences(learned, own["model"], "model.")


def differences(found: Any, own: Any, at: str = "") -> Iterator[str]:
    """What differs between two configurations, in words. What the one that was found does not know is left aside.

    Example:
        >>> [*differences({"seed": 0, "lr": 0.1}, {"seed": 1, "lr": 0.1, "new": 2})]
        ['seed (0 there, 1 here)']
    """
    if isinstance(found, dict) and isinstance(own, dict):
        for name in found:
            if name not in ASIDE and not str(name).startswith("_"):
                yield from differences(found[name], own.get(name), f"{at}{name}.")
    elif found != own:
        yield f"{at.removesuffix('.')} ({_short(found)} there, {_short(own)} here)"


def _short(value: Any) -> str:
    named = isinstance(value, dict) and "class_path" in value
    text = str(value["class_path"] if named else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
