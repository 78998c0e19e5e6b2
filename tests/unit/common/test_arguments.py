"""Arguments that are declared with their checks."""

from dataclasses import dataclass, field

import pytest

from pyterrier_routehead.common.arguments import (
    argument,
    by_value,
    check_arguments,
    check_flag,
    check_text,
    check_whole,
    keep_iterators,
    one_or_several,
    optional,
    shown_arguments,
    shown_if_named,
    shown_if_set,
    traits,
)


@dataclass(kw_only=True)
class Arguments:
    name: str = field(metadata=traits(check_text, shown=shown_if_named))
    k: int | list[int] = argument(1, one_or_several(check_whole), shown=shown_if_set)
    depth: int | None = argument(None, optional(check_whole), shown=shown_if_set)
    size: str = argument("1", by_value(int))
    flag: bool = argument(False, check_flag)
    unchecked: object = None


def test_every_check_runs_on_its_value_whenever_it_is_asked_for():
    arguments = Arguments(name="n")
    check_arguments(arguments)
    for name, value, error, message in (
        ("name", "", ValueError, "^name is empty"),
        ("k", [2, 0], ValueError, "^k .*, got 0"),
        ("k", [], ValueError, "^k .* got an empty list"),
        ("k", None, TypeError, "^k .*, got None"),
        ("depth", "3", TypeError, "^depth .*, got '3'"),
        ("size", "large", ValueError, "large"),
        ("flag", 1, TypeError, "^flag is True or False, got 1"),
    ):
        wrong = Arguments(**{"name": "n", name: value})
        with pytest.raises(error, match=message):
            check_arguments(wrong)
    arguments.depth = -1
    with pytest.raises(ValueError, match="depth"):
        check_arguments(arguments)


def test_what_a_repr_shows():
    assert shown_arguments(Arguments(name="n", k=[1, 2])) == ["'n'", "k=[1, 2]"]
    assert shown_arguments(Arguments(name=None, k=None, depth=3, flag=True)) == ["depth=3"]


def test_arguments_that_can_be_read_only_once_are_kept_as_lists():
    numbers = (1, 2)
    arguments = Arguments(name="n", k=iter(numbers), unchecked=numbers)
    keep_iterators(arguments)
    assert arguments.k == [1, 2]
    assert arguments.unchecked is numbers
