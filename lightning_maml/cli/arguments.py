"""What a command line means: names of before, short names, and configurations that come with the package."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_maml import data, networks, presets, saving
from lightning_maml.checks import did_you_mean
from lightning_maml.saving.moved import moved

SHORT = {
    "--model.algorithm": {name: f"lightning_maml.{name}" for name in presets.__all__},
    "--model.network": {name: f"lightning_maml.networks.{name}" for name in networks.__all__ if name[0].isupper()},
    "--data": {name: f"lightning_maml.data.{name}" for name in data.__all__ if name.endswith("Tasks")},
}
"""What may be called by its name alone, by option."""
CONFIG = ("--config", "-c")
FLAGS = ("--baseline",)


def as_meant(args: Sequence[str]) -> Iterator[str]:
    """The arguments, with full names and paths.

    Raises:
        ValueError: a short name is none; says which there are.

    Example:
        >>> [*as_meant(["--model.algorithm", "fomaml", "--data=SinusoidTasks"])]
        ['--model.algorithm', 'lightning_maml.fomaml', '--data=lightning_maml.data.SinusoidTasks']
    """
    option = ""
    for argument in args:
        name, sign, value = argument.partition("=")
        if sign and name.startswith("-"):
            yield f"{name}={_value(name, value)}"
            option = ""
        elif argument.startswith("-"):
            yield argument
            option = argument
        else:
            yield _value(option, argument)
            option = ""


def _value(option: str, value: str) -> str:
    if option in CONFIG:
        return str(_packaged(value)) if not Path(value).exists() else value
    known = SHORT.get(option, {})
    if known and value.isidentifier() and value not in ("null", "None"):
        if value not in known:
            raise ValueError(
                f"Expected {option} to be one of {list(known)}, or a class or function by its import path, as a.b.C, "
                f"but got {value!r}{did_you_mean(value, known)}."
            )
        return known[value]
    return moved(value)


def _packaged(name: str) -> Path | str:
    """The path of a configuration of the package by its name; else the name itself."""
    folder = files("lightning_maml.configs")
    for part in (folder, folder / "paper"):
        path = Path(str(part / f"{name}.yaml"))
        if path.is_file():
            return path
    return name


def without(args: Sequence[str], *names: str) -> list[str]:
    """The arguments without some options, and what those that take a value were given.

    Example:
        >>> without(["--config", "table", "--baseline", "--ckpt_path", "last"], "--baseline", "--ckpt_path")
        ['--config', 'table']
    """
    kept: list[str] = []
    skips = False
    for argument in args:
        name = argument.partition("=")[0]
        if skips and not argument.startswith("-"):
            skips = False
        elif name in names:
            skips = "=" not in argument and name not in FLAGS
        else:
            kept.append(argument)
            skips = False
    return kept


def fill_sizes(options: Any) -> None:
    """Writes what the data has in the place of a network's sizes that are 0.

    Raises:
        ValueError: the data does not say.
    """
    network = getattr(options.model, "network", None)
    sizes = getattr(network, "init_args", None) or {}
    unknown = [name for name in ("in_features", "out_features") if sizes and sizes.get(name) == 0]
    if not unknown:
        return
    module, _, name = options.data.class_path.rpartition(".")
    data_module = getattr(import_module(module), name)
    if not hasattr(data_module, "sizes_of_network"):
        raise ValueError(
            f"Expected --model.network.{unknown[0]} to be 1 or more but got 0, which stands for what TableTasks has; "
            f"{name} does not say."
        )
    made = data_module(**options.data.init_args)
    if options.ckpt_path is not None and Path(options.ckpt_path).is_file():
        state = saving.read_checkpoint(options.ckpt_path, "cpu", True).get(data_module.__qualname__)
        if state:
            made.load_state_dict(state)
    for unknown_name in unknown:
        sizes[unknown_name] = made.sizes_of_network[unknown_name]
