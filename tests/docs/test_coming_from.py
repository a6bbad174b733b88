"""The pages for those who come from another library: both sides of each task run, and compute the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import processes
from test_readme import _leads_somewhere, _prose, _script

LIBRARIES = ("learn2learn", "higher", "torchopt", "parallel_metalearn")
TASKS = (
    "MAML step",
    "First order",
    "ANIL",
    "Meta-SGD",
    "Reptile",
    "Few-shot evaluation",
    "Batch-norm",
    "DDP",
    "Checkpoint",
    "Deploy",
)
COMPARED = "torch.testing.assert_close(ours, theirs, **settings)"


def _page(repository: Path, name: str) -> Path:
    return repository / "docs" / "coming_from" / f"{name}.md"


def _sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level."""
    return {part.partition("\n")[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("name", LIBRARIES)
def test_both_sides_compute_the_same(repository: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "page.py"
    path.write_text(_script(_page(repository, name).read_text()))
    done = processes.script(path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", LIBRARIES)
def test_each_page_has_the_ten_tasks_and_compares_where_there_are_two_sides(repository: Path, name: str) -> None:
    sections = _sections(_page(repository, name).read_text())
    assert tuple(sections)[: len(TASKS)] == TASKS
    for task in TASKS:
        sides = re.findall(r"^### .*: (.*)$", sections[task], flags=re.MULTILINE)
        assert sides[-1] == "lightning-maml"
        assert sections[task].count(COMPARED) == len(sides) - 1, task


def test_the_table_says_which_tasks_a_page_has_two_sides_of(repository: Path) -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", _page(repository, "index").read_text(), flags=re.MULTILINE)[1:]
    assert tuple(task for task, _ in rows) == TASKS
    for task, cells in rows:
        for name, cell in zip(LIBRARIES, cells.split(" | "), strict=True):
            has = "theirs = " in _sections(_page(repository, name).read_text())[task]
            assert has == (not cell.startswith("none")), (task, name)


@pytest.mark.parametrize("name", ["index", *LIBRARIES])
def test_links_lead_somewhere(repository: Path, name: str) -> None:
    path = _page(repository, name)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", _prose(path)) if "://" not in link]
    assert links
    assert [link for link in links if not _leads_somewhere(path, link)] == []
