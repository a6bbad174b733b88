"""The same on the CPU and on the stand-in device: equal numbers, and where the results lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from standin import DEVICE, HostCopies, StandIn, host_copies, numbers_of


def assert_same(run: Callable[[torch.device], Any], off: float = 0.0, host: int | None = None) -> HostCopies:
    """Runs on the CPU, then on the device, from the same random numbers; results lie there, and are ``off`` at most.

    Returns the copies to the host that the device's run made, of which ``host`` are expected, where it is given.
    """
    torch.manual_seed(1)
    expected = run(torch.device("cpu"))
    torch.manual_seed(1)
    with host_copies() as copies:
        found = run(DEVICE)
    assert host is None or len(copies) == host, copies.of
    pairs = [*zip(tree_leaves(expected), tree_leaves(found), strict=True)]
    assert any(isinstance(one, Tensor) and one.numel() for one, _ in pairs), "nothing was compared"
    for one, other in pairs:
        if not isinstance(one, Tensor):
            near = pytest.approx(other, rel=off, abs=off, nan_ok=True) if isinstance(one, float) else other
            assert one == near, f"{one} on the CPU and {other} there"
            continue
        assert isinstance(other, StandIn), f"a result lies on {other.device}"
        assert one.dtype == other.dtype
        torch.testing.assert_close(numbers_of(other), one.detach(), atol=off, rtol=off, equal_nan=True)
    return copies
