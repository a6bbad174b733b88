"""A device that is not the CPU, in pure Python: its tensors keep their numbers in CPU tensors, and it keeps account.

It is torch's private backend under the name ``standin``, and a tensor subclass that claims to lie there. As on CUDA, an
operator that gets tensors of two devices raises, random numbers come from a generator of its own, a copy from pinned
memory has not happened before someone waits, and whatever needs a number on the host waits for the device: that is
counted, with the place in the library that asked (:func:`host_copies`).

Registering a backend is global, and cannot be undone: import this in a process of its own, as ``conftest.py`` does.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

import lightning_maml

NAME = "standin"
CPU = torch.device("cpu")
_LIBRARY = str(Path(lightning_maml.__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


class ApiChangedError(RuntimeError):
    """Torch's private backend for Python, which is experimental, is not what it was."""


@dataclass
class HostCopies:
    """What the host has waited for."""

    of: list[str] = field(default_factory=list)
    """``"aten::_local_scalar_dense at lightning_maml/meta_update.py:134 _is_finite"``, in order."""

    def __len__(self) -> int:
        return len(self.of)

    def in_library(self) -> list[str]:
        """Those that the library's own lines asked for, and neither Lightning's nor a test's."""
        return [each for each in self.of if " at lightning_maml/" in each]


_open: list[HostCopies] = []
_cpu_generator = torch.Generator  # the real one: torch knows no way to make one of a backend in Python
_pinned: weakref.WeakSet[Any] = weakref.WeakSet()  # storages
_under_way: list[Callable[[], None]] = []
_guarded: list[torch.device] = []
recorders: list[Any] = []
"""Whoever records what the device does instead of doing it, see ``graphs.py``; one at a time."""
ARCHITECTURE, SHARED = 90, 227 << 10


class Launched(NamedTuple):
    """An operator of the library that ran by what is registered for CUDA."""

    operator: str
    kernels: list[str]
    """That Triton compiled and the emulator ran, in order."""


launches: list[Launched] = []
fault: dict[str, Callable[[str], str]] = {}
"""``{"of PTX": change}``: kernels that are not what they should be."""


@contextmanager
def host_copies() -> Iterator[HostCopies]:
    """Copies from the device to the host, which wait for it, for as long as this context lasts."""
    found = HostCopies()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


def synchronize(device: Any = None) -> None:
    """Waits for all copies that are under way."""
    while _under_way:
        _under_way.pop(0)()


def _wait_for(name: str) -> None:
    if recorders:
        raise RuntimeError(f"{name} waits for the device: operation not permitted when stream is capturing")
    synchronize()
    if _open:
        place = f"{name} at {_asked_by()}"
        for each in _open:
            each.of.append(place)


def _asked_by() -> str:
    """The innermost line of the library, or else of whoever called torch, on this thread."""
    frame: Any = sys._getframe(1)
    other = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_LIBRARY):
            return f"lightning_maml{file.removeprefix(_LIBRARY)}:{frame.f_lineno} {frame.f_code.co_name}"
        if other is None and file != __file__ and not file.startswith(_TORCH) and "contextlib" not in file:
            other = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return other or "a backward pass"


# What torch asks of a backend


class _Module:
    """``torch.standin``."""

    def __init__(self) -> None:
        self.generator = _cpu_generator()

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        synchronize()

    def empty_cache(self) -> None:
        pass


try:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
except Exception as error:
    raise ApiChangedError(
        f"torch {torch.__version__} does not register a backend in Python as 2.14 does, an experimental API, see "
        f"torch/utils/backend_registration.py: {type(error).__name__}: {error}"
    ) from error
DEVICE = torch.device(NAME, 0)
module: _Module = torch.get_device_module(NAME)


_generators: dict[int, Any] = {}  # those of the device, by what torch keeps of them


