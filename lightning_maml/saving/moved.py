"""Names of modules that have moved, which older files and command lines still hold."""

from typing import Any

# Modules of `lightning_maml`, without its name.
MOVED = {
    "checkpoints": "saving",
    "engine.batched": "engine.loops.batched",
    "engine.eager": "engine.loops.batched",
    "engine.graphed": "engine.loops.graphed",
    "engine.loops.eager": "engine.loops.batched",
    "module": "training.module",
    "networks.context": "networks.layers",
    "starts": "inner.start",
    **{f"inner.{name}": "inner.transformations" for name in ("clip", "decay", "momentum", "sharpness", "sign")},
    **{f"meta_gradient.{name}": "meta_gradient.unrolled" for name in ("first_order", "joint", "reptile")},
}


def moved(name: str) -> str:
    """The full name by which a class or function is found today.

    Example:
        >>> moved("lightning_maml.engine.batched.Batched"), moved("torch.nn.Linear")
        ('lightning_maml.engine.loops.batched.Batched', 'torch.nn.Linear')
    """
    library, _, inside = name.partition(".")
    module, _, last = inside.rpartition(".")
    return f"{library}.{MOVED[module]}.{last}" if library == "lightning_maml" and module in MOVED else name


def with_moved(value: Any) -> Any:
    """Plain data with every such name in it as it is today."""
    if isinstance(value, str):
        return moved(value)
    if isinstance(value, dict):
        return {key: with_moved(each) for key, each in value.items()}
    return [with_moved(each) for each in value] if isinstance(value, list) else value
