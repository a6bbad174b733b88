"""Pages that stand elsewhere in the repository: a hook of mkdocs."""

import re
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
PLAYGROUND = ROOT / "playground" / "dist" / "playground.html"
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Any, *, config: Any) -> Any:
    """The playground, where ``make playground`` has built it."""
    if PLAYGROUND.is_file():
        from mkdocs.structure.files import File

        files.append(File.generated(config, f"playground/{PLAYGROUND.name}", content=PLAYGROUND.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; what it links to outside of the site is named alone."""
    source = page.file.src_uri
    if source == "reference/command_line.md":
        from lightning_maml.cli import HELP

        return markdown.replace("HELP\n", HELP, 1)
    if (notebook := (ROOT / "docs" / source).with_suffix(".ipynb")).is_file():
        return _with_outputs(notebook)
    if source == "playground.md" and PLAYGROUND.is_file():
        there = f"[the playground](playground/{PLAYGROUND.name})"
        markdown = markdown.replace("`playground/dist/playground.html`, which `make playground` writes", there, 1)
    if source not in ELSEWHERE:
        here = (ROOT / "docs" / source).parent
        return LINK.sub(lambda link: link[0] if _in_site(here, link[2]) else link[1], markdown)
    text = (ROOT / ELSEWHERE[source]).read_text()
    return LINK.sub(lambda link: _from_root(link[1], link[2]), text)


def _from_root(text: str, target: str) -> str:
    return f"[{text}]({target.removeprefix('docs/')})" if target.startswith("docs/") else text


def _with_outputs(path: Path) -> str:
    """A notebook that is run, as Markdown, with its pictures in it."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    book = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        how = {"timeout": 300, "extra_arguments": ["--log-level=40"], "resources": {"metadata": {"path": folder}}}
        NotebookClient(book, **how).execute()
    text, resources = MarkdownExporter().from_notebook_node(book)
    for name, content in resources["outputs"].items():
        text = text.replace(f"]({name})", f"](data:image/png;base64,{b64encode(content).decode()})")
    file = path.relative_to(ROOT)
    return text.replace("\n\n", f"\n\nThis page is `{file}`, run when it was built.\n\n", 1)


def _in_site(folder: Path, link: str) -> bool:
    return (folder / link.partition("#")[0]).resolve().is_relative_to(ROOT / "docs")
