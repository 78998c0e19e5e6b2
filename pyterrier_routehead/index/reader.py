"""Reads candidate lists late, by the keys of an index."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import MismatchError
from ..common.locks import cached_property
from ..common.notices import warn
from ..heads import Head, all_heads
from ..kernel.patterns import Late
from ..kernel.scores import ListScores
from ..model.fingerprint import ModelSnapshot
from ..model.frozen import FrozenLLM
from ..prompt.build import Candidate, ListPrompt, PromptBuilder
from ..reading.reader import check_tail, model_identity
from ..reading.reading import Reading, ReadingSettings
from .head_index import HeadIndex

if TYPE_CHECKING:
    from ..kernel.keys import DocumentKeys


class IndexReader:
    """Reads some heads under some settings from an index, for the time of one call of a transformer.

    Args:
        index: the keys.
        llm: the model that made them, which runs the queries.
        heads: all heads that may be asked for.
        settings: prompt and truncation as the index has them, calibration and filter.
        hidden_layers: layers after which to keep the mean hidden state of the query's rows.

    Raises:
        MismatchError: for another model, tokenizer, prompt or truncation than the index was made with, or heads that it
            lacks.
    """

    def __init__(
        self,
        index: HeadIndex,
        llm: FrozenLLM,
        heads: Sequence[Head],
        settings: ReadingSettings,
        *,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.llm = llm
        self.heads = tuple(heads)
        self.settings = settings
        self.hidden_layers = tuple(hidden_layers)
        self.view = index.view()  # first, so that an index that is replaced meanwhile is noticed
        description = self.view.description
        index.check_model(model_identity(llm))
        if llm.weights_dtype == description.weights_dtype:
            description.check_surroundings(self.snapshot.surroundings, repr(index))
        else:
            warn(
                f"{index} was made in {description.weights_dtype}, but queries are run in {llm.weights_dtype}: scores "
                "are not quite those of either"
            )
        description.check_settings(settings, repr(index))
        description.check_heads(self.heads, repr(index))
        self._builder = PromptBuilder(
            settings.prompt,
            llm.encoder,
            document_order=settings.document_order,
            numbered=Late.numbered,
            max_doc_tokens=settings.max_doc_tokens,
        )
        if (tuple(self._builder.prefix), self._builder.capacity) != (description.prefix, description.block_capacity):
            raise MismatchError(f"{index} was made with another tokenizer or chat template than that of {llm.name}")
        from ..kernel.late_reader import LateReader

        self._late = LateReader(llm, self.heads, calibrate=settings.calibrate, hidden_layers=self.hidden_layers)

    @cached_property
    def snapshot(self) -> ModelSnapshot:
        """What the model is during this call."""
        return self.llm.snapshot()

    @cached_property
    def reading(self) -> Reading:
        """What the scores describe."""
        description = self.view.description
        complete = self.heads == tuple(all_heads(self.llm.num_layers, self.llm.num_heads))
        return Reading(
            description.model, self.heads, self.settings, complete, self.hidden_layers, description.title_field
        )

    def prompt(self, query: str) -> ListPrompt:
        """The prompt of a query."""
        return self._builder.without_documents(query)

    def check_length(self, qid: str, prompt: ListPrompt) -> None:
        """Refuse a query that does not fit into the model's context, naming its qid."""
        from ..kernel.patterns import positions_taken
        from ..kernel.score import check_length

        check_tail(qid, prompt)
        try:
            check_length(self.llm, positions_taken(Late(), prompt))
        except ValueError as error:
            raise type(error)(f"query {qid!r}: {error}: shorten the query") from None

    def prepare(self, prompts: Sequence[ListPrompt]) -> None:
        """Run some queries in one pass, before they are asked for."""
        self._late.run(prompts)

    def hidden_states(self, prompts: Sequence[ListPrompt], layer: int) -> np.ndarray:
        """The mean hidden state of each query's rows after a layer: float32 [queries, hidden size]."""
        return self._late.hidden_states(prompts, layer)

    def score(
        self,
        prompts: Sequence[ListPrompt],
        numbers: Sequence[np.ndarray],
        texts: Sequence[dict[int, Candidate]],
        heads: Sequence[Head],
    ) -> list[ListScores]:
        """Head scores of some lists.

        Args:
            prompts: of the queries.
            numbers: of each list's candidates, their numbers in :attr:`view`; -1 for those to be encoded.
            texts: of each list, the texts of those, by candidate.
            heads: heads to read.
        """
        documents = self._documents(prompts, numbers, texts)
        return self._late.score(prompts, heads, documents)

    def _documents(
        self,
        prompts: Sequence[ListPrompt],
        numbers: Sequence[np.ndarray],
        texts: Sequence[dict[int, Candidate]],
    ) -> Iterator["DocumentKeys"]:
        """Keys list by list, so that only one list's are in memory."""
        from ..kernel.keys import joined

        for prompt, of_list, to_encode in zip(prompts, numbers, texts, strict=True):
            there = np.flatnonzero(of_list >= 0)
            keys = self.view.keys(of_list[there], there, self.llm.input_device)
            if not to_encode:
                yield keys
                continue
            blocks = self._builder.documents(list(to_encode.values()))
            encoded = self._late.encode(prompt.prefix, blocks, list(to_encode))
            yield joined([keys, encoded])
