"""Head detection: `CoReHeadReranker` and `QRHeadReranker`.

They are fitted in a pipeline: fitting scores every head of the model by a criterion, on judged candidate lists, and
ranking is that of a static set, the best k heads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import product
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from .common.arguments import check_flag, check_text, check_whole
from .common.notices import warn
from .detection.criteria import Criterion, core_criterion, get_criterion
from .detection.head_set import HeadSet
from .detection.pruning import check_max_layer, within
from .evaluation.measures import NDCG
from .fitting.judged import JudgedLists, check_calibration, check_parts, mean_ndcg, ranked_heads, read_judged
from .heads import HeadsLike, is_all, kept_heads
from .kernel.patterns import DEFAULT_PATTERN
from .ranking.options import as_depth, shown_depth
from .ranking.policy import FixedHeads, HeadPolicy, Unfitted
from .ranking.registry import how_to_get_heads, is_bundled, named_heads
from .ranking.reranker import HeadReranker
from .reading.reading import ReadingSettings


@dataclass(eq=False, repr=False)
class _DetectedHeadReranker(HeadReranker, pt.Estimator):
    """What re-rankers share whose heads are found by ``fit``; subclasses say by which criteria."""

    heads: HeadsLike | HeadSet | None = None
    _: KW_ONLY
    k: int | Sequence[int] | None = None
    max_layer: int | float | None = None
    positions: int | None = None
    detection_data: str | None = None
    allow_mismatch: bool = False

    head_set_: HeadSet = field(init=False)
    validation_: pd.DataFrame = field(init=False)
    _method: ClassVar[str]
    _paper_k: ClassVar[int]
    _choices: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for name in ("heads", "k", *self._choices):
            setattr(self, name, kept_heads(getattr(self, name)))
        super().__post_init__()

    def _criteria(self) -> list[Criterion]:
        raise NotImplementedError

    def __repr__(self) -> str:
        given = f"{self.heads!r}, " if isinstance(self.heads, str) else ""
        k = "" if self.k is None else f"k={self.k}"
        return f"{type(self).__name__}({(given + k + shown_depth(self)).strip(', ').replace(', , ', ', ')})"

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> "_DetectedHeadReranker":
        """Find the heads that rank the training lists well.

        Sets ``head_set_``: all heads, best first, with their scores, and with the ``k`` that ranks. With validation
        queries it also sets ``validation_``: nDCG@10 on them of the first stage, of all heads (ICR) and of everything
        that was tried, and warns where nothing ranks better than all heads; ``token_filter="sum"``, which gives no
        scores per head, has no such table. Among equals, the lower temperature, then criteria in the order ndcg@10,
        mrr, qr-calibrated, qr and others, then calibrated scores, then the larger k is chosen: heads that rank well by
        luck or by their place weigh less so. Lists without a relevant candidate, or with no other, tell nothing; they
        are not even read.

        Args:
            topics_or_res_tr: candidates of the training queries, with text or head scores as for ``transform``. A
                criterion on uncalibrated scores also needs ``head_scores_raw`` beside head scores.
            qrels_tr: their judgements: ``qid``, ``docno`` and ``label``. Above 0 is relevant.
            topics_or_res_va: candidates of the validation queries: needed if there is something to choose.
            qrels_va: their judgements.

        Raises:
            ValueError: where no list tells anything, a query is in both parts, ``head_scores_raw`` or validation
                queries are missing, heads were given, or a criterion on calibrated scores meets ``calibrate=False``.
            MismatchError: for head scores of another model, or read otherwise, than was asked for.
        """
        for name in ("head_set_", "validation_"):
            self.__dict__.pop(name, None)
        settings = self._check()
        if self.heads is not None:
            raise ValueError(f"{type(self).__name__} was given heads: leave them out to find some")
        check_parts(topics_or_res_tr, topics_or_res_va, qrels_va)
        criteria, ks = self._criteria(), listed(self._paper_k if self.k is None else self.k)
        check_calibration(criteria, settings)
        choosing = len(criteria) * len(ks) > 1
        if choosing and topics_or_res_va is None:
            raise ValueError("one of several values is chosen on validation queries: fit(topics, qrels, topics, qrels)")
        if choosing and not settings.aggregation.per_head:
            raise ValueError(
                f"token_filter={settings.token_filter!r} has no scores per head to choose by: give one value each, "
                "not lists"
            )
        judged = self._judged(topics_or_res_tr, qrels_tr, criteria, self.positions)
        found = [
            ranked_heads(
                criterion, judged, depth=as_depth(self.depth), positions=self.positions, data=self.detection_data
            )
            for criterion in criteria
        ]
        best, k = 0, ks[0]
        if topics_or_res_va is not None and qrels_va is not None and settings.aggregation.per_head:
            # What ranks is calibrated as the settings say: of raw scores validation needs none.
            valid = self._judged(topics_or_res_va, qrels_va, [], None)
            judged.check_like(valid)
            self.validation_, (best, k) = self._validated(found, criteria, ks, valid)
        self.head_set_ = found[best].with_k(min(k, len(found[best])))
        return self

    def _judged(
        self, frame: pd.DataFrame, qrels: pd.DataFrame, criteria: Sequence[Criterion], positions: int | None
    ) -> JudgedLists:
        policy = FixedHeads.of("all")
        source = self._scores(frame, policy, by_head=True)
        if positions is not None and "head_scores" in frame.columns:
            raise ValueError("positions moves documents in the prompt: it is for text, not for head scores in a frame")
        return read_judged(
            source,
            qrels,
            depth=self.depth,
            check=lambda reading: check_calibration(criteria, reading.settings),
            raw=not all(criterion.calibrated for criterion in criteria),
            positions=positions,
            first_stage=self._weighs(policy),
            desc=f"{type(self).__name__}.fit",
            verbose=self.verbose,
        )

    def _validated(
        self, found: Sequence[HeadSet], criteria: Sequence[Criterion], ks: Sequence[int], valid: JudgedLists
    ) -> tuple[pd.DataFrame, tuple[int, int]]:
        """The table of what was tried, and the number of the best set with the best k."""
        weight = self.first_stage_weight
        tried = list(product(range(len(found)), ks))
        values = []
        for i, k in tried:
            heads = within(found[i], self.max_layer).top(k).heads
            values.append(mean_ndcg(valid, valid.reading.columns(heads), weight))
        everything = mean_ndcg(valid, list(range(len(valid.reading.heads))), weight)
        rows = [
            {"criterion": "first stage", NDCG: mean_ndcg(valid, None, weight)},
            {"criterion": "ICR", "k": len(valid.reading.heads), NDCG: everything},
        ]
        rows += [
            {"criterion": criteria[i].name, **criteria[i].settings, "k": k, NDCG: value}
            for (i, k), value in zip(tried, values, strict=True)
        ]
        names = ["criterion", *dict.fromkeys(name for criterion in criteria for name in criterion.settings), "k", NDCG]
        table = pd.DataFrame(rows, columns=names).astype({"k": "Int64"})
        best = max(values)
        equal = [pair for pair, value in zip(tried, values, strict=True) if value > best - 1e-9]
        chosen = min(equal, key=lambda pair: (_frailty(criteria[pair[0]]), -pair[1]))
        if best <= everything + 1e-9:
            warn(
                f"on the validation queries, no set that {type(self).__name__} found ranks better than all heads "
                f"together (ICR): nDCG@10 {best:.4f} against {everything:.4f}; see validation_"
            )
        return table, chosen

    # Which heads rank

    def _policy(self, document_attention: str) -> HeadPolicy:
        heads, bundled = self.heads, False
        if heads is None:
            heads = self.__dict__.get("head_set_")
            if heads is None:
                return Unfitted(f"{type(self).__name__} has no heads yet: {how_to_get_heads(self._method)}")
        elif isinstance(heads, str) and is_name(heads):
            bundled = is_bundled(self._method, heads)
            heads = named_heads(self._method, heads, document_attention)
        if isinstance(heads, HeadSet):
            heads = within(heads, self.max_layer).top(self._number(heads))
        return FixedHeads.of(heads, bundled=bundled, allow_mismatch=self.allow_mismatch)

    def _number(self, heads: HeadSet) -> int:
        """How many heads of a set rank."""
        if self.k is None:
            # All heads of a model in order are no choice, and their sum is ICR.
            whole = len(heads) == heads.model.num_layers * heads.model.num_heads
            return heads.k or (self._paper_k if whole else len(heads))
        ks = listed(self.k)
        if len(ks) == 1:
            return int(ks[0])
        if self.heads is not None or heads.k is None or heads.k not in [min(k, len(heads)) for k in ks]:
            raise ValueError(f"k={self.k!r} is to be chosen from by fit on validation queries: give one number")
        return heads.k

    def _check(self) -> ReadingSettings:
        ks = [] if self.k is None else listed(self.k)
        if self.k is not None and not ks:
            raise ValueError("k is a number of heads, or a list of such to choose from; got an empty list")
        for k in ks:
            check_whole("k", k, what="number of heads")
        for name in self._choices:
            if not listed(getattr(self, name)):
                raise ValueError(f"{name} is one value, or a list of such to choose from; got an empty list")
        self._criteria()
        check_max_layer(self.max_layer)
        if self.positions is not None:
            check_whole("positions", self.positions)
        check_flag("allow_mismatch", self.allow_mismatch)
        if self.detection_data is not None:
            check_text("detection_data", self.detection_data)
        settings = super()._check()
        if self.heads is None or len(ks) > 1:
            return settings
        return self._settings(self._policy(self.document_attention or DEFAULT_PATTERN))


def listed(value: object) -> list[Any]:
    """One value, or several, as a list."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def is_name(heads: str) -> bool:
    """Whether a string names a set, and not heads."""
    return not is_all(heads) and any(character.isalpha() for character in heads)


