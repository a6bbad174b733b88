"""``base: NAME`` in a configuration: it goes on from another one, and holds only what differs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_maml.checks import did_you_mean
from lightning_maml.cli.arguments import CONFIG, options_in, packaged
from lightning_maml.saving.configuration import read_configuration

_BASE = re.compile(r"^base:.*$", re.MULTILINE)


def chain(path: Path) -> list[Path]:
    r"""The files of a configuration, the one that all go on from first, and itself last.

    Each ``base`` names a configuration that comes with the package, or a file by its path from the folder of the one
    that names it.

    Raises:
        FileNotFoundError: there is no such configuration.
        ValueError: one goes on from itself, or a file is no configuration.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.yaml"
        >>> _ = path.write_text("base: cifar_fs_5w1s\ntrainer: {max_steps: 2000}")
        >>> [file.name for file in chain(path)]
        ['cifar_fs_5w1s.yaml', 'mine.yaml']
    """
    files = [path.resolve()]
    while (name := read_configuration(files[0]).get("base")) is not None:
        files.insert(0, _named(name, files[0]))
        if files[0] in files[1:]:
            way = " -> ".join(file.name for file in reversed(files))
            raise ValueError(f"Expected the `base` of a configuration to lead to an end but got a circle: {way}.")
    return [*files[:-1], path]


def read_chain(path: Path) -> list[dict[str, Any]]:
    """What each file of :func:`chain` holds."""
    return [read_configuration(file) for file in chain(path)]


def latest(contents: Sequence[dict[str, Any]], *keys: str) -> Any:
    """The value under ``keys``, one in another, in the last of the contents that has it; None where none has.

    Example:
        >>> latest([{"trainer": {"max_steps": 60}}, {"trainer": {"devices": 1}}], "trainer", "max_steps")
        60
    """
    for content in reversed(contents):
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def with_bases(args: Sequence[str]) -> Iterator[str]:
    """The arguments, each configuration after those that it goes on from: the parser merges what it reads in turn."""
    for option, value, argument in options_in(args):
        if option in CONFIG and value and Path(value).is_file():
            for base in chain(Path(value))[:-1]:
                yield from (str(base), option) if argument == value else (f"{option}={base}",)
        yield argument


def without_base(text: str) -> str:
    r"""The text of a configuration with an empty line in the place of its ``base``.

    Example:
        >>> without_base("base: sinusoid\ntrainer: {max_steps: 5}")
        '\ntrainer: {max_steps: 5}'
    """
    return _BASE.sub("", text)


def _named(name: Any, by: Path) -> Path:
    known = packaged()
    if isinstance(name, str):
        if name in known:
            return known[name]
        if (file := by.parent / name).is_file():
            return file.resolve()
    raise FileNotFoundError(
        f"Expected `base` in {by} to be the name of a configuration that comes with the package, or a path from its "
        f"folder, but got {name!r}{did_you_mean(str(name), known)}."
    )
