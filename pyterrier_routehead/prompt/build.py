"""A query and its candidates as token ids, with the span of every document and the rows to read.

The prompt is kept in parts, because the kernel encodes the documents first and the end of the prompt after them, once
with the query and once with the content-free query. Spans follow from the construction; no string is searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..template import PromptTemplate
from .encoding import TextEncoder

DOCUMENT_ORDERS = ("best_last", "best_first")


@dataclass(frozen=True)
class Candidate:
    """A document to be ranked: its text and optional title."""

    text: str
    title: str = ""

    def joined(self) -> str:
        """Title line and text, stripped; the text alone without a title."""
        return "\n".join(part for part in (self.title.strip(), self.text.strip()) if part)


@dataclass(frozen=True)
class DocumentBlock:
    """One document of a prompt: the ids of tag, text and separator, and the span of those that count for its score."""

    ids: list[int]
    start: int
    stop: int


@dataclass(frozen=True)
class ListPrompt:
    """One query with its candidates.

    Attributes:
        prefix: ids up to and including the separator before the first document.
        blocks: the documents, in prompt order.
        order: for each block the index of its candidate.
        query: ids of the tail, the end of the prompt from the instruction on, with the query. All its rows are read.
        null: the same with the content-free query.
        block_capacity: tokens of the longest block that there can be; None where documents are not truncated, or are
            numbered.
    """

    prefix: list[int]
    blocks: list[DocumentBlock]
    order: list[int]
    query: list[int]
    null: list[int]
    block_capacity: int | None = None

    @property
    def block_lengths(self) -> list[int]:
        """Number of tokens of each block, in prompt order."""
        return [len(block.ids) for block in self.blocks]


class PromptBuilder:
    """Builds the prompts of one template for one tokenizer.

    Args:
        template: the prompt's wording and span rules.
        encoder: the tokenizer.
        document_order: ``"best_last"`` puts the first candidate next to the query, ``"best_first"`` farthest from it.
        numbered: whether the tags number the documents in prompt order, or are all the same.
        max_doc_tokens: title and text of each document are truncated to this many tokens (the tag does not count); None
            does not truncate.

    Attributes:
        prefix: ids that stand before the first document.
        capacity: tokens of the longest block that there can be; None where documents are not truncated, or numbered.
    """

    def __init__(
        self,
        template: PromptTemplate,
        encoder: TextEncoder,
        *,
        document_order: str,
        numbered: bool,
        max_doc_tokens: int | None,
    ) -> None:
        self.template = template
        self.encoder = encoder
        self.document_order = document_order
        self.numbered = numbered
        self.max_doc_tokens = max_doc_tokens
        self._tag_ids = cache(encoder.markup)  # the same few tags in every list
        self._chat = encoder.chat(template)
        separator, self._separator_ids = encoder.separator(template)
        self.prefix = self._prefix_ids(self._chat.prefix + template.introduction + separator, self._tag(1))
        self._tail_start = encoder.markup(template.instruction + separator + template.query_label)
        self._suffix = encoder.markup(self._chat.suffix)[: template.suffix_rows]
        self._null = self._tail(template.null_query)
        self.capacity: int | None = None
        if max_doc_tokens is not None and not numbered:
            self.capacity = len(self._tag(1)) + max_doc_tokens + len(self._separator_ids)

    def build(self, query: str, candidates: list[Candidate]) -> ListPrompt:
        """The prompt of a query and its candidates, best first."""
        order = list(range(len(candidates)))
        if self.document_order == "best_last":
            order.reverse()
        texts = self.encoder.data([_with_blank(candidates[i].joined()) for i in order], self.max_doc_tokens)
        return self._prompt(self._blocks(texts), order, query)

    def documents(self, candidates: Sequence[Candidate]) -> list[DocumentBlock]:
        """The blocks of some documents, in their order; for prompts whose tags are not numbered."""
        return self._blocks(self.encoder.data([_with_blank(c.joined()) for c in candidates], self.max_doc_tokens))

    def without_documents(self, query: str) -> ListPrompt:
        """The prompt of a query, for documents that have been encoded before."""
        return self._prompt([], [], query)

    def _prompt(self, blocks: list[DocumentBlock], order: list[int], query: str) -> ListPrompt:
        return ListPrompt(self.prefix, blocks, order, self._tail(query), self._null, self.capacity)

    def part(self, prompt: ListPrompt, candidates: list[int]) -> ListPrompt:
        """The prompt of the same query and some of its candidates, by index, best first, without encoding again."""
        blocks = dict(zip(prompt.order, enumerate(prompt.blocks, start=1), strict=True))
        order = list(range(len(candidates)))
        if self.document_order == "best_last":
            order.reverse()
        texts = [self._text(*blocks[candidates[i]]) for i in order]
        return replace(prompt, blocks=self._blocks(texts), order=order)

    def _prefix_ids(self, markup: str, tag: list[int]) -> list[int]:
        """Ids of the markup that opens the prompt, encoded in front of the first tag."""
        ids = self.encoder.start(markup + self._tag_text(1))
        border = len(ids) - len(tag)
        return ids[:border] if ids[border:] == tag else self.encoder.start(markup)

    def _tag_text(self, number: int) -> str:
        return self.template.document_tag.format(number=number) if self.numbered else self.template.block_tag

    def _tag(self, number: int) -> list[int]:
        return self._tag_ids(self._tag_text(number))

    def _blocks(self, texts: list[list[int]]) -> list[DocumentBlock]:
        return [self._block(self._tag(number), ids) for number, ids in enumerate(texts, start=1)]

    def _text(self, number: int, block: DocumentBlock) -> list[int]:
        """The ids of a block between tag and separator."""
        return block.ids[len(self._tag(number)) : len(block.ids) - len(self._separator_ids)]

    def _block(self, tag: list[int], text: list[int]) -> DocumentBlock:
        start = 0 if self.template.span == "document" else len(tag)
        stop = len(tag) + len(text) + min(self.template.span_overhang, len(self._separator_ids))
        return DocumentBlock(tag + text + self._separator_ids, start, stop)

    def _tail(self, query: str) -> list[int]:
        # Tokens after the last row that is read are left out: the attention is causal, so they cannot change it.
        return self._tail_start + self.encoder.data([_with_blank(query.strip())])[0] + self._suffix


def _with_blank(text: str) -> str:
    """The text with the blank before it, which tokenizers merge into the first word's token."""
    return f" {text}" if text else ""
