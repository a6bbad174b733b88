"""What docstrings say to Sphinx and to readers of code, as Markdown: roles, formulas, and double backticks."""

import inspect
import re
from typing import Any

from griffe import Docstring, Extension, Object
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([^`]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
SEVERAL = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*\n(?:\1 +.*\n)*)", re.MULTILINE)
"""Arguments that are described together."""
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
BLOCK = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +.*\n|\s*\n)*)", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring's text.

    >>> as_markdown("See :class:`~lightning_maml.Batched` and ``[T, N]``.")
    'See `Batched` and `[T, N]`.'
    """
    text = BLOCK.sub(
        lambda found: f'{found[1]}<div class="formula">{_formula(found[2], "block")}</div>\n\n', text + "\n"
    )
    text = FORMULA.sub(lambda found: _formula(found[1], "inline"), text)
    text = ROLE.sub(lambda found: f"`{_name(found[0], found[1])}`", text)
    text = SEVERAL.sub(lambda found: "".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")), text)
    text = EXAMPLE.sub(r"\1Examples:", text)  # as griffe calls the section whose code it shows as code
    return text.replace("``", "`").rstrip("\n")


def _name(role: str, name: str) -> str:
    return name.rpartition(".")[2] if "`~" in role else name


def _formula(tex: str, display: str) -> str:
    return convert(" ".join(inspect.cleandoc(tex).split()), display=display)


class Docstrings(Extension):
    """Of griffe, which reads them."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = as_markdown(obj.docstring.value)
