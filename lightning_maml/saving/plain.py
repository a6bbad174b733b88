"""What a checkpoint may hold: plain data, in the form that Lightning gives it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DEPTH = 100  # Lightning's own states are nested up to a dozen deep
SCALARS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, torch.layout)
FORM: dict[str, type] = {
    **dict.fromkeys(("state_dict", "loops"), dict),
    **dict.fromkeys(("hyper_parameters", "datamodule_hyper_parameters", "callbacks"), Mapping),
    **dict.fromkeys(("optimizer_states", "lr_schedulers", "random_states"), list),
    **dict.fromkeys(("hparams_name", "datamodule_hparams_name"), str),
    **dict.fromkeys(("epoch", "global_step"), int),
}


def check_plain(content: dict[Any, Any], values: bool = True) -> None:
    """Raise ValueError, saying what and where, where a checkpoint holds more than numbers, texts and tensors.

    torch's reader lets a file refer to a few functions and classes without running them; something that loads a state
    might. Classes of ``torch.serialization.add_safe_globals`` stay allowed. Without ``values`` no tensor was read.
    """
    safe = {kind for kind in torch.serialization.get_safe_globals() if isinstance(kind, type)}
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [("", content, 0)]  # a file may nest deeper than Python recurses
    while stack:
        where, value, depth = stack.pop()
        if depth > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep at {where[:60]}...")
        if isinstance(value, Tensor):
            _check_tensor(value, where, values, safe)
        elif isinstance(value, SCALARS) or id(value) in seen:
            continue
        elif isinstance(value, Mapping):
            seen.add(id(value))
            stack += [(f"{where}.{key}"[-200:].lstrip("."), one, depth + 1) for key, one in value.items()]
            stack += [(f"a key of {where}"[-200:], key, depth + 1) for key in value]
        elif isinstance(value, list | tuple | set | frozenset):
            seen.add(id(value))
            stack += [(f"{where}[{index}]"[-200:], one, depth + 1) for index, one in enumerate(value)]
        elif type(value) not in safe:
            name = value.__name__ if callable(value) and hasattr(value, "__name__") else type(value).__name__
            home = getattr(value, "__module__", type(value).__module__)
            raise ValueError(f"at {where} it refers to `{home}.{name}`, which is no plain data")


def check_form(content: dict[Any, Any]) -> None:
    """Raise ValueError where a part that Lightning reads is of another kind than what Lightning writes."""
    version = content["pytorch-lightning_version"]
    if not isinstance(version, str) or not (number := re.match(r"(\d{1,4})\.\d{1,4}(\.\d{1,4})?(?![\d])", version)):
        raise ValueError(f"its pytorch-lightning_version is {version!r:.60}")
    if int(number[1]) < 2:  # before this library, of another form
        raise ValueError(f"it is of Lightning {version[:20]}, and this needs one of Lightning 2 or later")
    for name, kind in FORM.items():
        if name in content and content[name] is not None and not isinstance(content[name], kind):
            raise ValueError(f"its {name} is {type(content[name]).__name__} instead of {kind.__name__.lower()}")
    for name, kind in (("state_dict", Tensor), ("callbacks", Mapping), ("loops", Mapping)):
        for key, value in (content.get(name) or {}).items():
            extra = name == "state_dict" and str(key).endswith("_extra_state")
            if not isinstance(key, str) or not (isinstance(value, kind) or extra):
                raise ValueError(f"its {name} has {type(value).__name__} under {key!r:.60}")
    for name in ("optimizer_states", "lr_schedulers"):
        for value in content.get(name) or []:
            if not isinstance(value, Mapping):
                raise ValueError(f"its {name} hold {type(value).__name__}")


def _check_tensor(value: Tensor, where: str, values: bool, safe: set[type]) -> None:
    if type(value) not in {Tensor, torch.nn.Parameter, torch.nn.Buffer, *safe}:
        raise ValueError(f"{where} is a tensor of the class {type(value).__name__}")
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        raise ValueError(f"{where} is a tensor of the layout {value.layout}, and not a dense one")
    if values and value.device.type == "meta":
        raise ValueError(f"{where} is a tensor without values")
    # a few bytes that are repeated may stand for terabytes
    if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 2**20):
        raise ValueError(f"{where} is a tensor of {list(value.shape)} made of {value.untyped_storage().nbytes()} bytes")
