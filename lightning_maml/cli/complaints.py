"""Errors in one line: exceptions, and the blocks of lines that the parser writes."""

import contextlib
import inspect
import io
import pydoc
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_maml import learner, presets
from lightning_maml.checks import did_you_mean

LONGEST = 600  # characters of a line; of what is longer, such as a path of thousands of letters, the middle goes
OWN = Path(__file__).parents[1]
INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
# These say by themselves what is wrong; of others the name is part of what there is to say.
SPEAKING = (ValueError, TypeError, ImportError, NotImplementedError, MisconfigurationException)
SMALLER = ": ask for fewer tasks in a batch, fewer rows in a task, or a smaller network"


def complaint(error: BaseException) -> str:
    """What an exception says to a user: what this package raises as it is, all else with the place in their own code.

    Example:
        >>> try:
        ...     open("missing/file")
        ... except OSError as error:
        ...     print(complaint(error).partition(" (")[0])
        Expected to use missing/file but the system says: No such file or directory
    """
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename) if frames else Path()
    if OWN in last.parents and (frames[-1].line or "").startswith("raise"):
        return str(error)
    text = _words(error, by_parser="jsonargparse" in last.parts)
    if text.startswith("Expected `"):  # ours, in what the parser made of it
        return text
    for frame in reversed(frames):  # the user's own code, where it took part
        path = Path(frame.filename)
        if path.is_file() and not any(folder in path.parents for folder in (OWN, *INSTALLED)):
            text += f", in {path}, line {frame.lineno}"
            break
    return f"{text} (--debug shows the traceback)"


def _words(error: BaseException, by_parser: bool) -> str:
    of_worker = str(error).partition("Original Traceback (most recent call last):")[2].strip()
    if of_worker:  # of a data loader's process, in which it was an exception of this kind, too
        return _cut(of_worker.splitlines()[-1].partition(": ")[2])
    text = " ".join(str(error).split())
    if found := re.search(r"tried to allocate (\d+) bytes", text):
        return f"Expected to find {int(found[1]) / 1e9:,.1f} GB of memory but the machine has not as many{SMALLER}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"Expected to find memory on the device but it has none left{SMALLER} ({text})"
    if isinstance(error, MemoryError):
        return f"Expected to find memory but the machine has none left{SMALLER}"
    if isinstance(error, OSError) and error.strerror:
        used = error.filename if error.filename is not None else _written_to(error)
        return f"Expected to use {_cut(str(used or 'the output'))} but the system says: {error.strerror}"
    if by_parser:
        return shortened(str(error))
    if isinstance(error, OverflowError):
        return f"Expected smaller numbers: {text}"
    speaks = isinstance(error, SPEAKING) and text
    return _cut(text if speaks else f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _written_to(error: BaseException) -> str | None:
    """The file that a frame of the traceback has open: a write that fails does not say where to."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        for value in frame.f_locals.values():
            if isinstance(value, io.IOBase) and isinstance(name := getattr(value, "name", None), str):
                return name
    return None


def _cut(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


# What jsonargparse says in a block of lines: a tree of what it tried, with the keys that lead there.

DROPPED = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Given value type: "
    # of what may be left out, every other value gets to hear that it is not None; and of any word, that it is no file
    r"|Expected a <class 'NoneType'>$|Expected an instantiatable class, but .* is a protocol"
    r"|Expected a path but .* either not accessible or invalid"
    r"|Subclass types expect one of:|a class path \(str\)|a dict with"
)
TYPES = {"bool": "true or false", "float": "a number", "int": "a whole number", "str": "a string"}
TYPES |= dict.fromkeys(("Iterable", "Sequence", "tuple"), "a list")


def shortened(message: str, options: Iterable[str] = ()) -> str:
    """What jsonargparse says in a block, in a line; of the ``options``, the one most like a misspelt one is named.

    Example:
        >>> shortened('''Parser key "model.algorithm":
        ...   Problem with given class_path 'lightning_maml.maml':
        ...     Parser key "steps":
        ...       Expected a <class 'int'>. Got value: 2.5''')
        '--model.algorithm.steps: Expected a whole number but got 2.5'
        >>> shortened("unrecognized arguments: --data.shot=3", ["--data.seed", "--data.shots"])
        'unrecognized arguments: --data.shot=3 (did you mean --data.shots?)'
    """
    if message.startswith("Unexpected config:"):
        got = " ".join(message.split()[2:]) or "an empty file"
        return f"Expected a configuration of sections, as `model:` and `data:`, but got {_cut(got)}"
    keys: list[str] = []
    said: list[str] = []
    wanted: list[str] = []  # by the types of the values that an option takes
    name = value = None
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        if found := re.fullmatch(r"(.*?)\.* ?(?:Got value|Given value):(.*?)(?:\. Got value: .*)?", text):
            text, got = found[1], re.sub(r"NestedArg\(key='.*', val='?(.*?)'?\)", r"\1", found[2].strip())
            value = value if got.startswith("Namespace(") else got
        if found := re.fullmatch(r'.*Parser key "([^"]+)":(.*)', text):
            keys += [found[1]] if found[1] not in keys else []
            text = found[2].strip()
        if found := re.fullmatch(r"Problem with given class_path '([^']+)':(.*)", text):
            name, text = found[1], found[2].strip()
        text = re.sub(r"Type [\w.]+\[.*\] expects a function or a callable class: ?", "", text)
        if not text or DROPPED.match(text):
            continue
        if found := re.fullmatch(r"Expected a <class '(?:\w+\.)*(\w+)'>", text):
            wanted.append(TYPES.get(found[1], f"a {found[1]}"))
        elif found := re.fullmatch(r"Expected a typing\.Literal(\[.*\])", text):
            wanted.append(f"one of {found[1]}")
        elif text.startswith("Expected a dot import path string"):
            wanted.append("a class or function by its import path, as a.b.C")
        else:
            said.append(text)
    if ours := [text for text in said if text.startswith("Expected `")]:  # from this package's classes
        return ours[0]
    line = "; ".join(dict.fromkeys(said)) or f"Expected {' or '.join(dict.fromkeys(wanted)) or 'something else'}"
    if said and name and name not in line:
        line = f"{name}: {line}"
    if value is not None and ((wanted and not said) or value not in line):
        line += f" but got {value or 'nothing'}"
    if keys:
        line = f"--{'.'.join(keys)}: {line}"
    return _cut(line) + _suggestion(line, options, name)


def _suggestion(line: str, options: Iterable[str], name: str | None) -> str:
    """The option, or the parameter of the class ``name``, that a misspelt one is most like."""
    if line.startswith("the following arguments are required"):
        return " (--config FILE gives them; --help lists all)"
    if "does not correspond to a subclass of" in line:
        return " (of a function the annotation of what it returns counts, as `-> nn.Module`)"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", line):
        return did_you_mean(found[2], (one for one in dir(sys.modules.get(found[1])) if not one.startswith("_")), 0.8)
    wrong = re.search(r"(?:unrecognized arguments: |[Oo]ption ')(?:--)?([\w.]+)", line)
    if not wrong:
        return ""
    known = {option.removeprefix("--"): option for option in options}
    with contextlib.suppress(Exception):  # whatever its module does when it is imported
        located: Any = pydoc.locate(name or "")
        known |= {parameter: parameter for parameter in inspect.signature(located).parameters}
        if located.__name__ in presets.__all__ and not did_you_mean(wrong[1], known, 0.8):
            return f" ({learner.meant(located, wrong[1])})"
    return did_you_mean(wrong[1], known, 0.8, known.__getitem__)
