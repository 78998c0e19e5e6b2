"""From head scores to a ranking: the one function that every re-ranker ranks by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.standard import ATTENTION_NOISE, standardised
from .frames import check_finite
from .policy import Choice, HeadPolicy, QueryList
from .sources import ScoreSource, Windows, in_batches
from .windows import slide_windows


@dataclass(frozen=True)
class RankedList:
    """A list that was ranked.

    Attributes:
        query: the list.
        scores: float64 [candidates].
        choices: by which heads each candidate was ranked.
    """

    query: QueryList
    scores: np.ndarray
    choices: list[Choice]


def rank(
    lists: Sequence[QueryList], source: ScoreSource, policy: HeadPolicy, *, first_stage_weight: float = 0.0
) -> Iterator[RankedList]:
    """Rank lists by the heads that a policy chooses, read from a source.

    A query is routed before its list is read, so that no head is read, and no layer run, that none of a batch's lists
    wants. A list that does not fit into one prompt is ranked in sliding windows.

    Raises:
        MismatchError: for head scores that must not be used here, before anything is ranked.
        ValueError: naming the qid of a list that cannot be read, or whose scores are not finite.
    """
    source.accept(lists)
    for batch in in_batches(lists, source.batch_size):
        source.prepare(batch)
        choices = [policy.choose(candidates, source) for candidates in batch]
        windows = {i: found for i, candidates in enumerate(batch) if (found := source.windows(candidates)) is not None}
        at_once = [i for i in range(len(batch)) if i not in windows]
        read = source.read([batch[i] for i in at_once], [choices[i].heads for i in at_once])
        scored = {
            i: _score(batch[i], found.vectors, choices[i], policy, first_stage_weight)
            for i, found in zip(at_once, read, strict=True)
        }
        for i, (candidates, choice) in enumerate(zip(batch, choices, strict=True)):
            if i in scored:
                scores, used = scored[i]
                ranked = RankedList(candidates, scores, [used] * len(scores))
            else:
                ranked = _in_windows(candidates, choice, windows[i], source, policy, first_stage_weight)
            check_finite(ranked.scores, candidates.qid)
            yield ranked


def combine(
    vectors: np.ndarray, choice: Choice, first_stage: np.ndarray | None, first_stage_weight: float
) -> np.ndarray:
    """One score a candidate, float64, from its head scores [candidates, heads] and the first stage's scores.

    The heads are summed, weighted where the choice has weights; both sides are then standardised over the list if the
    first stage takes part.
    """
    if choice.standardise:
        # Such weights were trained for sums that are added to the first stage's score as they are.
        vectors = standardised(vectors.astype(np.float64), ATTENTION_NOISE)
    if choice.weights is None:
        attention: np.ndarray = vectors.sum(axis=1, dtype=np.float64)
    else:
        attention = vectors.astype(np.float64, copy=False) @ choice.weights
    if not first_stage_weight:
        return attention
    assert first_stage is not None, "a weight of the first stage asks for its scores"
    if not choice.standardise:
        attention = standardised(attention, ATTENTION_NOISE)
    mixed: np.ndarray = attention + first_stage_weight * standardised(first_stage)
    return mixed


def _score(
    candidates: QueryList, vectors: np.ndarray, choice: Choice, policy: HeadPolicy, first_stage_weight: float
) -> tuple[np.ndarray, Choice]:
    used = policy.refine(choice, candidates, vectors)
    return combine(vectors, used, candidates.first_stage, first_stage_weight), used


def _in_windows(
    candidates: QueryList,
    choice: Choice,
    windows: Windows,
    source: ScoreSource,
    policy: HeadPolicy,
    first_stage_weight: float,
) -> RankedList:
    choices = [choice] * len(candidates.rows)

    def rank_window(numbers: list[int]) -> np.ndarray:
        part = candidates.part(numbers)
        (found,) = source.read([part], [choice.heads])
        scores, used = _score(part, found.vectors, choice, policy, first_stage_weight)
        for number in numbers:  # of several windows that a document was in, the last one counts
            choices[number] = used
        return scores

    return RankedList(candidates, slide_windows(windows.lengths, windows.budget, rank_window), choices)
