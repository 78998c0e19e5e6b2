"""Judged candidate lists: head scores with judgements, from which re-rankers learn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyterrier as pt

from ..common.progress import with_progress
from ..detection.criteria import Criterion
from ..detection.head_set import HeadSet
from ..detection.provenance import Detection
from ..evaluation.measures import ideal_dcg, ndcg
from ..ranking.frames import check_finite
from ..ranking.policy import Choice, QueryList
from ..ranking.rank import combine
from ..ranking.sources import HeadVectors, ScoreSource, in_batches
from ..reading.reading import Reading, ReadingSettings


class Judgements:
    """Labels by query and document.

    Args:
        qrels: ``qid``, ``docno`` and ``label``; above 0 is relevant.

    Raises:
        ValueError: for a label that is not an integer, naming qid and docno.
    """

    def __init__(self, qrels: pd.DataFrame) -> None:
        pt.validate.columns(qrels, includes=["qid", "docno", "label"])
        keys = list(zip(qrels["qid"].astype(str), qrels["docno"].astype(str), strict=True))
        labels = pd.to_numeric(qrels["label"], errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(labels) | (labels != np.round(labels))
        if wrong.any():
            qid, docno = keys[int(np.argmax(wrong))]
            raise ValueError(f"qrels: the label of query {qid!r}, document {docno!r} must be an integer")
        self._by_query: dict[str, dict[str, float]] = {}
        for (qid, docno), label in zip(keys, labels, strict=True):
            self._by_query.setdefault(qid, {})[docno] = label

    def labels(self, qid: str, docnos: Iterable[object]) -> np.ndarray:
        """One label per document, float64; 0 for unjudged ones."""
        known = self._by_query.get(qid, {})
        return np.array([known.get(str(docno), 0.0) for docno in docnos])

    def ideal(self, qid: str) -> float:
        """DCG@10 of the ideal ranking of all documents judged for a query."""
        return ideal_dcg(np.array(list(self._by_query.get(qid, {}).values())))


@dataclass(frozen=True)
class JudgedList:
    """Head scores of a candidate list with its judgements.

    Attributes:
        query: the list's query and candidates.
        labels: one label per candidate, float64; 0 for unjudged ones.
        ideal: DCG@10 of the ideal ranking of all documents judged for the query.
        vectors: head scores for ranking, float32 [candidates, heads].
        raw: attention without calibration, float32 [candidates, heads]; None where no criterion requires it.
    """

    query: QueryList
    labels: np.ndarray
    ideal: float
    vectors: np.ndarray
    raw: np.ndarray | None = None


@dataclass(frozen=True)
class JudgedLists:
    """Informative lists (with a relevant and a non-relevant candidate), all read with the same settings.

    Attributes:
        reading: model, heads and settings of their vectors.
        lists: the lists.
        left_out: number of uninformative lists of the frame.
    """

    reading: Reading
    lists: list[JudgedList]
    left_out: int

    def check_like(self, other: "JudgedLists") -> None:
        """Raise an error for validation lists that were read with other settings than these."""
        if other.reading.heads != self.reading.heads or not other.reading.same_but_heads(self.reading):
            raise ValueError("the validation lists were read with other settings than the training lists")


def read_judged(
    source: ScoreSource,
    qrels: pd.DataFrame,
    *,
    depth: int | None,
    check: Callable[[Reading], None] | None = None,
    raw: bool = False,
    positions: int | None = None,
    query: bool = False,
    first_stage: bool = False,
    part: str = "candidate",
    desc: str = "fit",
    verbose: bool | None = None,
) -> JudgedLists:
    """Head scores of the informative lists of a source; uninformative ones are not read.

    Args:
        source: gives scores of all heads.
        qrels: judgements.
        depth: maximum number of candidates per query.
        check: raises an error for an unsuitable reading before any list is read.
        raw: uncalibrated scores too.
        positions: read each list this many times, with one relevant document at this many positions; see
            :func:`spread_positions`.
        query: whether queries are required.
        first_stage: whether the first stage's scores are required.
        part: name of the lists in error messages, such as ``"validation"``.
        desc: label of the progress bar.
        verbose: whether to show a progress bar.

    Raises:
        ValueError: if no list is informative, or lists were read with different settings.
    """
    judgements = Judgements(qrels)
    candidate_lists = source.lists(depth, query=query, first_stage=first_stage)
    informative = []
    for candidates in candidate_lists:
        labels = judgements.labels(candidates.qid, source.frame["docno"].iloc[candidates.rows])
        if is_informative(labels):
            informative.append((candidates, labels))
    if not informative:
        raise ValueError(
            f"none of the {len(candidate_lists)} {part} lists has both a relevant and a non-relevant candidate: "
            "do the qids and docnos of topics and qrels agree?"
        )
    source.accept([candidates for candidates, _ in informative])
    reading = source.reading(informative[0][0])
    if check is not None:
        check(reading)
    for candidates, _ in informative:
        list_reading = source.reading(candidates)
        same_heads = list_reading.heads == reading.heads
        if list_reading is not reading and not (same_heads and list_reading.same_but_heads(reading)):
            raise ValueError(
                f"query {candidates.qid!r}: its head_scores were read with other settings than those before it"
            )
    if positions is None:
        placed = [(candidates, labels, judgements.ideal(candidates.qid)) for candidates, labels in informative]
    else:  # the other relevant documents are left out, so the ideal ranking is that of the list
        placed = [
            (candidates.part(order), labels[order], ideal_dcg(labels[order]))
            for candidates, labels in informative
            for order in spread_positions(labels, positions)
        ]
    lists = []
    shown = with_progress(placed, total=len(placed), desc=desc, verbose=verbose)
    batches = in_batches([candidates for candidates, _, _ in placed], source.batch_size)

    def read_batch(batch: Sequence[QueryList]) -> list[HeadVectors]:
        source.prepare(batch)
        return source.read(batch, [reading.heads] * len(batch), raw=raw)

    read = (scores for batch in batches for scores in read_batch(batch))
    for (candidates, labels, ideal), scores in zip(shown, read, strict=True):
        check_finite(scores.vectors, candidates.qid)
        lists.append(JudgedList(candidates, labels, ideal, scores.vectors, scores.raw))
    return JudgedLists(reading, lists, len(candidate_lists) - len(informative))


def is_informative(labels: np.ndarray) -> bool:
    """Whether a list with these labels distinguishes heads: it has a positive and a negative."""
    return bool((labels > 0).any() and (labels <= 0).any())


def spread_positions(labels: np.ndarray, positions: int) -> list[np.ndarray]:
    """CoRe's position protocol: orders of a list's candidates with one positive at several positions.

    The first positive is put at positions spread evenly from the first to the last; the negatives keep their order,
    other positives are left out.

    Args:
        labels: one label per candidate, in first-stage order; with a positive and a negative.
        positions: number of positions; each is used once where the list has fewer.

    Returns:
        For each order the indices of the candidates.
    """
    positive, negatives = int(np.argmax(labels > 0)), np.flatnonzero(labels <= 0)
    places = dict.fromkeys(np.linspace(0, len(negatives), positions).round().astype(int).tolist())
    return [np.insert(negatives, place, positive) for place in places]


def judge_heads(criterion: Criterion, lists: Sequence[JudgedList]) -> np.ndarray:
    """Mean of a criterion over judged lists: one number per head, float64 [heads].

    Uninformative lists (without a positive or without a negative) are ignored.

    Raises:
        ValueError: if no list is informative.
    """
    values_by_list = []
    for judged_list in lists:
        scores = judged_list.vectors if criterion.calibrated else judged_list.raw
        assert scores is not None, "a criterion on uncalibrated scores requires them"
        if (values := criterion(scores, judged_list.labels, ideal=judged_list.ideal)) is not None:
            values_by_list.append(values)
    if not values_by_list:
        raise ValueError(
            "no candidate list has both a relevant and a non-relevant candidate: "
            "do the qids and docnos of topics and qrels agree?"
        )
    mean: np.ndarray = np.mean(values_by_list, axis=0)
    return mean


def ranked_heads(
    criterion: Criterion, judged: JudgedLists, *, depth: int | None, positions: int | None, data: str | None
) -> HeadSet:
    """All heads of judged lists, best first by a criterion."""
    scores = judge_heads(criterion, judged.lists)
    order = np.argsort(-scores, kind="stable")
    settings = {**criterion.settings, "calibrated": criterion.calibrated, "depth": depth}
    if positions is not None:
        settings["positions"] = int(positions)
    queries = len({judged_list.query.qid for judged_list in judged.lists})
    return HeadSet.of(
        [judged.reading.heads[i] for i in order],
        scores=scores[order].tolist(),
        model=judged.reading.model,
        settings=judged.reading.settings,
        detection=Detection(criterion.name, settings, data or "not named", queries),
    )


def mean_ndcg(judged: JudgedLists, columns: Sequence[int] | None, first_stage_weight: float) -> float:
    """Mean nDCG@10 of judged lists, ranked by the sum of some heads; in first-stage order for None."""
    values = []
    for judged_list in judged.lists:
        if columns is None:
            scores = -np.arange(len(judged_list.labels), dtype=float)
        else:
            choice = Choice(tuple(judged.reading.heads[i] for i in columns))
            scores = combine(judged_list.vectors[:, columns], choice, judged_list.query.first_stage, first_stage_weight)
        gains = np.maximum(judged_list.labels, 0)[None]
        values.append(ndcg(gains, scores[None, :, None], np.array([judged_list.ideal]))[0, 0])
    return float(np.mean(values))


def check_calibration(criteria: Iterable[Criterion], settings: ReadingSettings) -> None:
    """Raise an error for a criterion on calibrated scores with uncalibrated scores."""
    for criterion in criteria:
        if criterion.calibrated and not settings.calibrate:
            raise ValueError(f"the criterion {criterion.name!r} requires calibrated scores, but calibrate=False")


def check_parts(train: pd.DataFrame, valid: pd.DataFrame | None, qrels_va: pd.DataFrame | None) -> None:
    """Raise an error for inconsistent training and validation queries, before any list is read.

    Raises:
        ValueError: for validation candidates without judgements or the reverse, or queries in both parts.
    """
    if (valid is None) != (qrels_va is None):
        raise ValueError("validation queries need both candidates and qrels: fit(topics, qrels, topics, qrels)")
    if valid is None:
        return
    for name, frame in (("training", train), ("validation", valid)):
        if "qid" not in frame.columns:
            raise ValueError(f"the {name} candidates have no column 'qid'")
    if shared := set(train["qid"].astype(str)) & set(valid["qid"].astype(str)):
        raise ValueError(f"{len(shared)} queries are in training and validation, such as {min(shared)!r}")
