"""Parts of a page that a script prints: between a mark that names the script, and an end."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Parts = Mapping[str, Callable[[], str]]


def written(page: Path, script: str, parts: Parts) -> str:
    """The text of a page with its marked parts as they are now.

    Raises:
        ValueError: a part does not have exactly one place in the page.
    """
    text = page.read_text()
    for name, made in parts.items():
        begin, end = f"<!-- {name}: docs/{script} --write -->\n", "<!-- end -->"
        around = re.split(f"{re.escape(begin)}(?:(?!<!-- ).)*{end}", text, flags=re.DOTALL)
        if len(around) != 2:
            found = f"{len(around) - 1} in {page.name}"
            raise ValueError(f"Expected one part between {begin.strip()!r} and an end but got {found}.")
        text = f"{around[0]}{begin}\n{made()}\n\n{end}{around[1]}"
    return text


def main(page: Path, script: str, parts: Parts) -> None:
    """Prints the parts, or with ``--write`` puts them into the page."""
    if "--write" in sys.argv:
        page.write_text(written(page, script, parts))
    else:
        print(*(made() for made in parts.values()), sep="\n\n")
