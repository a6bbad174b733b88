"""Notebooks are kept without what they printed; they are run where the site is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


def test_there_are_some():
    assert [path.parent.name for path in NOTEBOOKS] == ["notebooks"] * 3 + ["tutorial"] * 6
    assert not [path for path in NOTEBOOKS if not path.with_suffix(".md").is_file()]  # its place among the pages


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_hold_no_outputs(path: Path) -> None:
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert [cell["execution_count"] for cell in code] == [None] * len(code)
