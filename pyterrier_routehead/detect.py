"""Head detection: which heads rank well, from judged candidate lists.

`CoReHeadReranker` and `QRHeadReranker` are fitted in a pipeline: fitting scores every head of the model by a criterion,
and ranking is that of a static set, the best k heads.
"""

import numbers
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt

from .criteria import Criterion, core_criterion, get_criterion
from .frames import CandidateRows, candidate_lists, candidate_texts, check_finite, vector_rows
from .head_set import Detection, HeadSet
from .heads import HeadsLike, is_all
from .llm import FrozenLLM
from .reader import CandidateList
from .reading import ModelIdentity, Reading, ReadingSettings, resolve_settings
from .rerank import StaticHeadReranker
from .shipped import is_shipped, is_shipped_model, shipped_heads
from .store import HeadScoreStore
from .template import PromptTemplate

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


class _DetectedHeadReranker(StaticHeadReranker, pt.Estimator):
    """What re-rankers share whose heads are found by ``fit``; subclasses say by which criteria."""

    head_set_: HeadSet
    validation_: pd.DataFrame
    _best_k: int
    _ships: str | None = None

    def _criteria(self) -> list[Criterion]:
        raise NotImplementedError

    def __repr__(self) -> str:
        depth = "" if self.depth is None else f", depth={self.depth}"
        return f"{type(self).__name__}(k={self.k}{depth})"

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> "_DetectedHeadReranker":
        """Find the heads that rank the training lists well.

        Sets ``head_set_``: all heads, best first, with their scores. Where there is something to choose it also sets
        ``validation_``: a table of nDCG@10 on the validation lists for everything that was tried. Lists without a
        relevant candidate, or with no other, tell nothing; they are not even read.

        Args:
            topics_or_res_tr: candidates of the training queries, with text or head scores as for ``transform``. A
                criterion on uncalibrated scores also needs ``head_scores_raw`` beside head scores.
            qrels_tr: their judgements: ``qid``, ``docno`` and ``label``. Above 0 is relevant.
            topics_or_res_va: candidates of the validation queries: needed if there is something to choose.
            qrels_va: their judgements.

        Raises:
            ValueError: where no list tells anything, ``head_scores_raw`` or validation queries are missing, or heads
                were given.
        """
        self._settings()
        if self.heads is not None:
            raise ValueError(f"{type(self).__name__} was given heads: leave them out to find some")
        criteria, ks = self._criteria(), _listed(self.k)
        choosing = len(criteria) * len(ks) > 1
        if choosing and (topics_or_res_va is None or qrels_va is None):
            raise ValueError("one of several values is chosen on validation queries: fit(topics, qrels, topics, qrels)")
        reading, lists = self._judged(topics_or_res_tr, qrels_tr, criteria, self.positions)
        found = [self._head_set(criterion, reading, lists) for criterion in criteria]
        best, best_k = 0, ks[0]
        if choosing:
            other, valid = self._judged(topics_or_res_va, qrels_va, criteria, None)
            if other.heads != reading.heads or not other.same_but_heads(reading):
                raise ValueError("the validation lists were read otherwise than the training lists")
            tried = list(product(range(len(found)), ks))
            values = [
                self._quality(reading.columns(self._within(found[i]).top(k)), topics_or_res_va, qrels_va, valid)
                for i, k in tried
            ]
            self.validation_ = pd.DataFrame(
                {"criterion": criteria[i].name, **criteria[i].settings, "k": k, str(MEASURE): value}
                for (i, k), value in zip(tried, values, strict=True)
            )
            best, best_k = tried[int(np.argmax(values))]  # the first of equals
        self.head_set_, self._best_k = found[best], best_k
        return self

    # Which heads rank

    def _chosen(self) -> HeadsLike | HeadSet | None:
        heads = self.heads if self.heads is not None else getattr(self, "head_set_", None)
        if self._uses_shipped():
            heads = shipped_heads(self._ships, self._attention())
        if heads is None or is_all(heads):
            return heads
        ks = _listed(self.k)
        k = ks[0] if len(ks) == 1 else getattr(self, "_best_k", ks[0])
        return self._within(heads).top(k) if isinstance(heads, HeadSet) else heads

    def _uses_shipped(self) -> bool:
        """Whether the heads are those that come with the package: nothing was fitted or given, for SmolLM2-135M."""
        found = self.heads is not None or hasattr(self, "head_set_")
        return not found and self._ships is not None and is_shipped(self._ships, self._attention(), self.llm)

    def _attention(self) -> str:
        return self.document_attention or "listwise"

    def _check_model(self, heads: HeadSet, model: ModelIdentity) -> None:
        if not self._uses_shipped():
            super()._check_model(heads, model)
        elif not is_shipped_model(model.name):
            raise RuntimeError(f"{type(self).__name__} has no heads for {model} yet: fit it, or give it heads")
        elif not heads.model.is_same(model):
            warnings.warn(
                f"the heads that come with the package were found in {heads.model}, not in {model}", stacklevel=6
            )

    def _within(self, head_set: HeadSet) -> HeadSet:
        """The heads in the layers that ``max_layer`` keeps."""
        if self.max_layer is None:
            return head_set
        if isinstance(self.max_layer, numbers.Integral):
            return head_set.below(int(self.max_layer))
        # CoRe's code: int(layers * (1 - pruned share)); a hair above, since .29 * 100 is just below 29.
        return head_set.below(max(1, int(head_set.model.num_layers * self.max_layer + 1e-9)))

    def _settings(self) -> ReadingSettings:
        ks = _listed(self.k)
        if not ks or any(not isinstance(k, numbers.Integral) or isinstance(k, bool) or k < 1 for k in ks):
            raise ValueError(f"k is a number of heads from 1, or a list of such, got {self.k!r}")
        limit = self.max_layer
        if limit is not None:
            whole = isinstance(limit, numbers.Integral) and not isinstance(limit, bool)
            if not (whole and limit >= 1) and not (isinstance(limit, float | np.floating) and 0 < limit <= 1):
                raise ValueError(f"max_layer is a number of layers from 1, or a share of them up to 1.0, got {limit!r}")
        if self.positions is not None and (not isinstance(self.positions, numbers.Integral) or self.positions < 1):
            raise ValueError(f"positions is a number from 1, got {self.positions!r}")
        self._criteria()
        return super()._settings()

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
        keys = zip(qrels["qid"].astype(str), qrels["docno"].astype(str), strict=True)
        label_of = dict(zip(keys, qrels["label"].astype(float), strict=True))
        for own in candidate_lists(frame):
            top = CandidateRows(own.qid, own.rows[: self.depth])
            docnos = frame["docno"].iloc[top.rows].astype(str)
            labels = np.array([label_of.get((own.qid, docno), 0.0) for docno in docnos])
            if (labels > 0).any() and (labels <= 0).any():
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
            rows = candidates.rows[: len(vectors)]
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
            own = candidate_texts(frame, candidates, None, self.text_field, self.title_field)
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
        settings = {**criterion.settings, "calibrated": criterion.calibrated, "depth": self.depth}
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
        known = known.astype({"query_id": str, "doc_id": str, "relevance": int})
        return ir_measures.calc_aggregate([MEASURE], known[known["query_id"].isin(run["query_id"])], run)[MEASURE]


