"""Offline search: for each judged list the small set of heads whose summed scores rank it best.

The published procedure (RouteHead, arXiv 2604.24608, as far as it is known) screens a pool of heads by single-head
quality and then, for each query, adds heads one by one and exchanges them. The paper does not state its objective and
stop rule; nDCG@10 with the ties and stops below is our choice. Scores are additive over heads (filter per head), so the
scores of a set are a sum of columns, and all lists are searched at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np

from ..evaluation.measures import ideal_dcg, ndcg

_MAX_EXHAUSTIVE = 4096
"""Maximum number of sets for an exhaustive search, which finds the best one."""
_TIE_WEIGHT = 1e-5
"""Minimum weight of the smooth criterion. Its range is about 10 on lists of 100 candidates: it breaks ties, and may
overrule differences of nDCG below 1e-4, which lists with several relevant documents can have."""
_MIN_GAIN = 1e-9
"""Minimum increase of the objective that counts as an improvement."""


@dataclass(frozen=True)
class PaddedLists:
    """Head scores and judgements of several lists, padded to the longest list.

    Attributes:
        scores: float64 [lists, documents, heads], 0 in padding.
        gains: float64 [lists, documents], labels above 0, else 0.
        mask: bool [lists, documents], False in padding.
        ideal: DCG@10 of each query's ideal ranking, float64 [lists].
    """

    scores: np.ndarray
    gains: np.ndarray
    mask: np.ndarray
    ideal: np.ndarray

    @classmethod
    def of(
        cls, scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], ideal: Sequence[float] | None = None
    ) -> "PaddedLists":
        """Pad lists of scores [documents, heads] and labels [documents].

        Without ``ideal``, the ideal ranking is computed over the list's documents alone.
        """
        longest = max(len(list_labels) for list_labels in labels)
        padded = np.zeros((len(labels), longest, scores[0].shape[1]))
        gains, mask = np.zeros(padded.shape[:2]), np.zeros(padded.shape[:2], dtype=bool)
        for i, (list_scores, list_labels) in enumerate(zip(scores, labels, strict=True)):
            padded[i, : len(list_labels)] = list_scores
            gains[i, : len(list_labels)] = np.maximum(list_labels, 0)
            mask[i, : len(list_labels)] = True
        ideals = candidates_ideal(gains) if ideal is None else np.asarray(ideal, dtype=np.float64)
        return cls(padded, gains, mask, ideals)

    def __getitem__(self, lists: np.ndarray) -> "PaddedLists":
        return PaddedLists(self.scores[lists], self.gains[lists], self.mask[lists], self.ideal[lists])

    def __len__(self) -> int:
        return len(self.scores)

    def standardised(self) -> "PaddedLists":
        """The same lists with each head's scores standardised within each list."""
        return replace(self, scores=standardised_lists(self.scores, self.mask[..., None]))

    def heads(self, columns: np.ndarray) -> "PaddedLists":
        """The lists restricted to some heads."""
        return replace(self, scores=self.scores[:, :, columns])

    def documents(self, kept: np.ndarray) -> "PaddedLists":
        """The lists restricted to some documents, bool [lists, documents]; the ideal ranking is computed over these."""
        gains = np.where(kept, self.gains, 0)
        return PaddedLists(np.where(kept[..., None], self.scores, 0), gains, kept & self.mask, candidates_ideal(gains))


def candidates_ideal(gains: np.ndarray) -> np.ndarray:
    """DCG@10 of the ideal ranking of each list's documents: gains [lists, documents] to float64 [lists]."""
    return np.array([ideal_dcg(list_gains) for list_gains in gains])


def list_ndcg(lists: PaddedLists, sums: np.ndarray) -> np.ndarray:
    """The nDCG@10 of several rankings of each list: summed scores [lists, documents, rankings] to [lists, rankings]."""
    return ndcg(lists.gains, sums, lists.ideal, lists.mask)


def weighted_ndcg(lists: PaddedLists, weights: np.ndarray) -> np.ndarray:
    """The nDCG@10 of each list ranked by its weighted heads: weights [lists, heads] to [lists]."""
    return list_ndcg(lists, np.einsum("qdh,qh->qd", lists.scores, weights)[..., None])[:, 0]


