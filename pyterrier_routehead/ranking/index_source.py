"""Head scores from an index: the candidates' texts are not needed."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..common.locks import cached_property
from ..heads import Head, HeadsLike, is_all, parse_heads
from ..index.corpus import text_checksum
from ..index.reader import IndexReader
from ..kernel.parts import QUERIES_AT_ONCE
from ..kernel.scores import ListScores
from ..prompt.build import Candidate, ListPrompt
from ..reading.reading import Reading
from ..routing.state import QueryState, embed_query
from .frames import candidate_lists, documents
from .policy import QueryList
from .sources import HeadVectors, query_list, vectors_of


class IndexSource:
    """Reads lists by the keys of a head index.

    Args:
        frame: with ``query`` and ``docno``.
        open_reader: gives what reads the index; called once something is to be read.
        text_field: column of the documents' text, to compare with what was indexed, and to encode what is missing; None
            where the frame has none, or not with titles as the index has.
        title_field: column of their titles.
        encode_missing: encode candidates that are not in the index, instead of an error.
        batch_size: how many queries run in one pass at least.
        by_head: give scores by head under ``token_filter="sum"`` too, filtered for each head.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        open_reader: Callable[[], IndexReader],
        *,
        text_field: str | None,
        title_field: str | None,
        encode_missing: bool = False,
        batch_size: int = 1,
        by_head: bool = False,
    ) -> None:
        self.frame = frame
        self.batch_size = max(batch_size, QUERIES_AT_ONCE)
        self._open_reader = open_reader
        self._text_field, self._title_field = text_field, title_field
        self._encode_missing = encode_missing
        self._by_head = by_head
        self._numbers: dict[str, np.ndarray] = {}  # of each qid's candidates in the index, by row of the list
        self._batch: dict[str, ListPrompt] = {}

    @cached_property
    def reader(self) -> IndexReader:
        """What reads the index; loads the model."""
        return self._open_reader()

    def reading(self, candidates: QueryList) -> Reading:
        """What the scores speak of, the same for all lists."""
        return self.reader.reading

    def lists(self, depth: int | None, *, query: bool, first_stage: bool) -> list[QueryList]:
        """The frame's lists, always with their query."""
        return [
            query_list(self.frame, candidates, len(candidates.rows[:depth]), query=True, first_stage=first_stage)
            for candidates in candidate_lists(self.frame)
        ]

    def accept(self, lists: Sequence[QueryList]) -> None:
        """Look all candidates up, and compare their texts where the frame has them."""
        docnos = self.frame["docno"]
        rows = np.concatenate([candidates.rows for candidates in lists]) if lists else np.zeros(0, dtype=int)
        names = [str(docno) for docno in docnos.iloc[rows]]
        numbers = self.reader.view.find(names)
        if (missing := numbers < 0).any() and not self._encode_missing:
            examples = list(dict.fromkeys(name for name, gone in zip(names, missing, strict=True) if gone))
            raise ValueError(
                f"{len(examples)} candidates are not in {self.reader.index}, such as "
                f"{', '.join(map(repr, examples[:5]))}: index them, or give missing='encode' and their texts"
            )
        if missing.any() and self._text_field is None:
            texts = "texts and titles" if self.reader.index.description.titles else "texts"
            raise ValueError(
                f"{int(missing.sum())} candidates are not in {self.reader.index}: missing='encode' needs their {texts}"
            )
        self._compare_texts(rows[~missing], numbers[~missing])
        start = 0
        for candidates in lists:
            self._numbers[candidates.qid] = numbers[start : start + len(candidates.rows)]
            start += len(candidates.rows)

    def _compare_texts(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        if self._text_field is None or not len(rows):
            return
        indexed = self.reader.view.documents(numbers)["text"]
        texts = documents(self.frame, rows, self._text_field, self._title_field)
        for row, text, checksum in zip(rows, texts, indexed, strict=True):
            if text_checksum(text) != checksum:
                raise ValueError(
                    f"document {self.frame['docno'].iloc[row]!r}: its text in the frame is not what is in "
                    f"{self.reader.index}; drop the column {self._text_field!r} to rank by what was indexed"
                )

    def prepare(self, lists: Sequence[QueryList]) -> None:
        """Run the queries of some lists in one pass."""
        self._batch = {}
        self.reader.prepare([self._prompt(candidates) for candidates in lists])

    def embed(self, lists: Sequence[QueryList], state: QueryState) -> np.ndarray:
        """From the pass that reads the query, or from the query by itself."""
        reader = self.reader
        if state.source == "tail":
            return reader.hidden_states([self._prompt(candidates) for candidates in lists], state.layer)
        return np.stack(
            [embed_query(reader.llm, candidates.known_query, state, reader.snapshot) for candidates in lists]
        )

    def windows(self, candidates: QueryList) -> None:
        """A query's candidates never share a prompt."""

    def read(
        self, lists: Sequence[QueryList], heads: Sequence[HeadsLike], *, raw: bool = False
    ) -> list[HeadVectors]:
        """Scores of lists, each by its own heads alone."""
        found = []
        for candidates, wanted in zip(lists, heads, strict=True):
            scores = self._list_scores(candidates, self.reader.heads if is_all(wanted) else parse_heads(wanted))
            found.append(vectors_of(scores, self.reader.settings, by_head=self._by_head, raw=raw))
        return found

    def list_scores(self, lists: Sequence[QueryList]) -> list[ListScores]:
        """All that is read of some lists."""
        return [self._list_scores(candidates, self.reader.heads) for candidates in lists]

    def _list_scores(self, candidates: QueryList, heads: Sequence[Head]) -> ListScores:
        numbers = self._numbers[candidates.qid]
        if candidates.part_of is not None:
            numbers = numbers[candidates.part_of[1]]
        texts = self._texts(candidates, numbers)
        (scores,) = self.reader.score([self._prompt(candidates)], [numbers], [texts], heads)
        return scores

    def _texts(self, candidates: QueryList, numbers: np.ndarray) -> dict[int, Candidate]:
        """The texts of candidates that are not in the index, by their place in the list."""
        places = np.flatnonzero(numbers < 0)
        if not len(places):
            return {}
        assert self._text_field is not None, "missing candidates are accepted with texts alone"
        texts = documents(self.frame, candidates.rows[places], self._text_field, self._title_field)
        return dict(zip(map(int, places), texts, strict=True))

    def _prompt(self, candidates: QueryList) -> ListPrompt:
        if candidates.qid not in self._batch:
            prompt = self.reader.prompt(candidates.known_query)
            self.reader.check_length(candidates.qid, prompt)
            self._batch[candidates.qid] = prompt
        return self._batch[candidates.qid]
