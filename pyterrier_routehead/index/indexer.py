"""Writes a head index from a corpus."""

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyterrier as pt

from ..common.arguments import check_choice, check_flag, check_text, check_whole
from ..common.errors import ListTooLongError, MismatchError, UnsupportedArchitectureError
from ..common.notices import warn
from ..common.progress import with_progress
from ..detection.head_set import HeadSet
from ..heads import Head, HeadsLike, is_all, parse_heads, resolve_heads
from ..kernel.keys import KeyHead
from ..kernel.patterns import Late
from ..model.frozen import FrozenLLM
from ..prompt.build import Candidate, PromptBuilder
from ..reading.reader import model_identity
from ..reading.reading import ModelIdentity, ReadingSettings, resolve_settings
from ..registry import is_bundled_model, named_model, set_by_name
from ..routing.router import HeadRouter
from ..template import PromptTemplate
from .corpus import CorpusFields, Document, peeked, records
from .description import IndexDescription
from .quantising import DTYPES, as_rows
from .shard import DOCUMENT, ShardWriter
from .view import IndexView

_TOKENS_AT_ONCE = 1 << 14
"""Tokens of documents that are encoded before their keys are written: what bounds the memory."""

_DOCUMENTS_AT_ONCE = 1024
_ABANDONED = 3600
"""Seconds after which what is still being written belongs to a process that was killed."""


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

    def redefine(self, description: IndexDescription) -> None:
        """Make it another one, while it has no documents."""


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
        self._bundled = False
        if (named := set_by_name(heads, Late.name)) is not None:
            heads, self._bundled = named
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
        self._fields = CorpusFields(text_field, title_field)
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
        text, title = self._fields.text, self._fields.title
        fields = ["docno", text] if title in (None, "auto") else ["docno", text, str(title)]
        return [fields]

    def index(self, iter: Iterable[Mapping[str, Any]], **_: object) -> _Index:
        """Write the keys of all documents that are not in the index yet.

        After a kill, or an error, the same call goes on: documents that are in the index are passed over, and what was
        not finished is done again. Documents that are new are appended.

        Args:
            iter: dictionaries with ``docno`` and texts, or a frame of them. Without any, an index is made that the
                first documents may define anew.

        Returns:
            the index.

        Raises:
            ArtifactError: where the index cannot be read or written, naming the file.
            ListTooLongError: where a document of the length that the index is to allow does not fit into the context.
            MismatchError: where there is an index that was made otherwise, naming the difference.
            TypeError: for what is no corpus; naming document and field of what is no string.
            ValueError: naming a document that comes twice, that is in the index with another text, that has a title
                although the first had none, or whose docno cannot be kept.
        """
        rows = records(iter)
        corpus = peeked(rows)
        first = next(corpus)
        title_field = self._fields.title_field_of(first)
        if first is not None:  # before anything is written
            self._fields.document(first, title_field)
        llm = self._open()
        heads = tuple(dict.fromkeys(resolve_heads(self._heads, llm.num_layers, llm.num_heads)))
        builder = PromptBuilder(
            self._settings.prompt,
            llm.encoder,
            document_order="best_first",
            numbered=Late.numbered,
            max_doc_tokens=self._settings.max_doc_tokens,
        )
        self._check_length(llm, builder)
        wanted = self._description(llm, builder, heads, title_field)
        self._make(wanted, empty=first is None)
        description = self._index.description
        self._sweep()
        total = len(rows) if isinstance(rows, Sized) else None
        shown: Iterable[Mapping[str, Any] | None] = with_progress(
            corpus, total=total, desc=repr(self._index), unit="doc", verbose=self._verbose
        )
        documents = (self._fields.document(found, title_field) for found in shown if found is not None)
        self._write(documents, llm, builder, description, heads)
        return self._index

    def _check_length(self, llm: FrozenLLM, builder: PromptBuilder) -> None:
        """Refuse documents that no query could be put after."""
        from ..kernel.score import check_length

        assert builder.capacity is not None, "an index truncates"
        try:
            check_length(llm, len(builder.prefix) + builder.capacity + len(builder.without_documents("").null))
        except (ListTooLongError, UnsupportedArchitectureError) as error:
            raise type(error)(
                f"{error} (for a document of max_doc_tokens={self._settings.max_doc_tokens} and the content-free "
                "query): lower max_doc_tokens"
            ) from None

    def _make(self, wanted: IndexDescription, *, empty: bool) -> None:
        """Make the index if there is none; refuse one that was made otherwise, unless it has no documents."""
        if not self._index.exists:
            try:
                self._index.create(wanted)
            except FileExistsError:
                if not self._index.exists:  # else another process was quicker
                    raise
        there = self._index.description
        if empty and self._fields.title == "auto":  # whether there are titles is not known
            wanted = replace(wanted, title_field=there.title_field)
        try:
            there.check_same(wanted, repr(self._index))
        except MismatchError:
            if len(self._index.view()):
                raise
            self._index.redefine(wanted)

    def _write(
        self,
        documents: Iterator[Document],
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
                    whole, writer = writer, None
                    self._finish(whole, description, known)
        except BaseException:
            if writer is not None:
                if complete:  # what is encoded is not lost
                    self._finish(writer, description, known)
                else:
                    writer.discard()
            raise
        if writer is not None:
            self._finish(writer, description, known)

    def _finish(self, writer: ShardWriter, description: IndexDescription, known: set[str]) -> None:
        """Put a shard in its place, and its name among the known ones.

        It becomes the shard after the last one that is there, and only one process can make a shard of a number. So
        whoever comes later has seen all shards before.
        """
        while True:
            now = self._index.view()
            problem = None
            if now.description.id != description.id:
                problem = f"{self._index} was made anew by another process meanwhile"
            elif others := [shard for shard in now.shards if shard.folder.name not in known]:
                there = IndexView(others, now.description).find(writer.docnos)
                if (there >= 0).any():
                    docno = writer.docnos[int(np.argmax(there >= 0))]
                    problem = f"document {docno!r} was written into {self._index} by another process meanwhile"
            if problem is not None:
                writer.discard()
                raise ValueError(f"{problem}: let one process write an index, or several one each, and merge them")
            last = max((int(shard.folder.name) for shard in now.shards), default=-1)
            with contextlib.suppress(FileExistsError):  # another process was quicker: look again
                known.add(writer.finish(last + 1).name)
                return

    def _new(self, documents: Iterator[Document], view: IndexView) -> Iterator[Document]:
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

    def _open(self) -> FrozenLLM:
        named: ModelIdentity | None = None
        if self._head_set is not None:
            named = named_model(self._head_set, self._bundled)
        layers = None if is_all(self._heads) else 1 + max(head.layer for head in parse_heads(self._heads))
        if self._llm is None and named is not None:
            llm = FrozenLLM.of(named.name, revision=named.revision, tokenizer=named.tokenizer, max_layers=layers)
        else:
            llm = FrozenLLM.of(self._llm, max_layers=layers)
        if self._head_set is not None:
            model = model_identity(llm)
            if not self._bundled or not is_bundled_model(model.name):
                self._head_set.check_model(model)
            elif not self._head_set.model.is_same(model):
                warn(f"the bundled heads were found in {self._head_set.model}, not in {model}")
        return llm

    def _description(
        self, llm: FrozenLLM, builder: PromptBuilder, heads: tuple[Head, ...], title_field: str | None
    ) -> IndexDescription:
        """What the index will be; one short document tells whose keys the heads attend by, and their sizes."""
        from ..kernel.key_cache import key_passes

        ((_, this_pass),) = key_passes(llm, builder.prefix, builder.documents([Candidate("a")]), heads)
        assert builder.capacity is not None, "an index truncates"
        return IndexDescription(
            model_identity(llm),
            llm.snapshot().surroundings,
            llm.weights_dtype,
            self._settings,
            tuple(builder.prefix),
            builder.capacity,
            title_field,
            {head: this_pass.key_heads[head] for head in heads},
            {key_head: keys.shape[1] for key_head, keys in this_pass.keys.items()},
            self._dtype,
        )

    def _sweep(self) -> None:
        """Remove what killed processes were writing."""
        with contextlib.suppress(OSError):
            for left in filter(Path.is_dir, self._index.shards.glob(".*")):
                with contextlib.suppress(FileNotFoundError):  # it is finished, or swept by another
                    newest = max(entry.stat().st_mtime for entry in (left, *left.iterdir()))
                    if time.time() - newest > _ABANDONED:
                        shutil.rmtree(left, ignore_errors=True)


def _some(items: Iterator[Document], count: int) -> Iterator[list[Document]]:
    found: list[Document] = []
    for item in items:
        found.append(item)
        if len(found) == count:
            yield found
            found = []
    if found:
        yield found
