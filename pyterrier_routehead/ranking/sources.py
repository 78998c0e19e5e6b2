"""Where the head scores of candidate lists come from: the frame, or the model that reads the frame's texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd

from ..common.errors import ListTooLongError
from ..common.locks import cached_property
from ..common.notices import warn
from ..heads import HeadsLike, all_heads, is_all, parse_heads
from ..kernel.aggregate import default_aggregation
from ..kernel.scores import ListScores
from ..model.fingerprint import ModelSnapshot
from ..model.frozen import FrozenLLM
from ..prompt.build import ListPrompt
from ..reading.reader import CandidateList, ListReader
from ..reading.reading import Reading, ReadingSettings
from ..routing.state import QueryState, embed_query
from .frames import (
    CandidateRows,
    candidate_lists,
    documents,
    first_stage_scores,
    query_text,
    vector_rows,
)
from .policy import QueryList


@dataclass(frozen=True)
class HeadVectors:
    """Head scores of a list.

    Attributes:
        vectors: as they are ranked by, float32 [candidates, heads]; with ``token_filter="sum"`` one column, the
            filtered sum over the heads.
        raw: attention without calibration, float32 [candidates, heads]; None where it was not asked for.
    """

    vectors: np.ndarray
    raw: np.ndarray | None = None


@dataclass(frozen=True)
class Windows:
    """How a list that does not fit into one prompt may be cut.

    Attributes:
        lengths: tokens of each candidate.
        budget: tokens that the candidates of one prompt may take.
    """

    lengths: np.ndarray
    budget: int


class ScoreSource(Protocol):
    """Gives head scores of the lists of one frame.

    Attributes:
        frame: the frame.
        batch_size: how many lists are best read at once.
    """

    frame: pd.DataFrame
    batch_size: int

    def reading(self, candidates: QueryList) -> Reading:
        """What the scores of a list speak of."""

    def lists(self, depth: int | None, *, query: bool, first_stage: bool) -> list[QueryList]:
        """The frame's lists, down to a depth, with query and first stage's scores where they are wanted."""

    def accept(self, lists: Sequence[QueryList]) -> None:
        """Refuse scores that must not be used here, before any are read."""

    def prepare(self, lists: Sequence[QueryList]) -> None:
        """Take notice that these lists are next: whatever they can share is done at once."""

    def embed(self, lists: Sequence[QueryList], state: QueryState) -> np.ndarray:
        """The hidden state that stands for the query of each list, float32 [lists, hidden size]."""

    def windows(self, candidates: QueryList) -> Windows | None:
        """None for a list that is read at once."""

    def read(
        self, lists: Sequence[QueryList], heads: Sequence[HeadsLike], *, raw: bool = False
    ) -> list[HeadVectors]:
        """Scores of lists, each by its own heads."""


class FrameSource:
    """Head scores that an :class:`AttentionHeadScorer` has put into the frame.

    Args:
        frame: with ``head_scores`` and ``head_reading``.
        accept: refuses a reading that must not be used here.
        all_of: how many layers ``"all"`` heads are of; None for all that were read.
        open_model: the model of a reading, to embed queries with, given how many layers of it are needed.
    """

    batch_size = 1

    def __init__(
        self,
        frame: pd.DataFrame,
        accept: Callable[[Reading], None],
        *,
        all_of: int | None = None,
        open_model: Callable[[Reading, int], FrozenLLM] | None = None,
    ) -> None:
        self.frame = frame
        self._accept = accept
        self._all_of = all_of
        self._open_model = open_model
        self._accepted: dict[int, Reading] = {}  # held, so that an id stays that of its reading
        self._columns: dict[tuple[int, HeadsLike], list[int]] = {}
        self._models: dict[int, tuple[FrozenLLM, ModelSnapshot]] = {}

    def lists(self, depth: int | None, *, query: bool, first_stage: bool) -> list[QueryList]:
        """The frame's lists: their first candidates, that have vectors."""
        return [self._list(candidates, depth, query, first_stage) for candidates in candidate_lists(self.frame)]

    def _list(self, candidates: CandidateRows, depth: int | None, query: bool, first_stage: bool) -> QueryList:
        readings, _ = vector_rows(self.frame, candidates)
        return query_list(self.frame, candidates, len(readings[:depth]), query=query, first_stage=first_stage)

    def accept(self, lists: Sequence[QueryList]) -> None:
        """Every reading that the lists' vectors have."""
        for candidates in lists:
            for reading in self.frame["head_reading"].iloc[candidates.rows]:
                if id(reading) not in self._accepted:
                    self._accept(reading)
                    self._accepted[id(reading)] = reading

    def prepare(self, lists: Sequence[QueryList]) -> None:
        """Nothing can be shared."""

    def reading(self, candidates: QueryList) -> Reading:
        """What the vectors of a list's first candidate speak of."""
        reading: Reading = self.frame["head_reading"].iloc[candidates.rows[0]]
        return reading

    def embed(self, lists: Sequence[QueryList], state: QueryState) -> np.ndarray:
        """From the query by itself, or from ``hidden_state``."""
        return np.stack([self._embed(candidates, state) for candidates in lists])

    def _embed(self, candidates: QueryList, state: QueryState) -> np.ndarray:
        reading = self.reading(candidates)
        if state.source == "tail":
            if state.layer not in reading.hidden_layers:
                raise ValueError(
                    f"query {candidates.qid!r}: hidden_state holds the layers {list(reading.hidden_layers)}, "
                    f"the router needs {state.layer}: AttentionHeadScorer(hidden_layers=[{state.layer}])"
                )
            states = np.asarray(self.frame["hidden_state"].iloc[candidates.rows[0]])
            embedding: np.ndarray = states[reading.hidden_layers.index(state.layer)]
            return embedding
        if id(reading) not in self._models:
            assert self._open_model is not None, "a source that embeds queries is given what opens a model"
            llm = self._open_model(reading, state.layer + 1)
            self._models[id(reading)] = llm, llm.snapshot()
        llm, snapshot = self._models[id(reading)]
        return embed_query(llm, candidates.known_query, state, snapshot)

    def windows(self, candidates: QueryList) -> None:
        """Whatever was read is there."""

    def read(
        self, lists: Sequence[QueryList], heads: Sequence[HeadsLike], *, raw: bool = False
    ) -> list[HeadVectors]:
        """The vectors' numbers for the heads that are asked for."""
        return [self._read(candidates, wanted, raw) for candidates, wanted in zip(lists, heads, strict=True)]

    def _read(self, candidates: QueryList, heads: HeadsLike, raw: bool) -> HeadVectors:
        readings = self.frame["head_reading"].iloc[candidates.rows]
        columns = [self._places(reading, heads) for reading in readings]
        vectors = self.frame["head_scores"].iloc[candidates.rows]
        found = np.stack([np.asarray(vector)[places] for vector, places in zip(vectors, columns, strict=True)])
        if not raw:
            return HeadVectors(found)
        if not self.reading(candidates).settings.calibrate:
            return HeadVectors(found, found)
        if "head_scores_raw" not in self.frame.columns:
            raise ValueError(
                "the criterion is on uncalibrated scores, but the frame has no column 'head_scores_raw': "
                "give AttentionHeadScorer(raw=True), or choose a criterion on calibrated scores"
            )
        uncalibrated = list(self.frame["head_scores_raw"].iloc[candidates.rows])
        for row, raw_vector, vector in zip(candidates.rows, uncalibrated, vectors, strict=True):
            if np.shape(raw_vector) != np.shape(vector):
                docno = self.frame["docno"].iloc[row]
                raise ValueError(
                    f"query {candidates.qid!r}, document {docno!r}: head_scores_raw does not fit head_scores"
                )
        raw_scores = [np.asarray(vector)[places] for vector, places in zip(uncalibrated, columns, strict=True)]
        return HeadVectors(found, np.stack(raw_scores))

    def _places(self, reading: Reading, heads: HeadsLike) -> list[int]:
        heads = heads if isinstance(heads, str) else tuple(heads)
        key = id(reading), heads
        if key not in self._columns:
            if is_all(heads) and self._all_of is not None:
                layers = min(self._all_of, reading.model.num_layers)
                heads = all_heads(layers, reading.model.num_heads)
            self._columns[key] = reading.columns(heads)
        return self._columns[key]


