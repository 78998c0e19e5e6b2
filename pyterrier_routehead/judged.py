"""Judged candidate lists: head scores with judgements, from which re-rankers learn."""

import numbers
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt

from .criteria import Criterion
from .default_model import packaged_gguf
from .frames import CandidateRows, candidate_lists, candidate_texts, check_finite, used_title_field, vector_rows
from .head_set import Detection, HeadSet
from .heads import HeadsLike
from .reader import CandidateList
from .reading import ModelIdentity, Reading, ReadingSettings, resolve_settings
from .rerank import StaticHeadReranker
from .shipped import is_shipped_model

if TYPE_CHECKING:
    from .scores import ListScores

MEASURE = ir_measures.nDCG @ 10
"""By which k and temperature are chosen on validation queries."""


@dataclass(frozen=True)
class JudgedList:
    """Head scores of a candidate list with its judgements.

    Attributes:
        candidates: where the list's candidates stand in the frame, best of the first stage first.
        labels: one number a candidate, float64; 0 where it was not judged.
        raw: attention without calibration, float32 [candidates, heads]; None where no criterion wants it.
        vectors: scores as they are ranked by, float32 [candidates, heads].
    """

    candidates: CandidateRows
    labels: np.ndarray
    raw: np.ndarray | None
    vectors: np.ndarray


def judge_heads(criterion: Criterion, lists: Sequence[JudgedList]) -> np.ndarray:
    """Mean of a criterion over judged lists: one number per head, float64 [heads].

    Lists that tell nothing (no positive, or nothing but positives) do not count.

    Raises:
        ValueError: where no list counts.
    """
    judged = [criterion(own.vectors if criterion.calibrated else own.raw, own.labels) for own in lists]
    counting = [values for values in judged if values is not None]
    if not counting:
        raise ValueError(
            "no candidate list has both a relevant and another candidate: "
            "do the qids and docnos of topics and qrels agree?"
        )
    return np.mean(counting, axis=0)


def tells(labels: np.ndarray) -> bool:
    """Whether a list with these labels tells something about heads: it has a positive and a negative."""
    return bool((labels > 0).any() and (labels <= 0).any())


def spread_positions(labels: np.ndarray, positions: int) -> list[np.ndarray]:
    """CoRe's position protocol: orders of a list's candidates with one positive at several places.

    The first positive is kept and put at places spread evenly from the first to the last; the negatives keep their
    order, other positives are left out.

    Args:
        labels: one number a candidate, best of the first stage first; with a positive and a negative.
        positions: how many places; each is taken once where there are fewer.

    Returns:
        For each order the numbers of the candidates.
    """
    positive, negatives = int(np.argmax(labels > 0)), np.flatnonzero(labels <= 0)
    places = dict.fromkeys(np.linspace(0, len(negatives), positions).round().astype(int).tolist())
    return [np.insert(negatives, place, positive) for place in places]


