"""MAML and its family for PyTorch Lightning: a batch of tasks in, adapted networks and one meta-gradient out.

What it consists of stands in ``__init__.pyi``, and is imported when it is asked for: the command line answers
``--help`` before torch is loaded.
"""

import ast
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

_WHERE = {
    alias.name: line.module
    for line in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(line, ast.ImportFrom) and line.module
    for alias in line.names
}
__all__ = sorted(name for name, module in _WHERE.items() if module != __name__)


def __getattr__(name: str) -> Any:
    if name == "__version__":  # a copy of the sources that was never installed imports, too
        return version("lightning-maml")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _WHERE[name]
    value = import_module(f"{module}.{name}") if module == __name__ else getattr(import_module(module), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
