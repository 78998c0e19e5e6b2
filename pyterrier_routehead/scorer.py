"""`AttentionHeadScorer`: one vector of head scores per candidate, for whatever comes behind it in a pipeline."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyterrier as pt

from .arguments import check_flag, check_whole
from .frames import (
    candidate_lists,
    candidate_texts,
    check_columns,
    check_fields,
    check_finite,
    check_numbers,
    object_column,
    used_title_field,
)
from .head_set import HeadSet
from .heads import HeadsLike, describe_heads, is_all, kept_heads, layers_needed, parse_heads
from .llm import FrozenLLM
from .model_slot import ModelSlot
from .progress import with_progress
from .reader import ListReader, model_identity
from .reading import SETTING_NAMES, ReadingSettings, resolve_settings
from .store import HeadScoreStore
from .template import PromptTemplate

_USED = ("qid", "query", "docno", "rank", "score")


class AttentionHeadScorer(pt.Transformer):
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
      :class:`~pyterrier_routehead.reading.Reading` shared by the rows;
    * ``head_scores_raw`` with ``raw``: the same without calibration and filter;
    * ``features`` with ``features``: the vector again, for PyTerrier's learners (``pt.ltr``);
    * ``hidden_state`` with ``hidden_layers``: float32 array [layers, hidden size], the mean hidden state of the query's
      rows after those layers, the same for all rows of a query.

    A missing text or title counts as empty. The rows keep their order; nothing is ranked. Each row has arrays of its
    own, but for ``hidden_state``, which is read-only.

    Args:
        heads: ``"all"``; heads as (layer, head) pairs or ``"layer-head"`` strings; or a :class:`HeadSet`, of which the
            heads that rank are read, by its model and as its own scores were read, where nothing else is said below. No
            layer above the deepest runs.
        llm: a :class:`FrozenLLM` to share, a model's name, or None for the head set's, else SmolLM2-135M-Instruct.
        prompt: a :class:`PromptTemplate` or the name of one; None, here as for the next five, for the head set's value,
            else for the one named: ``"default"``.
        document_order: ``"best_last"`` or ``"best_first"``; None for ``"best_last"``.
        document_attention: ``"listwise"`` or ``"blockwise"``; None for ``"listwise"``.
        max_doc_tokens: title and text of each document are cut to so many tokens; None for 150.
        calibrate: whether to subtract the scores of the content-free query; None for True.
        token_filter: ``"head"`` (2-sigma filter per head) or ``"none"``; None for ``"head"``. There is no ``"sum"`` per
            head: it is for re-rankers that read text themselves.
        depth: score only so many candidates per query; the columns above are None below.
        raw: also write ``head_scores_raw``.
        features: also write ``features``. Not with ``depth``: cut the list before the scorer instead.
        hidden_layers: layers after which to read ``hidden_state``.
        store: a :class:`HeadScoreStore`, or the folder of one: lists found there are not read again, others are added,
            with all heads of the layers that are run.
        batch_size: how many lists are read in one pass.
        text_field: column of the documents' text.
        title_field: column of the documents' titles; ``"auto"`` takes the column ``title`` where there is one, and None
            reads no titles.
        verbose: True shows progress, False does not, None does in a terminal or notebook.

    Raises:
        ListTooLongError: naming the qid, for a list beyond the model's context.
        MismatchError: for another model than the head set's.
        TypeError: naming column, qid and docno of a value that is no text, or no id.
        ValueError: naming a column that stands twice, or column and qid of what is missing.
    """

    schematic = {"label": "AttentionHeads", "help_url": "https://arxiv.org/abs/2410.02642"}

    def __init__(
        self,
        heads: HeadsLike | HeadSet = "all",
        *,
        llm: FrozenLLM | str | None = None,
        prompt: PromptTemplate | str | None = None,
        document_order: str | None = None,
        document_attention: str | None = None,
        max_doc_tokens: int | None = None,
        calibrate: bool | None = None,
        token_filter: str | None = None,
        depth: int | None = None,
        raw: bool = False,
        features: bool = False,
        hidden_layers: Sequence[int] | None = None,
        store: HeadScoreStore | str | None = None,
        batch_size: int = 1,
        text_field: str = "text",
        title_field: str | None = "auto",
        verbose: bool | None = None,
    ) -> None:
        self.heads = kept_heads(heads)
        self.llm = llm
        self.prompt = prompt
        self.document_order = document_order
        self.document_attention = document_attention
        self.max_doc_tokens = max_doc_tokens
        self.calibrate = calibrate
        self.token_filter = token_filter
        self.depth = depth
        self.raw = raw
        self.features = features
        # PyTerrier takes an empty sequence for one of transformers.
        self.hidden_layers = None if hidden_layers is None or np.size(hidden_layers) == 0 else hidden_layers
        self.store = store
        self.batch_size = batch_size
        self.text_field = text_field
        self.title_field = title_field
        self.verbose = verbose
        self._models = ModelSlot()
        self._settings()  # a wrong value is refused here, not in the middle of a run

    __hash__ = object.__hash__  # PyTerrier's follows the repr, which settings change

    def __repr__(self) -> str:
        depth = "" if self.depth is None else f", depth={self.depth}"
        return f"AttentionHeadScorer({describe_heads(self._chosen()[0])}{depth})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add the vectors; see the class."""
        title_field = used_title_field(inp.columns, self.title_field, self.text_field)
        fields = [self.text_field] if title_field is None else [self.text_field, title_field]
        check_columns(inp, [*_USED, *fields, *self._columns()])
        pt.validate.result_frame(inp, extra_columns=["query", *fields], context=self)
        settings = self._settings()
        columns = {name: object_column(len(inp)) for name in self._columns()}
        if self.features and "features" in inp.columns:
            raise ValueError("there is a column 'features' already, which features=True would overwrite")
        # What an earlier scorer wrote speaks of its own reading.
        inp = inp.drop(columns=["head_scores_raw", "hidden_state"], errors="ignore")
        if len(inp):
            heads, head_set = self._chosen()
            hidden_layers = self._layers()
            needed = layers_needed(heads)
            if needed is not None:
                needed = max([needed, *(layer + 1 for layer in hidden_layers)])
            llm = self._models.open(self.llm, named=None if head_set is None else head_set.model, max_layers=needed)
            if head_set is not None:
                head_set.check_model(model_identity(llm))
            store = HeadScoreStore.of(self.store)
            reader = ListReader(llm, heads, settings, hidden_layers=hidden_layers, store=store)
            self._fill(inp, reader, title_field, columns)
        return inp.assign(**columns)

    def _fill(
        self, inp: pd.DataFrame, reader: ListReader, title_field: str | None, columns: dict[str, np.ndarray]
    ) -> None:
        found = candidate_lists(inp)
        lists = [candidate_texts(inp, own, self.depth, self.text_field, title_field) for own in found]
        reading, settings = replace(reader.reading, title_field=title_field), reader.settings
        scored = with_progress(
            reader.read(lists, self.batch_size), total=len(lists), desc=str(self), verbose=self.verbose
        )
        for (candidates, scores), own in zip(scored, found, strict=True):
            vectors = scores.vectors(calibrate=settings.calibrate, token_filter=settings.token_filter)
            check_finite(vectors, candidates.qid)
            states = [scores.hidden[layer] for layer in reader.hidden_layers]
            hidden = np.stack(states) if states else None
            if hidden is not None:
                hidden.flags.writeable = False  # the rows of a query share it
            for i, row in enumerate(own.rows[: self.depth]):
                columns["head_scores"][row] = vectors[i].copy()
                columns["head_reading"][row] = reading
                if self.raw:
                    columns["head_scores_raw"][row] = scores.raw[i].copy()
                if self.features:
                    columns["features"][row] = vectors[i].copy()
                if hidden is not None:
                    columns["hidden_state"][row] = hidden

    def _columns(self) -> list[str]:
        asked = {"head_scores_raw": self.raw, "features": self.features, "hidden_state": len(self._layers()) > 0}
        return ["head_scores", "head_reading", *(name for name, wanted in asked.items() if wanted)]

    def _chosen(self) -> tuple[HeadsLike, HeadSet | None]:
        """The heads to read, and the set that they are of, if any."""
        if isinstance(self.heads, HeadSet):
            return self.heads.ranking.heads, self.heads
        return self.heads, None

    def _layers(self) -> tuple[int, ...]:
        layers = self.hidden_layers
        if layers is None:
            return ()
        if isinstance(layers, str) or np.ndim(layers) != 1:
            raise TypeError(f"hidden_layers is a sequence of layers, got {layers!r}")
        return tuple(check_whole(f"hidden_layers[{i}]", layer, least=0) for i, layer in enumerate(layers))

    def _settings(self) -> ReadingSettings:
        check_numbers(self.depth, self.batch_size)
        check_fields(self.text_field, self.title_field)
        check_flag("raw", self.raw)
        check_flag("features", self.features)
        if self.verbose is not None:
            check_flag("verbose", self.verbose)
        FrozenLLM.of(self.llm)
        self._layers()
        heads, head_set = self._chosen()
        if not is_all(heads):
            parse_heads(heads)
        given = {name: getattr(self, name) for name in SETTING_NAMES}
        settings = resolve_settings(given, None if head_set is None else head_set.settings)
        if settings.token_filter == "sum":
            raise ValueError(
                "token_filter='sum' filters after summing heads, so it does not exist for single heads: "
                "give token_filter='head'"
            )
        if self.features and self.depth is not None:
            raise ValueError("features=True needs a vector in every row: cut the list before the scorer, not by depth")
        return settings
