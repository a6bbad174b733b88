"""Trained modules in folders: weights as safetensors, the configuration as JSON, and the names that ship."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_maml.checks import did_you_mean
from lightning_maml.saving.configuration import BYTES
from lightning_maml.saving.files import first_line, whole_file
from lightning_maml.saving.moved import with_moved
from lightning_maml.saving.names import build
from lightning_maml.saving.states import check_fits
from lightning_maml.saving.weights import sha256_of

SHIPPED = Path(__file__).parents[1] / "trained"
WEIGHTS, CONFIGURATION = "model.safetensors", "config.json"
FORMAT = "lightning-maml module 1"

Module = TypeVar("Module", bound=nn.Module)


def names() -> list[str]:
    """Those that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.ckpt"))


def path_of(name: str) -> Path:
    """The checkpoint of this name, which ships with the package; ValueError where there is none."""
    if name not in names():
        raise ValueError(
            f"Expected one of {', '.join(names()) or 'none'} but got {name!r}{did_you_mean(name, names())}."
        )
    return SHIPPED / f"{name}.ckpt"


def write_module(module: nn.Module, parameters: Mapping[str, Any], measured: Any, folder: Path) -> None:
    """Writes the weights, and beside them the hyper-parameters and what was measured, into a folder.

    Raises:
        ValueError: a hyper-parameter is no plain data, or what was measured is of other weights than the module's.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
    digest = sha256_of({}, state)
    if measured is not None and measured.get("weights", digest) != digest:
        raise ValueError(f"Expected what was measured of the weights {digest} but it is of {measured['weights']}.")
    said = {"format": FORMAT, "module": type(module).__name__, "weights": digest}
    content = {**said, "hyper_parameters": dict(parameters), "measured": measured}
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected hyper-parameters that are plain data but {first_line(error)}.") from None
    with whole_file(folder / WEIGHTS) as file:
        file.write(save(state, {"format": "pt"}))
    with whole_file(folder / CONFIGURATION) as file:
        file.write(f"{text}\n".encode())


def read_module(
    kind: type[Module], folder: Path, given: Mapping[str, Any], allow: Iterable[str]
) -> tuple[Module, dict[str, Any]]:
    """The module of the class ``kind`` in a folder, and the content of its ``config.json``.

    Nothing is run that is not on the list of :func:`~lightning_maml.saving.build`. Raises as
    ``MetaModule.from_pretrained``.
    """
    content = read_json(folder)
    if content["module"] != kind.__name__:
        raise ValueError(f"Expected a {kind.__name__} in {folder} but it holds a {content['module']!r:.60}.")
    state = _tensors(folder / WEIGHTS)
    if content["weights"] != sha256_of({}, state):
        raise ValueError(f"Expected the weights that {folder / CONFIGURATION} names but {WEIGHTS} holds others.")
    module = build(kind, content["hyper_parameters"], given, allow)
    check_fits(state, module.state_dict(), folder / WEIGHTS)
    module.load_state_dict(state)
    return module, content


def read_json(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``; FileNotFoundError, or ValueError where :func:`write_module` did not write it."""
    path = folder / CONFIGURATION
    if not path.is_file():
        raise FileNotFoundError(f"Expected {CONFIGURATION} of a saved module in {folder} but there is none.")
    try:
        with path.open("rb") as file:
            text = file.read(BYTES + 1)
        if len(text) > BYTES:
            raise ValueError(f"it is larger than {BYTES:,} bytes")
        content = with_moved(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected the configuration of a saved module in {path} but {first_line(error)}.") from None
    kinds = {"format": str, "module": str, "weights": str, "hyper_parameters": dict, "measured": dict | None}
    fits = isinstance(content, dict) and content.keys() == kinds.keys() and content["format"] == FORMAT
    if not fits or not all(isinstance(content[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"Expected the configuration of a saved module in {path} but save_pretrained wrote another.")
    return content


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"Expected the weights of a saved module at {path} but there is no such file.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"Expected a whole file of safetensors but {path} is damaged or none ({error}).") from error
