"""`AttentionHeadScorer`: one vector of head scores per candidate, for the re-rankers behind it in a pipeline."""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import pandas as pd
import pyterrier as pt

from .common.arguments import argument, by_value, check_flag, check_whole
from .common.progress import with_progress
from .detection.head_set import HeadSet
from .heads import HeadsLike
from .kernel.scores import ListScores
from .ranking.frames import (
    check_columns,
    check_finite,
    object_column,
    used_title_field,
)
from .ranking.index_source import IndexSource
from .ranking.options import Method, ReadsLists
from .ranking.policy import FixedHeads, QueryList, shown_heads
from .ranking.sources import TextSource, in_batches

_USED = ("qid", "query", "docno", "rank", "score")


def scored_heads(scorer: "AttentionHeadScorer", document_attention: str) -> FixedHeads:
    """The heads that the scorer was given; it needs scores per head."""
    policy = FixedHeads.of(scorer.heads, document_attention=document_attention)
    settings = scorer._settings(policy)
    if not settings.aggregation.per_head:
        raise ValueError(
            f"token_filter={settings.token_filter!r} filters after summing heads, so it does not exist for single "
            "heads: give token_filter='head'"
        )
    return policy


def checked_layers(name: str, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Layers by number, as a tuple; none for None."""
    if layers is None:
        return ()
    if isinstance(layers, str) or np.ndim(layers) != 1:
        raise TypeError(f"{name} is a sequence of layers, got {layers!r}")
    return tuple(check_whole(f"{name}[{i}]", layer, least=0) for i, layer in enumerate(layers))


@dataclass(eq=False, repr=False)
class AttentionHeadScorer(ReadsLists):
    """Scores every candidate by each given attention head of a frozen decoder LLM.

    All candidates of a query go into one prompt, and each head's score of a document is the attention that the query's
    tokens pay to it (ICR, arXiv 2410.02642; QRHead, arXiv 2506.09944). To use the scores in several re-rankers, put the
    same scorer object before each of them: the documents are then encoded once per query.

    Required input columns: ``qid``, ``query``, ``docno``, ``text_field`` (and ``title_field``, if named). ``rank`` or
    ``score``, if present, give the candidates' order. Query, text and title are strings, qid and docno strings or
    integers.

    Output columns: all input columns, and

    * ``head_scores``: float32 array [heads] in each row;
    * ``head_reading``: what the vector describes (heads, model, settings), a
      :class:`~pyterrier_routehead.reading.reading.Reading` shared by the rows;
    * ``head_scores_raw`` with ``raw``: the same without calibration and filter;
    * ``features`` with ``features``: the vector again, for PyTerrier's learners (``pt.ltr``);
    * ``hidden_state`` with ``hidden_layers``: float32 array [layers, hidden size], the mean hidden state of the query's
      tokens after those layers, the same for all rows of a query.

    A missing text or title counts as empty. The rows keep their order; nothing is ranked. Rows share no arrays, except
    for ``hidden_state``, which is read-only.

    Args:
        heads: ``"all"``, heads as (layer, head) pairs or ``"layer-head"`` strings; or a :class:`HeadSet`, or the name
            of one with its method: its ranking heads are then read, from its model and with its settings. No layer
            above the deepest runs.
        raw: also write ``head_scores_raw``.
        features: also write ``features``. Not with ``depth``: truncate the list before the scorer instead.
        hidden_layers: layers after which to read ``hidden_state``.
        depth: below this depth, the columns above are None. Further arguments: see
            :class:`~pyterrier_routehead.ranking.options.ReadsLists`; there is no ``token_filter="sum"`` for single
            heads.

    Raises:
        ListTooLongError: naming the qid, for a list beyond the model's context.
        MismatchError: for another model than the head set's.
        TypeError: naming column, qid and docno of a value that is not a text or id.
        ValueError: naming a duplicate column, or column and qid of a missing value.
    """

    schematic = {"label": "AttentionHeads", "help_url": "https://arxiv.org/abs/2410.02642"}
    _method = Method(scored_heads)

    heads: HeadsLike | HeadSet = argument("all", shown=by_value(shown_heads))
    _: KW_ONLY
    raw: bool = argument(False, check_flag)
    features: bool = argument(False, check_flag)
    hidden_layers: Sequence[int] | None = argument(None, checked_layers)

    def __post_init__(self) -> None:
        if self.hidden_layers is not None and np.size(self.hidden_layers) == 0:
            self.hidden_layers = None  # PyTerrier takes an empty sequence for one of transformers
        super().__post_init__()
        self._check_features()

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add the vectors; see the class."""
        title_field = used_title_field(inp.columns, self.title_field, self.text_field)
        fields = [self.text_field] if title_field is None else [self.text_field, title_field]
        check_columns(inp, [*_USED, *fields, *self._columns()])
        needed = ["query", *([] if self.index is not None else fields)]
        pt.validate.result_frame(inp, extra_columns=needed, context=self)
        self._check()
        self._check_features()
        columns = {name: object_column(len(inp)) for name in self._columns()}
        if self.features and "features" in inp.columns:
            raise ValueError("there is a column 'features' already, which features=True would overwrite")
        # These columns of an earlier scorer belong to its reading, which is replaced.
        inp = inp.drop(columns=["head_scores_raw", "hidden_state"], errors="ignore")
        if len(inp):
            self._fill(self._source(inp, title_field), columns)
        return inp.assign(**columns)

    def _source(self, inp: pd.DataFrame, title_field: str | None) -> TextSource | IndexSource:
        policy, layers = self._policy(), self._layers()
        if self.index is not None:
            return self._index_source(inp, lambda: self._index_reader(policy, layers, indexed=True))
        return TextSource(
            inp,
            lambda: self._reader(policy, layers),
            text_field=self.text_field,
            title_field=title_field,
            batch_size=self._lists_at_once(policy),
        )

    def _fill(self, source: TextSource | IndexSource, columns: dict[str, np.ndarray]) -> None:
        lists = source.lists(self.depth, query=True, first_stage=False)
        source.accept(lists)
        reading, settings = source.reading(lists[0]), source.reader.settings
        scored = with_progress(_read(source, lists), total=len(lists), desc=str(self), verbose=self.verbose)
        for candidates, scores in scored:
            vectors = scores.vectors(settings.aggregation, calibrate=settings.calibrate)
            check_finite(vectors, candidates.qid)
            states = [scores.hidden[layer] for layer in reading.hidden_layers]
            hidden = np.stack(states) if states else None
            if hidden is not None:
                hidden.flags.writeable = False  # shared by the rows of a query
            for i, row in enumerate(candidates.rows):
                columns["head_scores"][row] = vectors[i].copy()
                columns["head_reading"][row] = reading
                if self.raw:
                    columns["head_scores_raw"][row] = scores.raw[i].copy()
                if self.features:
                    columns["features"][row] = vectors[i].copy()
                if hidden is not None:
                    columns["hidden_state"][row] = hidden

    def _columns(self) -> list[str]:
        requested = {"head_scores_raw": self.raw, "features": self.features, "hidden_state": len(self._layers()) > 0}
        return ["head_scores", "head_reading", *(name for name, added in requested.items() if added)]

    def _layers(self) -> tuple[int, ...]:
        return checked_layers("hidden_layers", self.hidden_layers)

    def _check_features(self) -> None:
        if self.features and self.depth is not None:
            raise ValueError(
                "features=True needs a vector in every row: truncate the list before the scorer, not by depth"
            )


def _read(source: TextSource | IndexSource, lists: Sequence[QueryList]) -> Iterator[tuple[QueryList, ListScores]]:
    for batch in in_batches(lists, source.batch_size):
        source.prepare(batch)
        yield from zip(batch, source.list_scores(batch), strict=True)
