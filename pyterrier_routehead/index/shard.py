"""A shard: some documents' keys, in files that are never changed once they are there.

::

    <shard>/shard.json       its name, the id of its index, and size and CRC-32 of every file
    <shard>/docnos.npids     docnos
    <shard>/documents.npy    per document: tokens, which of them count, and a checksum of its text
    <shard>/12-0.keys        a key-value head's keys, one row a token
"""

import errno
import json
import os
import shutil
import uuid
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import ArtifactError
from ..common.locks import cached_property, new_lock
from ..common.paths import reason
from ..common.saving import readable
from ..common.schema import parse_json, typed
from ..kernel.keys import KeyHead
from .description import IndexDescription
from .quantising import row_dtype

DOCUMENT = np.dtype([("tokens", "<u4"), ("start", "<u4"), ("stop", "<u4"), ("text", "<u8")])
"""What is kept of a document beside its keys."""

MOST_MAPPED = 256
"""Files of keys that a process keeps mapped into memory, over all indexes: each takes a file descriptor."""

_DOCNOS, _DOCUMENTS, _ABOUT = "docnos.npids", "documents.npy", "shard.json"


@dataclass(frozen=True)
class _About:
    """What ``shard.json`` holds."""

    name: str
    index: str
    documents: int
    tokens: int
    sizes: dict[str, int]
    checksums: dict[str, int]


class ShardWriter:
    """Writes one shard, piece by piece, into a folder that takes its place when it is whole.

    Whatever fails while it writes, what was written is removed.

    Args:
        folder: of the index's shards.
        description: what the index is.

    Attributes:
        docnos: those of the documents that were added.

    Raises:
        ArtifactError: where the folder cannot be written, from each method too; the message names it.
    """

    def __init__(self, folder: Path, description: IndexDescription) -> None:
        self._folder = folder
        self._description = description
        self._scratch = folder / f".{uuid.uuid4().hex}"
        self._checksums = dict.fromkeys(map(_file, description.dims), 0)
        self._sizes: dict[str, int] = {}
        self.docnos: list[str] = []
        self._documents: list[np.ndarray] = []
        with self._written():
            self._scratch.mkdir(parents=True)

    def __len__(self) -> int:
        return len(self.docnos)

    def add(self, docnos: Sequence[str], documents: np.ndarray, rows: dict[KeyHead, np.ndarray]) -> None:
        """Append some documents.

        Args:
            docnos: of each.
            documents: :data:`DOCUMENT` of each.
            rows: by key-value head, the rows of all of their tokens.
        """
        with self._written():
            for key_head in self._description.dims:
                name, data = _file(key_head), rows[key_head].tobytes()
                self._checksums[name] = zlib.crc32(data, self._checksums[name])
                # Opened each time: a shard may have more files than a process may have open.
                with (self._scratch / name).open("ab") as file:
                    file.write(data)
            os.utime(self._scratch)  # tells others that the writer lives
        self.docnos += docnos
        self._documents.append(documents)

    def finish(self, number: int) -> Path:
        """Put the shard in its place, as the index's shard of this number.

        Raises:
            FileExistsError: where there is a shard of this number already; then another number can be tried.
        """
        name = f"{number:06d}"
        target = self._folder / name
        with self._written():
            if not self._sizes:
                self._complete()
            documents = np.concatenate(self._documents)
            about = {
                "name": name,
                "index": self._description.id,
                "documents": len(documents),
                "tokens": int(documents["tokens"].sum()),
                "sizes": self._sizes,
                "checksums": self._checksums,
            }
            with (self._scratch / _ABOUT).open("w") as about_file:
                about_file.write(json.dumps(about, indent=1))
                about_file.flush()
                os.fsync(about_file.fileno())
            try:
                self._scratch.rename(target)
            except OSError as error:
                taken = error.errno in (errno.EEXIST, errno.ENOTEMPTY)
                if not taken:
                    raise
            else:
                taken = False
        if taken:
            raise FileExistsError(f"{target} exists already")
        return target

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _complete(self) -> None:
        """Write what a shard has beside its keys, and bring all of it to the disk."""
        import npids

        np.save(self._scratch / _DOCUMENTS, np.concatenate(self._documents))
        docnos = self.docnos
        if len(docnos) == 1 or not all(docno.isascii() for docno in docnos):
            # npids cannot look up a docno that is the only one, nor docnos whose common beginning ends inside a letter.
            known = set(docnos)
            docnos = [*docnos, next(extra for extra in map("~{}".format, count()) if extra not in known)]
        npids.Lookup.build(docnos, str(self._scratch / _DOCNOS), return_self=False)
        for name in (_DOCUMENTS, _DOCNOS):
            self._checksums[name] = _crc(self._scratch / name)
        for name in self._checksums:
            with (self._scratch / name).open("rb+") as file:
                os.fsync(file.fileno())
        self._sizes = {name: (self._scratch / name).stat().st_size for name in self._checksums}

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Removes what was written if that fails inside."""
        try:
            yield
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                file = error.filename or self._scratch
                raise ArtifactError(f"{file} cannot be written: {reason(error)}") from error
            raise


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
        if self._about.index != description.id:
            raise ArtifactError(f"{folder} is a shard of another index: HeadIndex.merge puts indexes together")
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
        found = np.full(len(docnos), -1, dtype=np.int64)
        if len(possible := [i for i, docno in enumerate(docnos) if why_no_docno(docno) is None]):
            numbers = np.asarray(self._lookup.inv[[docnos[i] for i in possible]], dtype=np.int64)
            found[possible] = np.where(numbers < len(self), numbers, -1)
        return found

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
        size = row_dtype(self._description.dtype, self._description.dims[key_head]).itemsize
        if not self._about.tokens:  # nothing can be mapped of an empty file
            return np.empty((0, size), np.uint8)
        with _mapped.lock:
            if (rows := self._keys.get(key_head)) is None:
                file = self.folder / _file(key_head)
                with readable(str(file), "file of keys"):
                    mapped = np.memmap(file, dtype=np.uint8, mode="r", shape=(self._about.tokens, size))
                rows = self._keys[key_head] = np.asarray(mapped)  # slices of a memmap take longer
            _mapped.used(self, key_head)
        return rows

    def forget(self, key_head: KeyHead) -> None:
        """Give a mapping back; it goes when nobody holds its rows any more."""
        self._keys.pop(key_head, None)

    def check(self) -> list[str]:
        """Read every file; what is wrong, each naming the file."""
        problems = []
        for name, checksum in self._about.checksums.items():
            try:
                if _crc(self.folder / name) != checksum:
                    problems.append(f"{self.folder / name} is damaged (its checksum differs)")
            except OSError as error:
                problems.append(f"{self.folder / name} cannot be read: {reason(error)}")
        return problems

    @staticmethod
    def _size(file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {reason(error)}") from None


class _Mapped:
    """Which files of keys are mapped, least recently used first: of more than some, the first are given back."""

    def __init__(self) -> None:
        self.lock = new_lock()
        self._order: OrderedDict[tuple[int, KeyHead], weakref.ref[Shard]] = OrderedDict()

    def used(self, shard: Shard, key_head: KeyHead) -> None:
        """Note the use of a shard's mapping; under the lock."""
        place = id(shard), key_head
        self._order[place] = weakref.ref(shard)  # a place may have been that of a shard which is gone
        self._order.move_to_end(place)
        while len(self._order) > MOST_MAPPED:
            (_, oldest), reference = self._order.popitem(last=False)
            if (owner := reference()) is not None:
                owner.forget(oldest)


