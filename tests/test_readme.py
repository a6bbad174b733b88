"""The README's code runs as it stands there, and its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
WITH_CODE = ("README.md", "docs/engines.md", "docs/serving.md")
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
    assert script.count("import") >= 3  # the blocks were found
    path = tmp_path / "readme.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(repository: Path, document: str) -> None:
    text = (repository / document).read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    anchors = {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)}
    links = [link for link in LINK.findall(prose) if "://" not in link]
    broken = [link for link in links if link.startswith("#") and link[1:] not in anchors]
    broken += [link for link in links if not link.startswith("#") and not (repository / link.split("#")[0]).exists()]
    assert broken == []


def test_the_tables_of_who_runs_what_are_printed_from_the_sets(repository: Path) -> None:
    script = runpy.run_path(str(repository / "docs" / "who_runs_what.py"))
    for file in script["TABLES"]:
        assert script["written"](file) == (repository / file).read_text(), "python docs/who_runs_what.py --write"
        assert "| ● |" in script["written"](file)


def test_configs_and_commands_named_in_the_readme_exist(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    configs = set(re.findall(r"configs/\w+\.yaml", text))
    assert configs
    assert {name for name in configs if not (repository / name).is_file()} == set()
    targets = set(re.findall(r"^(?:make) (\w+)", text, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    makefile = (repository / "Makefile").read_text()
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)} == set()
