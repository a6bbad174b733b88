"""Configurations, read within bounds: a YAML file of a few bytes can stand for more than memory holds."""

import ast
import contextlib
import csv
import functools
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from lightning_maml.saving.moved import with_moved

# The size of a file (this library's have up to 3,000 bytes); how deep values are nested; how many there are, aliases
# written out.
BYTES, DEPTH, VALUES = 2**18, 50, 20_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "set", "merge")
_TAGS = ("!", *(f"tag:yaml.org,2002:{kind}" for kind in _KINDS))


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    r"""The content of a YAML file, which is a dictionary, of at most 256 KiB, nested 50 deep, with 20,000 values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is larger, is no text in UTF-8, no YAML, or no dictionary; or a tag asks for an object.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "deep.yaml"
        >>> _ = path.write_text("[" * 100)
        >>> read_configuration(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected a configuration in .../deep.yaml but it is nested more than 50 deep (line 1).
    """
    try:
        text = _text(path)
        _check(text)
        content = with_moved(yaml.load(text, Loader=_LOADER))
    except ValueError as error:
        raise ValueError(f"Expected a configuration in {path} but {error}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        why = f"{getattr(error, 'problem', None) or type(error).__name__}{f' (line {mark.line + 1})' if mark else ''}"
        raise ValueError(f"Expected a configuration in {path} but it is no YAML: {why}.") from None
    if not isinstance(content, dict):
        got = "an empty file" if content is None else type(content).__name__
        raise ValueError(f"Expected {path} to be a configuration of sections but got {got}.")
    return content


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a CSV file of keys and values, literals or text, as Lightning writes; ValueError if it is none."""
    try:
        rows = list(csv.reader(io.StringIO(_text(path))))[1:]
        if any(len(row) != 2 for row in rows):
            raise ValueError("a line has another number of entries than a key and a value")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"Expected a table of keys and values in {path} but {error}.") from None
    table: dict[str, Any] = dict(rows)
    for key, value in table.items():
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            table[key] = ast.literal_eval(value)
    return table


def is_full_name(value: Any) -> bool:
    """Whether a value may be the full name of a class or function, ``package.name``."""
    return isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split("."))


def named_in(contents: Iterable[Any]) -> list[str]:
    """The full names that stand under ``class_path``, or in the place of a value, in configurations."""
    names, values = [], list(contents)
    while values:
        value = values.pop()
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
        elif is_full_name(value):
            names.append(value)
    return names


def bounded_parsing() -> None:
    """Has jsonargparse check every YAML text, of files within files and of options, too, before it parses it."""
    load = jsonargparse.get_loader("yaml")

    @functools.wraps(load)
    def bounded(stream: str) -> Any:
        with contextlib.suppress(yaml.YAMLError):  # which the loader itself tells of
            _check(stream)
        return with_moved(load(stream))

    if not hasattr(load, "__wrapped__"):
        jsonargparse.set_loader("yaml", bounded, (yaml.YAMLError,))


def _check(text: str) -> None:
    """Raise ValueError where the parser's events, every alias written out, are beyond the bounds."""
    sizes: dict[str, int] = {}  # by anchor; 0 of what has not ended
    begun: list[tuple[str, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = f"line {event.start_mark.line + 1}"
        anchor = getattr(event, "anchor", None) or ""
        if isinstance(event, yaml.AliasEvent):
            if sizes.get(anchor) == 0:
                raise ValueError(f"*{anchor} stands for what it is in ({line})")
            total += sizes.get(anchor, 0)
        elif isinstance(event, yaml.NodeEvent):
            if event.tag and event.tag not in _TAGS:
                tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:80]
                raise ValueError(f"its tag {tag} asks for an object, and configurations are plain data ({line})")
            total += 1
            sizes[anchor] = int(isinstance(event, yaml.ScalarEvent))
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((anchor, total))
            if len(begun) > DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep ({line})")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = total - before + 1
        if total > VALUES:
            raise ValueError(f"it stands for more than {VALUES:,} values, aliases written out ({line})")


def _text(path: str | os.PathLike[str]) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a file at {path} but there is none.")
    with Path(path).open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise ValueError(f"it is larger than {BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 (byte {error.start} is 0x{content[error.start]:02x})") from None
    if "\0" in text:
        raise ValueError("it is no text: it has a zero byte")
    return text
