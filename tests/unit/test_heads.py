"""Naming heads."""

import numpy as np
import pytest

from pyterrier_routehead import StaticHeadReranker
from pyterrier_routehead.heads import Head, describe_heads, layers_needed, parse_heads, resolve_heads


@pytest.mark.parametrize(
    "heads", ["8-11,13-1", ["8-11", "13-1"], [(8, 11), (13, 1)], np.array([[8, 11], [13, 1]]), [Head(8, 11), "13-1"]]
)
def test_all_ways_to_name_heads(heads):
    assert parse_heads(heads) == (Head(8, 11), Head(13, 1))
    assert layers_needed(heads) == 14
    assert ",".join(map(str, parse_heads(heads))) == "8-11,13-1"


@pytest.mark.parametrize("wrong", ["8", "8-11-2", "a-b", "8-", "-1-2", (1.5, 2), (1, 2, 3), (-1, 0), 7, None, ""])
def test_what_names_no_head_is_shown(wrong):
    with pytest.raises(ValueError, match="does not name a head"):
        parse_heads([wrong])


def test_no_heads_and_heads_named_twice():
    with pytest.raises(ValueError, match="empty"):
        parse_heads([])
    with pytest.raises(ValueError, match="head 1-2 is named twice"):
        parse_heads(["1-2", (1, 2)])


def test_all_needs_a_shape():
    assert resolve_heads("all", 2, 2) == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert layers_needed("all") is None
    with pytest.raises(ValueError, match="no head 2-0 among 2 layers with 2 heads"):
        resolve_heads("1-1,2-0", 2, 2)


def test_descriptions_stay_short():
    assert describe_heads("all") == "'all'"
    assert describe_heads([(1, 2)]) == "'1-2'"
    assert describe_heads([(0, i) for i in range(40)]) == "<40 heads>"


def test_f23_flags_are_no_numbers_of_heads():
    with pytest.raises(ValueError, match=r"\(True, 1\) does not name a head"):
        parse_heads([(True, 1)])


def test_a_repr_holds_whatever_was_set():
    reranker = StaticHeadReranker("1-1")
    reranker.heads = 5
    assert repr(reranker) == "StaticHeadReranker(<no heads>)"
