"""`AttentionHeadScorer`: one vector of head scores per candidate, for whatever comes behind it in a pipeline."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import pandas as pd
import pyterrier as pt

from .common.arguments import check_flag, check_whole
from .common.progress import with_progress
from .detection.head_set import HeadSet
from .heads import HeadsLike, kept_heads
from .kernel.patterns import DEFAULT_PATTERN
from .ranking.frames import (
    candidate_lists,
    candidate_texts,
    check_columns,
    check_finite,
    object_column,
    used_title_field,
)
from .ranking.options import ReadsLists, shown_depth
from .ranking.policy import FixedHeads, shown_heads
from .reading.reader import ListReader
from .reading.reading import ReadingSettings

_USED = ("qid", "query", "docno", "rank", "score")


@dataclass(eq=False, repr=False)
class AttentionHeadScorer(ReadsLists):
    """Scores every candidate by every chosen attention head of a frozen decoder LLM.

    All candidates of a query go into one prompt, and each head's score of a document is the attention that the query's
    tokens pay to it (ICR, arXiv 2410.02642; QRHead, arXiv 2506.09944). Put it once before several re-rankers and share
    the object: the documents are then encoded once per query.

    Required input columns: ``qid``, ``query``, ``docno``, ``text_field`` (and ``title_field``, if named); ``rank`` or
    ``score``, if there, give the candidates' order. Query, text and title are strings, qid and docno strings or whole
    numbers.

    Output columns: all input columns, and

    * ``head_scores``: float32 array [heads] in each row;
    * ``head_reading``: what that vector speaks of (heads, model, settings), a
      :class:`~pyterrier_routehead.reading.reading.Reading` shared by the rows;
    * ``head_scores_raw`` with ``raw``: the same without calibration and filter;
    * ``features`` with ``features``: the vector again, for PyTerrier's learners (``pt.ltr``);
    * ``hidden_state`` with ``hidden_layers``: float32 array [layers, hidden size], the mean hidden state of the query's
      rows after those layers, the same for all rows of a query.

    A missing text or title counts as empty. The rows keep their order; nothing is ranked. Each row has arrays of its
    own, but for ``hidden_state``, which is read-only.

    Args:
        heads: ``"all"``, heads as (layer, head) pairs or ``"layer-head"`` strings; or a :class:`HeadSet`, or the name
            of one with its method, of which the heads that rank are read, in the way and from the model that it says.
            No layer above the deepest runs.
        raw: also write ``head_scores_raw``.
        features: also write ``features``. Not with ``depth``: cut the list before the scorer instead.
        hidden_layers: layers after which to read ``hidden_state``.
        depth: the columns above are None below. Further arguments: see
            :class:`~pyterrier_routehead.ranking.options.ReadsLists`; there is no ``token_filter="sum"`` for single
            heads.

    Raises:
        ListTooLongError: naming the qid, for a list beyond the model's context.
        MismatchError: for another model than the head set's.
        TypeError: naming column, qid and docno of a value that is no text, or no id.
        ValueError: naming a column that stands twice, or column and qid of what is missing.
    """

    schematic = {"label": "AttentionHeads", "help_url": "https://arxiv.org/abs/2410.02642"}

    heads: HeadsLike | HeadSet = "all"
    _: KW_ONLY
    raw: bool = False
    features: bool = False
    hidden_layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self.heads = kept_heads(self.heads)
        if self.hidden_layers is not None and np.size(self.hidden_layers) == 0:
            self.hidden_layers = None  # PyTerrier takes an empty sequence for one of transformers
        super().__post_init__()

    def __repr__(self) -> str:
        return f"AttentionHeadScorer({shown_heads(self.heads)}{shown_depth(self)})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add the vectors; see the class."""
        title_field = used_title_field(inp.columns, self.title_field, self.text_field)
        fields = [self.text_field] if title_field is None else [self.text_field, title_field]
        check_columns(inp, [*_USED, *fields, *self._columns()])
        pt.validate.result_frame(inp, extra_columns=["query", *fields], context=self)
        self._check()
        columns = {name: object_column(len(inp)) for name in self._columns()}
        if self.features and "features" in inp.columns:
            raise ValueError("there is a column 'features' already, which features=True would overwrite")
        # What an earlier scorer wrote speaks of its own reading.
        inp = inp.drop(columns=["head_scores_raw", "hidden_state"], errors="ignore")
        if len(inp):
            self._fill(inp, self._reader(self._policy(), self._layers()), title_field, columns)
        return inp.assign(**columns)

    def _fill(
        self, inp: pd.DataFrame, reader: ListReader, title_field: str | None, columns: dict[str, np.ndarray]
    ) -> None:
        found = candidate_lists(inp)
        lists = [candidate_texts(inp, list_rows, self.depth, self.text_field, title_field) for list_rows in found]
        reading, settings = replace(reader.reading, title_field=title_field), reader.settings
        scored = with_progress(
            reader.read(lists, self.batch_size), total=len(lists), desc=str(self), verbose=self.verbose
        )
        for (candidates, scores), list_rows in zip(scored, found, strict=True):
            vectors = scores.vectors(settings.aggregation, calibrate=settings.calibrate)
            check_finite(vectors, candidates.qid)
            states = [scores.hidden[layer] for layer in reader.hidden_layers]
            hidden = np.stack(states) if states else None
            if hidden is not None:
                hidden.flags.writeable = False  # the rows of a query share it
            for i, row in enumerate(list_rows.rows[: self.depth]):
                columns["head_scores"][row] = vectors[i].copy()
                columns["head_reading"][row] = reading
                if self.raw:
                    columns["head_scores_raw"][row] = scores.raw[i].copy()
                if self.features:
                    columns["features"][row] = vectors[i].copy()
                if hidden is not None:
                    columns["hidden_state"][row] = hidden

    def _policy(self) -> FixedHeads:
        return FixedHeads.of(self.heads, document_attention=self.document_attention or DEFAULT_PATTERN)

    def _columns(self) -> list[str]:
        asked = {"head_scores_raw": self.raw, "features": self.features, "hidden_state": len(self._layers()) > 0}
        return ["head_scores", "head_reading", *(name for name, wanted in asked.items() if wanted)]

    def _layers(self) -> tuple[int, ...]:
        layers = self.hidden_layers
        if layers is None:
            return ()
        if isinstance(layers, str) or np.ndim(layers) != 1:
            raise TypeError(f"hidden_layers is a sequence of layers, got {layers!r}")
        return tuple(check_whole(f"hidden_layers[{i}]", layer, least=0) for i, layer in enumerate(layers))

    def _check(self) -> ReadingSettings:
        check_flag("raw", self.raw)
        check_flag("features", self.features)
        self._layers()
        super()._check()
        settings = self._settings(self._policy())
        if not settings.aggregation.per_head:
            raise ValueError(
                f"token_filter={settings.token_filter!r} filters after summing heads, so it does not exist for single "
                "heads: give token_filter='head'"
            )
        if self.features and self.depth is not None:
            raise ValueError("features=True needs a vector in every row: cut the list before the scorer, not by depth")
        return settings
