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
        said = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_values(said, _DEEPEST)
    return said


def typed(kind: Any, said: object, where: str) -> Any:
    """A value of a type, from what :func:`parse_json` gave.

    Args:
        kind: ``str``, ``int``, ``float`` (finite; whole numbers become floats), ``bool``, ``None``, ``Literal``,
            ``tuple[X, ...]`` from a list, ``Mapping`` (an object with anything in it), a dataclass from an object, or a
            union of such.
        said: the JSON value.
        where: what the value is called in messages.

    Raises:
        ValueError: naming the place, what was expected and what was found.
    """
    if is_dataclass(kind):
        return _record(kind, said, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        meant = [own for own in inner if _fits(own, said)]
        return typed(meant[0], said, where) if meant else _refuse(kind, said, where)
    if origin is tuple and isinstance(said, list):
        return tuple(typed(inner[0], value, f"{where}[{i}]") for i, value in enumerate(said))
    if not _fits(kind, said):
        _refuse(kind, said, where)
    return float(said) if kind is float else said


def typed_fields(kind: type, said: object, where: str) -> dict[str, Any]:
    """Some fields of a dataclass by name, from a JSON object that may leave any of them out.

    Raises:
        ValueError: for unknown fields and values of a wrong type.
    """
    if not isinstance(said, dict):
        _refuse(kind, said, where)
    hints = get_type_hints(kind)
    if unknown := sorted(set(said) - set(hints)):
        raise ValueError(f"{where or 'it'} has unknown fields {', '.join(unknown)}; known: {', '.join(hints)}")
    return {name: typed(hints[name], value, f"{where}.{name}" if where else name) for name, value in said.items()}


def _record(kind: type, said: object, where: str) -> Any:
    values = typed_fields(kind, said, where)
    if missing := [f.name for f in fields(kind) if f.name not in values and "later" not in f.metadata]:
        raise ValueError(f"{where + ' ' if where else ''}lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # from the checks of a class itself
        raise ValueError(f"{where}: {error}") from None


def _fits(kind: Any, said: object) -> bool:
    """Whether a value is of a type, as far as can be told without looking into it."""
    origin = get_origin(kind)
    if origin is Literal:
        return isinstance(said, str) and said in get_args(kind)
    if origin is tuple:
        return isinstance(said, list)
    if is_dataclass(kind) or origin is Mapping:
        return isinstance(said, dict)
    if kind is int:
        return isinstance(said, int) and not isinstance(said, bool) and abs(said) < _LARGEST
    if kind is float:
        return _fits(int, said) or (isinstance(said, float) and abs(said) < float("inf"))
    if kind is str:
        return isinstance(said, str) and not any("\ud800" <= letter <= "\udfff" for letter in said)
    return isinstance(said, kind)


def _refuse(kind: Any, said: object, where: str) -> NoReturn:
    found = repr(said)
    found = found if len(found) <= 60 else f"{found[:60]}…"
    raise ValueError(f"{where or 'it'} must be {_named(kind)}, found {found}")


def _named(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_named, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list"
    plain = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false"}
    return plain.get(kind, "null" if kind is type(None) else "an object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return said


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _check_values(said: object, left: int) -> None:
    if isinstance(said, float) and abs(said) == float("inf"):  # such as 1e999
        raise ValueError("it has a number beyond all bounds")
    if isinstance(said, dict | list):
        if not left:
            raise ValueError("it is nested too deeply")
        for value in said.values() if isinstance(said, dict) else said:
            _check_values(value, left - 1)
