"""`HeadReranker`: what the re-rankers are made of, whoever says which heads rank."""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyterrier as pt

from ..common.arguments import check_number
from ..common.errors import MismatchError, NotFittedError
from ..common.progress import with_progress
from ..kernel.aggregate import AGGREGATIONS
from ..kernel.patterns import DEFAULT_PATTERN
from ..model.frozen import FrozenLLM
from ..reading.reader import model_identity
from ..reading.reading import Reading, ReadingSettings
from .frames import check_columns, object_column, used_title_field, with_ranking, with_tail
from .options import ReadsLists, check_model
from .policy import HeadPolicy, Unfitted
from .rank import rank
from .sources import FrameSource, ScoreSource, TextSource

_USED = ("qid", "docno", "rank", "score", "head_scores", "head_reading", "head_scores_raw", "hidden_state")


@dataclass(kw_only=True, eq=False, repr=False)
class HeadReranker(ReadsLists):
    """Ranks candidates by attention heads. Subclasses say which, and hold nothing but arguments and what they learnt.

    Required input columns: ``qid``, ``docno`` and either ``head_scores`` with ``head_reading`` (used where both are
    there), or ``query`` and ``text_field`` (and ``title_field``); ``rank`` or ``score``, if there, give the candidates'
    order; ``score`` is needed for ``first_stage_weight``.

    Output columns: all input columns, with new ``score`` (float64) and ``rank``. Rows keep their order, which also
    breaks ties. Candidates below ``depth``, and trailing ones without a vector, keep their order behind the others,
    with finite falling scores.

    A list-wise list beyond the model's context is ranked in windows that slide from its tail to its head, with a
    warning; scores then fall along the ranking, but only those of the last window are attention.

    Args:
        first_stage_weight: weight of the first stage's score, added after both sides are standardised over the
            candidates of the query that are re-ranked (within a window, over those in it); 0 leaves it out.

    Raises:
        TypeError: naming the argument of a wrong type, in the constructor or, where it was set later, at the next call;
            or column, qid and docno of what is no text, id or number.
        ValueError: naming the argument of a wrong value, likewise; a column that stands twice; or column and qid of
            what is missing or not finite.
        InputValidationError: PyTerrier's, naming the columns that a frame lacks.
        NotFittedError: where there are no heads to rank by yet.
        MismatchError: for head scores of another model, or read otherwise, than was asked for or the head set says.
        ListTooLongError: naming the qid of a list that does not fit into the model's context and cannot be cut.
    """

    first_stage_weight: float = 0.0

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Rank anew; see the class."""
        return with_ranking(inp, self._scored(inp)[0])

    def _policy(self, document_attention: str) -> HeadPolicy:
        """Which heads rank lists that are read in this pattern."""
        raise NotImplementedError

    def _warn_of(self, policy: HeadPolicy) -> None:
        """Warn of what may be a mistake, once there is something to rank."""

    def _check(self) -> ReadingSettings:
        check_number("first_stage_weight", self.first_stage_weight)
        return super()._check()

    def _scored(self, inp: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """For each row the new score, and the choice of heads that gave it; None below the depth."""
        self._check()
        policy = self._policy(self._pattern(inp))
        source = self._scores(inp, policy)
        scores, choices = np.zeros(len(inp)), object_column(len(inp))
        if len(inp):
            if isinstance(policy, Unfitted):
                raise NotFittedError(policy.message)
            self._warn_of(policy)
            lists = source.lists(self.depth, query=policy.needs_query, first_stage=self._weighs(policy))
            ranked = rank(lists, source, policy, first_stage_weight=self.first_stage_weight)
            for ranked_list in with_progress(ranked, total=len(lists), desc=str(self), verbose=self.verbose):
                rows = np.concatenate([ranked_list.query.rows, ranked_list.query.tail])
                scores[rows] = with_tail(ranked_list.scores, len(rows))
                for row, choice in zip(ranked_list.query.rows, ranked_list.choices, strict=True):
                    choices[row] = choice
        return scores, choices

    def _pattern(self, inp: pd.DataFrame) -> str:
        """How the lists of a frame are read, as far as is known before anything is looked at."""
        if self.document_attention is None and {"head_scores", "head_reading"} <= set(inp.columns):
            for reading in inp["head_reading"]:
                if isinstance(reading, Reading):
                    return reading.settings.document_attention
        return self.document_attention or DEFAULT_PATTERN

    def _scores(self, inp: pd.DataFrame, policy: HeadPolicy, *, by_head: bool = False) -> ScoreSource:
        """Where a frame's head scores come from; refuses one that has neither scores nor text. Loads nothing yet."""
        check_columns(inp, _USED)  # and columns of several levels, in which nothing can be found
        weighed = ["score"] if self._weighs(policy) else []
        beside = ["query"] * policy.needs_query + ["hidden_state"] * policy.needs_hidden_state
        title = used_title_field(inp.columns, self.title_field, self.text_field)
        text = ["query", self.text_field, *([] if title is None else [title])]
        check_columns(inp, text)
        with pt.validate.any(inp, context=self) as mode:
            mode.result_frame(["head_scores", "head_reading", *beside, *weighed], mode="vectors")
            # Vectors that lost their reading must not be passed over in silence.
            mode.columns(includes=["qid", "docno", *text, *weighed], excludes=["head_scores"], mode="text")
        if mode.mode == "text":
            return TextSource(
                inp,
                lambda: self._reader(policy),
                text_field=self.text_field,
                title_field=title,
                batch_size=self.batch_size,
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
        """Whether the first stage's scores are wanted."""
        return bool(self.first_stage_weight) or policy.needs_first_stage

    def _accept(self, reading: Reading, policy: HeadPolicy) -> None:
        """Refuse head scores that were read otherwise than set by hand, or that the heads are not for."""
        reading.check_settings(self._given())
        if self.title_field not in ("auto", reading.title_field):
            raise MismatchError(
                f"title_field={self.title_field!r} was asked for, but head_scores was read with "
                f"title_field={reading.title_field!r}"
            )
        if self.llm is not None:
            reading.check_model(self._models.identity(self.llm))
        if policy.head_set is not None:
            check_model(policy, reading.model)
            policy.head_set.check_settings(reading.settings, allow_mismatch=policy.allow_mismatch)
            reading.columns(policy.heads)  # also those that only another query's list will be ranked by

    def _embedding_model(self, reading: Reading, layers: int) -> FrozenLLM:
        """The model of a reading, to embed queries with."""
        llm = self._models.open(self.llm, named=reading.model, max_layers=layers)
        reading.check_model(model_identity(llm))
        return llm
