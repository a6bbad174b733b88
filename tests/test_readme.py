"""The README's code runs as it stands there, and its links lead somewhere."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

import processes
from lightning_maml.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python\n" in (ROOT / page).read_text()]
DOCUMENTS = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _script(text: str) -> str:
    """All ``python`` blocks as one file: later blocks use earlier names, and line numbers are those of the document."""
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        lines[first : first + block[1].count("\n")] = block[1].splitlines()
    return "\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    """What a heading is linked by: lower case, no punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_script_keeps_blocks_and_line_numbers() -> None:
    text = "# Title\n\n```python\nx = 1\n```\n\n```bash\nmake\n```\n\n```python\nassert x == 1\n\n1 / 0\n```\n"
    lines = _script(text).splitlines()
    assert {number: line for number, line in enumerate(lines, start=1) if line} == {
        4: "x = 1",
        12: "assert x == 1",
        14: "1 / 0",
    }


@pytest.mark.parametrize("document", WITH_CODE)
def test_python_blocks_run(repository: Path, tmp_path: Path, document: str) -> None:
    script = _script((repository / document).read_text())
    assert "import" in script  # the blocks were found
    path = tmp_path / "readme.py"
    path.write_text(script)
    done = processes.script(path)
    assert done.returncode == 0, done.stderr[-3000:]


def _prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def _leads_somewhere(document: Path, link: str) -> bool:
    """Whether a file is there, and in Markdown the heading after ``#``."""
    name, _, heading = link.partition("#")
    path = document.parent / name if name else document
    if not path.exists() or not heading:
        return path.exists()
    return heading in {_anchor(found) for found in re.findall(r"^#+ (.*)$", _prose(path), flags=re.MULTILINE)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(repository: Path, document: str) -> None:
    path = repository / document
    links = [link for link in LINK.findall(_prose(path)) if "://" not in link]
    assert [link for link in links if not _leads_somewhere(path, link)] == []


@pytest.mark.parametrize(("script", "parts"), [("who_runs_what.py", 2), ("measured.py", 6)])
def test_what_scripts_print_stands_on_the_pages(
    repository: Path, monkeypatch: pytest.MonkeyPatch, script: str, parts: int
) -> None:
    monkeypatch.syspath_prepend(repository / "docs")
    names = runpy.run_path(str(repository / "docs" / script))
    text = names["PAGE"].read_text()
    assert names["marked"].written(names["PAGE"], script, names["PARTS"]) == text, f"python docs/{script} --write"
    assert text.count("<!-- end -->") == len(names["PARTS"]) == parts


def test_a_mark_that_is_missing_is_said(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(repository / "docs")
    written = importlib.import_module("marked").written
    page = tmp_path / "page.md"
    page.write_text("<!-- one: docs/a.py --write -->\nold\n<!-- end -->\n")
    assert (
        written(page, "a.py", {"one": lambda: r"\1 new"})
        == "<!-- one: docs/a.py --write -->\n\n\\1 new\n\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match=r"Expected one part between '<!-- two: .*' and an end but got 0 in page\.md"):
        written(page, "a.py", {"one": str, "two": str})


@pytest.mark.parametrize("document", ["docs/design.md", "CONTRIBUTING.md", "playground/README.md"])
def test_files_that_are_named_exist(repository: Path, document: str) -> None:
    text, here = (repository / document).read_text(), (repository / document).parent
    named = re.findall(r"`([\w./]+/[\w./]*)`", text)
    assert len(named) > 8
    lost = [name for name in named if not ((repository / name).exists() or (here / name).exists())]
    assert [name for name in lost if not name.startswith((".venv/", "dist/", "src/built/"))] == []  # what is built


def test_the_readme_is_short(repository: Path) -> None:
    lines = (repository / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 128
    assert max(len(line) for line in lines if line.startswith("|")) <= 120  # tables, in a terminal


PROGRAMS = ("lightning-maml", "lightning_maml.cli")
# what makes a command of the README short; those of make are the tests themselves and the demo, see test_cli.py
SHORTENED = {
    "fit": ["--trainer.max_steps", "40", "--data.batches_per_epoch", "40"],
    "test": [],
    "reproduce": ["--max_updates", "40"],
}


def _commands(text: str) -> list[list[str]]:
    """The words of each line of the ``bash`` blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line]


def test_bash_blocks_run(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(repository / "configs")
    ran = set()
    for program, *words in _commands((repository / "README.md").read_text()):
        if program == "make":
            continue
        assert program == "lightning-maml"
        done = processes.command([*words, *SHORTENED[words[0]]], tmp_path)
        assert done.returncode == 0, (words, done.stderr[-3000:])
        ran.add(words[0])
    assert ran == {*SHORTENED}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_take_their_options(
    repository: Path, document: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command is there, and those that train or test read their configuration with all options of the line."""
    monkeypatch.chdir(repository)
    for words in _commands((repository / document).read_text().replace("\\\n", " ")):
        at = next((words.index(name) + 1 for name in PROGRAMS if name in words), None)
        if at is None or words[-1] == "...":
            continue
        assert words[at] in COMMANDS, words
        if words[at] in ("fit", "validate", "test", "predict"):
            with pytest.raises(SystemExit) as ended:
                main([*words[at:], "--print_config"])
            assert (ended.value.code, capsys.readouterr().err) == (0, ""), words


def test_every_block_is_run_by_a_test(repository: Path) -> None:
    kinds = re.findall(r"^```(\S*)$", (repository / "README.md").read_text(), flags=re.MULTILINE)[::2]
    assert set(kinds) == {"python", "bash"}


def test_the_picture_is_small_and_names_what_it_shows(repository: Path) -> None:
    path = repository / "docs" / "sine.svg"
    text = path.read_text()
    assert path.stat().st_size < 100_000
    assert "<image" not in text
    assert "<font" not in text
    for words in ("MAML", "pretrained", "before", "after 1 step", "after 10 steps", "its 5 examples"):
        assert words in text
    assert "docs/sine.svg" in (repository / "README.md").read_text()


def test_make_help_lists_every_target(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)
    printed = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make ([a-z-]+)", printed, flags=re.MULTILINE) == targets


def test_configs_and_commands_named_in_the_readme_exist(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    configs = set(re.findall(r"configs/\w+\.yaml", text))
    assert configs
    assert {name for name in configs if not (repository / name).is_file()} == set()
    targets = set(re.findall(r"^(?:make) (\w+)", text, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    makefile = (repository / "Makefile").read_text()
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)} == set()
