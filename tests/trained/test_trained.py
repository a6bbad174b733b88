"""The weights that ship with the package: they are those of their card, and predict what they did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.ship import OF_POLICY, predicted
from lightning_maml import cli, evaluate, from_pretrained
from lightning_maml.cli.reproduction import FIELDS
from lightning_maml.data import CIFARFSTasks, OmniglotTasks
from lightning_maml.rl import MetaRLModule
from lightning_maml.saving.weights import sha256_of
from lightning_maml.trained import card, names, path_of

DATA = {"cifar_fs": (CIFARFSTasks, "cifar100_root"), "omniglot": (OmniglotTasks, "omniglot_root")}
"""Of a name, without its ways and shots: its tasks, and the fixture that says where they are."""


def test_some_ship():
    assert names()


@pytest.mark.parametrize("name", names())
def test_a_card_says_what_a_reader_needs(name):
    fields = OF_POLICY if isinstance(from_pretrained(name), MetaRLModule) else FIELDS
    assert not [field for field in (*fields, "data") if card(name).get(field) is None]
    assert card(name)["weights"] == sha256_of({}, from_pretrained(name).state_dict())
    assert path_of(name).stat().st_size < 500_000
    assert not from_pretrained(name).training


@pytest.mark.parametrize("name", names())
def test_predicts_what_it_did(name):
    stored = load_file(Path(__file__).with_name(f"{name}.safetensors"))
    found = predicted(from_pretrained(name), {part: stored[part] for part in stored.keys() - {"predictions"}})
    torch.testing.assert_close(found["predictions"], stored["predictions"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in names() if name.rpartition("_")[0] in DATA])
def test_reaches_the_accuracy_of_its_card(name, request):
    module, said = from_pretrained(name), card(name)
    kind, root = DATA[name.rpartition("_")[0]]
    data = kind(
        root=request.getfixturevalue(root),
        ways=said["ways"],
        shots=5 if name.endswith("5s") else 1,
        queries=said["test_queries"],
        test_tasks=said["test_tasks"],
    )
    (result,) = said["results"]
    steps, right = result["inner_steps"], []
    for position in range(-(-said["test_tasks"] // data.tasks_per_batch)):
        tasks = data.sample("test", position)
        algorithm = module.algorithm.with_steps(steps)
        found = evaluate(module.network, algorithm, tasks, loss="cross_entropy", at=[steps]).predictions[:, 0]
        right.append((found.argmax(-1) == tasks.query_targets).double().mean(1))
    assert torch.cat(right).mean().item() == pytest.approx(result["measured"], abs=0.001)


@pytest.mark.parametrize("name", ["sinusoid", "rl_navigation"])
def test_its_test_gives_the_numbers_of_its_card(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = [] if name == "sinusoid" else ["--trainer.accelerator=cpu"]
    assert (
        cli.main(["test", f"--config={name}", f"--ckpt_path={name}", "--trainer.logger=false", "--quiet", *device]) == 0
    )
    found = json.loads((tmp_path / "metrics.json").read_text())
    for row in card(name)["results"]:  # rollouts are of the seed
        of_value = {part: found[row["value"]][part][row["inner_steps"]] for part in ("mean", "ci95")}
        assert of_value["mean"] == pytest.approx(row["measured"], rel=1e-3)
        assert of_value["ci95"] == pytest.approx(row["measured_ci95"], rel=1e-2)


def test_another_name_is_told_which_there_are():
    with pytest.raises(ValueError, match=r"Expected one of .*cifar_fs_5w1s.* but got 'cifar_fs_5w1'.*did you mean"):
        from_pretrained("cifar_fs_5w1")
