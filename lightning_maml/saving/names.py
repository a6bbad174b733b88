"""What the hyper-parameters in a file may name, and how it is built: nothing else is imported, and nothing called."""

import collections.abc
import contextlib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

import torch

from lightning_maml.saving.configuration import read_configuration, read_table
from lightning_maml.saving.moved import moved

# Modules whose classes a file may name, where the parameter's type wants such a class.
CLASSES = (
    "lightning_maml.engine",
    "lightning_maml.inner",
    "lightning_maml.learner",
    "lightning_maml.meta_gradient",
    "lightning_maml.networks",
    "lightning_maml.rl.advantages",
    "lightning_maml.rl.navigation",
    "lightning_maml.rl.outer",
    "lightning_maml.rl.policies",
    "torch.nn.modules",
    "torch.optim",
)
# Modules whose functions build what their return annotation says: called with the arguments that the file gives.
BUILDERS = ("lightning_maml.networks", "lightning_maml.presets")
# Modules whose functions compute with tensors: handed on, never called here.
FUNCTIONS = ("lightning_maml.metrics", "lightning_maml.rl.estimators", "torch.nn.functional")
# Where the library and torch name these once more.
SHORTER = ("lightning_maml", "lightning_maml.rl", "torch.nn")
# What Lightning's command line writes; it is not called.
INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")

_ALLOWED: ContextVar[tuple[str, ...]] = ContextVar("_ALLOWED", default=())

Built = TypeVar("Built")


@contextlib.contextmanager
def allowing(names: Iterable[str]) -> Iterator[None]:
    """Within the context all files may name these, too: modules, or full names."""
    token = _ALLOWED.set((*_ALLOWED.get(), *names))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def build(
    kind: Callable[..., Built], config: Mapping[str, Any], given: Mapping[str, Any], allow: Iterable[str] = ()
) -> Built:
    """An instance of ``kind``, from the hyper-parameters that a file holds and from what is ``given``, which wins.

    Names in ``config``, as ``{"class_path": ..., "init_args": {...}}`` or the bare name of a function, are those of
    classes and functions that are defined in this library's or torch's modules of networks, losses and optimisers, or
    in what ``allow`` names. They have to fit the parameter's annotation. Parameters that ``kind`` does not have are not
    looked at.

    Args:
        kind: a class that the caller names.
        config: the file's hyper-parameters.
        given: arguments of the caller's own.
        allow: modules and full names that the file may name, too.

    Raises:
        ValueError: a name is not on the list, is no class or function, or fits the parameter no better than another
            value that the file has.

    Example:
        >>> from lightning_maml import MetaModule
        >>> network = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
        >>> config = {"network": network, "algorithm": {"class_path": "lightning_maml.maml"}}
        >>> build(MetaModule, config, {}).network
        Linear(in_features=1, out_features=1, bias=True)
        >>> build(MetaModule, config | {"loss": "os.system"}, {})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected `loss` to name a function of the library or of torch but got 'os.system': ...
    """
    names = _Names((*allow, *_ALLOWED.get()))
    try:
        if config.get("_instantiator") not in (None, *INSTANTIATORS):
            names.refuse(str(config["_instantiator"]), "_instantiator", "function")
        names.check_class(config.get("_class_path"), kind)
        known = {name for name, _ in _parameters(kind)[0].items()}
        wanted = {name: value for name, value in config.items() if name in known and name not in given}
        return kind(**names.arguments(kind, wanted, ""), **given)
    except RecursionError:
        raise ValueError("Expected hyper-parameters that are nested less deeply.") from None


def hyper_parameters(checkpoint: Mapping[str, Any], key: str, file: Any = None) -> Mapping[str, Any]:
    """The hyper-parameters under ``key`` of a checkpoint, or those in a ``file``, YAML or CSV, in their place.

    Raises:
        ValueError: the file is neither, or its content is no dictionary of plain data.
    """
    config: Any = checkpoint.get(key) or {}
    if file is not None:
        suffix = Path(file).suffix.lower()
        if suffix not in (".yaml", ".yml", ".csv"):
            raise ValueError(f"Expected `hparams_file` to be a .yaml, .yml or .csv file but got {file}.")
        config = read_table(file) if suffix == ".csv" else read_configuration(file)
    # a class whose one argument is all of them says so
    name = checkpoint.get(key.replace("hyper_parameters", "hparams_name"))
    return {name: config, **config} if isinstance(name, str) and name not in config else config


