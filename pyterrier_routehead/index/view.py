"""The documents of an index at one moment: all of its shards that were whole then."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import ArtifactError
from ..common.paths import reason
from ..kernel.keys import DocumentKeys, KeyHead
from .description import IndexDescription
from .quantising import as_keys, row_dtype
from .shard import DOCUMENT, Shard

if TYPE_CHECKING:
    import torch


class IndexView:
    """Finds documents and their keys. Shards are never changed, so a view stays right while others append.

    Args:
        shards: in order; of a docno that stands in two of them, the first counts.
        description: what the index is.
    """

    def __init__(self, shards: Sequence[Shard], description: IndexDescription) -> None:
        self.shards = tuple(shards)
        self.description = description
        self._starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(shard.size for shard in self.shards)

    def docnos(self) -> list[str]:
        """All docnos, in the order of the documents."""
        return [docno for shard in self.shards for docno in shard.docnos]

    def find(self, docnos: Sequence[str]) -> np.ndarray:
        """The number of each document, int64; -1 for one that is not there."""
        found = np.full(len(docnos), -1, dtype=np.int64)
        missing = np.arange(len(docnos))
        for shard, start in zip(self.shards, self._starts, strict=False):
            if not len(missing):
                break
            numbers = shard.find([docnos[int(i)] for i in missing])
            there = numbers >= 0
            found[missing[there]] = numbers[there] + start
            missing = missing[~there]
        return found

    def documents(self, numbers: np.ndarray) -> np.ndarray:
        """What is kept of some documents beside their keys: :data:`~.shard.DOCUMENT` of each."""
        found = np.zeros(len(numbers), DOCUMENT)
        owner = self._owner(numbers)
        for i in np.unique(owner):
            at = owner == i
            found[at] = self.shards[i].documents[numbers[at] - self._starts[i]]
        return found

    def keys(self, numbers: np.ndarray, order: np.ndarray, device: "torch.device | str" = "cpu") -> DocumentKeys:
        """The keys of some documents, on a device; nothing is read before it is asked for.

        Args:
            numbers: which documents.
            order: for each the number of its candidate.
            device: where the keys are wanted.
        """
        as_stored = np.argsort(numbers, kind="stable")  # so that the disk is read in one direction
        numbers, order = numbers[as_stored], order[as_stored]
        documents, owner = self.documents(numbers), self._owner(numbers)
        local = numbers - self._starts[owner]
        begins = np.array(
            [self.shards[i].offsets[number] for i, number in zip(owner, local, strict=True)], dtype=np.int64
        )
        ends = begins + documents["tokens"]

        def pieces(key_head: KeyHead, tokens: int) -> Iterator["torch.Tensor"]:
            size = row_dtype(self.description.dtype, self.description.dims[key_head]).itemsize
            start = 0
            while start < len(numbers):
                stop, count = start, 0
                while stop < len(numbers) and (stop == start or count + ends[stop] - begins[stop] <= tokens):
                    count += ends[stop] - begins[stop]
                    stop += 1
                # Copied shard by shard: slices would keep the files of all shards open.
                rows, at = np.empty((int(count), size), np.uint8), 0
                for i in range(start, stop):
                    if i == start or owner[i] != owner[i - 1]:
                        of_shard = self.shards[owner[i]].rows(key_head)
                    end = at + int(ends[i] - begins[i])
                    rows[at:end] = of_shard[begins[i] : ends[i]]
                    at = end
                del of_shard
                yield as_keys(rows, self.description.dtype, device)
                start = stop

        prefix = len(self.description.prefix)
        lengths, starts, stops = (documents[name].astype(np.int64) for name in ("tokens", "start", "stop"))
        return DocumentKeys(lengths, starts, stops, order, prefix, pieces)

    def _owner(self, numbers: np.ndarray) -> np.ndarray:
        """The shard that each document is in."""
        return np.searchsorted(self._starts, numbers, side="right") - 1


def open_view(folder: Path, description: IndexDescription, before: IndexView | None = None) -> IndexView:
    """The shards that are in a folder now; those of an earlier view are not opened again.

    Raises:
        ArtifactError: where the folder is missing, or a shard damaged or of another index; the message names it.
    """
    known = {} if before is None else {shard.folder.name: shard for shard in before.shards}
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is missing: the index is damaged, or was moved away") from None
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {reason(error)}") from error
    if before is not None and names == list(known):
        return before
    return IndexView([known.get(name) or Shard(folder / name, description) for name in names], description)
