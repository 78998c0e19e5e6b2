"""Head detection: `CoReHeadReranker` and `QRHeadReranker`.

They are fitted in a pipeline: fitting scores every head of the model by a criterion, on judged candidate lists, and
ranking is that of a static set, the best k heads.
"""

import numbers
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from .criteria import Criterion, core_criterion, get_criterion
from .head_set import HeadSet
from .heads import HeadsLike
from .judged import MEASURE, FittedReranker
from .llm import FrozenLLM
from .reading import Reading, ReadingSettings
from .shipped import has_set, means_shipped_model, shipped_heads
from .store import HeadScoreStore
from .template import PromptTemplate


class _DetectedHeadReranker(FittedReranker):
    """What re-rankers share whose heads are found by ``fit``; subclasses say by which criteria."""

    head_set_: HeadSet
    validation_: pd.DataFrame
    _best_k: int
    _default: str

    def _criteria(self) -> list[Criterion]:
        raise NotImplementedError

    @property
    def _ships(self) -> str | None:
        """The set of the package that stands in for ``fit``, if the criterion is left as it is."""
        return self._default if self._criteria() == [get_criterion(self._default)] else None

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
        for name in ("head_set_", "validation_", "_best_k"):
            self.__dict__.pop(name, None)
        settings = self._settings()
        if self.heads is not None:
            raise ValueError(f"{type(self).__name__} was given heads: leave them out to find some")
        criteria, ks = self._criteria(), _listed(self.k)
        choosing = len(criteria) * len(ks) > 1
        if choosing and (topics_or_res_va is None or qrels_va is None):
            raise ValueError("one of several values is chosen on validation queries: fit(topics, qrels, topics, qrels)")
        if choosing and settings.token_filter == "sum":
            raise ValueError("token_filter='sum' has no scores per head to choose by: give one value each, not lists")
        reading, lists = self._judged(topics_or_res_tr, qrels_tr, criteria, self.positions)
        found = [self._head_set(criterion, reading, lists) for criterion in criteria]
        best, best_k = 0, ks[0]
        if choosing:
            # What ranks is calibrated as the settings say: of raw scores validation needs none.
            other, valid = self._judged(topics_or_res_va, qrels_va, [], None)
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
        if not isinstance(heads, HeadSet):
            return heads
        ks = _listed(self.k)
        k = ks[0] if len(ks) == 1 else self.__dict__.get("_best_k")
        if k not in ks:
            raise ValueError(f"k={self.k!r} is to be chosen from by fit on validation queries: give one number")
        return self._within(heads).top(k)

    def _uses_shipped(self) -> bool:
        """Whether the heads are those that come with the package: nothing was fitted or given, for SmolLM2-135M."""
        found = self.heads is not None or hasattr(self, "head_set_")
        if found or len(_listed(self.k)) > 1 or self._ships is None:
            return False
        return has_set(self._ships, self._attention()) and means_shipped_model(self.llm)

    def _attention(self) -> str:
        return self.document_attention or "listwise"

    def _columns(self, reading: Reading, heads: HeadsLike | HeadSet) -> list[int]:
        own = reading.settings.document_attention
        if self._uses_shipped() and has_set(self._ships, own):
            heads = self._within(shipped_heads(self._ships, own)).top(_listed(self.k)[0])
        return super()._columns(reading, heads)

    def _settings(self) -> ReadingSettings:
        ks = _listed(self.k)
        if not ks or any(not isinstance(k, numbers.Integral) or isinstance(k, bool) or k < 1 for k in ks):
            raise ValueError(f"k is a number of heads from 1, or a list of such, got {self.k!r}")
        if not self._criteria():
            raise ValueError("there is nothing to judge heads by: an empty list of temperatures or criteria")
        return super()._settings()


def _listed(value: object) -> list:
    return list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]


class CoReHeadReranker(_DetectedHeadReranker):
    """Ranks by heads that tell relevant documents from hard negatives (CoRe, arXiv 2510.02219).

    ``(bm25 % 20 >> text >> CoReHeadReranker()).fit(topics, qrels)`` finds the heads: each head of the model is scored
    by the softmax probability, at a temperature, that it gives a relevant document among the non-relevant candidates of
    its list, on average over the queries. Ranking is then that of :class:`StaticHeadReranker` with the best k heads,
    with the same columns, and no layer above the deepest of them is run. Both also work on frames with head scores.
    ``paper_settings("core-detection")`` has the spans of CoRe's own detection, one token shorter than its ranking's.

    After ``fit``, ``head_set_`` is a :class:`HeadSet` of all heads in order, to be saved and shared; ``k`` and
    ``max_layer`` may be changed without a pass over the data.

    Args:
        heads: heads instead of ``fit``: a :class:`HeadSet`, of which ``k`` and ``max_layer`` choose, or heads by name,
            which are all used. Without either, SmolLM2-135M-Instruct is ranked by the set that comes with the package
            for the ``document_attention`` (:func:`shipped_heads`), unless another criterion than the default is asked
            for.
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
    _default = "core"

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
    _default = "ndcg@10"

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
