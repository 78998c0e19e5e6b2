"""Writes a head index from a corpus."""

import contextlib
import hashlib
import numbers
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyterrier as pt

from ..common.arguments import check_choice, check_flag, check_text, check_whole
from ..common.progress import with_progress
from ..detection.head_set import HeadSet
from ..heads import Head, HeadsLike, is_all, parse_heads, resolve_heads
from ..kernel.keys import KeyHead
from ..kernel.patterns import Late
from ..model.frozen import FrozenLLM
from ..prompt.build import Candidate, PromptBuilder
from ..reading.reader import model_identity
from ..reading.reading import ModelIdentity, ReadingSettings, resolve_settings
from ..registry import set_by_name
from ..routing.router import HeadRouter
from ..template import PromptTemplate
from .description import IndexDescription
from .quantising import DTYPES, as_rows
from .shard import DOCUMENT, ShardWriter
from .view import IndexView

_TOKENS_AT_ONCE = 1 << 14
"""Tokens of documents that are encoded before their keys are written: what bounds the memory."""

_DOCUMENTS_AT_ONCE = 1024
_ABANDONED = 3600
"""Seconds after which what is still being written belongs to a process that was killed."""


@dataclass(frozen=True)
class _Document:
    """One document of a corpus."""

    docno: str
    candidate: Candidate
    checksum: int


class Writable(Protocol):
    """An index, as far as it is written."""

    @property
    def exists(self) -> bool:
        """Whether there is one already."""

    @property
    def description(self) -> IndexDescription:
        """What it is."""

    @property
    def shards(self) -> Path:
        """The folder of its shards."""

    def view(self) -> IndexView:
        """The documents that are there now."""

    def create(self, description: IndexDescription) -> None:
        """Make it, without documents."""


_Index = TypeVar("_Index", bound=Writable)