def log_probability(lists: PaddedLists, sums: np.ndarray) -> np.ndarray:
    """The smooth criterion: mean log-probability of the relevant documents under a softmax over standardised sums.

    Weighted by gains; [lists, documents, rankings] to [lists, rankings]. It covers all documents of a list and is
    invariant to scale and shift of the scores.
    """
    mask = lists.mask[..., None]
    standard = np.where(mask, standardised_lists(sums, mask), -np.inf)
    highest = standard.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(standard - highest).sum(axis=1, keepdims=True)) + highest
    weights = (lists.gains / np.maximum(lists.gains.sum(axis=1, keepdims=True), 1e-12))[..., None]
    mean: np.ndarray = (weights * np.where(weights > 0, standard - log_sum, 0)).sum(axis=1)
    return mean


def standardised_lists(sums: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values standardised within their list; 0 in padding and in lists of equal values.

    Args:
        sums: [lists, documents, ...].
        mask: bool, with the same number of dimensions: False in padding.
    """
    count = mask.sum(axis=1, keepdims=True)
    centred = np.where(mask, sums - np.where(mask, sums, 0).sum(axis=1, keepdims=True) / count, 0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    # As for one list (common.standard): a deviation caused by rounding errors counts as 0.
    differ = deviation > 1e-12 * np.abs(np.where(mask, sums, 0)).max(axis=1, keepdims=True)
    return np.where(differ, centred / np.where(differ, deviation, 1), 0)


def objective(lists: PaddedLists, sums: np.ndarray, smooth: float = 0.0) -> np.ndarray:
    """The objective of the search: [lists, documents, rankings] to [lists, rankings].

    Args:
        lists: the lists.
        sums: summed scores.
        smooth: weight of the smooth criterion against nDCG@10, from 0 (it only breaks ties) to 1 (it alone counts).
    """
    return (1 - smooth) * list_ndcg(lists, sums) + max(smooth, _TIE_WEIGHT) * log_probability(lists, sums)


@dataclass(frozen=True)
class FoundSets:
    """The set that a search found for each list.

    Attributes:
        members: bool [lists, heads].
        before: nDCG@10 of all heads of the pool together, [lists].
        after: nDCG@10 of the found set, [lists].
    """

    members: np.ndarray
    before: np.ndarray
    after: np.ndarray


def search_sets(
    lists: PaddedLists, max_heads: int, *, exchange: bool = True, smooth: float = 0.0, prior: np.ndarray | None = None
) -> FoundSets:
    """For each list the set of at most ``max_heads`` heads with the highest objective.

    Where there are few possible sets, the search is exhaustive (not in the paper). Otherwise forward selection adds the
    best head as long as the objective increases; then single exchanges and removals are made as long as it increases.
    Of sets with equal objectives the smaller wins.

    Args:
        lists: head scores of the pool's heads, and judgements.
        max_heads: maximum number of heads in a set (P).
        exchange: whether to exchange members after adding; without effect on an exhaustive search.
        smooth: see :func:`objective`.
        prior: a bonus for each head, [heads] or [lists, heads]; a set gets the mean over its members. It pulls labels
            towards heads that rank well over all queries.
    """
    num_heads = lists.scores.shape[2]
    max_heads = min(max_heads, num_heads)
    bonus = np.zeros((len(lists), num_heads)) if prior is None else np.broadcast_to(prior, (len(lists), num_heads))
    if sum(comb(num_heads, size) for size in range(1, max_heads + 1)) <= _MAX_EXHAUSTIVE:
        members = _search_exhaustively(lists, max_heads, smooth, bonus)
    else:
        members = _select_forward(lists, max_heads, smooth, bonus)
        if exchange:
            _exchange(lists, members, smooth, bonus)
    all_heads = np.ones_like(members, dtype=float)
    return FoundSets(members, weighted_ndcg(lists, all_heads), weighted_ndcg(lists, members.astype(float)))


def _search_exhaustively(lists: PaddedLists, max_heads: int, smooth: float, bonus: np.ndarray) -> np.ndarray:
    num_heads = lists.scores.shape[2]
    sizes = range(1, max_heads + 1)
    sets = [head_set for size in sizes for head_set in combinations(range(num_heads), size)]  # smaller sets first
    chosen = np.zeros((num_heads, len(sets)))
    for i, head_set in enumerate(sets):
        chosen[list(head_set), i] = 1
    members = np.empty((len(lists), num_heads), dtype=bool)
    for i in range(len(lists)):
        single = lists[np.array([i])]
        values = objective(single, single.scores @ chosen, smooth)[0] + bonus[i] @ chosen / chosen.sum(axis=0)
        best = int(np.argmax(values > values.max() - _MIN_GAIN))
        members[i] = chosen[:, best] > 0
    return members


def _select_forward(lists: PaddedLists, max_heads: int, smooth: float, bonus: np.ndarray) -> np.ndarray:
    members = np.zeros((len(lists), lists.scores.shape[2]), dtype=bool)
    value = np.full(len(lists), -np.inf)
    growing = np.arange(len(lists))
    for _ in range(max_heads):
        growing_lists, inside = lists[growing], members[growing]
        set_sums = np.einsum("qdh,qh->qd", growing_lists.scores, inside.astype(float))
        sums = set_sums[..., None] + growing_lists.scores
        size, total = inside.sum(axis=1, keepdims=True), (bonus[growing] * inside).sum(axis=1, keepdims=True)
        values = objective(growing_lists, sums, smooth) + (total + bonus[growing]) / (size + 1)
        values[inside] = -np.inf
        best = values.argmax(axis=1)
        gained = values[np.arange(len(growing)), best] > value[growing] + _MIN_GAIN
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
        active, inside, extra = lists[improving], members[improving], bonus[improving]
        size = inside.sum(axis=1)
        set_sums = np.einsum("qdh,qh->qd", active.scores, inside.astype(float))
        total = (extra * inside).sum(axis=1)
        places = np.argsort(~inside, axis=1, kind="stable")  # members first
        best_value, best_out, best_in = np.full(len(active), -np.inf), places[:, 0].copy(), places[:, 0].copy()
        for place in range(size.max()):
            has = np.flatnonzero(size > place)
            out = places[has, place]
            less = set_sums[has] - active.scores[has, :, out]
            left = (total[has] - extra[has, out])[:, None]
            part = active[has]
            values = objective(part, less[..., None] + part.scores, smooth) + (left + extra[has]) / size[has, None]
            values[inside[has]] = -np.inf
            removed = objective(part, less[..., None], smooth) + left / np.maximum(size[has, None] - 1, 1)
            removed[size[has] == 1] = -np.inf
            # The last column is a removal, which wins ties.
            values = np.concatenate([values, removed + 2 * _MIN_GAIN], axis=1)
            top = values.argmax(axis=1)
            better = values[np.arange(len(has)), top] > best_value[has] + _MIN_GAIN
            rows = has[better]
            best_value[rows], best_out[rows], best_in[rows] = values[better, top[better]], out[better], top[better]
        changed = inside.copy()
        changed[np.arange(len(active)), best_out] = False
        entering = np.flatnonzero(best_in < inside.shape[1])
        changed[entering, best_in[entering]] = True
        # The objective is recomputed from the full sum: where documents tie up to rounding, that of an incrementally
        # updated sum may differ, and the search would cycle.
        new = _value(active, changed, smooth, extra)
        grown = new > value[improving] + _MIN_GAIN
        improving = improving[grown]
        members[improving], value[improving] = changed[grown], new[grown]


def _value(lists: PaddedLists, members: np.ndarray, smooth: float, bonus: np.ndarray) -> np.ndarray:
    """The objective of the exchange step, [lists]: of sets that rank equally the smaller has the higher value."""
    size = members.sum(axis=1)
    sums = np.einsum("qdh,qh->qd", lists.scores, members.astype(float))
    quality = objective(lists, sums[..., None], smooth)[:, 0]
    value: np.ndarray = quality + (bonus * members).sum(axis=1) / size - 2 * _MIN_GAIN * size
    return value
