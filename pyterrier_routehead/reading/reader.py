"""Computes head scores for candidate lists: prompts in, scores out, some lists at a time."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import ListTooLongError
from ..common.locks import cached_property
from ..heads import Head, HeadsLike, all_heads, is_all, resolve_heads
from ..kernel.patterns import PATTERNS, positions_taken
from ..kernel.scores import follow_from_stored
from ..model.fingerprint import ModelSnapshot
from ..model.frozen import FrozenLLM
from ..prompt.build import Candidate, ListPrompt, PromptBuilder
from .reading import ModelIdentity, Reading, ReadingSettings

if TYPE_CHECKING:
    import numpy as np

    from ..kernel.late_reader import LateReader
    from ..kernel.scores import ListScores
    from .store import HeadScoreStore


@dataclass(frozen=True)
class CandidateList:
    """A query with its candidates, best first."""

    qid: str
    query: str
    candidates: list[Candidate]


class ListReader:
    """Reads some heads of a model under some settings, for the time of one call of a transformer.

    What the model is, for the store and for those who are given scores, is looked at once, on first use: a loaded model
    may have been changed since the last call.

    Args:
        llm: the frozen model.
        heads: heads to read.
        settings: prompt, order, document attention, truncation, calibration and filter.
        hidden_layers: layers after which to read the mean hidden state of the query rows.
        store: where to look scores up first and to keep what had to be read: all heads of the layers that run,
            calibrated. Not used with ``token_filter="sum"``, which needs the attention on single tokens.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        heads: HeadsLike,
        settings: ReadingSettings,
        *,
        hidden_layers: Sequence[int] = (),
        store: "HeadScoreStore | None" = None,
    ) -> None:
        self.llm = llm
        self._all = is_all(heads)
        self.heads: tuple[Head, ...] = resolve_heads(heads, llm.num_layers, llm.num_heads)
        self.settings = settings
        self.hidden_layers = tuple(hidden_layers)
        self.store = store if follow_from_stored(settings.aggregation) else None
        self.pattern = PATTERNS[settings.document_attention]
        self._all_heads = self._stored_heads() if self.store is not None else self.heads
        self._builder = PromptBuilder(
            settings.prompt,
            llm.encoder,
            document_order=settings.document_order,
            numbered=self.pattern.numbered,
            max_doc_tokens=settings.max_doc_tokens,
        )

    def with_heads(self, heads: HeadsLike) -> "ListReader":
        """A reader of other heads, otherwise the same, for the same call."""
        reader = copy.copy(self)
        reader._all = is_all(heads)
        reader.heads = resolve_heads(heads, self.llm.num_layers, self.llm.num_heads)
        if self.store is not None:
            reader.snapshot = self.snapshot  # taken once for all
        if self.late_reading:
            reader.late = self.late  # which remembers queries and documents
        return reader

    @property
    def late_reading(self) -> bool:
        """Whether queries and documents do not see each other."""
        return not self.pattern.tail_sees_documents

    def _stored_heads(self) -> tuple[Head, ...]:
        """All heads of the layers that run, which is what a store keeps."""
        layers = max(layer for layer in (*(head.layer for head in self.heads), *self.hidden_layers)) + 1
        return tuple(all_heads(layers, self.llm.num_heads))

    @cached_property
    def late(self) -> "LateReader":
        """What reads late, for all heads that readers of this call may ask for."""
        from ..kernel.late_reader import LateReader

        calibrate = self.settings.calibrate or self.store is not None
        return LateReader(self.llm, self._all_heads, calibrate=calibrate, hidden_layers=self.hidden_layers)

    @cached_property
    def snapshot(self) -> ModelSnapshot:
        """What the model is during this call."""
        return self.llm.snapshot()

    @property
    def reading(self) -> Reading:
        """What the scores describe."""
        model = model_identity(self.llm, self.snapshot.fingerprint)
        return Reading(model, self.heads, self.settings, self._all, self.hidden_layers)

    def prompt(self, candidates: CandidateList) -> ListPrompt:
        """The prompt of a list."""
        return self._builder.build(candidates.query, candidates.candidates)

    def length(self, prompt: ListPrompt) -> int:
        """Number of positions that a prompt takes."""
        return positions_taken(self.pattern, prompt)

    def prompt_without_documents(self, query: str) -> ListPrompt:
        """The prompt of a query, as late reading runs it."""
        return self._builder.without_documents(query)

    def hidden_states(self, prompts: Sequence[ListPrompt], layer: int) -> "np.ndarray":
        """The mean hidden state of each query's rows after a layer, in late reading: float32 [queries, hidden size]."""
        return self.late.hidden_states(prompts, layer)

    def prepare(self, prompts: Sequence[ListPrompt]) -> None:
        """In late reading, run the queries of some lists in one pass, before they are asked for.

        Not with a store, which may have the lists already, unless the queries' hidden states are wanted anyway.
        """
        if self.store is None or self.hidden_layers:
            self.late.run(prompts)

    def part(self, prompt: ListPrompt, candidates: list[int]) -> ListPrompt:
        """The prompt of some candidates of a list (by number, best first), without encoding any anew."""
        return self._builder.part(prompt, candidates)

    def read(self, lists: Sequence[CandidateList], batch_size: int) -> Iterator[tuple[CandidateList, "ListScores"]]:
        """Scores of each list, in order, ``batch_size`` lists per pass.

        Raises:
            ListTooLongError: naming the qid of a list beyond the model's context.
        """
        for start in range(0, len(lists), batch_size):
            batch = lists[start : start + batch_size]
            prompts = [self.prompt(candidates) for candidates in batch]
            for candidates, prompt in zip(batch, prompts, strict=True):
                self.check_length(candidates.qid, prompt)
            yield from zip(batch, self.score(prompts), strict=True)

    def score(self, prompts: Sequence[ListPrompt]) -> list["ListScores"]:
        """Scores of some prompts: from the store, or read in one pass."""
        if self.store is None:
            return self._run(prompts, self.heads, self.settings.calibrate)
        from .store import store_key

        stored = self._stored_heads()
        layers = len(stored) // self.llm.num_heads
        keys = [store_key(self.snapshot, prompt, self.settings.document_attention) for prompt in prompts]
        looked_up = [self.store.get(key, layers, self.hidden_layers) for key in keys]
        missing = [i for i, scores in enumerate(looked_up) if scores is None]
        by_list = {i: scores for i, scores in enumerate(looked_up) if scores is not None}
        read = self._run([prompts[i] for i in missing], stored, True)
        for i, scores in zip(missing, read, strict=True):
            self.store.put(keys[i], scores, layers)
            by_list[i] = scores
        columns = [head.layer * self.llm.num_heads + head.head for head in self.heads]
        return [by_list[i].of_heads(columns) for i in range(len(prompts))]

    def _run(self, prompts: Sequence[ListPrompt], heads: Sequence[Head], calibrate: bool) -> list["ListScores"]:
        from ..kernel.score import score_lists

        if not prompts:
            return []
        return score_lists(
            self.llm,
            prompts,
            heads,
            document_attention=self.settings.document_attention,
            calibrate=calibrate,
            hidden_layers=self.hidden_layers,
            late=self.late if self.late_reading else None,
        )

    def overflows(self, prompt: ListPrompt) -> bool:
        """Whether a prompt exceeds the model's context and its list can be ranked in windows."""
        context = self.llm.context_length
        return self.pattern.windowed and context is not None and self.length(prompt) > context

    def check_length(self, qid: str, prompt: ListPrompt) -> None:
        """Refuse a list that the model cannot read, naming its qid.

        Raises:
            ListTooLongError: for a query that leaves no room for documents, or a list beyond the model's context.
            UnsupportedArchitectureError: for a list so long that the model's rotary frequencies would change.
        """
        from ..kernel.score import check_length

        check_tail(qid, prompt)
        self.room_for_documents(qid, prompt)
        try:
            check_length(self.llm, self.length(prompt))
        except ValueError as error:
            what = f"query {qid!r} with {len(prompt.blocks)} candidates"
            # Late, the tail stands behind the longest block that there could be.
            remedy = ": lower max_doc_tokens, or shorten the query" if self.late_reading else ""
            raise type(error)(f"{what}: {error}{remedy}") from None

    def room_for_documents(self, qid: str, prompt: ListPrompt) -> int | None:
        """Number of positions that query and markup leave of the model's context; None where no context is known.

        Raises:
            ListTooLongError: naming the qid of a query that leaves none.
        """
        context, alone = self.llm.context_length, self.length(replace(prompt, blocks=[], block_capacity=0))
        if context is not None and alone >= context:
            raise ListTooLongError(
                f"query {qid!r}: the query and the prompt's wording alone take {alone} tokens, but the context of "
                f"{self.llm.name} has {context}: shorten the query"
            )
        return context if context is None else context - alone


def check_tail(qid: str, prompt: ListPrompt) -> None:
    """Raise an error for a prompt without a tail, naming the qid: its rows are what is read."""
    if not prompt.query:
        raise ValueError(f"query {qid!r}: the prompt has no tokens after the documents, so nothing can be read")


def model_identity(llm: FrozenLLM, fingerprint: tuple[str, ...] | None = None) -> ModelIdentity:
    """Which model this is at this moment; loads it.

    Args:
        llm: the model.
        fingerprint: its fingerprint, where it has just been taken.
    """
    tokenizer = str(llm.tokenizer) if isinstance(llm.tokenizer, str | Path) else None
    fingerprint = llm.fingerprint if fingerprint is None else fingerprint
    return ModelIdentity(llm.name, fingerprint, llm.total_layers, llm.num_heads, llm.revision, tokenizer)