class Generator(torch.Generator):
    """``torch.Generator``, on the stand-in device too; operators on the CPU take these, where CUDA's are refused."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, CPU if torch.device(device).type == NAME else device)

    def __init__(self, device: Any = "cpu") -> None:
        self._device = DEVICE if torch.device(device).type == NAME else torch.device(device)
        if self._device.type == NAME:
            _generators[self._cdata] = weakref.ref(self)

    @property
    def device(self) -> torch.device:
        return self._device


class StandIn(Tensor):
    """A tensor that says it lies on the device; ``numbers`` is the CPU tensor with its numbers."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> StandIn:
        made: StandIn = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=DEVICE
        )
        made.numbers = numbers.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"StandIn({self.numbers!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def data_ptr(self) -> int:
        """What a launched kernel gets."""
        return self.numbers.data_ptr()

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol at the moment."
            )
        if id(self) not in memo:
            made = memo[id(self)] = StandIn(self.numbers.clone()).requires_grad_(self.requires_grad)
            made.__dict__ |= {name: deepcopy(value, memo) for name, value in vars(self).items() if name != "numbers"}
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # a file says that the numbers lay on this device, as of CUDA, and `map_location` decides where they go
        _on_device.add(self.numbers.untyped_storage())
        rebuild, (storage, offset, size, stride, _, *rest) = self.numbers.__reduce_ex__(protocol)
        return rebuild, (storage, offset, size, stride, self.requires_grad, *rest)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if recorders:
            return recorders[0].run(func, args, dict(kwargs or {}))
        return run(func, args, dict(kwargs or {}))


_on_device: weakref.WeakSet[Any] = weakref.WeakSet()  # storages


_rebuilt = torch._utils._rebuild_tensor


def _rebuild_tensor(storage: Any, *rest: Any) -> Tensor:
    """A tensor of a file, where its storage was put."""
    made: Tensor = _rebuilt(storage, *rest)
    return StandIn(made) if storage._untyped_storage in _on_device else made


def _restored(storage: Any, location: str) -> Any:
    if not location.startswith(NAME):
        return None
    _on_device.add(storage)
    return storage


torch.serialization.register_package(
    0, lambda storage: f"{NAME}:0" if storage in _on_device else None, _restored
)  # before the CPU's
torch.serialization.add_safe_globals([StandIn])
torch._utils._rebuild_tensor = _rebuild_tensor


# What operators do

_WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
_WAITS |= {"unique_consecutive", "bincount", "_linalg_check_errors", "allclose"}
_SCALARS_OF_THE_HOST = {"copy_", "_to_copy", "where", "masked_fill", "masked_fill_", "fill", "fill_", "index_put"}
_SCALARS_OF_THE_HOST |= {"index_put_", "_index_put_impl_", "clamp", "clamp_min", "clamp_max"}
_INDEXES = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}


@dataclass(frozen=True)
class Operator:
    """What is to be known of one, looked up once."""

    name: str
    written: tuple[int, ...]
    """Places of arguments that it writes to."""
    returns_written: bool
    takes_scalars: bool
    """Whether it takes tensors without dimensions from the CPU."""
    draws: bool
    composite: bool
    """Whether it is made of others, which inference mode leaves to the backend."""

    @classmethod
    @cache
    def of(cls, func: Any) -> Operator:
        schema, name = func._schema, func._schema.name.removeprefix("aten::")
        written = tuple(
            place for place, each in enumerate(schema.arguments) if each.alias_info and each.alias_info.is_write
        )
        composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        returns = any(each.alias_info and each.alias_info.is_write for each in schema.returns)
        takes = torch.Tag.pointwise in func.tags or name in _SCALARS_OF_THE_HOST or name.startswith("_foreach_")
        return cls(name, written, returns, takes, torch.Tag.nondeterministic_seeded in func.tags, composite)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func.namespace == "lightning_maml":
        return _launch(func, args, kwargs)
    operator = Operator.of(func)
    if operator.composite:
        return func.decompose(*args, **kwargs)
    name = operator.name
    if name in ("copy_", "_to_copy"):
        return _copy(func, name, args, kwargs)
    _check_devices(operator, args, kwargs)
    if name.startswith("_fused_adam"):
        _check_layouts(name, args)
    masks = name in _INDEXES and any(
        isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
    )
    if masks and name != "index" and args[2].numel() == 1:
        masks = False  # filled where the mask is on
    if name in _WAITS or masks or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _wait_for(name)
    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    if operator.draws:
        out = _drawn(func, plain_args, plain_kwargs, kwargs)
    else:
        out = func(*plain_args, **plain_kwargs)
    if operator.returns_written:
        return _written(func, operator, args, kwargs)
    return tree_map(_wrapped, out)


