"""Pages that stand elsewhere in the repository: a hook of mkdocs."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; what it links to outside of the site is named alone."""
    source = page.file.src_uri
    if source == "reference/command_line.md":
        from lightning_maml.cli import HELP

        return markdown.replace("HELP\n", HELP, 1)
    if source not in ELSEWHERE:
        here = (ROOT / "docs" / source).parent
        return LINK.sub(lambda link: link[0] if _in_site(here, link[1]) else "]", markdown)
    text = (ROOT / ELSEWHERE[source]).read_text()
    return LINK.sub(lambda link: f"]({link[1].removeprefix('docs/')})" if link[1].startswith("docs/") else "]", text)


def _in_site(folder: Path, link: str) -> bool:
    return (folder / link.partition("#")[0]).resolve().is_relative_to(ROOT / "docs")
