"""Result files, and the command lines that ask for them.

A file holds ``{"benchmark": name, **about(), **settings, "rows": [{...}, ...], "left_out": [{...}, ...]}``.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch  # and nothing of the package, which `benchmarks.mutants` imports anew for each mutant

PACKAGES = ("torch", "lightning", "learn2learn", "higher", "torchopt", "jax")

Row = dict[str, Any]


def about() -> dict[str, Any]:
    """Versions, machine, date and commit, as plain data."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return {
        "versions": versions,
        "machine": platform.machine(),
        **gpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
    }


def read(path: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        ValueError: it is none.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError(f"Expected a result file with a list of rows but {path} has none.")
    return content


class ResultFile:
    """Rows of measurements, written one by one: what is measured stays, whatever happens next.

    Args:
        path: of the JSON; None writes nothing.
        benchmark: what was measured.
        key: columns that tell rows apart. With these, a file of the same benchmark and settings is added to: its rows
            stay until there is a new one of the same key. What they were measured on is named in them where it differs.
        shown: columns that are printed; None for all.
        settings: what all rows have in common.
    """

    def __init__(
        self,
        path: Path | None,
        benchmark: str,
        *,
        key: Sequence[str] | None = None,
        shown: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        self.path, self.key, self.shown, here = path, key, shown, about()
        self.head: dict[str, Any] = {"benchmark": benchmark, **here, **settings}
        self.rows: list[Row] = []
        self.left_out: list[Row] = []
        if key is not None and path is not None and path.exists():
            old = read(path)
            if all(old.get(name) == self.head[name] for name in ("benchmark", *settings)):
                other = {name: old[name] for name in here if name in old and old[name] != here[name]}
                self.rows = [other | row for row in old["rows"]]

    def add(self, **row: Any) -> None:
        """Adds a row, and writes and prints it."""
        if self.key is not None:
            self.rows = [old for old in self.rows if any(old.get(name) != row.get(name) for name in self.key)]
        self.rows.append(row)
        self.write()
        shown = {name: text(row.get(name)) for name in self.shown or row}
        print(*(f"{name} {value:{9 if value[:1].isdecimal() else 20}}" for name, value in shown.items()), flush=True)

    def leave_out(self, reason: str, **row: Any) -> None:
        """Writes and prints what could not be measured, and why."""
        self.left_out.append({**row, "reason": reason})
        self.write()
        print(f"left out: {', '.join(map(str, row.values()))}: {reason}", flush=True)

    def write(self, **more: Any) -> None:
        """Writes all there is, and ``more`` settings."""
        self.head |= more
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            left_out = {"left_out": self.left_out} if self.left_out else {}
            content = {**self.head, "rows": self.rows, **left_out}
            self.path.write_text(json.dumps(content, indent=2) + "\n")


def text(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return "-" if value is None else str(value)


def at_least(least: int) -> Callable[[str], int]:
    """A type of arguments: whole numbers from ``least``."""

    def parse(argument: str) -> int:
        if (value := int(argument)) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least} but got {value}")
        return value

    parse.__name__ = "whole number"  # which argparse names where `int` raises
    return parse


def command_line(
    doc: str | None, program: str | None = None, writes: bool = True, **counts: int | list[int]
) -> argparse.ArgumentParser:
    """A parser with an option for each of ``counts``, whole numbers with these defaults, and ``--json``."""
    parser = argparse.ArgumentParser(program, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in counts.items():
        several = {"nargs": "+"} if isinstance(default, list) else {}
        kind = at_least(2 if name == "rounds" else 1)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, **several)
    if writes:
        parser.add_argument("--json", type=Path, metavar="FILE", help="where the results are written")
    return parser