_mapped = _Mapped()


def link_shard(shard: Shard, folder: Path, number: int, index: str) -> None:
    """Put a shard into another index too, by links where the file system has them.

    Args:
        shard: the shard.
        folder: of the other index's shards.
        number: which shard it will be there.
        index: the other index's id.

    Raises:
        ArtifactError: where it cannot be read or written; the message names the file.
    """
    name = f"{number:06d}"
    scratch = folder / f".{uuid.uuid4().hex}"
    try:
        scratch.mkdir(parents=True)
        about = parse_json((shard.folder / _ABOUT).read_bytes())
        for file in about["sizes"]:
            try:
                os.link(shard.folder / file, scratch / file)
            except OSError:
                shutil.copyfile(shard.folder / file, scratch / file)
        (scratch / _ABOUT).write_text(json.dumps({**about, "name": name, "index": index}, indent=1))
        scratch.rename(folder / name)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            where = error.filename or folder / name
            raise ArtifactError(f"{where} cannot be linked or copied: {reason(error)}") from error
        raise


def why_no_docno(docno: str) -> str | None:
    """What keeps a string from being a docno of an index; None for one that can be."""
    if "\0" in docno:
        return "it has a NUL character"
    try:
        docno.encode()
    except UnicodeEncodeError:
        return "it has half of a surrogate pair, which is no character"
    return None


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
    name, index = (typed(str, content.get(key), key) for key in ("name", "index"))
    return _About(name, index, documents, tokens, numbers["sizes"], numbers["checksums"])


def _file(key_head: KeyHead) -> str:
    return f"{key_head.layer}-{key_head.head}.keys"


def _crc(file: Path) -> int:
    total = 0
    with file.open("rb") as opened:
        while data := opened.read(1 << 24):
            total = zlib.crc32(data, total)
    return total