def _written(func: Any, operator: Operator, args: Any, kwargs: dict[str, Any]) -> Any:
    """The arguments that an operator in place, or with ``out=``, has written to."""
    names = [each.name for each in func._schema.arguments]
    found = [args[place] if place < len(args) else kwargs[names[place]] for place in operator.written]
    for one in tree_flatten(found)[0]:
        if isinstance(one, StandIn) and one.shape != one.numbers.shape:
            raise NotImplementedError(f"the stand-in device has no {operator.name} that changes a shape in place")
    returned = [each for each in func._schema.returns if each.alias_info]
    return found[0] if len(returned) == 1 else tuple(found[: len(returned)])


def _check_devices(operator: Operator, args: Any, kwargs: dict[str, Any]) -> None:
    indices = args[1] if operator.name in _INDEXES else ()
    rest = tree_flatten((args[0], args[2:], kwargs) if operator.name in _INDEXES else (args, kwargs))[0]
    tensors = [one for one in rest if isinstance(one, Tensor)]
    if not any(isinstance(one, StandIn) for one in tensors):  # an index alone
        tensors += [one for one in indices if isinstance(one, Tensor)]
    for one in tensors:
        if not isinstance(one, StandIn) and not (one.ndim == 0 and operator.takes_scalars):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and "
                f"{one.device}! (when checking arguments of {operator.name})"
            )


def _check_layouts(name: str, args: Any) -> None:
    """What CUDA asks of the parameters, gradients and moments of a fused step, and the CPU takes as it comes."""
    for each in zip(*(one for one in args[:5] if one), strict=True):
        layouts = [
            [(size, step) for size, step in zip(one.shape, one.stride(), strict=True) if size > 1] for one in each
        ]
        if any(layout != layouts[0] for layout in layouts):
            raise RuntimeError(f"{name}: params, grads and states must have same dtype, device, and layout")


