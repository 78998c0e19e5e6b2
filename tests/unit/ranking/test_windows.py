"""Sliding windows, checked against what they must give when the scores of a window do not depend on the window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyterrier_routehead.ranking.windows import slide_windows


def slide(values, lengths, budget):
    seen = []

    def rank(numbers):
        assert sum(lengths[i] for i in numbers) <= budget
        seen.append(list(numbers))
        return np.array([values[i] for i in numbers], dtype=float)

    return slide_windows(lengths, budget, rank), seen


def test_windows_go_from_tail_to_head_with_half_of_each_moving_on():
    scores, seen = slide(values=[1, 2, 3, 4, 5, 6], lengths=[1] * 6, budget=4)
    assert seen == [[2, 3, 4, 5], [0, 1, 5, 4]]
    # The last window ranks 5, 4, 1, 0; the first one left 3 and 2 behind, in that order.
    assert np.argsort(-scores).tolist() == [5, 4, 1, 0, 3, 2]
    assert scores[[5, 4, 1, 0]].tolist() == [6, 5, 2, 1]


def test_one_window_keeps_its_scores():
    scores, seen = slide([3.0, -1.0, 2.0], [5, 5, 5], 15)
    assert seen == [[0, 1, 2]]
    assert scores.tolist() == [3.0, -1.0, 2.0]


def test_a_candidate_that_fits_nowhere():
    with pytest.raises(ValueError, match="candidate 1 takes 9 tokens, but only 8"):
        slide([1, 2], [3, 9], 8)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 10)), min_size=1, max_size=30), st.integers(10, 40))
def test_any_lengths(candidates, budget):
    values, lengths = zip(*candidates, strict=True)
    scores, seen = slide(values, lengths, budget)
    assert np.isfinite(scores).all()
    assert {i for window in seen for i in window} == set(range(len(values)))
    # No window's best is ever lost: half of each window moves on wherever two candidates fit.
    if max(lengths) * 2 <= budget:
        assert values[int(np.argmax(scores))] == max(values)
    # The ranking agrees with the values within the last window.
    last = seen[-1]
    ranked = [values[i] for i in sorted(last, key=lambda i: -scores[i])]
    assert ranked == sorted(ranked, reverse=True)
    # What was left behind stands below.
    rest = [scores[i] for i in range(len(values)) if i not in last]
    assert not rest or max(rest) < min(scores[i] for i in last)
    assert len(set(rest)) == len(rest)