class HeadIndexer(pt.Indexer, Generic[_Index]):
    """Writes a :class:`HeadIndex`, or appends to it; see its ``indexer`` for the arguments."""

    def __init__(
        self,
        index: _Index,
        heads: "HeadsLike | HeadSet | HeadRouter",
        *,
        llm: FrozenLLM | str | None = None,
        prompt: PromptTemplate | str | None = None,
        max_doc_tokens: int | None = None,
        dtype: str = "int8",
        text_field: str = "text",
        title_field: str | None = "auto",
        shard_documents: int = 2048,
        verbose: bool | None = None,
    ) -> None:
        self._index = index
        if (named := set_by_name(heads, Late.name)) is not None:
            heads = named[0]
        self._head_set = heads.pool if isinstance(heads, HeadRouter) else None
        self._heads: HeadsLike = "all"
        if isinstance(heads, HeadSet):
            self._head_set = heads.ranking
        if self._head_set is not None:
            self._heads = self._head_set.heads
        elif not isinstance(heads, HeadSet | HeadRouter):
            self._heads = heads if is_all(heads) else parse_heads(heads)
        FrozenLLM.of(llm)
        self._llm = llm
        check_choice("dtype", dtype, DTYPES)
        self._dtype = dtype
        check_text("text_field", text_field)
        if title_field is not None:
            check_text("title_field", title_field)
        self._fields = text_field, title_field
        self._shard_documents = check_whole("shard_documents", shard_documents, what="number of documents")
        if verbose is not None:
            check_flag("verbose", verbose)
        self._verbose = verbose
        given = {"prompt": prompt, "max_doc_tokens": max_doc_tokens}
        fallback = {} if self._head_set is None else self._head_set.settings
        known: dict[str, Any] = {name: fallback[name] for name in given if name in fallback}
        self._settings: ReadingSettings = resolve_settings({**given, "document_attention": Late.name}, known)

    def __repr__(self) -> str:
        return f"{self._index!r}.indexer(...)"

    def index_inputs(self) -> list[list[str]]:
        """The columns of a corpus."""
        text, title = self._fields
        fields = ["docno", text] if title in (None, "auto") else ["docno", text, str(title)]
        return [fields]

    def index(self, iter: Iterable[Mapping[str, Any]], **_: object) -> _Index:
        """Write the keys of all documents that are not in the index yet.

        After a kill, or an error, the same call goes on: documents that are in the index are passed over, and what was
        not finished is done again. Documents that are new are appended.

        Args:
            iter: dictionaries with ``docno`` and texts.

        Returns:
            the index.

        Raises:
            MismatchError: where there is an index that was made otherwise, naming the difference.
            TypeError: naming document and field of what is no string.
            ValueError: naming a document that comes twice, or that is in the index with another text.
        """
        corpus = _peeked(iter)
        first = next(corpus)
        title_field = self._title_field(first)
        llm = self._open()
        heads = tuple(dict.fromkeys(resolve_heads(self._heads, llm.num_layers, llm.num_heads)))
        builder = PromptBuilder(
            self._settings.prompt,
            llm.encoder,
            document_order="best_first",
            numbered=Late.numbered,
            max_doc_tokens=self._settings.max_doc_tokens,
        )
        description = self._description(llm, builder, heads, titles=title_field is not None)
        if self._index.exists:
            self._index.description.check_same(description, repr(self._index))
        else:
            self._index.create(description)
        self._index.shards.mkdir(exist_ok=True)
        self._sweep()
        total = len(iter) if isinstance(iter, Sized) else None
        shown: Iterable[Mapping[str, Any] | None] = with_progress(
            corpus, total=total, desc=repr(self._index), unit="doc", verbose=self._verbose
        )
        documents = (self._document(found, title_field) for found in shown if found is not None)
        self._write(documents, llm, builder, description, heads)
        return self._index

    def _write(
        self,
        documents: Iterator[_Document],
        llm: FrozenLLM,
        builder: PromptBuilder,
        description: IndexDescription,
        heads: tuple[Head, ...],
    ) -> None:
        from ..kernel.key_cache import key_passes

        view = self._index.view()
        known = {shard.folder.name for shard in view.shards}
        writer: ShardWriter | None = None
        complete = True
        at_once = max(1, min(_TOKENS_AT_ONCE // self._settings.max_doc_tokens, self._shard_documents))
        try:
            for part in _some(self._new(documents, view), at_once):
                blocks = builder.documents([document.candidate for document in part])
                rows: dict[KeyHead, list[np.ndarray]] = {
                    key_head: [np.empty(0)] * len(part) for key_head in description.dims
                }
                for numbers_of_pass, this_pass in key_passes(llm, builder.prefix, blocks, heads):
                    borders = np.cumsum(this_pass.lengths)[:-1]
                    for key_head, keys in this_pass.keys.items():
                        try:
                            of_pass = as_rows(keys.float().cpu().numpy(), self._dtype)
                        except ValueError as error:
                            docnos = ", ".join(repr(part[i].docno) for i in numbers_of_pass[:5])
                            raise ValueError(f"one of the documents {docnos}, …: {error}") from None
                        for i, piece in zip(numbers_of_pass, np.split(of_pass, borders), strict=True):
                            rows[key_head][i] = piece
                about = np.array(
                    [
                        (len(block.ids), block.start, block.stop, document.checksum)
                        for block, document in zip(blocks, part, strict=True)
                    ],
                    DOCUMENT,
                )
                writer = writer or ShardWriter(self._index.shards, description)
                complete = False
                joined = {key_head: np.concatenate(pieces) for key_head, pieces in rows.items()}
                writer.add([document.docno for document in part], about, joined)
                complete = True
                if len(writer) >= self._shard_documents:
                    self._finish(writer, known)
                    writer = None
        except BaseException:
            if writer is not None:
                if complete:  # what is encoded is not lost
                    self._finish(writer, known)
                else:
                    writer.discard()
            raise
        if writer is not None:
            self._finish(writer, known)

    def _finish(self, writer: ShardWriter, known: set[str]) -> None:
        """Put a shard in its place, and its name among the known ones."""
        now = self._index.view()
        others = [shard for shard in now.shards if shard.folder.name not in known]
        if others:
            there = IndexView(others, now.description).find(writer.docnos)
            if (there >= 0).any():
                docno = writer.docnos[int(np.argmax(there >= 0))]
                writer.discard()
                raise ValueError(
                    f"document {docno!r} was written into {self._index} by another process meanwhile: let one process "
                    "write an index, or several one each, and merge them"
                )
        last = max((int(shard.folder.name.partition("-")[0]) for shard in now.shards), default=-1)
        known.add(writer.finish(last + 1).name)

    def _new(self, documents: Iterator[_Document], view: IndexView) -> Iterator[_Document]:
        """The documents that are not in the index."""
        seen: set[str] = set()
        for some in _some(documents, _DOCUMENTS_AT_ONCE):
            numbers_there = view.find([document.docno for document in some])
            checksums = view.documents(np.maximum(numbers_there, 0))["text"] if len(view) else np.zeros(len(some))
            for document, number, checksum in zip(some, numbers_there, checksums, strict=True):
                if document.docno in seen:
                    raise ValueError(f"document {document.docno!r} comes twice in the corpus")
                seen.add(document.docno)
                if number < 0:
                    yield document
                elif checksum != document.checksum:
                    raise ValueError(f"document {document.docno!r} is in {self._index} already, with another text")

    def _document(self, found: Mapping[str, Any], title_field: str | None) -> _Document:
        docno = found.get("docno")
        if isinstance(docno, numbers.Integral) and not isinstance(docno, bool):
            docno = str(docno)
        if not isinstance(docno, str):
            raise TypeError(f"a document of the corpus has the docno {docno!r}, which is neither a string nor a number")
        text = self._text(docno, found, self._fields[0])
        title = "" if title_field is None else self._text(docno, found, title_field, needed=False)
        candidate = Candidate(text, title)
        return _Document(docno, candidate, text_checksum(candidate))

    @staticmethod
    def _text(docno: str, found: Mapping[str, Any], field: str, *, needed: bool = True) -> str:
        if field not in found and needed:
            raise ValueError(f"document {docno!r} has no {field!r}: it has {', '.join(map(str, found))}")
        value = found.get(field)
        if value is None or (isinstance(value, float) and value != value):
            return ""
        if not isinstance(value, str):
            raise TypeError(f"document {docno!r}: {field!r} is no string, but {type(value).__name__}")
        return str(value)

    def _title_field(self, first: Mapping[str, Any] | None) -> str | None:
        text, title = self._fields
        if title != "auto":
            return title
        return "title" if first is not None and "title" in first and text != "title" else None

    def _open(self) -> FrozenLLM:
        named: ModelIdentity | None = None if self._head_set is None else self._head_set.model
        layers = None if is_all(self._heads) else 1 + max(head.layer for head in parse_heads(self._heads))
        if self._llm is None and named is not None:
            llm = FrozenLLM.of(named.name, revision=named.revision, tokenizer=named.tokenizer, max_layers=layers)
        else:
            llm = FrozenLLM.of(self._llm, max_layers=layers)
        if self._head_set is not None:
            self._head_set.check_model(model_identity(llm))
        return llm

    def _description(
        self, llm: FrozenLLM, builder: PromptBuilder, heads: tuple[Head, ...], *, titles: bool
    ) -> IndexDescription:
        """What the index will be; one short document tells whose keys the heads attend by, and their sizes."""
        from ..kernel.key_cache import key_passes

        ((_, this_pass),) = key_passes(llm, builder.prefix, builder.documents([Candidate("a")]), heads)
        assert builder.capacity is not None, "an index truncates"
        return IndexDescription(
            model_identity(llm),
            llm.weights_dtype,
            self._settings,
            tuple(builder.prefix),
            builder.capacity,
            titles,
            {head: this_pass.key_heads[head] for head in heads},
            {key_head: keys.shape[1] for key_head, keys in this_pass.keys.items()},
            self._dtype,
        )

    def _sweep(self) -> None:
        """Remove what killed processes were writing."""
        with contextlib.suppress(OSError):
            for left in self._index.shards.glob(".*"):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)


def text_checksum(candidate: Candidate) -> int:
    """A checksum of what is encoded of a document, before truncation: 64 bits of BLAKE2b."""
    digest = hashlib.blake2b(candidate.joined().encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _peeked(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any] | None]:
    """The first document, or None, to look at; then all of them."""
    documents = iter(corpus)
    first = next(documents, None)
    yield first
    if first is not None:
        yield first
        yield from documents


def _some(items: Iterator[_Document], count: int) -> Iterator[list[_Document]]:
    found: list[_Document] = []
    for item in items:
        found.append(item)
        if len(found) == count:
            yield found
            found = []
    if found:
        yield found

