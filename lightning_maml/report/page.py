"""The page itself: sections in a frame of HTML that holds its styles, its script, plotly.js and all numbers."""

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

Picture = dict[str, Any]
"""What plotly.js draws: ``data`` and ``layout``, and ``frames``, what a slider puts into the first traces.

A colour that begins with ``--`` is one of the page's, which is another in the dark.
"""
ALLOWED = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
LINES = ("--one", "--two", "--three", "--four", "--five", "--six")


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that says what to see, HTML, and the pictures that it has a place for, by name."""

    title: str
    says: str
    body: str
    pictures: dict[str, Picture] = field(default_factory=dict)


def place(name: str, label: str, height: int = 360) -> str:
    """HTML where the picture of this name goes; ``label`` tells those who do not see it."""
    return f'<div class="plot" id="{name}" role="img" aria-label="{escape(label)}" style="height:{height}px"></div>'


def slider(name: str, what: str, last: int, start: int | None = None) -> str:
    """HTML of a slider over inner steps 0 to ``last``; it moves what names it in ``data-slider``, or as a picture."""
    start = last if start is None else start
    return (
        f'<label class="slider">{escape(what)} <output id="{name}-shown">{start}</output>'
        f'<input type="range" id="{name}" min="0" max="{last}" value="{start}" step="1"></label>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], summary: str) -> str:
    """HTML of a table that unfolds."""
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    inner = f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<details><summary>{escape(summary)}</summary><div class="wide">{inner}</div></details>'


def page(title: str, lead: str, notes: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as text. ``notes`` are what a reader has to know first, as that a run was killed."""
    own = files("lightning_maml.report")
    plotly = gzip.decompress((own / "plotly-basic.min.js.gz").read_bytes()).decode()
    pictures = {name: picture for section in sections for name, picture in section.pictures.items()}
    noted = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            # the browser itself sees to it that nothing is asked of any host
            f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{(own / 'page.css').read_text()}</style></head><body>",
            f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
            f'<ul class="notes" aria-label="What to know first">{noted}</ul>' if noted else "",
            "</header><main>",
            *(
                f"<section><h2>{escape(section.title)}</h2><p>{escape(section.says)}</p>{section.body}</section>"
                for section in sections
            ),
            "</main>",
            f'<script type="application/json" id="pictures">{as_json(pictures)}</script>',
            f"<script>{plotly}</script><script>{(own / 'page.js').read_text()}</script></body></html>\n",
        ]
    )


def as_json(value: Any) -> str:
    """JSON that may stand within HTML; a number that is not finite is null, others have six digits."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