class TextSource:
    """Reads the frame's texts by the model.

    Args:
        frame: with ``query`` and texts.
        open_reader: gives what reads lists under some settings; called once something is to be read.
        text_field: column of the documents' text.
        title_field: column of the documents' titles, if any.
        batch_size: how many lists are read in one pass.
        by_head: give scores by head under ``token_filter="sum"`` too, filtered for each head.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        open_reader: Callable[[], ListReader],
        *,
        text_field: str,
        title_field: str | None,
        batch_size: int,
        by_head: bool = False,
    ) -> None:
        self.frame = frame
        self.batch_size = batch_size
        self._open_reader = open_reader
        self._fields = text_field, title_field
        self._by_head = by_head
        self._prompts: dict[int, tuple[QueryList, ListPrompt]] = {}  # of the lists that are being read
        self._warned = False

    @cached_property
    def reader(self) -> ListReader:
        """What reads the lists; loads the model."""
        return self._open_reader()

    def reading(self, candidates: QueryList) -> Reading:
        """What the scores speak of, the same for all lists."""
        return replace(self.reader.reading, title_field=self._fields[1])

    def lists(self, depth: int | None, *, query: bool, first_stage: bool) -> list[QueryList]:
        """The frame's lists, always with their query."""
        return [
            query_list(self.frame, candidates, len(candidates.rows[:depth]), query=True, first_stage=first_stage)
            for candidates in candidate_lists(self.frame)
        ]

    def accept(self, lists: Sequence[QueryList]) -> None:
        """Text can always be read."""

    def prepare(self, lists: Sequence[QueryList]) -> None:
        """In late reading, queries run in one pass."""
        if self.reader.late_reading:
            prompts = [self._prompt(candidates) for candidates in lists]
            for candidates, prompt in zip(lists, prompts, strict=True):
                self.reader.check_length(candidates.qid, prompt)
            self.reader.prepare(prompts)

    def embed(self, lists: Sequence[QueryList], state: QueryState) -> np.ndarray:
        """From the query by itself; in late reading, from the pass that reads it, which has seen no document."""
        if state.source == "tail" and self.reader.late_reading:
            prompts = [self.reader.prompt_without_documents(candidates.known_query) for candidates in lists]
            return self.reader.hidden_states(prompts, state.layer)
        if state.source == "tail":
            raise ValueError(
                "this router embeds queries by the column 'hidden_state': put it behind "
                f"AttentionHeadScorer(hidden_layers=[{state.layer}])"
            )
        reader = self.reader
        return np.stack(
            [embed_query(reader.llm, candidates.known_query, state, reader.snapshot) for candidates in lists]
        )

    def windows(self, candidates: QueryList) -> Windows | None:
        """For a list-wise list beyond the model's context; warns of the first."""
        reader, prompt = self.reader, self._prompt(candidates)
        if not reader.overflows(prompt):
            return None
        lengths = np.zeros(len(prompt.blocks), dtype=int)
        lengths[prompt.order] = prompt.block_lengths
        budget = reader.room_for_documents(candidates.qid, prompt)
        assert budget is not None, "only a model with a known context overflows"
        for row, length in zip(candidates.rows, lengths, strict=True):
            if length > budget:
                raise ListTooLongError(
                    f"query {candidates.qid!r}: document {self.frame['docno'].iloc[row]!r} takes {length} tokens, but "
                    f"the query and the prompt's wording leave {budget} of the context's {reader.llm.context_length}: "
                    "lower max_doc_tokens, or shorten the query"
                )
        if not self._warned:
            self._warned = True
            warn(
                f"query {candidates.qid!r}: its {len(candidates.rows)} candidates take {reader.length(prompt)} "
                f"tokens, but the context has {reader.llm.context_length}: such lists are ranked in sliding windows"
            )
        return Windows(lengths, budget)

    def read(
        self, lists: Sequence[QueryList], heads: Sequence[HeadsLike], *, raw: bool = False
    ) -> list[HeadVectors]:
        """Scores of all lists in one pass, by whatever head one of them wants."""
        if not lists:
            return []
        reader = self.reader.with_heads(_union(heads))
        place = {head: i for i, head in enumerate(reader.heads)}
        found = []
        for scores, wanted in zip(self.list_scores(lists, reader), heads, strict=True):
            columns = None if is_all(wanted) else [place[head] for head in parse_heads(wanted)]
            found.append(vectors_of(scores, reader.settings, columns, by_head=self._by_head, raw=raw))
        return found

    def list_scores(self, lists: Sequence[QueryList], reader: ListReader | None = None) -> list[ListScores]:
        """All that is read of some lists, in one pass, by the source's reader or by one of other heads."""
        reader = reader or self.reader
        prompts = [self._prompt(candidates) for candidates in lists]
        for candidates, prompt in zip(lists, prompts, strict=True):
            reader.check_length(candidates.qid, prompt)
        return reader.score(prompts)

    def _prompt(self, candidates: QueryList) -> ListPrompt:
        """The prompt of a list; that of a part is made of its list's, so that no document is encoded twice."""
        if candidates.part_of is not None:
            complete, numbers = candidates.part_of
            return self.reader.part(self._prompt(complete), numbers)
        if id(candidates) not in self._prompts:
            texts = documents(self.frame, candidates.rows, *self._fields)
            listed = CandidateList(candidates.qid, candidates.known_query, texts)
            self._prompts[id(candidates)] = candidates, self.reader.prompt(listed)
            while len(self._prompts) > self.batch_size:
                del self._prompts[next(iter(self._prompts))]
        return self._prompts[id(candidates)][1]