class FittedReranker(StaticHeadReranker, pt.Estimator):
    """What re-rankers share that learn from judged candidate lists."""

    max_layer: int | float | None = None
    positions: int | None = None
    detection_data: str | None = None

    def _settings(self) -> ReadingSettings:
        limit = self.max_layer
        if limit is not None:
            whole = isinstance(limit, numbers.Integral) and not isinstance(limit, bool)
            if not (whole and limit >= 1) and not (isinstance(limit, float | np.floating) and 0 < limit <= 1):
                raise ValueError(f"max_layer is a number of layers from 1, or a share of them up to 1.0, got {limit!r}")
        if self.positions is not None and (
            not isinstance(self.positions, numbers.Integral) or isinstance(self.positions, bool) or self.positions < 1
        ):
            raise ValueError(f"positions is a number from 1, got {self.positions!r}")
        return super()._settings()

    def _within(self, head_set: HeadSet) -> HeadSet:
        """The heads in the layers that ``max_layer`` keeps."""
        if self.max_layer is None:
            return head_set
        if isinstance(self.max_layer, numbers.Integral):
            return head_set.below(int(self.max_layer))
        # CoRe's code: int(layers * (1 - pruned share)); a hair above, since .29 * 100 is just below 29.
        return head_set.below(max(1, int(head_set.model.num_layers * self.max_layer + 1e-9)))

    def _uses_shipped(self) -> bool:
        """Whether what ranks came with the package: nothing was fitted or given, for SmolLM2-135M."""
        return False

    def _check_model(self, heads: HeadSet, model: ModelIdentity) -> None:
        if not self._uses_shipped():
            super()._check_model(heads, model)
        elif not is_shipped_model(model.name):
            raise RuntimeError(f"{type(self).__name__} has no heads for {model} yet: fit it, or give it heads")
        elif not heads.model.is_same(model):
            warnings.warn(
                f"the heads that come with the package were found in {heads.model}, not in {model}", stacklevel=6
            )

    def _named_model(self, heads: HeadsLike | HeadSet) -> ModelIdentity | None:
        # Without the file that they were found in, what ships ranks with the hub's weights, as the default model does.
        missing = self._uses_shipped() and packaged_gguf() is None
        return None if missing else super()._named_model(heads)

    # Judged lists

    def _judged(
        self, frame: pd.DataFrame, qrels: pd.DataFrame, criteria: Sequence[Criterion], positions: int | None
    ) -> tuple[Reading, list[JudgedList]]:
        """What was read, and the lists of a frame that tell something about heads."""
        has_vectors = self._has_vectors(frame)
        pt.validate.columns(qrels, includes=["qid", "docno", "label"])
        told = list(self._telling_lists(frame, qrels))
        if not told:
            raise ValueError(
                f"none of the {frame['qid'].nunique()} candidate lists has both a relevant and another candidate: "
                "do the qids and docnos of topics and qrels agree?"
            )
        if not has_vectors:
            return self._read_judged(frame, told, criteria, positions)
        if positions is not None:
            raise ValueError("positions moves documents in the prompt: it is for text, not for head scores in a frame")
        return self._take_judged(frame, told, criteria)

    def _telling_lists(self, frame: pd.DataFrame, qrels: pd.DataFrame) -> Iterator[tuple[CandidateRows, np.ndarray]]:
        keys = list(zip(qrels["qid"].astype(str), qrels["docno"].astype(str), strict=True))
        judged = pd.to_numeric(qrels["label"], errors="coerce").to_numpy(dtype=float)
        if not (wrong := judged != np.round(judged)).any() and np.isfinite(judged).all():
            label_of = dict(zip(keys, judged, strict=True))
        else:
            qid, docno = keys[int(np.argmax(wrong | ~np.isfinite(judged)))]
            raise ValueError(f"qrels: the label of query {qid!r}, document {docno!r} is no whole number")
        for own in candidate_lists(frame):
            top = CandidateRows(own.qid, own.rows[: self.depth])
            docnos = frame["docno"].iloc[top.rows].astype(str)
            labels = np.array([label_of.get((own.qid, docno), 0.0) for docno in docnos])
            if tells(labels):
                yield top, labels

    def _take_judged(
        self, frame: pd.DataFrame, told: Sequence[tuple[CandidateRows, np.ndarray]], criteria: Sequence[Criterion]
    ) -> tuple[Reading, list[JudgedList]]:
        """From head scores that are in the frame."""
        reading, lists = None, []
        for candidates, labels in told:
            readings, vectors = vector_rows(frame, candidates)
            if reading is None:
                reading = readings[0]
                self._check_reading(reading)
                _check_calibration(criteria, reading.settings)
            distinct = {id(one): one for one in readings}.values()
            if any(one.heads != reading.heads or not one.same_but_heads(reading) for one in distinct):
                raise ValueError(f"query {candidates.qid!r}: its head_scores were read otherwise than those before it")
            vectors, rows = vectors[: len(labels)], candidates.rows[: len(vectors)]
            if not tells(labels[: len(rows)]):
                continue  # its relevant documents stand below those with vectors
            check_finite(np.stack(vectors), candidates.qid)
            raw = None
            if not all(criterion.calibrated for criterion in criteria):
                raw = _raw_vectors(frame, CandidateRows(candidates.qid, rows), reading, vectors)
            lists.append(JudgedList(CandidateRows(candidates.qid, rows), labels[: len(rows)], raw, np.stack(vectors)))
        return reading, lists

    def _read_judged(
        self,
        frame: pd.DataFrame,
        told: Sequence[tuple[CandidateRows, np.ndarray]],
        criteria: Sequence[Criterion],
        positions: int | None,
    ) -> tuple[Reading, list[JudgedList]]:
        """From text: reads all heads of the model."""
        settings = resolve_settings(self._given())
        _check_calibration(criteria, settings)
        reader = self._reader("all", settings)
        texts, placed = [], []
        for candidates, labels in told:
            orders = [np.arange(len(labels))] if positions is None else spread_positions(labels, positions)
            titles = used_title_field(frame.columns, self.title_field, self.text_field)
            own = candidate_texts(frame, candidates, None, self.text_field, titles)
            for order in orders:
                texts.append(CandidateList(own.qid, own.query, [own.candidates[i] for i in order]))
                placed.append((CandidateRows(candidates.qid, candidates.rows[order]), labels[order]))
        read = reader.read(texts, self.batch_size)
        if self.verbose:
            read = pt.tqdm(read, total=len(texts), unit="q", desc=f"{type(self).__name__}.fit")
        keep_raw = not all(criterion.calibrated for criterion in criteria)
        lists = []
        for (own, scores), (candidates, labels) in zip(read, placed, strict=True):
            vectors = _vectors(scores, settings)
            check_finite(vectors, own.qid)
            lists.append(JudgedList(candidates, labels, scores.raw if keep_raw else None, vectors))
        return reader.reading, lists

    def _head_set(self, criterion: Criterion, reading: Reading, lists: Sequence[JudgedList]) -> HeadSet:
        scores = judge_heads(criterion, lists)
        order = np.argsort(-scores, kind="stable")
        settings = {**criterion.settings, "calibrated": criterion.calibrated}
        settings["depth"] = None if self.depth is None else int(self.depth)
        if self.positions is not None:
            settings["positions"] = int(self.positions)
        queries = len({own.candidates.qid for own in lists})
        detection = Detection(criterion.name, settings, self.detection_data or "not named", queries)
        heads = [reading.heads[i] for i in order]
        return HeadSet.of(
            heads, scores=scores[order], model=reading.model, settings=reading.settings, detection=detection
        )

    def _quality(
        self, columns: Sequence[int], frame: pd.DataFrame, qrels: pd.DataFrame, lists: Iterable[JudgedList]
    ) -> float:
        """nDCG@10 of some heads on judged lists."""
        run = []
        for own in lists:
            attention = own.vectors[:, columns].sum(axis=1, dtype=np.float64)
            scores = self._with_first_stage(frame, own.candidates, attention)
            ranked = own.candidates.rows[np.argsort(-scores, kind="stable")]
            docnos = frame["docno"].iloc[ranked].astype(str)
            falling = -np.arange(len(ranked), dtype=float)  # ir_measures breaks ties by docno
            run.append(pd.DataFrame({"query_id": own.candidates.qid, "doc_id": docnos, "score": falling}))
        run = pd.concat(run, ignore_index=True)
        known = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        known = known.assign(relevance=pd.to_numeric(known["relevance"]).astype(int))
        known = known.astype({"query_id": str, "doc_id": str})
        return ir_measures.calc_aggregate([MEASURE], known[known["query_id"].isin(run["query_id"])], run)[MEASURE]


