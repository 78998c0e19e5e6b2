"""`HeadReranker`: what all re-rankers share; each has a method, which chooses the heads."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyterrier as pt

from ..common.arguments import argument, check_number
from ..common.errors import MismatchError
from ..common.progress import with_progress
from ..index.head_index import HeadIndex
from ..kernel.aggregate import AGGREGATIONS
from ..model.frozen import FrozenLLM
from ..reading.reader import model_identity
from ..reading.reading import Reading
from .frames import check_columns, object_column, used_title_field, with_ranking, with_tail
from .options import ReadsLists, check_model
from .policy import HeadPolicy
from .rank import rank
from .sources import FrameSource, ScoreSource, TextSource

_USED = ("qid", "docno", "rank", "score", "head_scores", "head_reading", "head_scores_raw", "hidden_state")


@dataclass(kw_only=True, eq=False, repr=False)
class HeadReranker(ReadsLists):
    """Ranks candidates by attention heads.

    A subclass has a method that chooses the heads. It holds its arguments and what it learnt, and overrides nothing
    here but ``transform`` and ``fit``.

    Required input columns: ``qid``, ``docno`` and either ``head_scores`` with ``head_reading`` (preferred), or
    ``query`` and ``text_field`` (and ``title_field``); with an ``index``, ``query`` alone. ``rank`` or ``score``, if
    present, give the candidates' order; ``score`` is required for ``first_stage_weight``.

    Output columns: all input columns, with new ``score`` (float64) and ``rank``. Rows keep their order, which also
    breaks ties. Candidates below ``depth``, and trailing ones without a vector, keep their first-stage order below the
    re-ranked ones.

    A list-wise list beyond the model's context is ranked in windows that slide from its tail to its head, with a
    warning; scores then fall along the ranking, but only those of the last window are attention.

    Args:
        first_stage_weight: weight of the first stage's score, added after both sides are standardised over the
            re-ranked candidates of the query (in sliding windows, over the candidates of a window); 0 leaves it out.

    Raises:
        TypeError: naming the argument of a wrong type, in the constructor or, where it was set later, at the next call;
            or naming column, qid and docno of a value that is not a text, id or number.
        ValueError: naming the argument of a wrong value, likewise; naming a duplicate column; or naming column and qid
            of a value that is missing or not finite.
        InputValidationError: PyTerrier's, naming the columns that a frame lacks.
        NotFittedError: if there are no heads to rank by yet.
        MismatchError: for head scores of another model, or read with other settings, than the arguments or the head set
            state.
        ListTooLongError: naming the qid of a list that does not fit into the model's context and cannot be truncated.
    """

    first_stage_weight: float = argument(0.0, check_number)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-rank; see the class."""
        return with_ranking(inp, self._scored(inp)[0])

    def _scored(self, inp: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """For each row the new score, and the choice of heads that gave it; None below the depth."""
        self._check()
        policy = self._policy(self._pattern(inp))
        source = self._scores(inp, policy)
        scores, choices = np.zeros(len(inp)), object_column(len(inp))
        if len(inp):
            policy.before_ranking(self.first_stage_weight)
            lists = source.lists(self.depth, query=policy.needs_query, first_stage=self._weighs(policy))
            ranked = rank(lists, source, policy, first_stage_weight=self.first_stage_weight)
            for ranked_list in with_progress(ranked, total=len(lists), desc=str(self), verbose=self.verbose):
                rows = np.concatenate([ranked_list.query.rows, ranked_list.query.tail])
                scores[rows] = with_tail(ranked_list.scores, len(rows))
                for row, choice in zip(ranked_list.query.rows, ranked_list.choices, strict=True):
                    choices[row] = choice
        return scores, choices

    def _pattern(self, inp: pd.DataFrame) -> str | None:
        """The pattern in which a frame's head scores were read, unless one is set by hand; None for text."""
        if self.document_attention is None and {"head_scores", "head_reading"} <= set(inp.columns):
            for reading in inp["head_reading"]:
                if isinstance(reading, Reading):
                    return reading.settings.document_attention
        return None

    def _scores(
        self, inp: pd.DataFrame, policy: HeadPolicy, *, by_head: bool = False, hidden_layers: Sequence[int] = ()
    ) -> ScoreSource:
        """The source of a frame's head scores; raises an error without scores or text. Loads nothing yet."""
        check_columns(inp, _USED)  # also raises an error for columns of several levels
        weighed = ["score"] if self._weighs(policy) else []
        beside = ["query"] * policy.needs_query + ["hidden_state"] * policy.needs_hidden_state
        title = used_title_field(inp.columns, self.title_field, self.text_field)
        text = ["query", self.text_field, *([] if title is None else [title])]
        check_columns(inp, text)
        if self.index is not None and "head_scores" not in inp.columns:
            pt.validate.columns(inp, includes=["qid", "query", "docno", *weighed], context=self)
            return self._index_source(
                inp, lambda: self._index_reader(policy, hidden_layers, indexed=by_head), by_head=by_head
            )
        with pt.validate.any(inp, context=self) as mode:
            mode.result_frame(["head_scores", "head_reading", *beside, *weighed], mode="vectors")
            # Vectors that lost their reading must not be ignored silently.
            mode.columns(includes=["qid", "docno", *text, *weighed], excludes=["head_scores"], mode="text")
        if mode.mode == "text":
            return TextSource(
                inp,
                lambda: self._reader(policy),
                text_field=self.text_field,
                title_field=title,
                batch_size=self._lists_at_once(policy),
                by_head=by_head,
            )
        if not by_head and self.token_filter is not None and not AGGREGATIONS[self.token_filter].per_head:
            raise ValueError(
                f"token_filter={self.token_filter!r} filters after summing heads, but the frame has head_scores, read "
                "head by head: put this re-ranker on text, not behind a scorer, or drop the column head_scores"
            )
        limit = self.llm.max_layers if isinstance(self.llm, FrozenLLM) else None
        all_of = None if self.llm is None else sys.maxsize if limit is None else limit
        return FrameSource(
            inp,
            lambda reading: self._accept(reading, policy),
            all_of=all_of,
            open_model=self._embedding_model,
        )

    def _weighs(self, policy: HeadPolicy) -> bool:
        """Whether the first stage's scores are required."""
        return bool(self.first_stage_weight) or policy.needs_first_stage

    def _accept(self, reading: Reading, policy: HeadPolicy) -> None:
        """Raise an error for head scores read with other settings than set by hand, or that the heads are not for."""
        reading.check_settings(self._given())
        if self.title_field not in ("auto", reading.title_field):
            raise MismatchError(
                f"title_field={self.title_field!r} was asked for, but head_scores was read with "
                f"title_field={reading.title_field!r}"
            )
        if (index := HeadIndex.of(self.index)) is not None:
            index.description.check_settings(reading.settings, repr(index))
            index.check_model(reading.model)
        if self.llm is not None:
            reading.check_model(self._models.identity(self.llm))
        if policy.head_set is not None:
            check_model(policy, reading.model)
            policy.head_set.check_settings(reading.settings, allow_mismatch=policy.allow_mismatch)
            reading.columns(policy.heads)  # also heads that are used for other queries only

    def _embedding_model(self, reading: Reading, layers: int) -> FrozenLLM:
        """The model of a reading, to embed queries with."""
        llm = self._models.open(self.llm, named=reading.model, max_layers=layers)
        reading.check_model(model_identity(llm))
        return llm
