"""Configurations: what docs/results.md says of them, what they go on from, and that each trains."""

from __future__ import annotations

import copy
import inspect
import pkgutil
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_maml import MetaModule, TaskBatch, cli
from lightning_maml.cli.arguments import packaged
from lightning_maml.cli.bases import chain
from lightning_maml.training.meta_update import meta_update

OWN_DATA = {"folder", "table"}  # which no paper has
CONFIGS = {
    path.stem: path for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if path.stem not in OWN_DATA
}
RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
BASES = {name: path for name, path in CONFIGS.items() if "base" in yaml.safe_load(path.read_text())}
IN_TABLES = {"mini_imagenet_5w1s", "mini_imagenet_5w5s"}  # of those that go on from another; the rest say it themselves
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


def whole(name: str) -> dict[str, Any]:
    """What a configuration holds together with those that it goes on from."""
    made: dict[str, Any] = {}
    for path in chain(CONFIGS[name]):
        made = over(made, yaml.safe_load(path.read_text()))
    return made


def over(below: Any, above: Any) -> Any:
    """Two configurations, one upon the other."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = {**below, **above}
    return both | {key: over(below[key], above[key]) for key in below.keys() & above.keys()}


def read(cell: str) -> Any:
    """The value that a cell stands for."""
    return None if cell == "none" else yaml.safe_load(cell)


@pytest.mark.parametrize("name", sorted({name for *_, ours in rows() for name in ours}))
def test_what_the_tables_say_is_ours_is_in_the_files(name: str) -> None:
    config = whole(name)
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
    assert {name for *_, ours in rows() for name in ours} == (CONFIGS.keys() - BASES.keys() - WITHOUT_CODE) | IN_TABLES
    section = RESULTS.read_text()
    assert all(f"`{name}`" in section for name in WITHOUT_CODE)
    for name, path in CONFIGS.items():
        head = path.read_text().split("seed_everything", 1)[0].split("\nbase:", 1)[0]
        own = name in BASES and re.search(r"\b(py|md|sh|gin|json):\d+|authors have published no code", head)
        assert own or "docs/results.md" in head or name == "sinusoid_reptile", name


@pytest.mark.parametrize("name", BASES)
def test_what_goes_on_from_another_says_its_own_of_what_is_its_own(name: str) -> None:
    text = BASES[name].read_text()
    own = yaml.safe_load(text)
    assert "published" in own  # or the other's number would stand beside it
    assert [logger["init_args"]["name"] for logger in own["trainer"]["logger"]] == [name, f"{name}/tensorboard"]
    head = text.split("\nbase:", 1)[0]
    queries = {"1": "one", "5": "five"}
    config = whole(name)["data"]["init_args"]
    number = str(config.get("test_queries") or config["queries"])
    assert re.search(rf"({number}|{queries.get(number)}) quer(y|ies) a\s+(#\s+)?class", head)
    assert "transductive" in head
    assert own["published"] or "at hand" in head or "nothing for" in " ".join(head.split("\n# "))


ALL_TWELVE = ["", "_anil", "_boil", "_fomaml", "_imaml", "_maml_pp", "_meta_sgd", "_pretrained", "_proto_maml"]
ALL_TWELVE += ["_protonet", "_reptile", "_unicorn_maml"]


@pytest.mark.parametrize("benchmark", ["cifar_fs_5w1s", "cifar_fs_5w5s", "mini_imagenet_5w1s", "mini_imagenet_5w5s"])
def test_all_twelve_are_there(benchmark: str) -> None:
    assert sorted(name for name in packaged() if name.startswith(benchmark)) == [benchmark + one for one in ALL_TWELVE]


class Built(cli.MetaCLI):
    """Builds what a configuration describes, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


IMAGES = {"omniglot": (1, 28), "cifar": (3, 32), "mini": (3, 84)}


@pytest.mark.filterwarnings("ignore:The conjugate gradients")  # iMAML's paper takes 5 of them, converged or not
@pytest.mark.parametrize("name", [name for name in packaged() if name.startswith(tuple(IMAGES))])
def test_each_makes_a_meta_update_on_random_images(name: str, tmp_path: Path) -> None:
    shape = next(shape for kind, shape in IMAGES.items() if name.startswith(kind))
    with warnings.catch_warnings():
        for message in cli.QUIET_WARNINGS:  # as `cli.main` has it
            warnings.filterwarnings("ignore", message=message)
        built = Built(["fit", "--config", str(packaged()[name]), f"--trainer.default_root_dir={tmp_path}"], MetaModule)
    module, size = built.model, built.datamodule.sizes["train"]
    labels = torch.arange(size["ways"]).repeat(2)[None]
    images = torch.rand(2, *labels.shape, shape[0], shape[1], shape[1], generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(module.state_dict())
    tasks = TaskBatch(images[0], labels, images[1], labels)
    algorithm = module.algorithm.at(0)
    update = meta_update(module.network, algorithm, tasks, loss=module.loss, engine=module.engine)
    optimizer = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    update.surrogate.backward()
    optimizer.step()
    after = module.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
