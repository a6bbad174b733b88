"""CUDA's graphs on the stand-in device: what it is asked for is kept instead of done, and done when it is replayed.

As on CUDA, a recording computes nothing: what it leaves is NaN, and what it writes to is what it was. A replay runs the
same operators on the same memory, with the numbers that were no tensors as they were; a wait for the device, or a copy
from or to the host, cannot be recorded. Memory that is not a recording's own has to be there when it is replayed: CUDA
would read whatever lies there by then, here it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import standin
from standin import StandIn


class _Elsewhere(NamedTuple):
    """A tensor in memory that is not the recording's own, which the recording does not keep."""

    storage: Any
    like: tuple[Any, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, numbers: Tensor) -> _Elsewhere:
        place = numbers.storage_offset(), numbers.shape, numbers.stride()
        return cls(numbers.untyped_storage()._weak_ref(), place, numbers.dtype)

    def numbers(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage)
        if storage is None:
            raise RuntimeError(f"a graph reads memory that was freed: a tensor {list(self.like[1])} of {self.dtype}")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.like)


class _Own(NamedTuple):
    """A tensor in the recording's memory."""

    kept: Tensor

    def numbers(self) -> Tensor:
        return self.kept


class Graph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []
        self.replays = 0
        self._storages: dict[int, Any] = {}
        self._before: dict[int, tuple[Any, Any]] = {}
        self._busy = False

    def made(self, make: Callable[[], StandIn]) -> StandIn:
        """A new tensor, by an operator that takes none."""
        made = self._owned(make())
        if not self._busy:
            numbers = made.numbers
            self.launches.append(lambda: numbers.copy_(make().numbers))
        return made

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        of_torch = func.namespace != "lightning_maml"
        if self._busy or (of_torch and standin.Operator.of(func).composite):  # which is made of others
            return standin.run(func, args, kwargs)
        given, spec = tree_flatten((args, kwargs))
        places = [self._place(one) if isinstance(one, StandIn) else one for one in given]
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                for one in tree_flatten(written)[0]:
                    self._remember(one.numbers)
        self._busy = True
        try:
            out = standin.run(func, args, kwargs)
        finally:
            self._busy = False
        theirs = {one.numbers.untyped_storage()._cdata for one in given if isinstance(one, StandIn)}
        results = [one for one in tree_flatten(out)[0] if isinstance(one, StandIn)]
        new = [one.numbers.untyped_storage()._cdata not in theirs for one in results]
        for one, fresh in zip(results, new, strict=True):
            if fresh:
                self._owned(one)
        kept = [one.numbers if fresh else None for one, fresh in zip(results, new, strict=True)]
        self.launches.append(partial(_launch, func, spec, places, kept))
        return out

    def replay(self) -> None:
        self.replays += 1
        for launch in self.launches:
            launch()

    def _owned(self, made: StandIn) -> StandIn:
        storage = made.numbers.untyped_storage()
        self._storages[storage._cdata] = storage
        return made

    def _place(self, one: StandIn) -> _Own | _Elsewhere:
        numbers = one.numbers
        return _Own(numbers) if numbers.untyped_storage()._cdata in self._storages else _Elsewhere.of(numbers)

    def _remember(self, numbers: Tensor) -> None:
        storage = numbers.untyped_storage()
        if storage._cdata not in self._storages and storage._cdata not in self._before:
            self._before[storage._cdata] = storage, storage.clone()

    def end(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()
        for storage in self._storages.values():
            storage.copy_(torch.full((storage.nbytes(),), 255, dtype=torch.uint8).untyped_storage())  # NaN, or -1


def _launch(func: Any, spec: Any, places: list[Any], kept: list[Any]) -> None:
    given = [StandIn(one.numbers()) if isinstance(one, _Own | _Elsewhere) else one for one in places]
    args, kwargs = tree_unflatten(given, spec)
    out = standin.run(func, args, dict(kwargs))
    results = [one for one in tree_flatten(out)[0] if isinstance(one, StandIn)]
    for one, numbers in zip(results, kept, strict=True):
        if numbers is not None:
            numbers.copy_(one.numbers)


class _Stream:
    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


@contextmanager
def _recorded(graph: Graph, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    if standin.recorders:
        raise RuntimeError("a recording is under way already")
    standin.recorders.append(graph)
    drawn = standin.module.generator.get_state()
    try:
        yield
    finally:
        standin.recorders.clear()
        standin.module.generator.set_state(drawn)
        graph.end()


@contextmanager
def in_the_place_of_cudas() -> Iterator[list[Graph]]:
    """The graphs that are made until it ends."""
    made: list[Graph] = []

    def graph() -> Graph:
        made.append(Graph())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", graph)
        patch.setattr(torch.cuda, "graph", _recorded)
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "current_stream", _Stream)
        patch.setattr(torch.cuda, "set_stream", lambda stream: None)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        yield made
