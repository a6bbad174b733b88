"""Adapted networks as files for other programs: they predict the same, one row or many, without this library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from lightning_maml import MLP, Conv4, ResNet12, adapt, export, maml
from lightning_maml.saving import export as module
from lightning_maml.saving.export import ABOUT

# what torch's exporters say of themselves
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]


class Transformer(nn.Module):
    """Sequences ``[N, 4, 3]`` to ``[N, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(inputs)).mean(1))


NETWORKS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "mlp": (lambda: MLP(3, [8], 2), (3,), "mse"),
    "conv4": (lambda: Conv4(2, hidden=4), (1, 28, 28), "cross_entropy"),
    "resnet12": (lambda: ResNet12(2, widths=(4, 6, 8, 10)), (3, 32, 32), "cross_entropy"),
    "transformer": (Transformer, (4, 3), "mse"),
}


def adapted_to(name: str, batch_norm: Any = "support") -> tuple[Any, Tensor]:
    make, shape, loss = NETWORKS[name]
    network, rows = make(), torch.rand(2, 6, *shape)
    targets = torch.arange(6).remainder(2).expand(2, 6) if loss == "cross_entropy" else torch.randn(2, 6, 2)
    normed = any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    how = {"batch_norm": batch_norm} if normed else {}
    return adapt(network, maml(0.05, 2, **how), rows, targets, loss=loss), rows


def loaded(path: Path, network: nn.Module) -> Any:
    """What predicts from the file, by its format's own loader."""
    if path.suffix == ".pt2":
        return torch.no_grad()(torch.export.load(path).module())
    if path.suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda rows: torch.from_numpy(session.run(["predictions"], {"inputs": rows.numpy()})[0])
    with safe_open(path, "pt") as file:
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return torch.no_grad()(network.eval())


@pytest.mark.parametrize("to", ["torch", "onnx", "safetensors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_predicts_as_the_adapted_network(tmp_path: Path, name: str, to: Any) -> None:
    adapted, rows = adapted_to(name)
    path = export(adapted.network(1), rows[1], tmp_path / f"it{module.SUFFIXES[to]}", to, {"classes": ["a", "b"]})
    predict = loaded(path, adapted.network(0))  # the other task's, where weights alone are in the file
    more = torch.rand(2, 13, *rows.shape[2:])
    for given in (rows, more, more[:, :1]):
        torch.testing.assert_close(predict(given[1]), adapted.predict(given)[1], rtol=1e-5, atol=1e-5)


def test_leaves_the_network_in_its_mode(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    network[1].eval()
    export(network, torch.randn(3, 2), tmp_path / "it.safetensors", "safetensors")
    assert [part.training for part in network.modules()] == [True, True, False]


def test_metadata_come_back(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    network, rows, given = nn.Linear(2, 1), torch.randn(3, 2), {"outputs": ["y"], "size": 28}
    paths = {to: export(network, rows, tmp_path / f"it{suffix}", to, given) for to, suffix in module.SUFFIXES.items()}
    extra = {ABOUT: ""}
    torch.export.load(paths["torch"], extra_files=extra)
    with safe_open(paths["safetensors"], "pt") as file:
        found = [extra[ABOUT], file.metadata()[ABOUT]]
    found += [one.value for one in onnx.load(paths["onnx"]).metadata_props if one.key == ABOUT]
    assert [json.loads(text) for text in found] == [given] * 3


def test_needs_nothing_of_this_library(tmp_path: Path) -> None:
    adapted, rows = adapted_to("conv4")
    paths = [export(adapted.network(0), rows[0], tmp_path / f"it{module.SUFFIXES[to]}", to) for to in ("torch", "onnx")]
    torch.save(rows[0], tmp_path / "rows.pt")
    code = f"""
import sys, torch, onnxruntime
rows = torch.load({str(tmp_path / "rows.pt")!r})
one = torch.export.load({str(paths[0])!r}).module()(rows)
other = onnxruntime.InferenceSession({str(paths[1])!r}).run(["predictions"], {{"inputs": rows.numpy()}})[0]
torch.testing.assert_close(one.detach(), torch.from_numpy(other), rtol=1e-4, atol=1e-5)
assert not any(name.startswith("lightning") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:Predictions of Conv4 depend")
def test_statistics_of_a_batch_are_refused(tmp_path: Path) -> None:
    adapted, rows = adapted_to("conv4", "batch")
    with pytest.raises(ValueError, match=r"the layer 'norm1' normalises by all rows .* batch_norm='support'"):
        export(adapted.network(0), rows[0], tmp_path / "it.onnx", "onnx")
    assert not [*tmp_path.iterdir()]


def test_what_predicts_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows, network = tmp_path / "it.pt2", torch.randn(3, 2), nn.Linear(2, 1).requires_grad_(False)
    path.write_text("what was there")
    for wrong in (lambda given: network(given) + 1e-3, lambda given: network(given) * torch.nan):
        monkeypatch.setitem(module._WRITERS, "torch", lambda *_, wrong=wrong: (b"", wrong))
        with pytest.raises(ValueError, match=r"Expected what is written to predict the same but of 3 rows"):
            export(network, rows, path, "torch")
    # right for all rows at once, and not for one
    monkeypatch.setitem(module._WRITERS, "torch", lambda *_: (b"", lambda given: network(given) + (len(given) == 1)))
    with pytest.raises(ValueError, match=r"but of 1 rows it is"):
        export(network, rows, path, "torch")
    assert path.read_text() == "what was there"


def test_what_is_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Expected `to` to be one of .*'onnx'.* but got 'tflite'"):
        export(nn.Linear(2, 1), torch.randn(3, 2), tmp_path / "it", "tflite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected 2 `rows` or more, .* but got 1"):
        export(nn.Linear(2, 1), torch.randn(1, 2), tmp_path / "it", "torch")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"Expected onnx, onnxruntime, onnxscript .*pip install 'lightning-maml\[onnx\]'"
    ):
        export(nn.Linear(2, 1), torch.randn(3, 2), tmp_path / "it", "onnx")


class Decides(nn.Module):
    """By a number, which no exporter can follow."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum().item() > 0 else -inputs


def test_a_network_that_torch_cannot_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Expected a network that torch.export can write but it says: \w+"):
        export(Decides(), torch.randn(3, 2), tmp_path / "it", "torch")