class _MismatchError(ValueError):
    """A value is of another type than the annotation's: one of its other types may fit."""


class _UnfitError(_MismatchError):
    """A name is on the list, but what it stands for is not what the annotation wants."""


class _Names:
    """Resolves and builds; ``where`` is the place in the file, to be told."""

    def __init__(self, allow: tuple[str, ...]) -> None:
        if isinstance(allow, str) or not all(isinstance(name, str) for name in allow):
            raise TypeError(f"Expected `allow` to be a list of names but got {allow!r}.")
        self.allow = allow

    # What a name stands for

    def check_class(self, name: Any, kind: Any) -> None:
        """Raise ValueError where the file is one of another class."""
        if name is None or (isinstance(name, str) and moved(name) == f"{kind.__module__}.{kind.__qualname__}"):
            return
        found = self.find(name, "_class_path", "class") if isinstance(name, str) else None
        if found is not kind:
            raise ValueError(f"Expected the hyper-parameters of {kind.__name__} but these are of {name!r}.")

    def find(self, name: str, where: str, wanted: str) -> Any:
        """The class or function of a full name, if it is on the list; imports what is on the list alone."""
        name = moved(name)
        module, _, last = name.rpartition(".")
        if name in self.allow:
            with contextlib.suppress(ImportError):
                found = vars(importlib.import_module(module)).get(last)
                if callable(found):
                    return found
            self.refuse(name, where, wanted, "which is nothing that can be called")
        on_list = module in SHORTER or _within(module, *CLASSES, *BUILDERS, *FUNCTIONS, *self.allow)
        if not on_list or last.startswith("_"):
            self.refuse(name, where, wanted)
        try:
            found = vars(importlib.import_module(module)).get(last)  # no attributes of it, nor what it makes up
        except ImportError:
            self.refuse(name, where, wanted)
        if isinstance(found, type):
            home, listed = found.__module__, (*CLASSES, *self.allow)
        elif isinstance(found, types.FunctionType):
            home, listed = found.__globals__["__name__"], (*BUILDERS, *FUNCTIONS, *self.allow)
        else:
            self.refuse(name, where, wanted, "which is neither a class nor a function")
        if not _within(home, *listed) or vars(sys.modules[home]).get(found.__name__) is not found:
            self.refuse(name, where, wanted)
        return found

    def refuse(self, name: str, where: str, wanted: str, why: str = "") -> NoReturn:
        """Raise ValueError that says what stood where, and how to allow it."""
        got, bare = f"{_shown(name)}{f', {why}' if why else ''}", _bare(name)
        raise ValueError(
            f"Expected `{where}` to name {_article(wanted)} of the library or of torch but got {got}: nothing that a "
            f"file names is run; where you trust it, allow=[{_shown(name)}] (on the command line --allow {bare})."
        )

    def computes(self, found: Any) -> bool:
        """Whether it is a function that may be handed on."""
        return isinstance(found, types.FunctionType) and (
            _within(found.__globals__["__name__"], *FUNCTIONS, *self.allow) or _full(found) in self.allow
        )

    # What a value stands for

    def value(self, value: Any, hint: Any, where: str) -> Any:
        """The value of an annotated parameter, built where it is described."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any or hint is object or hint is inspect.Parameter.empty or isinstance(hint, TypeVar):
            return value  # plain data, which the file was checked to hold
        if hint is None or hint is type(None):
            return None if value is None else _mismatch(value, hint, where)
        if origin is typing.Annotated:
            return self.value(value, args[0], where)
        if origin in (Union, types.UnionType):
            return self.one_of(value, args, where)
        if origin is Literal:
            fits = any(type(value) is type(one) and value == one for one in args)
            return value if fits else _mismatch(value, hint, where)
        if hint in (bool, int, float, complex, str, bytes):
            return self.plain(value, hint, where)
        if hint is Callable or origin is Callable:
            return self.function(value, args, where)
        kind = origin or hint
        if kind is tuple:
            return self.items(value, args, where)
        if isinstance(kind, type) and kind not in (str, bytes):
            if issubclass(kind, Mapping):
                return self.mapping(value, args, hint, where)
            if kind in (list, set, frozenset) or kind in _SEQUENCES:
                if not isinstance(value, list | tuple):
                    return _mismatch(value, hint, where)
                items = [self.value(one, args[0] if args else Any, where) for one in value]
                return {list: list, set: set, frozenset: frozenset}.get(kind, list)(items)
            return self.instance(value, kind, where)
        return _mismatch(value, hint, where)

    def one_of(self, value: Any, hints: tuple[Any, ...], where: str) -> Any:
        """The value by the first type that it fits."""
        refused: _MismatchError | None = None
        for hint in hints:
            if hint is str and isinstance(refused, _UnfitError):
                break  # it is a name, which no text of another meaning is
            try:
                return self.value(value, hint, where)
            except _MismatchError as error:
                refused = error if refused is None or isinstance(error, _UnfitError) else refused
        if isinstance(refused, _UnfitError):
            raise refused
        return _mismatch(value, Union[hints], where)  # noqa: UP007  # of a tuple

    def plain(self, value: Any, hint: type, where: str) -> Any:
        if isinstance(value, str) and value.startswith("Unable to serialize instance"):
            raise ValueError(f"Expected `{where}` in the file but it was not written: give it as an argument.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if type(value) is hint or (hint is complex and number):
            return value
        if hint is float and number:
            return float(value)
        return _mismatch(value, hint, where)

    def items(self, value: Any, hints: tuple[Any, ...], where: str) -> Any:
        if not isinstance(value, list | tuple):
            return _mismatch(value, tuple, where)
        each = [hints[0]] * len(value) if hints[1:] == (...,) else hints or [Any] * len(value)
        if len(each) != len(value):
            return _mismatch(value, tuple, where)
        return tuple(self.value(one, hint, where) for one, hint in zip(value, each, strict=True))

    def mapping(self, value: Any, hints: tuple[Any, ...], hint: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            return _mismatch(value, hint, where)
        of_key, of_value = hints or (Any, Any)
        return {
            self.value(key, of_key, where): self.value(one, of_value, f"{where}.{key}") for key, one in value.items()
        }

    def instance(self, value: Any, kind: type, where: str) -> Any:
        """An instance of a class, as described by ``class_path`` and ``init_args`` or by a bare name."""
        if isinstance(value, torch.Tensor):
            return value if issubclass(kind, torch.Tensor) else _mismatch(value, kind, where)
        known = is_dataclass(kind) and isinstance(value, Mapping) and value.keys() <= _parameters(kind)[0].keys()
        if known and "class_path" not in value:
            return self.call(kind, value, where)  # a class that the annotation names, and not the file
        if not _described(value):
            return _mismatch(value, kind, where)
        name, arguments = _description(value, where)
        found = self.find(name, where, kind.__name__)
        if not _gives(found, kind):
            raise _UnfitError(
                f"Expected `{where}` to name {_article(kind.__name__)} but got {_shown(name)}, which is none."
            )
        return self.call(found, arguments, f"{where}.init_args")

    def function(self, value: Any, hints: tuple[Any, ...], where: str) -> Any:
        """A function; or an object that can be called; or what makes something, such as an optimiser."""
        if not _described(value):
            return _mismatch(value, Callable, where)
        taken, returned = (hints[0], hints[1]) if len(hints) == 2 else ((), Any)
        made = typing.get_origin(returned) or returned
        makes = isinstance(made, type) and made not in (Any, bool, int, float, str, object, dict, torch.Tensor)
        wanted = made.__name__ if makes else "function"
        name, arguments = _description(value, where)
        found = self.find(name, where, wanted)
        if makes and _gives(found, made):
            skipped = len(taken) if isinstance(taken, list) else 0
            return partial(found, **self.arguments(found, arguments, f"{where}.init_args", skipped))
        if not makes and isinstance(found, type) and any("__call__" in vars(base) for base in found.__mro__):
            return self.call(found, arguments, f"{where}.init_args")
        if self.computes(found) and not arguments and not (makes and _within(_full(found), *FUNCTIONS)):
            return found
        raise _UnfitError(
            f"Expected `{where}` to name {_article(wanted)} but got {_shown(name)}, which is none that fits."
        )

    # What is built

    def call(self, found: Any, config: Mapping[str, Any], where: str) -> Any:
        arguments = self.arguments(found, config, where)
        try:
            return found(**arguments)
        except Exception as error:  # whatever a constructor has against its arguments
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"Expected arguments of {found.__name__} at `{where}` but got others: {reason}") from error

    def arguments(self, found: Any, config: Mapping[str, Any], where: str, skipped: int = 0) -> dict[str, Any]:
        hints, anything = _parameters(found)
        known, inside = dict(list(hints.items())[skipped:]), f"{where}." if where else ""
        for name in config:
            if not isinstance(name, str) or (name not in known and (name in hints or not anything)):
                raise ValueError(
                    f"Expected arguments of {found.__name__} at `{where}` but got {_shown(name)}, which it lacks."
                )
        return {name: self.value(value, known.get(name, Any), f"{inside}{name}") for name, value in config.items()}


_SEQUENCES = (Sequence, Iterable, typing.Collection, typing.Sequence, typing.Iterable)


def _within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _full(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _parameters(found: Any) -> tuple[dict[str, Any], bool]:
    """The annotations of what can be given by name, and whether anything else can."""
    parameters: dict[str, Any] = {}
    functions = [base.__init__ for base in found.__mro__ if "__init__" in vars(base)] if _is_class(found) else [found]
    anything = False
    for function in functions:
        if function is object.__init__:
            break
        hints = _hints(function)
        anything = False
        for index, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
            if parameter.kind is parameter.VAR_KEYWORD:
                anything = True  # which go on to the class above, or are data
            elif parameter.kind is not parameter.VAR_POSITIONAL and (index or not _is_class(found)):
                parameters.setdefault(name, hints.get(name, Any))
        if not anything:
            break
    return parameters, anything


def _hints(function: Any) -> dict[str, Any]:
    """The annotations of a function; what only type checkers import is looked for in Python's own modules of types."""
    try:
        return typing.get_type_hints(function)
    except Exception:
        known = {**vars(typing), **vars(collections.abc), **getattr(function, "__globals__", {})}
        hints = {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            with contextlib.suppress(Exception):  # an annotation may be any code, of the module's own
                hints[name] = eval(annotation, known) if isinstance(annotation, str) else annotation
        return hints


def _is_class(found: Any) -> bool:
    return isinstance(found, type)


def _gives(found: Any, kind: type) -> bool:
    """Whether it is a class of this kind, or a function that is annotated to return one."""
    if not _is_class(found):
        found = _hints(found).get("return")
    if not _is_class(found):
        return False
    if getattr(kind, "_is_protocol", False):
        names = [name for name in vars(kind) if not name.startswith("_")]
        names += [name for name in ("__call__",) if name in vars(kind)]
        return all(any(name in vars(base) for base in found.__mro__) for name in names)
    return issubclass(found, kind)


def _described(value: Any) -> bool:
    """Whether a value describes an object, by ``class_path`` or by a full name."""
    if isinstance(value, Mapping):
        return "class_path" in value
    return isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split("."))


def _description(value: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, str):
        return value, {}
    name, more = value["class_path"], value.keys() - {"class_path", "init_args", "dict_kwargs"}
    arguments = [value.get(key) or {} for key in ("init_args", "dict_kwargs")]
    if not _described(name) or isinstance(name, Mapping) or more or not all(isinstance(a, Mapping) for a in arguments):
        raise ValueError(
            f"Expected `{where}` to be a full name as class_path, with init_args, but got {_shown(dict(value))}."
        )
    return name, {**arguments[0], **arguments[1]}


def _mismatch(value: Any, hint: Any, where: str) -> NoReturn:
    shown = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    raise _MismatchError(f"Expected `{where}` to be {shown.replace('typing.', '')} but got {_shown(value)}.")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _bare(name: str) -> str:
    return name if len(name) <= 120 and name.isprintable() else "NAME"
