"""Reading patterns: where each token of a prompt stands, and who sees whom while the documents are encoded.

This is the replaceable step of the kernel. Whatever depends on how a list is read is asked of its pattern; no other
module compares a pattern's name.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from ..prompt.build import ListPrompt
    from .exact import LayerAttention


class ReadingPattern(Protocol):
    """A way of reading the documents of a list.

    Attributes:
        name: what arguments, results and files call it.
        numbered: whether the documents' tags count them in prompt order.
        separable: whether documents can be encoded apart from each other and put together afterwards.
        windowed: whether a list beyond the model's context is ranked in sliding windows.
        tail_sees_documents: whether the tails attend to the documents in every layer; if not, a document's keys depend
            on nothing but the document, and the query's states on nothing but the query.
    """

    name: str
    numbered: bool
    separable: bool
    windowed: bool
    tail_sees_documents: bool

    def positions(self, prefix: int, blocks: list[int]) -> list[int]:
        """Position of every token, given the length of the prefix and of each block."""

    def tail_position(self, prompt: "ListPrompt") -> int:
        """Position of the first token of either tail."""

    def attend(
        self,
        layer: "LayerAttention",
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        prefix: int,
        blocks: list[int],
    ) -> "torch.Tensor":
        """Attention output [1, tokens, heads, value dim] of prefix and blocks, packed one after another."""


class Listwise:
    """Each document sees the prefix and the documents before it: plain causal attention."""

    name = "listwise"
    numbered = True
    separable = False
    windowed = True
    tail_sees_documents = True

    def positions(self, prefix: int, blocks: list[int]) -> list[int]:
        """Positions run through the whole list."""
        return list(range(prefix + sum(blocks)))

    def tail_position(self, prompt: "ListPrompt") -> int:
        """The tails follow the last document."""
        return len(prompt.prefix) + sum(prompt.block_lengths)

    def attend(
        self,
        layer: "LayerAttention",
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        prefix: int,
        blocks: list[int],
    ) -> "torch.Tensor":
        """One causal attention over all tokens."""
        from .exact import causal_attention

        return causal_attention(layer, query, key, value)


class Blockwise:
    """Each document sees the prefix and itself, and stands right behind the prefix (BlockRank, arXiv 2510.05396).

    BlockRank fine-tunes for this pattern; here it is used without training. Cost grows linearly with the number of
    documents, and no document's states depend on another document or on the order.
    """

    name = "blockwise"
    numbered = False
    separable = True
    windowed = False
    tail_sees_documents = True

    def positions(self, prefix: int, blocks: list[int]) -> list[int]:
        """Every block starts at the position after the prefix."""
        return [*range(prefix), *(prefix + i for block in blocks for i in range(block))]

    def tail_position(self, prompt: "ListPrompt") -> int:
        """The tails stand behind the longest block."""
        return len(prompt.prefix) + max(prompt.block_lengths, default=0)

    def attend(
        self,
        layer: "LayerAttention",
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        prefix: int,
        blocks: list[int],
    ) -> "torch.Tensor":
        """Causal attention of the prefix, then of the blocks, each behind the prefix."""
        from .exact import blocks_attention

        return blocks_attention(layer, query, key, value, prefix, blocks)


class Late(Blockwise):
    """Documents as block-wise, and tails that see the prefix and themselves alone: late reading.

    The chosen heads' attention is still read against the documents' keys, with one softmax over prefix, documents and
    tail; only its output leaves the documents out. So a document's keys can be computed once, for all queries, and the
    query's states once, for all documents.
    """

    name = "late"
    tail_sees_documents = False

    def tail_position(self, prompt: "ListPrompt") -> int:
        """The tails stand where the longest block that can be ends, whichever blocks the list has.

        Where documents are not truncated, that is behind the longest block of the list.
        """
        if prompt.block_capacity is None:
            return super().tail_position(prompt)
        return len(prompt.prefix) + prompt.block_capacity


PATTERNS: dict[str, ReadingPattern] = {pattern.name: pattern for pattern in (Listwise(), Blockwise(), Late())}
"""The patterns by name, the default first."""

DEFAULT_PATTERN = next(iter(PATTERNS))


def positions_taken(pattern: ReadingPattern, prompt: "ListPrompt") -> int:
    """How many positions a prompt takes: what must not exceed the model's context."""
    return pattern.tail_position(prompt) + max(len(prompt.query), len(prompt.null))