def _drawn(func: Any, args: Any, kwargs: dict[str, Any], given: dict[str, Any]) -> Any:
    """An operator that draws random numbers: from the generator given, or the device's."""
    generator = given.get("generator")
    if generator is not None:
        if _generators.get(generator._cdata, lambda: None)() is None:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
        return func(*args, **kwargs)
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(module.generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        module.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


def _copy(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """``copy_`` and ``_to_copy``: within the device, to it, or from it."""
    if name == "copy_":
        target, source = args[0], args[1]
        later = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        target, source, later = None, args[0], kwargs.pop("non_blocking", False)
    there = isinstance(source, StandIn)
    to = target if target is not None else kwargs.get("device", source.device)
    to_device = isinstance(to, StandIn) or (isinstance(to, torch.device) and to.type == NAME)
    if there and not to_device:
        return _to_host(func, target, source, kwargs, later)
    if recorders and not there:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
    if target is not None:
        target.numbers.copy_(_plain(source))
        made = target
    else:
        made = StandIn(func(*tree_map(_plain, args), **tree_map(_plain, kwargs)))
    if not there and later and is_pinned(source):
        _watch(source)
    return made


def _to_host(func: Any, target: Any, source: StandIn, kwargs: dict[str, Any], later: bool) -> Tensor:
    if target is not None and not is_pinned(target):
        later = False  # what is not page-locked is waited for
    numbers = source.numbers.clone()
    out: Tensor = func(numbers, **tree_map(_plain, kwargs)) if target is None else target
    if target is None and out is numbers:
        out = numbers.clone()
    if not later:
        _wait_for("copy to the host")
        return out if target is None else target.copy_(numbers)
    # Until someone waits, nobody knows what lies there.
    value = numbers.to(out.dtype)
    out.fill_(float("nan") if out.is_floating_point() else 0)
    _pinned.add(out.untyped_storage())

    def arrive() -> None:
        out.copy_(value)

    _under_way.append(arrive)
    return out


def _watch(source: Tensor) -> None:
    """Pinned memory is read when the device comes to it: until then, it must not change."""
    before, version = source.clone(), source._version

    def look() -> None:
        if source._version != version and not torch.equal(source, before):
            raise RuntimeError("pinned memory was written to while a non_blocking copy of it was under way")

    _under_way.append(look)


def _plain(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.numbers
    if isinstance(value, torch.device) and value.type == NAME:
        return CPU
    return value


def _wrapped(value: Any) -> Any:
    return StandIn(value) if isinstance(value, Tensor) else value


# Operators without tensors among their arguments


def _made(func: Any, *args: Any, pin_memory: Any = None, **kwargs: Any) -> StandIn:
    if recorders:
        return recorders[0].made(lambda: _made_now(func, *args, **kwargs))
    return _made_now(func, *args, **kwargs)


def _made_now(func: Any, *args: Any, **kwargs: Any) -> StandIn:
    return StandIn(func(*args, **tree_map(_plain, kwargs)))


def _empty(size: Any, **kwargs: Any) -> StandIn:
    layout = kwargs.pop("memory_format", None)
    return _made(torch.empty, size, memory_format=layout or torch.contiguous_format, **kwargs)


def _empty_strided(size: Any, stride: Any, **kwargs: Any) -> StandIn:
    return _made(torch.empty_strided, size, stride, **kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``torch.tensor(..., device=...)`` copies by, past the subclass."""
    if recorders:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
    _plain(target).copy_(_plain(source))
    return target


_aten = torch.library.Library("aten", "IMPL")
for _name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "tril_indices", "triu_indices"):
    _of = getattr(getattr(torch.ops.aten, _name.partition(".")[0]), _name.partition(".")[2] or "default")
    _aten.impl(_name, partial(_made, _of), "PrivateUse1")
_aten.impl("_copy_from", _copy_from, "PrivateUse1")
_aten.impl("empty.memory_format", _empty, "PrivateUse1")
_aten.impl("empty_strided", _empty_strided, "PrivateUse1")


# Kernels: what is registered for CUDA


def _launch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs what an operator of the library has for CUDA, the very Python, with the device's tensors."""
    kernels = torch._library.custom_ops.OPDEFS[func._schema.name]._backend_fns
    if None in kernels:  # of torch's operators, on any device
        return kernels[None](*args, **kwargs)
    if "cuda" not in kernels:
        raise NotImplementedError(f"Could not run '{func._schema.name}' with arguments from the 'CUDA' backend.")
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    if not all(isinstance(one, StandIn) for one in tensors):  # a kernel would read the host's memory
        raise RuntimeError(f"Expected all tensors of {func._schema.name} to be on {DEVICE}.")
    from lightning_maml.kernels.emulator import Emulation  # which needs Triton

    guards = len(_guarded)
    with Emulation(ARCHITECTURE, change=fault.get("of PTX")) as emulation:
        out = kernels["cuda"](*args, **kwargs)
    names = [each.kernel for each in emulation.launches]
    if faults := emulation.faults():
        raise RuntimeError(f"{func._schema.name} on {DEVICE}: {faults[0]}")
    if names and _guarded[guards:] != [DEVICE]:
        raise RuntimeError(
            f"{names} were launched outside of `with torch.cuda.device(...)`, on whatever device is current."
        )
    launches.append(Launched(func._schema.name.removeprefix("lightning_maml::"), names))
    return out


class _Guard(torch.cuda.device):
    """``torch.cuda.device``, which on this device notes that it was entered."""

    def __init__(self, device: Any) -> None:
        self.standin = isinstance(device, torch.device) and device.type == NAME
        if not self.standin:
            super().__init__(device)

    def __enter__(self) -> None:
        _guarded.append(DEVICE) if self.standin else super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        return None if self.standin else super().__exit__(*error)


# Pinned memory: torch asks a backend's hooks for it, which Python cannot write


def _pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{tensor.device}' only dense CPU tensors can be pinned")
    if is_pinned(tensor):
        return tensor
    made = torch.empty_like(tensor).copy_(tensor)
    _pinned.add(made.untyped_storage())
    return made


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether a tensor lies in page-locked memory."""
    return tensor.device.type == "cpu" and tensor.untyped_storage() in _pinned


# Autocast: the operators that lie in the CPU's lists, so that numbers are the CPU's

_CAST = ["mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "conv1d", "conv2d", "conv3d"]
_FULL = ["mse_loss", "binary_cross_entropy", "nll_loss_nd"]


def _autocast(name: str, dtype: Callable[[], torch.dtype]) -> None:
    run = getattr(torch.ops.aten, name)
    for overload in ("default", "padding") if name.startswith("conv") else ("default",):
        inner = getattr(run, overload)

        def cast(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
            wanted = dtype()
            floats = (torch.float32, torch.bfloat16, torch.float16)

            def one(value: Any) -> Any:
                return value.to(wanted) if isinstance(value, Tensor) and value.dtype in floats else value

            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                return inner(*tree_map(one, args), **tree_map(one, kwargs))

        _aten.impl(name if overload == "default" else f"{name}.{overload}", cast, "AutocastPrivateUse1")


_every = torch.library.Library("_", "IMPL")
_every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
for _name in _CAST:
    _autocast(_name, lambda: torch.get_autocast_dtype(NAME))
for _name in _FULL:
    _autocast(_name, lambda: torch.float32)


def install() -> None:
    """Puts in their places what torch has no hooks for; a process that has it is lost for tests of other devices."""
    torch.Generator = Generator  # type: ignore[misc]
    torch.Tensor.pin_memory = _pin_memory  # type: ignore[assignment]
    torch.Tensor.is_pinned = is_pinned  # type: ignore[assignment]
    torch.accelerator.synchronize = synchronize
    torch.cuda.device = _Guard  # type: ignore[misc]
    AcceleratorRegistry.register(NAME, StandInAccelerator)  # as in `--trainer.accelerator=standin`
    _AcceleratorConnector._choose_strategy = _choose_strategy  # type: ignore[method-assign]
    # so that `Module.to` leaves each parameter the object that it is, as between a CPU and a GPU
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.utils.swap_tensors = _swap_tensors


_swapped = torch.utils.swap_tensors


def _swap_tensors(one: Tensor, other: Tensor) -> None:
    """Torch's, for which nobody else may hold a gradient: autograd's thread of the device does, for a moment longer."""
    end = time.monotonic() + 10
    while not one.requires_grad and one._use_count() > 1 and time.monotonic() < end:
        time.sleep(0.001)
    _swapped(one, other)


@contextmanager
def as_a_gpu() -> Iterator[None]:
    """The engine fused takes the device for a GPU, and its tensors for such as have nothing of their own."""
    from lightning_maml.engine import choice, coverage
    from lightning_maml.kernels import nvrtc
    from lightning_maml.training import fused_step

    devices: Any = coverage.SGD_UPDATE["device"]  # of all operators that run on CUDA
    devices.add(NAME)
    graphed: Any = coverage.GRAPHED["device"]
    graphed.add(NAME)
    fused_step._DEVICES.add(NAME)
    fused_step._CLASSES.add(StandIn)
    coverage.PLAIN.add(StandIn)
    choice._FUSED[NAME] = choice._FUSED["cuda"]
    asked, nvrtc.most_shared = nvrtc.most_shared, lambda index: SHARED  # type: ignore[assignment]
    try:
        yield
    finally:
        nvrtc.most_shared = asked
        devices.remove(NAME)
        graphed.remove(NAME)
        fused_step._DEVICES.remove(NAME)
        fused_step._CLASSES.remove(StandIn)
        coverage.PLAIN.remove(StandIn)
        del choice._FUSED[NAME]


# Lightning


class StandInAccelerator(Accelerator):
    """Lightning's accelerator of the device."""

    def setup_device(self, device: torch.device) -> None:
        if device.type != NAME:
            raise ValueError(f"Expected a device of {NAME} but got {device}.")

    def teardown(self) -> None:
        synchronize()

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def _choose_strategy(self: Any) -> Any:
    """For Lightning, one device that is neither CUDA's nor Apple's is the CPU: other accelerators bring a strategy."""
    return SingleDeviceStrategy(DEVICE) if isinstance(self.accelerator, StandInAccelerator) else _chosen(self)


_chosen = _AcceleratorConnector._choose_strategy


def numbers_of(value: Any) -> Any:
    """The numbers of all tensors in a structure, on the CPU, without a copy that counts."""
    return tree_map(lambda one: one.detach().numbers if isinstance(one, StandIn) else one, value)
