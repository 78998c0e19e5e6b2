"""Offline search: for each judged list the small set of heads whose summed scores rank it best.

The published procedure (RouteHead, arXiv 2604.24608, as far as it is known) screens a pool of heads by single-head
quality and then, for each query, adds heads one by one and exchanges them. The paper's objective and stop rule are not
known to us; nDCG@10 with the ties and stops below is ours. Scores are additive over heads (filter per head), so a set's
scores are a sum of columns, and all lists are searched at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np

from ..evaluation.measures import ideal_dcg, ndcg

_FEW = 4096
"""Up to so many sets are tried one and all, which finds the best."""
_TIE = 1e-5
"""Weight of the smooth criterion beside nDCG. Its range is about 10 on lists of 100 candidates: it breaks ties, and may
overrule differences of nDCG below 1e-4, which several relevant documents can make."""
_GAIN = 1e-9


@dataclass(frozen=True)
class PaddedLists:
    """Head scores and judgements of several lists, padded to the longest.

    Attributes:
        scores: float64 [lists, documents, heads], 0 in padding.
        gains: float64 [lists, documents], labels above 0, else 0.
        there: bool [lists, documents], False in padding.
        ideal: DCG@10 of each query's ideal ranking, float64 [lists].
    """

    scores: np.ndarray
    gains: np.ndarray
    there: np.ndarray
    ideal: np.ndarray

    @classmethod
    def of(
        cls, scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], ideal: Sequence[float] | None = None
    ) -> "PaddedLists":
        """Pad lists of scores [documents, heads] and labels [documents].

        Without ``ideal``, the best ranking is that of each list's own documents.
        """
        longest = max(len(own) for own in labels)
        padded = np.zeros((len(labels), longest, scores[0].shape[1]))
        gains, there = np.zeros(padded.shape[:2]), np.zeros(padded.shape[:2], dtype=bool)
        for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
            padded[i, : len(label)] = own
            gains[i, : len(label)] = np.maximum(label, 0)
            there[i, : len(label)] = True
        return cls(padded, gains, there, own_ideal(gains) if ideal is None else np.asarray(ideal, dtype=np.float64))

    def __getitem__(self, lists: np.ndarray) -> "PaddedLists":
        return PaddedLists(self.scores[lists], self.gains[lists], self.there[lists], self.ideal[lists])

    def __len__(self) -> int:
        return len(self.scores)

    def standardised(self) -> "PaddedLists":
        """The same lists with each head's scores standardised within each list."""
        return replace(self, scores=standardised_lists(self.scores, self.there[..., None]))

    def heads(self, columns: np.ndarray) -> "PaddedLists":
        """The same lists with some of the heads."""
        return replace(self, scores=self.scores[:, :, columns])

    def documents(self, kept: np.ndarray) -> "PaddedLists":
        """The same lists with some of their documents, bool [lists, documents], against the best ranking of those."""
        gains = np.where(kept, self.gains, 0)
        return PaddedLists(np.where(kept[..., None], self.scores, 0), gains, kept & self.there, own_ideal(gains))


def own_ideal(gains: np.ndarray) -> np.ndarray:
    """DCG@10 of each list's own best ranking: gains [lists, documents] to float64 [lists]."""
    return np.array([ideal_dcg(own) for own in gains])


def list_ndcg(lists: PaddedLists, sums: np.ndarray) -> np.ndarray:
    """The nDCG@10 of several rankings of each list: summed scores [lists, documents, rankings] to [lists, rankings]."""
    return ndcg(lists.gains, sums, lists.ideal, lists.there)


def weighted_ndcg(lists: PaddedLists, weights: np.ndarray) -> np.ndarray:
    """The nDCG@10 of each list ranked by its weighted heads: weights [lists, heads] to [lists]."""
    return list_ndcg(lists, np.einsum("qdh,qh->qd", lists.scores, weights)[..., None])[:, 0]