def vectors_of(
    scores: ListScores,
    settings: ReadingSettings,
    columns: Sequence[int] | None = None,
    *,
    by_head: bool,
    raw: bool,
) -> HeadVectors:
    """What a list is ranked by, of the scores that were read.

    Args:
        scores: as read.
        settings: calibration and filter.
        columns: places of the heads that are wanted; None for all.
        by_head: give scores by head where the settings sum the heads first, filtered for each head.
        raw: give uncalibrated scores too.
    """
    aggregation = settings.aggregation
    if by_head and not aggregation.per_head:
        aggregation = default_aggregation(calibrate=settings.calibrate)
    vectors = scores.vectors(aggregation, calibrate=settings.calibrate)
    if not aggregation.per_head:
        return HeadVectors(vectors)
    if columns is None:
        return HeadVectors(vectors, scores.raw if raw else None)
    return HeadVectors(vectors[:, columns], scores.raw[:, columns] if raw else None)


def query_list(
    frame: pd.DataFrame, candidates: CandidateRows, count: int, *, query: bool, first_stage: bool
) -> QueryList:
    """The first so many candidates of a query, with what else is wanted of it."""
    return QueryList(
        candidates.qid,
        candidates.rows[:count],
        query_text(frame, candidates) if query else None,
        first_stage_scores(frame, candidates, count) if first_stage else None,
        candidates.rows[count:],
    )


def _union(heads: Sequence[HeadsLike]) -> HeadsLike:
    if any(isinstance(wanted, str) for wanted in heads):
        return heads[0] if len(heads) == 1 else next(wanted for wanted in heads if is_all(wanted))
    return list(dict.fromkeys(head for wanted in heads for head in wanted))


def in_batches(lists: Sequence[QueryList], size: int) -> Iterator[Sequence[QueryList]]:
    """Lists in order, some at a time."""
    for start in range(0, len(lists), size):
        yield lists[start : start + size]
