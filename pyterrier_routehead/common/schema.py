"""What a file may say: JSON read strictly, and the types that its values must have.

A frozen dataclass is the schema of a JSON object: its annotations are the types, every field has to be there, and no
other may be.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

LATER = {"later": True}
"""Metadata of a dataclass's field that files of earlier versions lack: there its default counts."""

_DEEPEST = 32
_LARGEST = 2**63


def parse_json(data: bytes | str) -> Any:
    """A JSON value, without what Python's reader lets pass: a name twice in an object, NaN and infinity, deep nesting.

    Raises:
        ValueError: saying what is wrong.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_values(value, _DEEPEST)
    return value


def typed(kind: Any, value: object, where: str) -> Any:
    """A value of a type, from what :func:`parse_json` gave.

    Args:
        kind: ``str``, ``int``, ``float`` (finite; integers become floats), ``bool``, ``None``, ``Literal``,
            ``tuple[X, ...]`` from a list, ``Mapping`` (an object with anything in it), a dataclass from an object, or a
            union of such.
        value: the JSON value.
        where: the value's name in messages.

    Raises:
        ValueError: naming the place, what was expected and what was found.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        fitting = [member for member in inner if _fits(member, value)]
        return typed(fitting[0], value, where) if fitting else _refuse(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(typed(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if not _fits(kind, value):
        _refuse(kind, value, where)
    return float(value) if kind is float and isinstance(value, int) else value


def typed_fields(kind: type, value: object, where: str) -> dict[str, Any]:
    """Some fields of a dataclass by name, from a JSON object that may leave any of them out.

    Raises:
        ValueError: for unknown fields and values of a wrong type.
    """
    if not isinstance(value, dict):
        _refuse(kind, value, where)
    hints = get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{where or 'it'} has unknown fields {', '.join(unknown)}; known: {', '.join(hints)}")
    return {name: typed(hints[name], item, f"{where}.{name}" if where else name) for name, item in value.items()}


def _record(kind: type, value: object, where: str) -> Any:
    values = typed_fields(kind, value, where)
    if missing := [f.name for f in fields(kind) if f.name not in values and "later" not in f.metadata]:
        raise ValueError(f"{where + ' ' if where else ''}lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # from the checks of a class itself
        raise ValueError(f"{where}: {error}") from None


def _fits(kind: Any, value: object) -> bool:
    """Whether a value is of a type, judged without looking into its items or fields."""
    origin = get_origin(kind)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is tuple:
        return isinstance(value, list)
    if is_dataclass(kind) or origin is Mapping:
        return isinstance(value, dict)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if kind is float:
        return _fits(int, value) or (isinstance(value, float) and abs(value) < float("inf"))
    if kind is str:
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return isinstance(value, kind)


def _refuse(kind: Any, value: object, where: str) -> NoReturn:
    found = repr(value)
    found = found if len(found) <= 60 else f"{found[:60]}…"
    raise ValueError(f"{where or 'it'} must be {_named(kind)}, found {found}")


def _named(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_named, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list"
    plain = {str: "a string", int: "an integer", float: "a finite number", bool: "true or false"}
    return plain.get(kind, "null" if kind is type(None) else "an object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _check_values(value: object, left: int) -> None:
    if isinstance(value, float) and abs(value) == float("inf"):  # such as 1e999
        raise ValueError("it has a number beyond all bounds")
    if isinstance(value, dict | list):
        if not left:
            raise ValueError("it is nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check_values(item, left - 1)
