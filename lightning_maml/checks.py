"""Checks of arguments, by name: each raises ValueError, with the same words everywhere.

Example:
    >>> check_whole(1, ways=5, shots=0)
    Traceback (most recent call last):
    ValueError: Expected `shots` to be a whole number of at least 1 but got 0.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any


def _check(values: dict[str, Any], fits: Callable[[Any], bool], wanted: str) -> None:
    for name, value in values.items():
        if not fits(value):
            raise ValueError(f"Expected `{name}` to be {wanted} but got {value!r}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(least: int, /, **values: Any) -> None:
    """Whole numbers (and no booleans) of at least ``least``."""
    _check(values, lambda value: _is_whole(value) and value >= least, f"a whole number of at least {least}")


def check_wholes(least: int, /, **lists: Any) -> None:
    """Lists of such numbers, which may be empty."""
    for name, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"Expected `{name}` to be a list of whole numbers, as [40, 40], but got {values!r}.")
        check_whole(least, **{f"{name}[{place}]": value for place, value in enumerate(values)})


def check_seed(**values: Any) -> None:
    """Whole numbers that every generator of random numbers takes: numpy's takes 32 bits."""
    _check(values, lambda value: _is_whole(value) and 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}")


def check_positive(**values: float) -> None:
    """Numbers above 0, and finite."""
    _check(values, lambda value: 0 < value < math.inf, "positive and finite")


def check_not_negative(**values: float) -> None:
    """Numbers of at least 0, and finite."""
    _check(values, lambda value: 0 <= value < math.inf, "finite and not negative")


def check_one_of(choices: Sequence[Any], /, **values: Any) -> None:
    """Values that are among ``choices``."""
    _check(values, lambda value: value in choices, f"one of {list(choices)}")


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.6, shown: Callable[[str], str] = str) -> str:
    """What a message ends with where ``name`` is like one that is known; else nothing.

    Example:
        >>> did_you_mean("fomlam", ["maml", "fomaml"])
        ' (did you mean fomaml?)'
    """
    return "".join(f" (did you mean {shown(near)}?)" for near in get_close_matches(name, list(known), 1, likeness))
