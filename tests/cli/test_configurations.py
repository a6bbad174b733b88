"""docs/results.md sets configurations beside their authors' code: what it says of ours is what the files say."""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

OWN_DATA = {"folder", "table"}  # which no paper has
CONFIGS = {
    path.stem: path for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if path.stem not in OWN_DATA
}
RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
WITHOUT_CODE = {"sinusoid_meta_sgd", "omniglot_5w1s_meta_sgd", "sinusoid_reptile"}

# What stands for a part that a configuration does not name; the advantages of MetaRLModule are made of their defaults.
ABSENT = {"advantages": {"class_path": "lightning_maml.rl.Advantages"}}

Row = tuple[str, str, str, dict[str, str]]


def rows() -> list[Row]:
    """Of each line of the tables the option, the authors' value, where it stands, and ours by configuration."""
    section = RESULTS.read_text().split("## Configurations, beside their authors' code", 1)[1].split("\n## ", 1)[0]
    found: list[Row] = []
    names: list[str] = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| option |"):
            assert cells[:3] == ["option", "authors", "where"]
            names = cells[3:]
        elif line.startswith("| `"):
            found.append((cells[0].strip("`"), cells[1], cells[2], dict(zip(names, cells[3:], strict=True))))
    return found


def value_of(config: dict[str, Any], option: str) -> Any:
    """The value of an option such as ``model.algorithm.lr``, its class's default where the file has none.

    A part is known by the name of its class.
    """
    *parents, name = option.split(".")
    node: Any = config
    for parent in parents:
        node = node.get("init_args", node)
        node = node.get(parent, ABSENT.get(parent))
        assert node is not None, f"{option}: there is no {parent}"
    value = node.get("init_args", node if "class_path" not in node else {}).get(name)
    if value is None and "class_path" in node:
        value = inspect.signature(pkgutil.resolve_name(node["class_path"])).parameters[name].default
    if isinstance(value, dict):
        return value["class_path"].rpartition(".")[2]
    return list(value) if isinstance(value, tuple) else value


def read(cell: str) -> Any:
    """The value that a cell stands for."""
    return None if cell == "none" else yaml.safe_load(cell)


@pytest.mark.parametrize("name", sorted({name for *_, ours in rows() for name in ours}))
def test_what_the_tables_say_is_ours_is_in_the_files(name: str) -> None:
    config = yaml.safe_load(CONFIGS[name].read_text())
    said = {option: read(ours[name].strip("*")) for option, _, _, ours in rows() if name in ours}
    assert said == {option: value_of(config, option) for option in said}
    assert {"model.algorithm.lr", "model.algorithm.steps", "data.tasks_per_batch", "data.test_tasks"} <= said.keys()


def test_bold_is_what_differs() -> None:
    for option, authors, _, ours in rows():
        theirs = [read(value) for value in re.sub(r" \(.*\)$", "", authors).split(" / ")]
        theirs *= len(ours) if len(theirs) == 1 else 1
        differs = [read(cell.strip("*")) != value for cell, value in zip(ours.values(), theirs, strict=True)]
        assert [cell.startswith("**") for cell in ours.values()] == differs, (option, authors, ours)


def test_each_value_of_the_authors_has_a_file_and_a_line() -> None:
    places = [place for _, _, where, _ in rows() for place in where.split(", ")]
    assert [place for place in places if not re.fullmatch(r"`[\w./]+:\d+`", place)] == []
    text = RESULTS.read_text()
    commits = re.findall(r"\]\(https://github\.com/[\w./-]+/tree/([0-9a-f]{40})\),\s+commit\s+`([0-9a-f]{40})`", text)
    assert len(commits) == 6
    assert all(linked == named for linked, named in commits)


def test_every_configuration_stands_beside_its_authors() -> None:
    assert {name for *_, ours in rows() for name in ours} == CONFIGS.keys() - WITHOUT_CODE
    section = RESULTS.read_text()
    assert all(f"`{name}`" in section for name in WITHOUT_CODE)
    for name, path in CONFIGS.items():
        assert "docs/results.md" in path.read_text().split("seed_everything", 1)[0] or name == "sinusoid_reptile", name
