"""Builds what hyper-parameters in a file name, where it is on a list: nothing else is imported, and nothing called."""

import collections.abc
import contextlib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

import torch

from lightning_maml.saving.configuration import is_full_name, read_configuration, read_table
from lightning_maml.saving.files import first_line
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
    """An instance of the class ``kind``, from a file's hyper-parameters and from arguments ``given``, which win.

    Names in ``config``, as ``{"class_path": ..., "init_args": {...}}`` or the bare name of a function, are defined in
    this library's or torch's modules of networks, losses and optimisers, or in what ``allow`` names, modules and full
    names; they have to fit the parameter's annotation. Parameters that ``kind`` lacks are not looked at.

    Raises:
        ValueError: a name is not on the list or no class or function, or a value does not fit its parameter.
        TypeError: neither the file nor ``given`` has what ``kind`` needs.

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
    if isinstance(allow, str):
        raise TypeError(f"Expected `allow` to be a list of names but got {allow!r}.")
    names, own = _Names((*allow, *_ALLOWED.get())), config.get("_class_path")
    try:
        if config.get("_instantiator") not in (None, *INSTANTIATORS):
            names.refuse(str(config["_instantiator"]), "_instantiator", "function")
        named = isinstance(own, str) and (moved(own) == _full(kind) or names.find(own, "_class_path", "class") is kind)
        if own is not None and not named:
            raise ValueError(f"Expected the hyper-parameters of {kind.__name__} but these are of {own!r}.")
        known = _parameters(kind)[0]
        wanted = {name: value for name, value in config.items() if name in known and name not in given}
        required = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
        missing = [one.name for one in required if one.name in known and one.name not in (*wanted, *given)]
        if missing:
            raise TypeError(
                f"Expected {' and '.join(f'`{name}`' for name in missing)} to be given, as the file has no objects "
                f"that Python code made, but got none: use {kind.__name__}.load_from_checkpoint(path, "
                f"{', '.join(f'{name}=...' for name in missing)})."
            )
        return kind(**names.arguments(kind, wanted, ""), **given)
    except RecursionError:
        raise ValueError("Expected hyper-parameters that are nested less deeply.") from None


def hyper_parameters(checkpoint: Mapping[str, Any], key: str, file: Any = None) -> Mapping[str, Any]:
    """The hyper-parameters under ``key`` of a checkpoint, or those in a ``file``, YAML or CSV, in their place.

    Raises ValueError where the file is neither, or its content is no dictionary of plain data.
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
    """What a name on the list stands for is not what the annotation wants."""