def _vectors(scores: "ListScores", settings: ReadingSettings) -> np.ndarray:
    # The filter over a sum has no scores per head: heads are judged by the filter per head then.
    token_filter = "head" if settings.token_filter == "sum" else settings.token_filter
    return scores.vectors(calibrate=settings.calibrate, token_filter=token_filter)


def _check_calibration(criteria: Iterable[Criterion], settings: ReadingSettings) -> None:
    for criterion in criteria:
        if criterion.calibrated and not settings.calibrate:
            raise ValueError(f"the criterion {criterion.name!r} is on calibrated scores, but calibrate=False")


def _raw_vectors(
    frame: pd.DataFrame, candidates: CandidateRows, reading: Reading, vectors: Sequence[np.ndarray]
) -> np.ndarray:
    if not reading.settings.calibrate:
        return np.stack(vectors)
    if "head_scores_raw" not in frame.columns:
        raise ValueError(
            "the criterion is on uncalibrated scores, but the frame has no column 'head_scores_raw': "
            "give AttentionHeadScorer(raw=True), or choose a criterion on calibrated scores"
        )
    raw = list(frame["head_scores_raw"].iloc[candidates.rows])
    for row, own, vector in zip(candidates.rows, raw, vectors, strict=True):
        if np.shape(own) != vector.shape:
            docno = frame["docno"].iloc[row]
            raise ValueError(f"query {candidates.qid!r}, document {docno!r}: head_scores_raw does not fit head_scores")
    return np.stack(raw)
