"""A shard: some documents' keys, in files that are never changed once they are there.

::

    <shard>/shard.json       its name, and size and CRC-32 of every file
    <shard>/docnos.npids     docnos
    <shard>/documents.npy    per document: tokens, which of them count, and a checksum of its text
    <shard>/12-0.keys        a key-value head's keys, one row a token
"""

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..common.errors import ArtifactError
from ..common.locks import cached_property
from ..common.paths import reason
from ..common.saving import readable
from ..common.schema import parse_json, typed
from ..kernel.keys import KeyHead
from .description import IndexDescription
from .quantising import row_dtype

DOCUMENT = np.dtype([("tokens", "<u4"), ("start", "<u4"), ("stop", "<u4"), ("text", "<u8")])
"""What is kept of a document beside its keys."""

_DOCNOS, _DOCUMENTS, _ABOUT = "docnos.npids", "documents.npy", "shard.json"


@dataclass(frozen=True)
class _About:
    """What ``shard.json`` holds."""

    name: str
    documents: int
    tokens: int
    sizes: dict[str, int]
    checksums: dict[str, int]


class ShardWriter:
    """Writes one shard, piece by piece, into a folder that takes its place when it is whole.

    Args:
        folder: of the index's shards.
        description: what the index is.

    Attributes:
        docnos: those of the documents that were added.
    """

    def __init__(self, folder: Path, description: IndexDescription) -> None:
        self._folder = folder
        self._description = description
        self._scratch = folder / f".{uuid.uuid4().hex}"
        self._scratch.mkdir(parents=True)
        self._files: dict[KeyHead, BinaryIO] = {
            key_head: (self._scratch / _file(key_head)).open("wb") for key_head in description.dims
        }
        self._checksums = dict.fromkeys(description.dims, 0)
        self.docnos: list[str] = []
        self._documents: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.docnos)

    def add(self, docnos: Sequence[str], documents: np.ndarray, rows: dict[KeyHead, np.ndarray]) -> None:
        """Append some documents.

        Args:
            docnos: of each.
            documents: :data:`DOCUMENT` of each.
            rows: by key-value head, the rows of all of their tokens.
        """
        self.docnos += docnos
        self._documents.append(documents)
        for key_head, file in self._files.items():
            data = rows[key_head].tobytes()
            self._checksums[key_head] = zlib.crc32(data, self._checksums[key_head])
            file.write(data)

    def finish(self, number: int) -> Path:
        """Put the shard in its place, as the index's next one from this number on."""
        import npids

        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        documents = np.concatenate(self._documents)
        np.save(self._scratch / _DOCUMENTS, documents)
        # npids cannot look a docno up where it is the only one.
        docnos = self.docnos if len(self.docnos) > 1 else [*self.docnos, f"not {self.docnos[0]}"]
        npids.Lookup.build(docnos, str(self._scratch / _DOCNOS), return_self=False)
        name = f"{number:06d}-{uuid.uuid4().hex[:8]}"
        checksums = {_file(key_head): value for key_head, value in self._checksums.items()}
        for file_name in (_DOCUMENTS, _DOCNOS):
            checksums[file_name] = zlib.crc32((self._scratch / file_name).read_bytes())
        sizes = {file_name: (self._scratch / file_name).stat().st_size for file_name in checksums}
        about = {
            "name": name,
            "documents": len(documents),
            "tokens": int(documents["tokens"].sum()),
            "sizes": sizes,
            "checksums": checksums,
        }
        with (self._scratch / _ABOUT).open("w") as about_file:
            about_file.write(json.dumps(about, indent=1))
            about_file.flush()
            os.fsync(about_file.fileno())
        target = self._folder / name
        self._scratch.rename(target)
        return target

    def discard(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


class Shard:
    """A shard that is there. Opening it looks at names and sizes; :meth:`check` reads it whole.

    Args:
        folder: the shard's.
        description: what the index is.

    Attributes:
        documents: :data:`DOCUMENT` of each document.
        offsets: where each document's tokens begin.

    Raises:
        ArtifactError: naming the shard, or the file of it that is damaged.
    """

    def __init__(self, folder: Path, description: IndexDescription) -> None:
        self.folder = folder
        self._description = description
        with readable(str(folder / _ABOUT), "shard of a head index"):
            self._about = _about(parse_json((folder / _ABOUT).read_bytes()))
        if self._about.name != folder.name:
            raise ArtifactError(f"{folder} is the shard {self._about.name}: shards were swapped or renamed")
        expected = {_DOCNOS, _DOCUMENTS, *(_file(key_head) for key_head in description.dims)}
        if set(self._about.sizes) != expected:
            raise ArtifactError(f"{folder} has keys of other heads than its index")
        for name, size in self._about.sizes.items():
            found = self._size(folder / name)
            if found != size:
                raise ArtifactError(f"{folder / name} has {found} bytes instead of {size}: it was cut or exchanged")
        for key_head, dim in description.dims.items():
            if self._about.sizes[_file(key_head)] != self._about.tokens * row_dtype(description.dtype, dim).itemsize:
                raise ArtifactError(f"{folder / _file(key_head)} does not hold {self._about.tokens} keys")
        with readable(str(folder / _DOCUMENTS), "list of documents"):
            if _crc(folder / _DOCUMENTS) != self._about.checksums[_DOCUMENTS]:
                raise ValueError("its checksum differs")
            self.documents: np.ndarray = np.load(folder / _DOCUMENTS, allow_pickle=False)
            if self.documents.dtype != DOCUMENT or self.documents.shape != (self._about.documents,):
                raise ValueError("it lists other documents")
            if self.documents["tokens"].sum() != self._about.tokens:
                raise ValueError("its documents have another number of tokens")
        self.offsets = np.concatenate([[0], np.cumsum(self.documents["tokens"], dtype=np.int64)])
        self._keys: dict[KeyHead, np.ndarray] = {}

    def __len__(self) -> int:
        return self._about.documents

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self._about.sizes.values())

    @property
    def docnos(self) -> list[str]:
        """The docnos, in order."""
        return list(self._lookup)[: len(self)]

    def find(self, docnos: Sequence[str]) -> np.ndarray:
        """The number of each document in the shard, int64; -1 for one that is not there."""
        numbers = np.asarray(self._lookup.inv[list(docnos)], dtype=np.int64)
        return np.where(numbers < len(self), numbers, -1)

    @cached_property
    def _lookup(self) -> Any:
        import npids

        file = self.folder / _DOCNOS
        with readable(str(file), "list of docnos"):
            if _crc(file) != self._about.checksums[_DOCNOS]:
                raise ValueError("its checksum differs")
            return npids.Lookup(str(file))

    def rows(self, key_head: KeyHead) -> np.ndarray:
        """The rows of all tokens as bytes, uint8 [tokens, size of a row], mapped into memory."""
        if key_head not in self._keys:
            size = row_dtype(self._description.dtype, self._description.dims[key_head]).itemsize
            if not self._about.tokens:  # nothing can be mapped of an empty file
                return np.empty((0, size), np.uint8)
            shape = self._about.tokens, size
            mapped = np.memmap(self.folder / _file(key_head), dtype=np.uint8, mode="r", shape=shape)
            self._keys[key_head] = np.asarray(mapped)  # slices of a memmap take longer
        return self._keys[key_head]

    def check(self) -> list[str]:
        """Read every file; what is wrong, each naming the file."""
        problems = []
        for name, checksum in self._about.checksums.items():
            if _crc(self.folder / name) != checksum:
                problems.append(f"{self.folder / name} is damaged (its checksum differs)")
        return problems

    @staticmethod
    def _size(file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {reason(error)}") from None


def link_shard(shard: Shard, folder: Path, number: int) -> None:
    """Put a shard into another index too, by links where the file system has them, as its next one from a number on."""
    name = f"{number:06d}-{uuid.uuid4().hex[:8]}"
    scratch = folder / f".{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        about = parse_json((shard.folder / _ABOUT).read_bytes())
        for file in about["sizes"]:
            try:
                os.link(shard.folder / file, scratch / file)
            except OSError:
                shutil.copyfile(shard.folder / file, scratch / file)
        (scratch / _ABOUT).write_text(json.dumps({**about, "name": name}, indent=1))
        scratch.rename(folder / name)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _about(content: object) -> _About:
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    numbers: dict[str, dict[str, int]] = {}
    for name in ("sizes", "checksums"):
        if not isinstance(value := content.get(name), dict):
            raise ValueError(f"{name} is no object")
        numbers[name] = {file: typed(int, number, f"{name}.{file}") for file, number in value.items()}
    if set(numbers["sizes"]) != set(numbers["checksums"]):
        raise ValueError("sizes and checksums are of other files")
    documents, tokens = (typed(int, content.get(name), name) for name in ("documents", "tokens"))
    return _About(typed(str, content.get("name"), "name"), documents, tokens, numbers["sizes"], numbers["checksums"])


def _file(key_head: KeyHead) -> str:
    return f"{key_head.layer}-{key_head.head}.keys"


def _crc(file: Path) -> int:
    total = 0
    with file.open("rb") as opened:
        while data := opened.read(1 << 24):
            total = zlib.crc32(data, total)
    return total