class _Names:
    """Resolves names and builds what they stand for; ``where`` is the place in the file, for error messages."""

    def __init__(self, allow: tuple[str, ...]) -> None:
        self.allow = allow

    def find(self, name: str, where: str, wanted: str) -> Any:
        """The class or function of a full name, if it is on the list; imports what is on the list alone."""
        name = moved(name)
        module, _, last = name.rpartition(".")
        by_name = name in self.allow
        on_list = module in SHORTER or _within(module, *CLASSES, *BUILDERS, *FUNCTIONS, *self.allow)
        if not by_name and (not on_list or last.startswith("_")):
            self.refuse(name, where, wanted)
        found = None
        with contextlib.suppress(ImportError):
            package = importlib.import_module(module)
            if module == "lightning_maml" and last in package.__all__:
                getattr(package, last)  # imported now, if nobody has asked for it yet
            found = vars(package).get(last)  # no attributes of it, nor what it makes up
        if by_name and callable(found):
            return found
        if isinstance(found, type):
            home, listed = found.__module__, [*CLASSES, *self.allow]
        elif isinstance(found, types.FunctionType):
            home, listed = found.__globals__["__name__"], [*BUILDERS, *FUNCTIONS, *self.allow]
        else:
            self.refuse(name, where, wanted, ", which is neither a class nor a function")
        if not _within(home, *listed) or vars(sys.modules[home]).get(found.__name__) is not found:
            self.refuse(name, where, wanted)
        return found

    def refuse(self, name: str, where: str, wanted: str, why: str = "") -> NoReturn:
        """Raise ValueError that says what stood where, and how to allow it."""
        bare = name if len(name) <= 120 and name.isprintable() else "NAME"
        raise ValueError(
            f"Expected `{where}` to name {_article(wanted)} of the library or of torch but got {_shown(name)}{why}: "
            f"nothing that a file names is run; where you trust it, allow=[{_shown(name)}] (on the command line "
            f"--allow {bare})."
        )

    def value(self, value: Any, hint: Any, where: str) -> Any:
        """The value of a parameter that is annotated as ``hint``, built where the file describes an object."""
        kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
        several = isinstance(value, list | tuple)
        if kind in (Any, object, inspect.Parameter.empty) or isinstance(kind, TypeVar):
            return value  # plain data, which the file was checked to hold
        if kind in (Union, types.UnionType):
            return self.one_of(value, hint, where)
        if kind in (bool, int, float, complex, str, bytes):
            return _plain(value, kind, where)
        if kind is Callable:
            return self.function(value, args, where)
        if kind in (None, type(None)):
            if value is None:
                return None
        elif kind is Literal:
            if any(type(value) is type(one) and value == one for one in args):
                return value
        elif kind is tuple:
            if several and (not args or args[1:] == (...,)):
                args = (args[0] if args else Any,) * len(value)
            if several and len(args) == len(value):
                return tuple(self.value(one, each, where) for one, each in zip(value, args, strict=True))
        elif kind in (list, set, frozenset, Sequence, Iterable, Collection):
            if several:
                items = [self.value(one, args[0] if args else Any, where) for one in value]
                return kind(items) if kind in (set, frozenset) else items
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            if isinstance(value, Mapping):
                of_key, of_value = args or (Any, Any)
                pairs = value.items()
                return {self.value(k, of_key, where): self.value(v, of_value, f"{where}.{k}") for k, v in pairs}
        elif isinstance(kind, type):
            return self.instance(value, kind, where)
        return _mismatch(value, hint, where)

    def one_of(self, value: Any, hint: Any, where: str) -> Any:
        """The value by the first type of a union that it fits."""
        unfit: _UnfitError | None = None
        for each in typing.get_args(hint):
            if each is str and unfit:
                break  # it is a name, which no text of another meaning is
            try:
                return self.value(value, each, where)
            except _UnfitError as error:
                unfit = error
            except _MismatchError:
                pass
        if unfit:
            raise unfit
        return _mismatch(value, hint, where)

    def instance(self, value: Any, kind: type, where: str) -> Any:
        """An instance of a class, as described by ``class_path`` and ``init_args`` or by a bare name."""
        if isinstance(value, torch.Tensor):
            return value if issubclass(kind, torch.Tensor) else _mismatch(value, kind, where)
        known = is_dataclass(kind) and isinstance(value, Mapping) and value.keys() <= _parameters(kind)[0].keys()
        if known and "class_path" not in value:
            return self.call(kind, value, where)  # a class that the annotation names, and not the file
        name, arguments = _described(value, kind, where)
        found = self.find(name, where, kind.__name__)
        if not _gives(found, kind):
            _unfit(name, kind.__name__, where)
        return self.call(found, arguments, f"{where}.init_args")

    def function(self, value: Any, hints: tuple[Any, ...], where: str) -> Any:
        """A function; or an object that can be called; or what makes something, such as an optimiser."""
        name, arguments = _described(value, Callable, where)
        taken, returned = hints or ((), Any)
        made, inside = typing.get_origin(returned) or returned, f"{where}.init_args"
        makes = isinstance(made, type) and made not in (Any, bool, int, float, str, object, dict, torch.Tensor)
        wanted = made.__name__ if makes else "function"
        found = self.find(name, where, wanted)
        if makes and _gives(found, made):
            skipped = len(taken) if isinstance(taken, list) else 0
            return partial(found, **self.arguments(found, arguments, inside, skipped))
        if not makes and isinstance(found, type) and any("__call__" in vars(base) for base in found.__mro__):
            return self.call(found, arguments, inside)
        if isinstance(found, types.FunctionType) and not arguments:
            full, home = _full(found), found.__globals__["__name__"]
            allowed = full in self.allow or _within(home, *FUNCTIONS, *self.allow)
            if allowed and not (makes and _within(full, *FUNCTIONS)):
                return found
        return _unfit(name, wanted, where)

    def call(self, found: Any, config: Mapping[str, Any], where: str) -> Any:
        arguments = self.arguments(found, config, where)
        try:
            return found(**arguments)
        except Exception as error:  # whatever a constructor has against its arguments
            others = f"got others: {first_line(error)}"
            raise ValueError(f"Expected arguments of {found.__name__} at `{where}` but {others}") from error

    def arguments(self, found: Any, config: Mapping[str, Any], where: str, skipped: int = 0) -> dict[str, Any]:
        hints, anything = _parameters(found)
        known, inside = dict(list(hints.items())[skipped:]), f"{where}." if where else ""
        for name in config:
            if not isinstance(name, str) or (name not in known and (name in hints or not anything)):
                expected = f"arguments of {found.__name__} at `{where}`"
                raise ValueError(f"Expected {expected} but got {_shown(name)}, which it lacks.")
        return {name: self.value(value, known.get(name, Any), f"{inside}{name}") for name, value in config.items()}


