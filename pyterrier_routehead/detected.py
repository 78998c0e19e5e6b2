"""Head detection: `CoReHeadReranker` and `QRHeadReranker`.

They are fitted in a pipeline: ``fit`` scores every head of the model by a criterion, on judged candidate lists, and the
best k heads then rank as a static set.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from .common.arguments import (
    argument,
    by_value,
    check_flag,
    check_text,
    check_whole,
    listed,
    one_or_several,
    optional,
    shown_if_named,
    shown_if_set,
)
from .detection.criteria import Criterion, core_criterion, get_criterion
from .detection.head_set import HeadSet
from .detection.pruning import check_max_layer, within
from .fitting.choosing import choose_set
from .fitting.judged import JudgedLists, check_calibration, check_parts, ranked_heads, read_judged
from .heads import HeadsLike, is_all
from .ranking.options import Method, as_depth
from .ranking.policy import FixedHeads, HeadPolicy, Unfitted
from .ranking.reranker import HeadReranker
from .registry import how_to_get_heads, is_bundled, named_heads


@dataclass(frozen=True)
class DetectionMethod(Method):
    """How heads are detected.

    Attributes:
        name: ``"core"`` or ``"qr"``, as in the names of head sets.
        k: how many heads rank in the paper.
        criteria: makes the criteria from the re-ranker's arguments.
    """

    name: str
    k: int
    criteria: Callable[[Any], list[Criterion]]


def detected_heads(reranker: "_DetectedHeadReranker", document_attention: str) -> HeadPolicy:
    """Heads that the re-ranker was given by number, or the best k of a set that it was given or that fit found."""
    method, heads, bundled = reranker._method, reranker.heads, False
    if heads is None:
        heads = reranker.__dict__.get("head_set_")
        if heads is None:
            return Unfitted(f"{type(reranker).__name__} has no heads yet: {how_to_get_heads(method.name)}")
    elif isinstance(heads, str) and _is_name(heads):
        bundled = is_bundled(method.name, heads)
        heads = named_heads(method.name, heads, document_attention)
    if isinstance(heads, HeadSet):
        heads = within(heads, reranker.max_layer).top(_number_of_heads(heads, reranker))
    return FixedHeads.of(heads, bundled=bundled, allow_mismatch=reranker.allow_mismatch)


def _is_name(heads: str) -> bool:
    """Whether a string names a set, and not heads."""
    return not is_all(heads) and any(character.isalpha() for character in heads)


def _number_of_heads(head_set: HeadSet, reranker: "_DetectedHeadReranker") -> int:
    """How many heads of a set rank."""
    if reranker.k is None:
        # For a ranked list of all heads, k must be limited: the sum of all heads is ICR.
        complete = len(head_set) == head_set.model.num_layers * head_set.model.num_heads
        return head_set.k or (reranker._method.k if complete else len(head_set))
    ks = listed(reranker.k)
    if len(ks) == 1:
        return int(ks[0])
    chosen_by_fit = reranker.heads is None and head_set.k in [min(k, len(head_set)) for k in ks]
    if head_set.k is None or not chosen_by_fit:
        raise ValueError(
            f"k={reranker.k!r} is to be chosen from by fit on validation queries: give one number, or fit without heads"
        )
    return head_set.k


@dataclass(eq=False, repr=False)
class _DetectedHeadReranker(HeadReranker, pt.Estimator):
    """The arguments and ``fit`` of re-rankers that detect their heads. Their method has the criteria."""

    heads: HeadsLike | HeadSet | None = argument(None, shown=shown_if_named)
    _: KW_ONLY
    k: int | Sequence[int] | None = argument(
        None, optional(one_or_several(partial(check_whole, what="number of heads"))), shown=shown_if_set
    )
    max_layer: int | float | None = argument(None, by_value(check_max_layer))
    positions: int | None = argument(None, optional(check_whole))
    detection_data: str | None = argument(None, optional(check_text))
    allow_mismatch: bool = argument(False, check_flag)

    head_set_: HeadSet = field(init=False)
    validation_: pd.DataFrame = field(init=False)
    _method: ClassVar[DetectionMethod]

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
        that was tried, and warns if nothing ranks better than all heads; with ``token_filter="sum"``, which gives no
        scores per head, there is no such table. Ties are resolved in favour of the lower temperature, then of criteria
        in the order ndcg@10, mrr, qr-calibrated, qr and others, then of calibrated scores, then of the larger k: this
        reduces the weight of heads that rank well by chance or by position. Uninformative lists (without a relevant or
        without a non-relevant candidate) are not read.

        Args:
            topics_or_res_tr: candidates of the training queries, with text or head scores as for ``transform``. A
                criterion on uncalibrated scores also needs ``head_scores_raw`` beside head scores.
            qrels_tr: their judgements: ``qid``, ``docno`` and ``label``. Above 0 is relevant.
            topics_or_res_va: candidates of the validation queries: required if there are several values to choose from.
            qrels_va: their judgements.

        Raises:
            ValueError: if no list is informative, a query is in both parts, ``head_scores_raw`` or validation queries
                are missing, heads were given, or a criterion requires calibrated scores but ``calibrate=False``.
            MismatchError: for head scores of another model, or read with other settings, than the arguments state.
        """
        for name in ("head_set_", "validation_"):
            self.__dict__.pop(name, None)
        settings = self._check()
        if self.heads is not None:
            raise ValueError(f"{type(self).__name__} was given heads: leave them out to find some")
        check_parts(topics_or_res_tr, topics_or_res_va, qrels_va)
        criteria, ks = self._method.criteria(self), listed(self._method.k if self.k is None else self.k)
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
        detected = [
            ranked_heads(
                criterion, judged, depth=as_depth(self.depth), positions=self.positions, data=self.detection_data
            )
            for criterion in criteria
        ]
        best, k = detected[0], ks[0]
        if topics_or_res_va is not None and qrels_va is not None and settings.aggregation.per_head:
            # No raw scores are needed to validate: ranking is by scores that are calibrated as the settings say.
            valid = self._judged(topics_or_res_va, qrels_va, [], None)
            judged.check_like(valid)
            best, k, self.validation_ = choose_set(
                detected,
                criteria,
                ks,
                valid,
                max_layer=self.max_layer,
                first_stage_weight=self.first_stage_weight,
                reranker=type(self).__name__,
            )
        self.head_set_ = best.with_k(min(k, len(best)))
        return self

    def _judged(
        self, frame: pd.DataFrame, qrels: pd.DataFrame, criteria: Sequence[Criterion], positions: int | None
    ) -> JudgedLists:
        policy = FixedHeads("all")
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


