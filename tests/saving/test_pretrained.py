"""Trained modules in folders: what is written, what comes back, what is refused, and what a hub would receive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from lightning_maml import MLP, MetaModule, adapt, from_pretrained, maml
from lightning_maml.rl import MetaRLModule
from lightning_maml.training.hub import card_of

NAMES = ("sinusoid", "cifar_fs_5w1s", "rl_navigation")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped sinusoid, saved."""
    return from_pretrained("sinusoid").save_pretrained(tmp_path / "sines")


def change(folder: Path, **parts: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def parameters(folder: Path, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["hyper_parameters"]
    return found | changed


@pytest.mark.parametrize("name", NAMES)
def test_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    module = from_pretrained(name)
    folder = module.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = from_pretrained(folder)
    assert type(again) is type(module)
    assert not again.training
    assert again.measured == module.measured
    torch.testing.assert_close(dict(again.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    repeated = again.save_pretrained(tmp_path / "repeated")
    assert all((repeated / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


def test_predicts_the_same(folder: Path) -> None:
    x, module, again = torch.randn(3, 5, 1), from_pretrained("sinusoid"), MetaModule.from_pretrained(folder)
    predictions = [adapt(one.network, one.algorithm, x, x.sin(), loss=one.loss).predict(x) for one in (module, again)]
    assert torch.equal(*predictions)


def test_learned_rates_come_back_and_parts_of_python_are_given(tmp_path: Path) -> None:
    parts = {"network": MLP(1, [4], 1), "algorithm": maml(lr=0.1, steps=2, learn_lr="per_step")}
    module = MetaModule(**parts, loss="mse", test_steps=3)
    with torch.no_grad():
        for rate in module.rates.parameters():
            rate.fill_(0.7)
    module.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="Expected `network` and `algorithm` to be given"):
        MetaModule.from_pretrained(tmp_path)
    other = {"network": MLP(1, [4], 1), "algorithm": maml(lr=0.1, steps=2, learn_lr="per_step")}
    again = MetaModule.from_pretrained(tmp_path, **other)
    assert again.test_steps == 3
    assert all((rate == 0.7).all() for rate in again.rates.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_numbers_that_were_measured(name: str, tmp_path: Path) -> None:
    module = from_pretrained(name)
    card = ModelCard.load(module.save_pretrained(tmp_path) / "README.md")
    said = module.measured
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    for row in said["results"]:
        assert found[f"{row['value']} after {row['inner_steps']} inner steps"] == row["measured"]
    assert {result.dataset_name for result in card.data.eval_results} == {said["data"]}
    assert card.data.library_name == "lightning-maml"
    for fact in ("seed", "commit", "weights", "test_tasks"):
        assert f"- {fact.replace('_', ' ')}: {said[fact]}" in card.text.splitlines()


def test_the_card_of_a_test_and_of_none() -> None:
    interval = {"mean": [0.25, None], "ci95": [0.0125, None], "median": [0.2, None]}
    text = card_of("MetaModule", "maml", {"accuracy": interval, "tasks": 40}).text
    assert "| accuracy | 0 | 25.00 ± 1.25 % | - |" in text
    assert "| accuracy | 1 | - | - |" in text
    assert "no test was given" in card_of("MetaModule", "maml", None).text


def test_what_was_measured_of_other_weights_is_refused(tmp_path: Path) -> None:
    module = from_pretrained("sinusoid")
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="Expected what was measured of the weights .* but it is of"):
        module.save_pretrained(tmp_path)


# What a file may not do


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("loss", "os.system", "Expected `loss` to name .* but got 'os.system'"),
        ("network", {"class_path": "evil.Network"}, "Expected `network` to name .* but got 'evil.Network'"),
        ("optimizer", {"class_path": "subprocess.Popen", "init_args": {"args": "id"}}, "'subprocess.Popen'"),
        ("_instantiator", "builtins.exec", "'builtins.exec'"),
        ("_class_path", "evil.Network", "'evil.Network'"),
    ],
)
def test_a_configuration_that_names_code_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: Any, message: str
) -> None:
    mark = folder / "pwned"
    evil = f"import pathlib, torch\npathlib.Path({str(mark)!r}).touch()\nclass Network(torch.nn.Module): ...\n"
    (folder / "evil.py").write_text(evil)
    monkeypatch.syspath_prepend(folder)
    change(folder, hyper_parameters=parameters(folder, **{place: value}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)
    assert not mark.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "but Expecting value"),
        ("[" * 100_000, "Expected the configuration of a saved module"),
        ("[1]", "save_pretrained wrote another"),
        ('{"format": "lightning-maml module 1"}', "save_pretrained wrote another"),
        ('"' + "x" * 300_000 + '"', "larger than 262,144 bytes"),
        ("\x80", "Expected the configuration of a saved module"),
    ],
    ids=["empty", "deep", "a list", "half", "large", "no text"],
)
def test_a_configuration_that_is_none_is_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_cut_foreign_or_changed_are_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:100], whole[:-1], b"", b"not safetensors"):
        path.write_bytes(broken)
        with pytest.raises(
            ValueError, match=r"Expected a whole file of safetensors but .* is damaged or none"
        ) as caught:
            from_pretrained(folder)
        assert len(str(caught.value).splitlines()) == 1
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"Expected the weights that .* names but model.safetensors holds others"):
        from_pretrained(folder)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="holds others"):
        from_pretrained(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="Expected the weights of a saved module at"):
        from_pretrained(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    network = json.loads((folder / "config.json").read_text())["hyper_parameters"]["network"]
    network["init_args"]["hidden"] = [40, 41]
    change(folder, hyper_parameters=parameters(folder, network=network))
    with pytest.raises(
        ValueError, match=r"Expected a checkpoint of this network .* of shape \[1, 40\] in the place of"
    ):
        from_pretrained(folder)


def test_another_kind_of_module_or_folder_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected a MetaRLModule in .* but it holds a 'MetaModule'"):
        MetaRLModule.from_pretrained(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Expected config.json of a saved module in .* but there is none"):
        from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="Expected a folder of save_pretrained but there is none at"):
        from_pretrained(tmp_path / "absent")


# The hub


class Hub:
    """Takes the place of the hub's HTTP API: what it was asked to make, and the files it received."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.repositories: list[str] = []
        self.files: dict[str, bytes] = {}
        patch.setattr(HfApi, "create_repo", self.create_repo)
        patch.setattr(HfApi, "upload_folder", self.upload_folder)

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
        self.repositories.append(repo_id)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return f"commit of {repo_id}: {options['commit_message']}"


def test_push_to_hub_sends_card_configuration_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, module = Hub(monkeypatch), from_pretrained("sinusoid")
    address = module.push_to_hub("someone/sines", commit_message="Sines", token="none")
    assert address == "commit of someone/sines: Sines"
    assert hub.repositories == ["someone/sines"]
    assert {*hub.files} == {"README.md", "config.json", "model.safetensors"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "sinusoid"
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), dict(module.state_dict()), rtol=0, atol=0)
    assert from_pretrained(tmp_path).measured == module.measured


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning_maml.training.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"Expected huggingface_hub to be installed .* 'lightning-maml\[hub\]'"):
        from_pretrained("sinusoid").save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
