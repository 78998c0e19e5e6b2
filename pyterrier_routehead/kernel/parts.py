"""How much is run in one pass, and documents in parts that are encoded one after another."""

from collections.abc import Iterable, Iterator

from ..prompt.build import DocumentBlock

TOKENS_AT_A_TIME = 2048
"""Tokens of blocks that a CPU encodes in one pass: the activations of many more fall out of its cache."""

QUERIES_AT_ONCE = 32
"""Queries that late reading best runs in one pass: some 40 tokens each, and no document among them."""


def in_parts(blocks: Iterable[DocumentBlock], tokens: int) -> Iterator[list[DocumentBlock]]:
    """Blocks in order, in parts of at most this many tokens; a longer block is a part by itself."""
    part: list[DocumentBlock] = []
    length = 0
    for block in blocks:
        if part and length + len(block.ids) > tokens:
            yield part
            part, length = [], 0
        part.append(block)
        length += len(block.ids)
    yield part
