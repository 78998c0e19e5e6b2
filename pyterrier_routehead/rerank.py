"""Re-rankers with a fixed set of heads: `StaticHeadReranker`, and `ICRReranker`, which sums all of them."""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyterrier as pt

from .errors import ListTooLongError
from .frames import (
    CandidateRows,
    candidate_lists,
    candidate_texts,
    check_finite,
    check_numbers,
    first_stage_scores,
    standardised,
    vector_rows,
    with_tail,
)
from .head_set import HeadSet
from .heads import HeadsLike, all_heads, describe_heads, is_all, kept_heads, layers_needed, parse_heads
from .llm import FrozenLLM
from .reader import CandidateList, ListReader, model_identity
from .reading import (
    SETTING_NAMES,
    ModelIdentity,
    Reading,
    ReadingSettings,
    resolve_settings,
    settings_by_hand,
    shown_settings,
)
from .store import HeadScoreStore
from .template import PromptTemplate
from .windows import slide_windows

if TYPE_CHECKING:
    from .prompt import ListPrompt
    from .scores import ListScores


class StaticHeadReranker(pt.Transformer):
    """Ranks by the sum of a fixed set of attention heads.

    Behind an :class:`AttentionHeadScorer` it sums what the scorer has read and needs no model. On text it reads the
    heads itself, running no layer above the deepest of them.

    Required input columns: ``qid``, ``docno`` and either ``head_scores`` with ``head_reading`` (used where both are
    there), or ``query`` and ``text_field`` (and ``title_field``); ``rank`` or ``score``, if there, give the candidates'
    order; ``score`` is needed for ``first_stage_weight``.

    Output columns: all input columns, with new ``score`` (float64) and ``rank``. Rows keep their order, which also
    breaks ties. Candidates below ``depth``, and trailing ones without a vector, keep their order behind the others,
    with finite falling scores.

    A list-wise list beyond the model's context is ranked in windows that slide from its tail to its head, with a
    warning; scores then fall along the ranking, but only those of the last window are attention.

    Args:
        heads: ``"all"``, heads as (layer, head) pairs or ``"layer-head"`` strings, or a :class:`HeadSet`, which also
            says which model it is for and how to read it.
        llm: a :class:`FrozenLLM` to share, a model's name, or None: on head scores for whichever model was read, on
            text for the head set's model, else for SmolLM2-135M-Instruct.
        prompt: see :class:`AttentionHeadScorer`, as for the next five. None means the value that the frame's head
            scores were read with, on text the head set's value, else the package's default. A value that differs from
            the frame's is an error, one that differs from the head set's on text a warning.
        document_order: ``"best_last"`` or ``"best_first"``.
        document_attention: ``"listwise"`` or ``"blockwise"``.
        max_doc_tokens: title and text of each document are cut to so many tokens.
        calibrate: whether to subtract the scores of the content-free query.
        token_filter: ``"head"``, ``"sum"`` (filter after summing the heads, as the papers' code does; on text only) or
            ``"none"``.
        depth: re-rank only so many candidates per query.
        first_stage_weight: weight of the first stage's score, added after both sides are standardised over the
            candidates of the query that are re-ranked (within a window, over those in it); 0 leaves it out.
        allow_mismatch: use a head set with other weights of its model's shape, or on head scores that were read
            otherwise than the set's.
        store: a :class:`HeadScoreStore`, or the folder of one: lists found there are not read again, others are added.
            Not used with ``token_filter="sum"``.
        batch_size: how many lists are read in one pass.
        text_field: column of the documents' text.
        title_field: column of the documents' titles, if any.
        verbose: show progress.
    """

    schematic = {"label": "StaticHeads", "help_url": "https://arxiv.org/abs/2506.09944"}

    def __init__(
        self,
        heads: HeadsLike | HeadSet,
        *,
        llm: FrozenLLM | str | None = None,
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
        self.heads = kept_heads(heads)
        self.llm = llm
        self.prompt = prompt
        self.document_order = document_order
        self.document_attention = document_attention
        self.max_doc_tokens = max_doc_tokens
        self.calibrate = calibrate
        self.token_filter = token_filter
        self.depth = depth
        self.first_stage_weight = first_stage_weight
        self.allow_mismatch = allow_mismatch
        self.store = store
        self.batch_size = batch_size
        self.text_field = text_field
        self.title_field = title_field
        self.verbose = verbose
        self._backbone: FrozenLLM | None = None
        self._peeked: tuple[object, ModelIdentity] | None = None
        self._settings()  # a wrong value is refused here, not in the middle of a run

    __hash__ = object.__hash__  # PyTerrier's follows the repr, which settings change

    def __repr__(self) -> str:
        depth = "" if self.depth is None else f", depth={self.depth}"
        return f"StaticHeadReranker({describe_heads(self.heads)}{depth})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Rank anew; see the class."""
        has_vectors = self._has_vectors(inp)
        settings = self._settings()
        scores = np.zeros(len(inp))
        if not inp.empty:
            heads = self._chosen()
            if heads is None:
                raise RuntimeError(f"{type(self).__name__} has no heads yet: fit it, or give it heads")
            lists = candidate_lists(inp)
            scored = (
                self._take_vectors(inp, lists, heads) if has_vectors else self._read_text(inp, lists, heads, settings)
            )
            if self.verbose:
                scored = pt.tqdm(scored, total=len(lists), unit="q", desc=str(self))
            for candidates, own in zip(lists, scored, strict=True):
                check_finite(own, candidates.qid)
                scores[candidates.rows] = with_tail(own, len(candidates.rows))
        out = inp.drop(columns=["score", "rank"], errors="ignore").assign(score=scores)
        # An index that is named like a column would be ambiguous to add_ranks.
        return pt.model.add_ranks(out.rename_axis(index=None)).set_axis(inp.index)

    def _has_vectors(self, inp: pd.DataFrame) -> bool:
        """Whether a frame brings head scores, or else text. Refuses one that brings neither."""
        weighed = ["score"] if self._uses_first_stage() else []
        text = ["query", self.text_field, *([] if self.title_field is None else [self.title_field])]
        with pt.validate.any(inp, context=self) as mode:
            mode.result_frame(["head_scores", "head_reading", *self._beside_vectors(), *weighed], mode="vectors")
            # Vectors that lost their reading must not be passed over in silence.
            mode.columns(includes=["qid", "docno", *text, *weighed], excludes=["head_scores"], mode="text")
        return mode.mode == "vectors"

    def _uses_first_stage(self) -> bool:
        return bool(self.first_stage_weight)

    def _beside_vectors(self) -> list[str]:
        """Further columns that are needed where a frame brings head scores."""
        return []

    def _settings(self) -> ReadingSettings:
        check_numbers(self.depth, self.batch_size)
        FrozenLLM.of(self.llm)
        if not np.isfinite(self.first_stage_weight):
            raise ValueError(f"first_stage_weight is a finite number, got {self.first_stage_weight!r}")
        heads = self._chosen()
        if isinstance(heads, HeadSet):
            return resolve_settings(self._given(), heads.settings)
        if heads is not None and not is_all(heads):
            parse_heads(heads)
        return resolve_settings(self._given())

    def _chosen(self) -> HeadsLike | HeadSet | None:
        """The heads to rank by at this moment; None where they are still to be found."""
        if self.heads is None:
            raise ValueError("heads are missing: 'all', a list of heads, or a HeadSet")
        return self.heads

    def _given(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in SETTING_NAMES}

    def _with_first_stage(self, inp: pd.DataFrame, candidates: CandidateRows, attention: np.ndarray) -> np.ndarray:
        """Attention scores of the first candidates of a list, with the first stage's scores added if asked for."""
        if not self.first_stage_weight:
            return attention
        first = first_stage_scores(inp, candidates, len(attention))
        return standardised(attention) + self.first_stage_weight * standardised(first)

    # From head scores that are in the frame

    def _take_vectors(
        self, inp: pd.DataFrame, lists: Sequence[CandidateRows], heads: HeadsLike | HeadSet
    ) -> Iterator[np.ndarray]:
        if self.token_filter == "sum":
            raise ValueError(
                "token_filter='sum' filters after summing heads, but the frame has head_scores, read head by head: "
                "put this re-ranker on text, not behind a scorer, or drop the column head_scores"
            )
        chosen: dict[int, list[int]] = {}
        for candidates in lists:
            readings, vectors = vector_rows(inp, candidates)
            for reading in readings:
                if id(reading) not in chosen:
                    chosen[id(reading)] = self._columns(reading, heads)
            top = slice(0, self.depth)
            own = [
                np.asarray(vector)[chosen[id(reading)]]
                for vector, reading in zip(vectors[top], readings[top], strict=True)
            ]
            yield self._rank(inp, candidates, np.stack(own), heads)

    def _rank(
        self, inp: pd.DataFrame, candidates: CandidateRows, vectors: np.ndarray, heads: HeadsLike | HeadSet
    ) -> np.ndarray:
        """One score a candidate, float64, from its scores by these heads."""
        return self._with_first_stage(inp, candidates, vectors.sum(axis=1, dtype=np.float64))

    def _columns(self, reading: Reading, heads: HeadsLike | HeadSet) -> list[int]:
        """Places of the heads in vectors of some reading, which must be one that this re-ranker may use."""
        self._check_reading(reading)
        if isinstance(heads, HeadSet):
            self._check_model(heads, reading.model)
            heads.check_settings(reading.settings, allow_mismatch=self.allow_mismatch)
        elif self.llm is not None and is_all(heads):
            limit = self.llm.max_layers if isinstance(self.llm, FrozenLLM) else None
            layers = reading.model.num_layers
            heads = all_heads(layers if limit is None else min(limit, layers), reading.model.num_heads)
        return reading.columns(heads)

    def _check_model(self, heads: HeadSet, model: ModelIdentity) -> None:
        heads.check_model(model, allow_mismatch=self.allow_mismatch)

    def _check_reading(self, reading: Reading) -> None:
        """Refuse vectors read otherwise than set by hand, or from another model than ``llm``."""
        reading.check_settings(self._given())
        if self.llm is not None:
            if self._peeked is None or self._peeked[0] is not self.llm:
                self._peeked = self.llm, model_identity(FrozenLLM.of(self.llm).peek())
            reading.check_model(self._peeked[1])

    # From text

    def _read_text(
        self,
        inp: pd.DataFrame,
        lists: Sequence[CandidateRows],
        heads: HeadsLike | HeadSet,
        settings: ReadingSettings,
    ) -> Iterator[np.ndarray]:
        whole = self._reader(heads, settings)
        warned = False
        for start in range(0, len(lists), self.batch_size):
            batch = lists[start : start + self.batch_size]
            reader = self._batch_reader(inp, batch, whole)
            texts = [candidate_texts(inp, own, self.depth, self.text_field, self.title_field) for own in batch]
            prompts = [reader.prompt(candidates) for candidates in texts]
            too_long = [reader.overflows(prompt) for prompt in prompts]
            for candidates, prompt, slides in zip(texts, prompts, too_long, strict=True):
                if slides:
                    reader.room_for_documents(candidates.qid, prompt)  # refuses a query that leaves none
                else:
                    reader.check_length(candidates, prompt)
            read = iter(reader.score([p for p, slides in zip(prompts, too_long, strict=True) if not slides]))
            for rows, candidates, prompt, slides in zip(batch, texts, prompts, too_long, strict=True):
                if not slides:
                    yield self._rank_read(inp, rows, next(read), reader)
                    continue
                if not warned:
                    warned = True
                    warnings.warn(
                        f"query {rows.qid!r}: its {len(candidates.candidates)} candidates take "
                        f"{prompt.length('listwise')} tokens, but the context has {reader.llm.context_length}: "
                        "such lists are ranked in sliding windows",
                        stacklevel=4,
                    )
                yield self._slide(inp, rows, candidates, prompt, reader)

    def _batch_reader(self, inp: pd.DataFrame, batch: Sequence[CandidateRows], reader: ListReader) -> ListReader:
        """What reads a batch; subclasses may read fewer heads."""
        return reader

    def _rank_read(
        self, inp: pd.DataFrame, candidates: CandidateRows, scores: "ListScores", reader: ListReader
    ) -> np.ndarray:
        """One score a candidate, float64, from what has been read of a list."""
        settings = reader.settings
        if settings.token_filter == "sum":
            return self._with_first_stage(inp, candidates, scores.summed.astype(np.float64))
        vectors = scores.vectors(calibrate=settings.calibrate, token_filter=settings.token_filter)
        return self._rank(inp, candidates, vectors, reader.heads)

    def _reader(self, heads: HeadsLike | HeadSet, settings: ReadingSettings) -> ListReader:
        self._backbone = self._open(self._named_model(heads), self._layers_to_load(heads), self._backbone)
        if isinstance(heads, HeadSet):
            self._warn_of_other_settings(heads)
            self._check_model(heads, model_identity(self._backbone))
        return ListReader(self._backbone, heads, settings, store=HeadScoreStore.of(self.store))

    def _named_model(self, heads: HeadsLike | HeadSet) -> ModelIdentity | None:
        return heads.model if isinstance(heads, HeadSet) else None

    def _open(self, model: ModelIdentity | None, max_layers: int | None, reuse: FrozenLLM | None) -> FrozenLLM:
        """The model set by ``llm``, else the one that is named, else the default one."""
        if self.llm is not None or model is None:
            return FrozenLLM.of(self.llm, max_layers=max_layers, reuse=reuse)
        return FrozenLLM.of(
            model.name, revision=model.revision, tokenizer=model.tokenizer, max_layers=max_layers, reuse=reuse
        )

    def _layers_to_load(self, heads: HeadsLike | HeadSet) -> int | None:
        return layers_needed(heads)

    def _warn_of_other_settings(self, heads: HeadSet) -> None:
        own = settings_by_hand(self._given())
        known = {name: heads.settings[name] for name in own if name in heads.settings}
        if any(own[name] != value for name, value in known.items()):
            own = {name: own[name] for name in known}
            warnings.warn(
                f"the head set's scores were read otherwise than set by hand: {shown_settings(own, known)}",
                stacklevel=5,
            )

    def _slide(
        self,
        inp: pd.DataFrame,
        rows: CandidateRows,
        candidates: CandidateList,
        prompt: "ListPrompt",
        reader: ListReader,
    ) -> np.ndarray:
        lengths = np.zeros(len(prompt.blocks), dtype=int)
        lengths[prompt.order] = prompt.block_lengths
        budget = reader.room_for_documents(rows.qid, prompt)
        for row, length in zip(rows.rows, lengths, strict=False):
            if length > budget:
                raise ListTooLongError(
                    f"query {rows.qid!r}: document {inp['docno'].iloc[row]!r} takes {length} tokens, but the query and "
                    f"the prompt's wording leave {budget} of the context's {reader.llm.context_length}: lower "
                    "max_doc_tokens, or shorten the query"
                )

        def rank(numbers: list[int]) -> np.ndarray:
            own_prompt = reader.part(prompt, numbers)
            window = CandidateList(rows.qid, candidates.query, [candidates.candidates[i] for i in numbers])
            reader.check_length(window, own_prompt)
            (scores,) = reader.score([own_prompt])
            return self._rank_read(inp, CandidateRows(rows.qid, rows.rows[numbers]), scores, reader)

        return slide_windows(lengths, budget, rank)


class ICRReranker(StaticHeadReranker):
    """In-context re-ranking (ICR, arXiv 2410.02642): ranks by the sum of all heads of all layers.

    Columns and arguments as for :class:`StaticHeadReranker`. ``ICRReranker(**paper_settings("icr"))`` takes the prompt,
    order and token filter of the paper's own code.
    """

    schematic = {"label": "ICR", "help_url": "https://arxiv.org/abs/2410.02642"}

    def __init__(
        self,
        *,
        llm: FrozenLLM | str | None = None,
        prompt: PromptTemplate | str | None = None,
        document_order: str | None = None,
        document_attention: str | None = None,
        max_doc_tokens: int | None = None,
        calibrate: bool | None = None,
        token_filter: str | None = None,
        depth: int | None = None,
        first_stage_weight: float = 0.0,
        store: HeadScoreStore | str | None = None,
        batch_size: int = 1,
        text_field: str = "text",
        title_field: str | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            "all",
            llm=llm,
            prompt=prompt,
            document_order=document_order,
            document_attention=document_attention,
            max_doc_tokens=max_doc_tokens,
            calibrate=calibrate,
            token_filter=token_filter,
            depth=depth,
            first_stage_weight=first_stage_weight,
            store=store,
            batch_size=batch_size,
            text_field=text_field,
            title_field=title_field,
            verbose=verbose,
        )

    def __repr__(self) -> str:
        return "ICRReranker()" if self.depth is None else f"ICRReranker(depth={self.depth})"
