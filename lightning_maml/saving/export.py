"""An adapted network as a file for other programs: a ``torch.export`` program, ONNX, or its weights alone."""

import io
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lightning_maml.checks import check_one_of
from lightning_maml.saving.files import whole_file

Format = Literal["torch", "onnx", "safetensors"]
SUFFIXES: dict[str, str] = {"torch": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
INPUTS, PREDICTIONS = "inputs", "predictions"
"""What an ONNX model's input and output are called."""
ABOUT = "lightning_maml"
"""Under which name the metadata stand in a file, as JSON."""
MOST_OFF = 1e-5
"""By which what was written may differ from the network, relative to its largest prediction."""


def export(
    network: nn.Module, rows: Tensor, path: str | Path, to: Format, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes a network, such as ``adapted.network(0)``, in evaluation mode, for any number of rows; returns the path.

    A ``torch.export`` program is loaded by ``torch.export.load(path).module()``, ONNX by any of its runtimes; neither
    needs this library. What was written is read again, ONNX by onnxruntime, and compared with the network on ``rows``
    and on the first of them alone, before the file takes its place.

    Args:
        network: any module that torch can export.
        rows: inputs ``[N, ...]`` as the network takes them, 2 or more; the number of rows stays open.
        path: of the file, whose folder is made.
        to: ``"torch"``, ``"onnx"`` (which needs onnx, onnxruntime and onnxscript) or ``"safetensors"``: the
            ``state_dict`` without the network's structure.
        metadata: plain data that goes into the file as JSON, under ``"lightning_maml"``.

    Raises:
        ValueError: an argument is out of range; a prediction depends on the rows beside, as batch-norm goes by the
            batch; or what was written predicts something else.
        ImportError: the packages of ONNX are not installed.
        RuntimeError: torch cannot export the network; the message is torch's.

    Example:
        >>> import tempfile
        >>> network, rows = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(5, 3)
        >>> path = export(network, rows, Path(tempfile.mkdtemp()) / "network.pt2", "torch")
        >>> served = torch.export.load(path).module()
        >>> torch.testing.assert_close(served(rows[:1]), network(rows[:1]))
    """
    check_one_of(get_args(Format), to=to)
    if len(rows) < 2:
        raise ValueError(f"Expected 2 `rows` or more, so that their number stays open, but got {len(rows)}.")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if to == "onnx" and find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise ImportError(f"Expected {names} to write ONNX but not found: pip install 'lightning-maml[onnx]'.")
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        check_rows_are_alone(network)
        with torch.no_grad():
            wanted = network(rows), network(rows[:1])
        content, predict = _WRITERS[to](network, rows, json.dumps({**(metadata or {})}))
        for given, prediction in zip((rows, rows[:1]), wanted, strict=True):
            off = float((predict(given) - prediction).abs().max()) / max(1.0, float(prediction.abs().max()))
            if not off <= MOST_OFF:
                raise ValueError(
                    f"Expected what is written to predict the same but of {len(given)} rows it is {off:.1e} off, "
                    f"relative to the largest: {path} is not written."
                )
    finally:
        for module, training in modes.items():
            module.training = training
    with whole_file(Path(path)) as file:
        file.write(content)
    return Path(path)


def check_rows_are_alone(network: nn.Module) -> None:
    """Raise ValueError where a batch-norm layer goes by the rows of a call in evaluation mode, too."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ValueError(
                f"Expected predictions that hang on their own row alone but the layer {name!r} normalises by all rows "
                "of a call: adapt with batch_norm='support', which goes by the task's examples (`--batch-norm support` "
                "on the command line)."
            )


Predict = Callable[[Tensor], Tensor]


def _torch(network: nn.Module, rows: Tensor, about: str) -> tuple[bytes, Predict]:
    written = io.BytesIO()
    torch.export.save(_program(network, rows), written, extra_files={ABOUT: about})
    return written.getvalue(), torch.no_grad()(torch.export.load(io.BytesIO(written.getvalue())).module())


def _onnx(network: nn.Module, rows: Tensor, about: str) -> tuple[bytes, Predict]:
    import onnxruntime

    names: Any = {"input_names": [INPUTS], "output_names": [PREDICTIONS]}
    written: Any = torch.onnx.export(_program(network, rows), (rows,), dynamo=True, verbose=False, **names)
    written.model.metadata_props[ABOUT] = about
    content = written.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda given: torch.from_numpy(session.run([PREDICTIONS], {INPUTS: given.numpy()})[0])


def _safetensors(network: nn.Module, rows: Tensor, about: str) -> tuple[bytes, Predict]:
    content = save({name: value.contiguous().clone() for name, value in network.state_dict().items()}, {ABOUT: about})
    found = load(content)
    return content, torch.no_grad()(lambda given: torch.func.functional_call(network, found, (given,)))


_WRITERS: dict[str, Callable[[nn.Module, Tensor, str], tuple[bytes, Predict]]] = {
    "torch": _torch,
    "onnx": _onnx,
    "safetensors": _safetensors,
}


def _program(network: nn.Module, rows: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(network, (rows,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))
    except Exception as error:  # torch has dozens
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RuntimeError(f"Expected a network that torch.export can write but it says: {said}") from error
