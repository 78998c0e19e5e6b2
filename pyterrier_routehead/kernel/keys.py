"""Keys of documents, whoever computed them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


class KeyHead(NamedTuple):
    """A key-value head of a layer; with grouped queries, several heads attend by its keys."""

    layer: int
    head: int


@dataclass(frozen=True)
class DocumentKeys:
    """The keys of a list's documents, in an order.

    Attributes:
        lengths: tokens of each document's block, int64 [documents].
        starts: the first token of each block that counts for the document.
        stops: the token behind the last that counts.
        order: for each document the number of its candidate.
        prefix: how many tokens stand before each.
        pieces: of a key-value head, the keys [tokens, dim] of all blocks in their order, in pieces of at most as many
            tokens as is said.
    """

    lengths: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    order: np.ndarray
    prefix: int
    pieces: Callable[[KeyHead, int], "Iterator[torch.Tensor]"]

    def counted(self) -> "torch.Tensor":
        """Indices, among the tokens of all blocks, of those that count: int64."""
        return _ranges(np.cumsum(self.lengths) - self.lengths + self.starts, self.counts())

    def counts(self) -> np.ndarray:
        """How many tokens count in each document."""
        counts: np.ndarray = self.stops - self.starts
        return counts

    def positions(self) -> "torch.Tensor":
        """Position of each token: int64."""
        return _ranges(np.full(len(self.lengths), self.prefix), self.lengths)


def joined(parts: Sequence[DocumentKeys]) -> DocumentKeys:
    """The documents of several parts of one list, behind one prefix."""

    def pieces(key_head: KeyHead, tokens: int) -> "Iterator[torch.Tensor]":
        for part in parts:
            yield from part.pieces(key_head, tokens)

    lengths, starts, stops, order = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("lengths", "starts", "stops", "order")
    )
    return DocumentKeys(lengths, starts, stops, order, parts[0].prefix, pieces)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> "torch.Tensor":
    """Whole numbers from each start on, one range behind another."""
    import torch

    ends = np.cumsum(lengths)
    numbers = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return torch.from_numpy(numbers.astype(np.int64))