def log_probability(lists: PaddedLists, sums: np.ndarray) -> np.ndarray:
    """The smooth criterion: mean log-probability of the relevant documents under a softmax over standardised sums.

    Weighted by gains; [lists, documents, rankings] to [lists, rankings]. It looks at the whole list; scale and shift of
    the scores do not matter.
    """
    there = lists.there[..., None]
    standard = np.where(there, standardised_lists(sums, there), -np.inf)
    highest = standard.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(standard - highest).sum(axis=1, keepdims=True)) + highest
    weights = (lists.gains / np.maximum(lists.gains.sum(axis=1, keepdims=True), 1e-12))[..., None]
    mean: np.ndarray = (weights * np.where(weights > 0, standard - log_sum, 0)).sum(axis=1)
    return mean


def standardised_lists(sums: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Numbers less their list's mean, over their standard deviation; 0 in padding and in lists of equals.

    Args:
        sums: [lists, documents, ...].
        there: bool, of as many dimensions: False in padding.
    """
    count = there.sum(axis=1, keepdims=True)
    centred = np.where(there, sums - np.where(there, sums, 0).sum(axis=1, keepdims=True) / count, 0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    # As for one list (frames.standardised): a deviation of rounding errors is none.
    differ = deviation > 1e-12 * np.abs(np.where(there, sums, 0)).max(axis=1, keepdims=True)
    return np.where(differ, centred / np.where(differ, deviation, 1), 0)


def objective(lists: PaddedLists, sums: np.ndarray, smooth: float = 0.0) -> np.ndarray:
    """What a search maximises: [lists, documents, rankings] to [lists, rankings].

    Args:
        lists: the lists.
        sums: summed scores.
        smooth: weight of the smooth criterion against nDCG@10, from 0 (it only breaks ties) to 1 (it alone counts).
    """
    return (1 - smooth) * list_ndcg(lists, sums) + max(smooth, _TIE) * log_probability(lists, sums)


@dataclass(frozen=True)
class FoundSets:
    """What a search has found for each list.

    Attributes:
        members: bool [lists, heads].
        before: nDCG@10 of all heads of the pool together, [lists].
        after: nDCG@10 of the found set, [lists].
    """

    members: np.ndarray
    before: np.ndarray
    after: np.ndarray


def search_sets(
    lists: PaddedLists, most: int, *, exchange: bool = True, smooth: float = 0.0, prior: np.ndarray | None = None
) -> FoundSets:
    """For each list the set of at most so many heads with the highest objective.

    Where there are few possible sets, all are tried, which is ours and finds the best. Else heads are added one by one,
    each time the best, as long as the objective grows; then a member is exchanged for another head, or taken out, as
    long as it grows. Of equals the smaller wins.

    Args:
        lists: head scores of the pool's heads, and judgements.
        most: the largest size of a set (P).
        exchange: whether to exchange members after adding; without effect where all sets are tried.
        smooth: see :func:`objective`.
        prior: a bonus for each head, [heads] or [lists, heads]; a set gets the mean over its members. It draws labels
            towards heads that are good over all queries.
    """
    heads = lists.scores.shape[2]
    most = min(most, heads)
    bonus = np.zeros((len(lists), heads)) if prior is None else np.broadcast_to(prior, (len(lists), heads))
    if sum(comb(heads, size) for size in range(1, most + 1)) <= _FEW:
        members = _try_all(lists, most, smooth, bonus)
    else:
        members = _add(lists, most, smooth, bonus)
        if exchange:
            _exchange(lists, members, smooth, bonus)
    everything = np.ones_like(members, dtype=float)
    return FoundSets(members, weighted_ndcg(lists, everything), weighted_ndcg(lists, members.astype(float)))


def _try_all(lists: PaddedLists, most: int, smooth: float, bonus: np.ndarray) -> np.ndarray:
    heads = lists.scores.shape[2]
    sets = [own for size in range(1, most + 1) for own in combinations(range(heads), size)]  # smaller ones first
    chosen = np.zeros((heads, len(sets)))
    for i, own in enumerate(sets):
        chosen[list(own), i] = 1
    members = np.empty((len(lists), heads), dtype=bool)
    for i in range(len(lists)):
        one = lists[np.array([i])]
        values = objective(one, one.scores @ chosen, smooth)[0] + bonus[i] @ chosen / chosen.sum(axis=0)
        best = int(np.argmax(values > values.max() - _GAIN))
        members[i] = chosen[:, best] > 0
    return members


def _add(lists: PaddedLists, most: int, smooth: float, bonus: np.ndarray) -> np.ndarray:
    members = np.zeros((len(lists), lists.scores.shape[2]), dtype=bool)
    value = np.full(len(lists), -np.inf)
    growing = np.arange(len(lists))
    for _ in range(most):
        own, inside = lists[growing], members[growing]
        sums = np.einsum("qdh,qh->qd", own.scores, inside.astype(float))[..., None] + own.scores
        size, total = inside.sum(axis=1, keepdims=True), (bonus[growing] * inside).sum(axis=1, keepdims=True)
        values = objective(own, sums, smooth) + (total + bonus[growing]) / (size + 1)
        values[inside] = -np.inf
        best = values.argmax(axis=1)
        gained = values[np.arange(len(growing)), best] > value[growing] + _GAIN
        growing, best, values = growing[gained], best[gained], values[gained]
        if not len(growing):
            break
        members[growing, best] = True
        value[growing] = values[np.arange(len(growing)), best]
    return members


def _exchange(lists: PaddedLists, members: np.ndarray, smooth: float, bonus: np.ndarray) -> None:
    """Improve sets in place by single exchanges and removals, the best one at a time."""
    improving = np.arange(len(lists))
    value = _value(lists, members, smooth, bonus)
    while len(improving):
        own, inside, extra = lists[improving], members[improving], bonus[improving]
        size = inside.sum(axis=1)
        whole = np.einsum("qdh,qh->qd", own.scores, inside.astype(float))
        total = (extra * inside).sum(axis=1)
        places = np.argsort(~inside, axis=1, kind="stable")  # members first
        best_value, best_out, best_in = np.full(len(own), -np.inf), places[:, 0].copy(), places[:, 0].copy()
        for place in range(size.max()):
            has = np.flatnonzero(size > place)
            out = places[has, place]
            less = whole[has] - own.scores[has, :, out]
            left = (total[has] - extra[has, out])[:, None]
            part = own[has]
            values = objective(part, less[..., None] + part.scores, smooth) + (left + extra[has]) / size[has, None]
            values[inside[has]] = -np.inf
            removed = objective(part, less[..., None], smooth) + left / np.maximum(size[has, None] - 1, 1)
            removed[size[has] == 1] = -np.inf
            # The last column takes a member out, which wins among equals.
            values = np.concatenate([values, removed + 2 * _GAIN], axis=1)
            top = values.argmax(axis=1)
            better = values[np.arange(len(has)), top] > best_value[has] + _GAIN
            rows = has[better]
            best_value[rows], best_out[rows], best_in[rows] = values[better, top[better]], out[better], top[better]
        changed = inside.copy()
        changed[np.arange(len(own)), best_out] = False
        entering = np.flatnonzero(best_in < inside.shape[1])
        changed[entering, best_in[entering]] = True
        # What counts is the set's value as it is summed anew: where documents tie but for rounding, that of a sum that
        # was reached by exchange may differ, and the search would go round in circles.
        new = _value(own, changed, smooth, extra)
        grown = new > value[improving] + _GAIN
        improving = improving[grown]
        members[improving], value[improving] = changed[grown], new[grown]


def _value(lists: PaddedLists, members: np.ndarray, smooth: float, bonus: np.ndarray) -> np.ndarray:
    """What the exchange makes larger, [lists]: of sets that rank alike the smaller is worth more."""
    size = members.sum(axis=1)
    sums = np.einsum("qdh,qh->qd", lists.scores, members.astype(float))
    quality = objective(lists, sums[..., None], smooth)[:, 0]
    value: np.ndarray = quality + (bonus * members).sum(axis=1) / size - 2 * _GAIN * size
    return value
