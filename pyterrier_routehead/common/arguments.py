"""Checks of arguments: a wrong type is a TypeError, a wrong value a ValueError, by the name that the user typed."""

import math
import numbers
from collections.abc import Collection


def check_whole(name: str, value: object, *, least: int = 1, what: str = "number") -> int:
    """An integer of at least ``least``, as a plain int; a bool raises an error."""
    kind = "integer" if what == "number" else f"integer {what}"
    message = f"{name} must be an {kind} >= {least}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if value < least:
        raise ValueError(message)
    return int(value)


def check_number(name: str, value: object, *, what: str = "a finite number") -> float:
    """A finite number, as a plain float; a bool raises an error."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {what}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {what}, got {value!r}")
    return float(value)


def check_share(name: str, value: object, *, inside: bool = False) -> float:
    """A number from 0 to 1, or strictly between the two where ``inside``."""
    what = "a share between 0 and 1" if inside else "a number from 0 to 1"
    number = check_number(name, value, what=what)
    if not (0 < number < 1 if inside else 0 <= number <= 1):
        raise ValueError(f"{name} is {what}, got {value!r}")
    return number


def check_flag(name: str, value: object) -> bool:
    """True or False, numpy's too."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} is True or False, got {value!r}")


def check_choice(name: str, value: object, allowed: Collection[str]) -> str:
    """One of some strings."""
    message = f"{name} is one of {', '.join(map(repr, allowed))}, got {value!r}"
    if not isinstance(value, str):
        raise TypeError(message)
    if value not in allowed:
        raise ValueError(message)
    return value


def check_text(name: str, value: object) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a string, got {value!r}")
    if not value:
        raise ValueError(f"{name} is empty")
    return value