def _plain(value: Any, kind: type, where: str) -> Any:
    if isinstance(value, str) and value.startswith("Unable to serialize instance"):
        raise ValueError(f"Expected `{where}` in the file but it was not written: give it as an argument.")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if type(value) is kind or (kind is complex and number):
        return value
    return float(value) if kind is float and number else _mismatch(value, kind, where)


def _within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _full(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _parameters(found: Any) -> tuple[dict[str, Any], bool]:
    """The annotations of what can be given by name, and whether anything else can."""
    known: dict[str, Any] = {}
    of_class, anything = isinstance(found, type), False
    bases = found.__mro__[:-1] if of_class else ()  # all but object
    for function in [base.__init__ for base in bases if "__init__" in vars(base)] if of_class else [found]:
        hints, parameters = _hints(function), [*inspect.signature(function).parameters.values()][of_class:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                known.setdefault(parameter.name, hints.get(parameter.name, Any))
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        if not anything:  # these go on to the class above, or are data
            break
    return known, anything


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


def _gives(found: Any, kind: type) -> bool:
    """Whether it is a class of this kind, or a function that is annotated to return one."""
    made = found if isinstance(found, type) else _hints(found).get("return")
    if not isinstance(made, type):
        return False
    if getattr(kind, "_is_protocol", False):
        names = [name for name in vars(kind) if name == "__call__" or not name.startswith("_")]
        return all(any(name in vars(base) for base in made.__mro__) for name in names)
    return issubclass(made, kind)


def _described(value: Any, hint: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of the object that a value describes, by ``class_path`` or by a full name alone."""
    if is_full_name(value):
        return value, {}
    if not isinstance(value, Mapping) or "class_path" not in value:
        _mismatch(value, hint, where)
    name, arguments = value["class_path"], [value.get(key) or {} for key in ("init_args", "dict_kwargs")]
    more = value.keys() - {"class_path", "init_args", "dict_kwargs"}
    if not is_full_name(name) or more or not all(isinstance(each, Mapping) for each in arguments):
        expected = f"`{where}` to be a full name as class_path, with init_args,"
        raise ValueError(f"Expected {expected} but got {_shown(dict(value))}.")
    return name, {**arguments[0], **arguments[1]}


def _mismatch(value: Any, hint: Any, where: str) -> NoReturn:
    shown = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    raise _MismatchError(f"Expected `{where}` to be {shown.replace('typing.', '')} but got {_shown(value)}.")


def _unfit(name: str, wanted: str, where: str) -> NoReturn:
    raise _UnfitError(f"Expected `{where}` to name {_article(wanted)} but got {_shown(name)}, which is none.")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
