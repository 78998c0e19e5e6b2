"""Strict JSON and typed values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pyterrier_routehead.common.schema import LATER, parse_json, typed, typed_fields


@dataclass(frozen=True)
class Inner:
    text: str

    def __post_init__(self):
        if self.text == "wrong":
            raise TypeError("text is right")


@dataclass(frozen=True)
class Outer:
    number: int
    ratio: float
    flag: bool
    inner: Inner
    some: Literal["a", "b"] | Inner
    names: tuple[str, ...]
    free: Mapping[str, Any]
    later: int | None = field(default=7, metadata=LATER)


SAID = {
    "number": 1,
    "ratio": 2,
    "flag": False,
    "inner": {"text": "x"},
    "some": "b",
    "names": ["p", "q"],
    "free": {"a": [1]},
}


def test_f44_a_dataclass_is_the_schema_of_an_object():
    found = typed(Outer, SAID, "it")
    assert found == Outer(1, 2.0, False, Inner("x"), "b", ("p", "q"), {"a": [1]}, 7)
    assert type(found.ratio) is float
    assert typed(Outer, SAID | {"some": {"text": "y"}, "later": None}, "it").some == Inner("y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": True}, "it.number must be an integer, found True"),
        ({"number": 1.0}, "it.number must be an integer, found 1.0"),
        ({"number": 2**63}, "it.number must be an integer, found 92"),
        ({"ratio": False}, "it.ratio must be a finite number, found False"),
        ({"ratio": 10**400}, "it.ratio must be a finite number, found 1000"),
        ({"flag": 1}, "it.flag must be true or false, found 1"),
        ({"inner": None}, "it.inner must be an object, found None"),
        ({"inner": {"text": "wrong"}}, "it.inner: text is right"),
        ({"inner": {"text": "x", "more": 1}}, "it.inner has unknown fields more; known: text"),
        ({"inner": {}}, "it.inner lacks text"),
        ({"some": "c"}, "it.some must be 'a' or 'b' or an object, found 'c'"),
        ({"some": {"text": 3}}, "it.some.text must be a string, found 3"),
        ({"names": "pq"}, "it.names must be a list, found 'pq'"),
        ({"names": ["p", None]}, r"it.names\[1\] must be a string, found None"),
        ({"free": [1]}, r"it.free must be an object, found \[1\]"),
        ({"later": "x"}, "it.later must be an integer or null, found 'x'"),
        ({"inner": {"text": "\ud800"}}, "it.inner.text must be a string"),
    ],
    ids=str,
)
def test_f44_a_value_of_another_type_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        typed(Outer, SAID | change, "it")


def test_f44_some_fields_may_be_asked_for():
    assert typed_fields(Outer, {"ratio": 1}, "it") == {"ratio": 1.0}
    with pytest.raises(ValueError, match="it must be an object, found 3"):
        typed_fields(Outer, 3, "it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ('{"a": 1, "a": 1}', "'a' is there twice"),
        ("[Infinity]", "Infinity is no number"),
        ("[-1e999]", "beyond all bounds"),
        ("9" * 5000, "digits"),
        (b"\xff", "utf-8"),
        ("{", "Expecting"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_f44_json_is_read_strictly(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
