"""The random numbers that a device draws: the state of its generator, and the way back to it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rng_state(device: torch.device) -> Tensor:
    """The state of the generator that operators on a device draw from by themselves.

    Example:
        >>> here = torch.device("cpu")
        >>> before, drawn = rng_state(here), torch.rand(2)
        >>> restore_rng(here, before)
        >>> torch.equal(torch.rand(2), drawn)
        True
    """
    module, which = _module(device)
    return module.get_rng_state(*which)


def restore_rng(device: torch.device, state: Tensor | None) -> None:
    """Has a device draw again what it drew after :func:`rng_state`; None changes nothing."""
    if state is not None:
        module, which = _module(device)
        module.set_rng_state(state, *which)


def way_back(device: torch.device) -> Callable[[], None]:
    """What has the CPU and a device draw once more what they draw from here on."""
    states = [(place, rng_state(place)) for place in {torch.device("cpu"), device}]

    def back() -> None:
        for place, state in states:
            restore_rng(place, state)

    return back


def _module(device: torch.device) -> tuple[Any, tuple[torch.device, ...]]:
    """Torch's module of a device, and what its functions have to be told."""
    if device.type == "cpu":
        return torch, ()
    return torch.get_device_module(device), () if device.type == "mps" else (device,)


def accelerator() -> torch.device | None:
    """The accelerator that this process works on; None without one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else torch.device(found.type, torch.accelerator.current_device_index())