def core_criteria(reranker: "CoReHeadReranker") -> list[Criterion]:
    """CoRe's criterion at each temperature."""
    return [core_criterion(temperature, reranker.calibrated) for temperature in listed(reranker.temperature)]


def qr_criteria(reranker: "QRHeadReranker") -> list[Criterion]:
    """The given criteria."""
    return [get_criterion(criterion) for criterion in listed(reranker.criterion)]


@dataclass(kw_only=True, eq=False, repr=False)
class CoReHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that separate relevant documents from hard negatives (CoRe, arXiv 2510.02219).

    ``(bm25 % 20 >> text >> CoReHeadReranker()).fit(topics, qrels)`` finds the heads: each head of the model is scored
    by the softmax probability, at a temperature, that it gives a relevant document among the non-relevant candidates of
    its list, averaged over the queries. The best k heads then rank as in :class:`StaticHeadReranker`, with the same
    columns, and no layer above the deepest of them is run. Both also work on frames with head scores.
    ``paper_settings("core-detection")`` has the spans of CoRe's detection, one token shorter than those of its ranking.

    ``CoReHeadReranker("llama-3.1-8b")`` ranks by the paper's heads, ``CoReHeadReranker("smollm2-135m")`` by bundled
    ones; :func:`available` lists all. Without ``llm``, their model is loaded.

    After ``fit``, ``head_set_`` is a :class:`HeadSet` of all heads, best first, to be saved and shared; ``k`` and
    ``max_layer`` may be changed without a pass over the data.

    Args:
        heads: heads instead of ``fit``: a name; a :class:`HeadSet`, from which ``k`` and ``max_layer`` select; or heads
            by number, which are all used.
        k: number of heads, or a list of numbers to choose from on the validation queries. None means the head set's
            ``k`` (all heads of a set without one); in ``fit``, and for a set of all heads of a model, the paper's 8.
        temperature: of the softmax (the paper: 0.001 for Mistral-7B and Granite-3.2-8B, 0.1 for Llama-3.1-8B and
            Phi-4), or a list to choose from on the validation queries. Documents get a few hundredths of the attention:
            at 0.1 the softmax is nearly linear and, without ``positions``, favours heads that attend to a position.
        calibrated: score heads by calibrated attention; False, as published, by the raw attention.
        max_layer: rank only by heads of the first layers: this many (int) or this share of them (float up to 1.0);
            CoRe's layer pruning.
        positions: read each training list this many times, with one relevant document at positions spread over the
            list, as in the paper (5); None reads it once, in the first stage's order. On text only.
        detection_data: the training queries' name, kept in ``head_set_``.
        allow_mismatch: see :class:`StaticHeadReranker`. Further arguments: see :class:`HeadReranker`.
    """

    schematic = {"label": "CoReHeads", "help_url": "https://arxiv.org/abs/2510.02219"}
    _method = DetectionMethod(detected_heads, name="core", k=8, criteria=core_criteria)

    temperature: float | Sequence[float] = argument(0.001, one_or_several(by_value(core_criterion)))
    calibrated: bool = argument(False, check_flag)


@dataclass(kw_only=True, eq=False, repr=False)
class QRHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that attend to relevant documents (QRHead, arXiv 2506.09944), or rank well by another criterion.

    Fitted and used like :class:`CoReHeadReranker`, with ``k=16`` as in the paper. ``QRHeadReranker("llama-3.2-3b")``
    ranks by the paper's heads found on NQ, ``"lme-llama-3.2-3b"`` by those found on LongMemEval.

    Args:
        heads: see :class:`CoReHeadReranker`, as for further arguments.
        criterion: ``"ndcg@10"`` of the ranking by the head alone, which is what QRHead's code uses for BEIR; ``"qr"``,
            the attention that relevant documents get, raw as in the paper's equations (in first-stage order it favours
            heads that attend to a position); ``"qr-calibrated"``, the same on calibrated scores; ``"mrr"``; or a
            :class:`Criterion`. From a list, one is chosen on the validation queries.
        k: number of heads, or a list to choose from on the validation queries; None as for :class:`CoReHeadReranker`,
            with the paper's 16.
    """

    schematic = {"label": "QRHeads", "help_url": "https://arxiv.org/abs/2506.09944"}
    _method = DetectionMethod(detected_heads, name="qr", k=16, criteria=qr_criteria)

    criterion: str | Criterion | Sequence[str | Criterion] = argument(
        "ndcg@10", one_or_several(by_value(get_criterion))
    )
