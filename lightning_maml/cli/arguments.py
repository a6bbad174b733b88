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
FLAGS = ("--baseline", "--report")


def as_meant(args: Sequence[str]) -> Iterator[str]:
    """The arguments, with full names and paths; ValueError where a short name is none.

    Example:
        >>> [*as_meant(["--model.algorithm", "fomaml", "--data=SinusoidTasks"])]
        ['--model.algorithm', 'lightning_maml.fomaml', '--data=lightning_maml.data.SinusoidTasks']
    """
    for option, value, argument in options_in(args):
        yield argument if value is None else argument.removesuffix(value) + _value(option, value)


def options_in(args: Sequence[str]) -> Iterator[tuple[str, str | None, str]]:
    """Each argument with the option that it is of, and the value that it gives this one.

    Example:
        >>> [*options_in(["--config", "table", "--data.seed=3"])]
        [('--config', None, '--config'), ('--config', 'table', 'table'), ('--data.seed', '3', '--data.seed=3')]
    """
    option = ""
    for argument in args:
        name, sign, value = argument.partition("=")
        if argument.startswith("-"):
            yield name, value if sign else None, argument
            option = "" if sign or name in FLAGS else name
        else:
            yield option, argument, argument
            option = ""


def _value(option: str, value: str) -> str:
    if option in CONFIG:
        return value if Path(value).exists() else str(packaged().get(value, value))
    known = SHORT.get(option, {})
    if known and value.isidentifier() and value not in ("null", "None"):
        if value not in known:
            raise ValueError(
                f"Expected {option} to be one of {list(known)}, or a class or function by its import path, as a.b.C, "
                f"but got {value!r}{did_you_mean(value, known)}."
            )
        return known[value]
    return moved(value)


def packaged() -> dict[str, Path]:
    """The configurations that come with the package, by name: those of ``configs`` and ``configs/paper``."""
    folder = Path(str(files("lightning_maml.configs"))).resolve()
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"), key=lambda path: path.stem)}


def without(args: Sequence[str], *names: str) -> list[str]:
    """The arguments without some options, and what those that take a value were given.

    Example:
        >>> without(["--config", "table", "--baseline", "--ckpt_path", "last"], "--baseline", "--ckpt_path")
        ['--config', 'table']
    """
    return [argument for option, _, argument in options_in(args) if option not in names]


def fill_sizes(options: Any) -> None:
    """Writes what the data has in the place of a network's sizes that are 0; ValueError where it does not say."""
    sizes = getattr(getattr(options.model, "network", None), "init_args", None) or {}
    unknown = [name for name in ("in_features", "out_features") if sizes.get(name) == 0]
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
