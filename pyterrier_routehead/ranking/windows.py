"""Lists that do not fit into one prompt: a window slides from the tail of the list to its head.

As in RankGPT and ICR: the window over the last candidates is ranked, its better half moves into the next window, and so
on up to the head. Scores of different windows cannot be compared, so only those of the last window are kept. Candidates
that earlier windows left behind get decreasing scores below them, in the resulting order.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..common.errors import ListTooLongError
from .frames import with_tail


def slide_windows(
    lengths: Sequence[int] | np.ndarray, budget: int, rank: Callable[[list[int]], np.ndarray]
) -> np.ndarray:
    """Scores of a list, from windows that fit.

    Args:
        lengths: tokens of each candidate, best first.
        budget: tokens that the candidates of one window may take.
        rank: scores the candidates (by number) of one window, given in their current order, best first.

    Returns:
        One score per candidate, float64; their order is the ranking.

    Raises:
        ListTooLongError: if the prompt leaves no tokens for documents, or naming the number of a candidate that fits
            into no window.
    """
    if budget < 1:
        raise ListTooLongError(
            f"the prompt without documents leaves {budget} tokens of the context for them: shorten the query"
        )
    for number, length in enumerate(lengths):
        if length > budget:
            raise ListTooLongError(
                f"candidate {number} takes {length} tokens, but only {budget} are left for documents"
            )
    order = list(range(len(lengths)))
    stop = len(order)
    start = _first_that_fits(order, stop, lengths, budget)
    while True:
        scores = rank(order[start:stop])
        best_first = np.argsort(-scores, kind="stable")
        order[start:stop] = [order[start + i] for i in best_first]
        if start == 0:
            break
        # Half of the window moves on, or as many as leave room for at least one new candidate.
        stop = start + (stop - start + 1) // 2
        while (reached := _first_that_fits(order, stop, lengths, budget)) >= start:
            stop -= 1
        start = reached
    result = np.empty(len(order))
    result[order] = with_tail(np.sort(scores)[::-1], len(order))
    return result


def _first_that_fits(order: list[int], stop: int, lengths: Sequence[int] | np.ndarray, budget: int) -> int:
    start = stop
    while start > 0 and budget >= lengths[order[start - 1]]:
        start -= 1
        budget -= lengths[order[start]]
    return start
