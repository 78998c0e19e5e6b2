"""Re-rankers have a method that chooses heads; they override nothing of their bases."""

import inspect
from dataclasses import fields

import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    ICRReranker,
    QRHeadReranker,
    RouteHeadReranker,
    StaticHeadReranker,
)
from pyterrier_routehead.reading.reading import SETTING_NAMES

TRANSFORMERS = [
    AttentionHeadScorer,
    StaticHeadReranker,
    ICRReranker,
    CoReHeadReranker,
    QRHeadReranker,
    RouteHeadReranker,
]


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_transformers_override_nothing_but_transform_and_fit(transformer):
    ours = [base for base in transformer.__mro__ if base.__module__.startswith("pyterrier_routehead")]
    for i, base in enumerate(ours[:-1]):
        functions = {name for name, value in vars(base).items() if inspect.isroutine(value)}
        inherited = {name for name in functions if any(name in vars(other) for other in ours[i + 1 :])}
        assert inherited <= {"__init__", "__post_init__", "__match_args__", "transform", "fit"}
        assert base is AttentionHeadScorer or "__post_init__" not in inherited


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_every_argument_has_a_check(transformer):
    """Heads are checked by the policy, settings by ReadingSettings."""
    unchecked = {
        argument.name for argument in fields(transformer) if argument.init and not argument.metadata.get("check")
    }
    assert unchecked <= {"heads", *SETTING_NAMES}
