"""Trained weights that ship with the package, each ``NAME.ckpt`` with a card ``NAME.json`` beside it.

A name is that of the configuration that they were trained by; ``python -m benchmarks.ship`` puts them here.
"""

import json
from pathlib import Path
from typing import Any

from lightning_maml.checks import did_you_mean
from lightning_maml.training.module import MetaModule

FOLDER = Path(__file__).parent


def from_pretrained(name: str) -> MetaModule:
    """A trained module from the package, in evaluation mode: to adapt with, to test, or to go on from.

    Its ``network`` and ``algorithm`` are what :func:`~lightning_maml.adapt` takes; :func:`card` says what it was
    trained on and how well it does. A checkpoint of your own is read by ``MetaModule.load_from_checkpoint(path)``.

    Raises:
        ValueError: no weights of this name ship with the package; it says which do.

    Example:
        >>> import torch
        >>> from lightning_maml import adapt
        >>> module = from_pretrained("cifar_fs_5w1s")
        >>> images, labels = torch.rand(1, 5, 3, 32, 32), torch.arange(5)[None]  # one task: [T, N, C, H, W], [T, N]
        >>> adapted = adapt(module.network, module.algorithm.with_steps(10), images, labels, loss="cross_entropy")
        >>> adapted.predict(torch.rand(1, 75, 3, 32, 32)).shape
        torch.Size([1, 75, 5])
    """
    return MetaModule.load_from_checkpoint(path_of(name)).eval()


def card(name: str) -> dict[str, Any]:
    """What the weights were trained on, for how long and where, and what they reach: as ``reproduce`` wrote it.

    ValueError as :func:`from_pretrained`.

    Example:
        >>> card("cifar_fs_5w1s")["test_tasks"]
        1000
    """
    found: dict[str, Any] = json.loads(path_of(name).with_suffix(".json").read_text())
    return found


def names() -> list[str]:
    """Those that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.ckpt"))


def path_of(name: str) -> Path:
    """The checkpoint of this name; ValueError as :func:`from_pretrained`."""
    if name not in names():
        raise ValueError(
            f"Expected one of {', '.join(names()) or 'none'} but got {name!r}{did_you_mean(name, names())}."
        )
    return FOLDER / f"{name}.ckpt"
