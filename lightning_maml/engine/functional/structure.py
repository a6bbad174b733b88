"""What a module computes, known by its exact class: nothing on the instance, and no hook, may have changed it."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules import module as all_modules

# what a class derived from nn.Sequential may bring of its own and still run its layers in turn
_HARMLESS = {"__annotations__", "__dict__", "__doc__", "__firstlineno__", "__getitem__", "__init__", "__module__"}
_HARMLESS |= {"__repr__", "__static_attributes__", "__weakref__", "_get_name", "extra_repr"}

# registered by layers, and then no attributes of the instance itself
_TENSORS = {"bias", "running_mean", "running_var", "weight"}


def changed(module: nn.Module) -> str | None:
    """What makes a module compute something other than its class does, in words; None where nothing does.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.forward = lambda inputs: inputs
        >>> changed(layer)
        'a forward of its own'
    """
    kind: Any = type(module)
    own, names = vars(module).keys(), _names(kind)
    if not own.isdisjoint(names):
        return f"a {', '.join(sorted(own & names))} of its own"
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks
    return "hooks" if hooks or have_backward_hooks((module,)) else None


def have_backward_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether some of the modules, or all modules there are, have hooks that see gradients."""
    for module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            return True
    return bool(all_modules._global_backward_hooks or all_modules._global_backward_pre_hooks)


def is_sequence(module: nn.Module) -> bool:
    """Whether a module is ``nn.Sequential``, or of a class that takes from it all that decides what it computes.

    Example:
        >>> class Backwards(nn.Sequential):
        ...     def __iter__(self):
        ...         return reversed(self._modules.values())
        >>> is_sequence(nn.Sequential()), is_sequence(Backwards())
        (True, False)
    """
    kind: Any = type(module)
    return _derived(kind) and kind.forward is nn.Sequential.forward


def layers_of(module: nn.Module) -> list[tuple[str, nn.Module, str | None]]:
    """What a network runs in turn, with names and what :func:`changed` says: layers of nested sequences, or itself."""
    layers, waiting = [], [("", module)]
    while waiting:
        name, module = waiting.pop()
        what = changed(module)
        if what is not None or not is_sequence(module):
            layers.append((name, module, what))
            continue
        for child, layer in reversed(module._modules.items()):  # named_children() leaves out repeated layers
            assert layer is not None
            waiting.append((f"{name}.{child}" if name else child, layer))
    return layers


@lru_cache(1024)
def _names(kind: Any) -> frozenset[str]:
    return frozenset(dir(kind)) | _TENSORS


@lru_cache(1024)
def _derived(kind: Any) -> bool:
    if not issubclass(kind, nn.Sequential):
        return False
    between, known = kind.__mro__[: kind.__mro__.index(nn.Sequential)], _names(nn.Sequential)
    return all((vars(base).keys() & known) <= _HARMLESS for base in between)


def fingerprint(module: nn.Module) -> tuple[object, ...]:
    """What a module computes by, but for its tensors' values."""
    return type(module), *((name, _print(value)) for name, value in vars(module).items())


def _print(value: object) -> object:
    if isinstance(value, dict):  # of parameters, buffers, modules, hooks
        return tuple((name, id(held) if callable(held) else None) for name, held in value.items())
    if isinstance(value, tuple):
        return tuple(map(_print, value))
    return value if isinstance(value, bool | int | float | str | None) else id(value)
