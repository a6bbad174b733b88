"""Trained weights that ship with the package, each ``NAME.ckpt`` with a card ``NAME.json`` beside it.

A name is that of the configuration that they were trained by; ``python -m benchmarks.ship`` puts them here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_maml.rl.module import MetaRLModule
from lightning_maml.saving import read_checkpoint
from lightning_maml.saving.pretrained import names, path_of, read_json
from lightning_maml.training.module import MetaModule

__all__ = ["card", "from_pretrained", "names", "path_of"]


def from_pretrained(
    name_or_folder: str | Path, *, allow: Sequence[str] = (), **kwargs: Any
) -> MetaModule | MetaRLModule:
    """A trained module from the package or from a folder, in evaluation mode: to adapt with, to test, or to go on from.

    It is ``MetaModule.from_pretrained``, or that of ``MetaRLModule`` where a policy is what was learned; arguments and
    errors are theirs. Its ``network`` and ``algorithm`` are what :func:`~lightning_maml.adapt` takes; ``measured``
    says what it was trained on and how well it does.

    Example:
        >>> import torch
        >>> from lightning_maml import adapt
        >>> module = from_pretrained("cifar_fs_5w1s")
        >>> images, labels = torch.rand(1, 5, 3, 32, 32), torch.arange(5)[None]  # one task: [T, N, C, H, W], [T, N]
        >>> adapted = adapt(module.network, module.algorithm.with_steps(10), images, labels, loss="cross_entropy")
        >>> adapted.predict(torch.rand(1, 75, 3, 32, 32)).shape
        torch.Size([1, 75, 5])
    """
    if (folder := Path(name_or_folder)).is_dir():
        learns_policy = read_json(folder)["module"] == MetaRLModule.__name__
    else:
        learns_policy = name_or_folder in names() and "policy" in _parameters(path_of(str(name_or_folder)))
    kind = MetaRLModule if learns_policy else MetaModule
    return kind.from_pretrained(name_or_folder, allow=allow, **kwargs)


def card(name: str) -> dict[str, Any]:
    """What the weights were trained on, for how long and where, and what they reach: as ``reproduce`` wrote it.

    ValueError where no weights of this name ship with the package.

    Example:
        >>> card("cifar_fs_5w1s")["test_tasks"]
        1000
    """
    found: dict[str, Any] = json.loads(path_of(name).with_suffix(".json").read_text())
    return found


def _parameters(path: Path) -> Any:
    return read_checkpoint(path, "meta")["hyper_parameters"]