_ROBUST = ("ndcg@10", "mrr", "qr-calibrated", "qr")


def _frailty(criterion: Criterion) -> tuple[float, int, bool]:
    """How likely a criterion is to prefer heads for other reasons than relevance: the least among equals wins."""
    place = _ROBUST.index(criterion.name) if criterion.name in _ROBUST else len(_ROBUST)
    return criterion.settings.get("temperature", 0.0), place, not criterion.calibrated


@dataclass(kw_only=True, eq=False, repr=False)
class CoReHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that tell relevant documents from hard negatives (CoRe, arXiv 2510.02219).

    ``(bm25 % 20 >> text >> CoReHeadReranker()).fit(topics, qrels)`` finds the heads: each head of the model is scored
    by the softmax probability, at a temperature, that it gives a relevant document among the non-relevant candidates of
    its list, on average over the queries. Ranking is then that of :class:`StaticHeadReranker` with the best k heads,
    with the same columns, and no layer above the deepest of them is run. Both also work on frames with head scores.
    ``paper_settings("core-detection")`` has the spans of CoRe's own detection, one token shorter than its ranking's.

    ``CoReHeadReranker("llama-3.1-8b")`` ranks by the paper's heads, ``CoReHeadReranker("smollm2-135m")`` by those that
    come with the package; :func:`available` lists all. Without ``llm``, their model is loaded.

    After ``fit``, ``head_set_`` is a :class:`HeadSet` of all heads in order, to be saved and shared; ``k`` and
    ``max_layer`` may be changed without a pass over the data.

    Args:
        heads: heads instead of ``fit``: a name; a :class:`HeadSet`, of which ``k`` and ``max_layer`` choose; or heads
            by number, which are all used.
        k: how many heads, or a list of numbers to choose from on the validation queries. None means as many as rank of
            the head set (all of one that does not say); in ``fit``, and for all heads of a model in order, the paper's
            8.
        temperature: of the softmax (the paper: 0.001 for Mistral-7B and Granite-3.2-8B, 0.1 for Llama-3.1-8B and
            Phi-4), or a list to choose from on the validation queries. Documents get some hundredths of the attention:
            at 0.1 the softmax is nearly linear and, without ``positions``, favours heads that look at a place.
        calibrated: score heads by calibrated attention; False, as published, by the raw attention.
        max_layer: rank only by heads of so many layers (int) or of that share of them (float up to 1.0): CoRe's layer
            pruning.
        positions: read each training list so many times, with one relevant document at places spread over the list, as
            the paper does (5); None reads it once, in the first stage's order. On text only.
        detection_data: the training queries' name, kept in ``head_set_``.
        allow_mismatch: see :class:`StaticHeadReranker`. Further arguments: see :class:`HeadReranker`.
    """

    schematic = {"label": "CoReHeads", "help_url": "https://arxiv.org/abs/2510.02219"}
    _method = "core"
    _paper_k = 8
    _choices = ("temperature",)

    temperature: float | Sequence[float] = 0.001
    calibrated: bool = False

    def _criteria(self) -> list[Criterion]:
        return [core_criterion(temperature, self.calibrated) for temperature in listed(self.temperature)]


@dataclass(kw_only=True, eq=False, repr=False)
class QRHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that attend to relevant documents (QRHead, arXiv 2506.09944), or rank well by another criterion.

    Fitted and used like :class:`CoReHeadReranker`, with ``k`` 16 as in the paper. ``QRHeadReranker("llama-3.2-3b")``
    ranks by the paper's heads found on NQ, ``"lme-llama-3.2-3b"`` by those found on LongMemEval.

    Args:
        heads: see :class:`CoReHeadReranker`, as for whatever is not listed here.
        criterion: ``"ndcg@10"`` of the ranking by the head alone, which is what QRHead's code takes for BEIR; ``"qr"``,
            the attention that relevant documents get, raw as in the paper's equations (in first-stage order it favours
            heads that look at a place); ``"qr-calibrated"``, the same on calibrated scores; ``"mrr"``; or a
            :class:`Criterion`. From a list, one is chosen on the validation queries.
        k: how many heads, or a list to choose from on the validation queries; None as for :class:`CoReHeadReranker`,
            with the paper's 16.
    """

    schematic = {"label": "QRHeads", "help_url": "https://arxiv.org/abs/2506.09944"}
    _method = "qr"
    _paper_k = 16
    _choices = ("criterion",)

    criterion: str | Criterion | Sequence[str | Criterion] = "ndcg@10"

    def _criteria(self) -> list[Criterion]:
        return [get_criterion(criterion) for criterion in listed(self.criterion)]
