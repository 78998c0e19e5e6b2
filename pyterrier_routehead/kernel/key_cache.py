"""Keys of documents, encoded when they are first asked for and remembered while there is room."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..heads import Head
from ..prompt.build import DocumentBlock
from .keys import DocumentKeys, KeyHead
from .late import KeyPass
from .parts import TOKENS_AT_A_TIME, in_parts

if TYPE_CHECKING:
    import torch

    from .attention import ReadingPass

MEMORY = 1 << 30
"""Bytes of keys that are remembered."""

TOKENS_AT_A_TIME_ON_GPU = 1 << 15


class Encodes(Protocol):
    """A frozen model, as far as documents are encoded by it."""

    @property
    def input_device(self) -> "torch.device":
        """Where token ids go."""

    def forward(self, this_pass: "ReadingPass") -> None:
        """Run a pass, up to the deepest layer that it needs."""


class KeyCache:
    """The keys that some heads need of documents, so that a document in several lists is encoded once.

    The documents that were not used for longest are forgotten first. Not for several threads.

    Args:
        llm: the frozen model.
        heads: heads that will attend to the documents.
        memory: bytes of keys to remember; those of the list at hand are always kept.
    """

    def __init__(self, llm: Encodes, heads: Sequence[Head], memory: int = MEMORY) -> None:
        self._llm = llm
        self._heads = tuple(heads)
        self._memory = memory
        self._keys: OrderedDict[tuple[int, ...], dict[KeyHead, torch.Tensor]] = OrderedDict()
        self._prefix: tuple[int, ...] = ()
        self._size = 0

    def of(self, prefix: list[int], blocks: Sequence[DocumentBlock], order: Sequence[int]) -> DocumentKeys:
        """The keys of some documents behind a prefix; the order says for each the number of its candidate."""
        if tuple(prefix) != self._prefix:
            self._keys.clear()
            self._prefix, self._size = tuple(prefix), 0
        names = [tuple(block.ids) for block in blocks]
        known = {name: self._keys[name] for name in names if name in self._keys}
        missing = {name: block for name, block in zip(names, blocks, strict=True) if name not in known}
        for name in known:
            self._keys.move_to_end(name)
        for name, keys in self._encoded(prefix, missing):
            known[name] = self._keys[name] = keys
            self._size += _size(keys)
        while self._size > self._memory and self._keys:
            self._size -= _size(self._keys.popitem(last=False)[1])

        def pieces(key_head: KeyHead, tokens: int) -> Iterator["torch.Tensor"]:
            import torch

            yield from torch.split(torch.cat([known[name][key_head] for name in names]), tokens)

        return DocumentKeys(
            np.array([len(block.ids) for block in blocks], dtype=np.int64),
            np.array([block.start for block in blocks], dtype=np.int64),
            np.array([block.stop for block in blocks], dtype=np.int64),
            np.asarray(order, dtype=np.int64),
            len(prefix),
            pieces,
        )

    def _encoded(
        self, prefix: list[int], missing: dict[tuple[int, ...], DocumentBlock]
    ) -> Iterator[tuple[tuple[int, ...], dict[KeyHead, "torch.Tensor"]]]:
        import torch

        names = list(missing)
        for numbers, this_pass in key_passes(self._llm, prefix, list(missing.values()), self._heads):
            split = {key_head: torch.split(keys, this_pass.lengths) for key_head, keys in this_pass.keys.items()}
            for place, number in enumerate(numbers):
                yield names[number], {key_head: keys[place].clone() for key_head, keys in split.items()}


def key_passes(
    llm: Encodes, prefix: list[int], blocks: Sequence[DocumentBlock], heads: Sequence[Head]
) -> Iterator[tuple[list[int], KeyPass]]:
    """Passes that encode documents, some in each, with the numbers of those; they do not come in order."""
    if not blocks:
        return
    at_a_time = TOKENS_AT_A_TIME if llm.input_device.type == "cpu" else TOKENS_AT_A_TIME_ON_GPU
    # Of like length, so that little is padded; each pass encodes the few tokens of the prefix again.
    in_order = sorted(range(len(blocks)), key=lambda i: -len(blocks[i].ids))
    numbers = iter(in_order)
    for part in in_parts([blocks[i] for i in in_order], at_a_time):
        this_pass = KeyPass(prefix, part, heads)
        llm.forward(this_pass)
        yield [next(numbers) for _ in part], this_pass


def _size(keys: "dict[KeyHead, torch.Tensor]") -> int:
    return sum(key.numel() * key.element_size() for key in keys.values())
