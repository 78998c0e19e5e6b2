"""Arguments and their checks: a wrong type is a TypeError, a wrong value a ValueError, by the name that the user typed.

The arguments of a transformer are the fields of a dataclass. :func:`argument` declares a field with its check.
"""

import math
import numbers
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Check = Callable[[str, Any], object]
"""Raises an error for a wrong value, given the argument's name and the value."""
Shown = Callable[[str, Any], str]
"""How a repr writes an argument, given its name and value; ``""`` leaves it out."""


def argument(default: T, check: Check | None = None, *, shown: Shown | None = None) -> T:
    """A dataclass's field with a default, its check, and how the repr writes it; None does not show it."""
    return field(default=default, metadata=traits(check, shown=shown))


def traits(check: Check | None = None, *, shown: Shown | None = None) -> dict[str, Any]:
    """Metadata of a field without a default; see :func:`argument`."""
    return {"check": check, "shown": shown}


def check_arguments(instance: "DataclassInstance") -> None:
    """Run the check of every argument, in the order of the signature."""
    for declared in fields(instance):
        if (check := declared.metadata.get("check")) is not None:
            check(declared.name, getattr(instance, declared.name))


def shown_arguments(instance: "DataclassInstance") -> list[str]:
    """The arguments that a repr shows, written out."""
    shown = [(declared, declared.metadata.get("shown")) for declared in fields(instance)]
    written = [show(declared.name, getattr(instance, declared.name)) for declared, show in shown if show is not None]
    return [text for text in written if text]


def keep_iterators(instance: "DataclassInstance") -> None:
    """Store arguments that are iterators, which can be read only once, as lists."""
    for declared in fields(instance):
        if declared.init and isinstance(value := getattr(instance, declared.name), Iterator):
            setattr(instance, declared.name, list(value))


def optional(check: Check) -> Check:
    """The same check, which also accepts None."""
    return lambda name, value: None if value is None else check(name, value)


def one_or_several(check: Check) -> Check:
    """Accepts one value, or a list of values to choose from."""

    def check_each(name: str, value: object) -> None:
        values = listed(value)
        if not values:
            raise ValueError(f"{name} is one value, or a list of values to choose from; got an empty list")
        for item in values:
            check(name, item)

    return check_each


def by_value(function: Callable[[Any], T]) -> Callable[[str, Any], T]:
    """A function of the value alone, as a check or for the repr, since it needs no name or knows it."""
    return lambda _, value: function(value)


def listed(value: object) -> list[Any]:
    """One value, or several, as a list."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def shown_if_set(name: str, value: object) -> str:
    """``name=value``, unless the value is None."""
    return "" if value is None else f"{name}={value}"


def shown_if_named(_: str, value: object) -> str:
    """The value, if it is the name of something."""
    return repr(value) if isinstance(value, str) else ""


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