def _listed(value: object) -> list:
    return list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]


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


class CoReHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that tell relevant documents from hard negatives (CoRe, arXiv 2510.02219).

    ``(bm25 % 20 >> text >> CoReHeadReranker()).fit(topics, qrels)`` finds the heads: each head of the model is scored
    by the softmax probability, at a temperature, that it gives a relevant document among the non-relevant candidates of
    its list, on average over the queries. Ranking is then that of :class:`StaticHeadReranker` with the best k heads,
    with the same columns, and no layer above the deepest of them is run. Both also work on frames with head scores.

    After ``fit``, ``head_set_`` is a :class:`HeadSet` of all heads in order, to be saved and shared; ``k`` and
    ``max_layer`` may be changed without a pass over the data.

    Args:
        heads: heads instead of ``fit``: a :class:`HeadSet`, of which ``k`` and ``max_layer`` choose, or heads by name,
            which are all used.
        llm: see :class:`StaticHeadReranker`, as for whatever is not listed here.
        k: how many heads (the paper: 8), or a list of numbers to choose from on the validation queries.
        temperature: of the softmax (the paper: 0.001 for Mistral-7B and Granite-3.2-8B, 0.1 for Llama-3.1-8B and
            Phi-4), or a list to choose from on the validation queries. Documents get some hundredths of the attention:
            at 0.1 the softmax is nearly linear and, without ``positions``, favours heads that look at a place.
        calibrated: score heads by calibrated attention; False, as published, by the raw attention.
        max_layer: rank only by heads of so many layers (int) or of that share of them (float up to 1.0): CoRe's layer
            pruning.
        positions: read each training list so many times, with one relevant document at places spread over the list, as
            the paper does (5); None reads it once, in the first stage's order. On text only.
        detection_data: the training queries' name, kept in ``head_set_``.
    """

    schematic = {"label": "CoReHeads", "help_url": "https://arxiv.org/abs/2510.02219"}
    _ships = "core"

    def __init__(
        self,
        heads: HeadsLike | HeadSet | None = None,
        *,
        llm: FrozenLLM | str | None = None,
        k: int | Sequence[int] = 8,
        temperature: float | Sequence[float] = 0.001,
        calibrated: bool = False,
        max_layer: int | float | None = None,
        positions: int | None = None,
        detection_data: str | None = None,
        prompt: PromptTemplate | str | None = None,
        document_order: str | None = None,
        document_attention: str | None = None,
        max_doc_tokens: int | None = None,
        calibrate: bool | None = None,
        token_filter: str | None = None,
        depth: int | None = None,
        first_stage_weight: float = 0.0,
        allow_mismatch: bool = False,
        store: HeadScoreStore | str | None = None,
        batch_size: int = 1,
        text_field: str = "text",
        title_field: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.calibrated = calibrated
        self.max_layer = max_layer
        self.positions = positions
        self.detection_data = detection_data
        super().__init__(
            heads,
            llm=llm,
            prompt=prompt,
            document_order=document_order,
            document_attention=document_attention,
            max_doc_tokens=max_doc_tokens,
            calibrate=calibrate,
            token_filter=token_filter,
            depth=depth,
            first_stage_weight=first_stage_weight,
            allow_mismatch=allow_mismatch,
            store=store,
            batch_size=batch_size,
            text_field=text_field,
            title_field=title_field,
            verbose=verbose,
        )

    def _criteria(self) -> list[Criterion]:
        return [core_criterion(temperature, self.calibrated) for temperature in _listed(self.temperature)]


class QRHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that attend to relevant documents (QRHead, arXiv 2506.09944), or rank well by another criterion.

    Fitted and used like :class:`CoReHeadReranker`, with ``k`` 16 as in the paper.

    Args:
        heads: see :class:`CoReHeadReranker`, as for whatever is not listed here.
        llm: see :class:`StaticHeadReranker`.
        criterion: ``"ndcg@10"`` of the ranking by the head alone, which is what QRHead's code takes for BEIR; ``"qr"``,
            the attention that relevant documents get, raw as in the paper's equations (in first-stage order it favours
            heads that look at a place); ``"qr-calibrated"``, the same on calibrated scores; ``"mrr"``; or a
            :class:`Criterion`. From a list, one is chosen on the validation queries.
        k: how many heads, or a list to choose from on the validation queries.
    """

    schematic = {"label": "QRHeads", "help_url": "https://arxiv.org/abs/2506.09944"}

    @property
    def _ships(self) -> str | None:
        criterion = self._criteria()[0].name
        return criterion if criterion in ("qr", "ndcg@10") else None

    def __init__(
        self,
        heads: HeadsLike | HeadSet | None = None,
        *,
        llm: FrozenLLM | str | None = None,
        criterion: str | Criterion | Sequence[str | Criterion] = "ndcg@10",
        k: int | Sequence[int] = 16,
        max_layer: int | float | None = None,
        positions: int | None = None,
        detection_data: str | None = None,
        prompt: PromptTemplate | str | None = None,
        document_order: str | None = None,
        document_attention: str | None = None,
        max_doc_tokens: int | None = None,
        calibrate: bool | None = None,
        token_filter: str | None = None,
        depth: int | None = None,
        first_stage_weight: float = 0.0,
        allow_mismatch: bool = False,
        store: HeadScoreStore | str | None = None,
        batch_size: int = 1,
        text_field: str = "text",
        title_field: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.criterion = criterion
        self.k = k
        self.max_layer = max_layer
        self.positions = positions
        self.detection_data = detection_data
        super().__init__(
            heads,
            llm=llm,
            prompt=prompt,
            document_order=document_order,
            document_attention=document_attention,
            max_doc_tokens=max_doc_tokens,
            calibrate=calibrate,
            token_filter=token_filter,
            depth=depth,
            first_stage_weight=first_stage_weight,
            allow_mismatch=allow_mismatch,
            store=store,
            batch_size=batch_size,
            text_field=text_field,
            title_field=title_field,
            verbose=verbose,
        )

    def _criteria(self) -> list[Criterion]:
        return [get_criterion(criterion) for criterion in _listed(self.criterion)]
