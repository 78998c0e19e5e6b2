"""`HeadIndex`: the keys that chosen heads need of each document, computed once, as a PyTerrier artifact."""

import io
import json
import numbers
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import ArtifactError, MismatchError
from ..common.locks import new_lock
from ..common.paths import absolute_path, read_bytes, reason
from ..common.saving import replace_description, save_artifact
from ..common.sharing import SharedArtifact
from ..heads import Head, HeadsLike
from ..reading.reading import ModelIdentity, ReadingSettings
from .description import FILE, IndexDescription
from .indexer import HeadIndexer
from .shard import Shard, link_shard
from .view import IndexView, open_view

if TYPE_CHECKING:
    from ..detection.head_set import HeadSet
    from ..model.frozen import FrozenLLM
    from ..routing.router import HeadRouter
    from ..template import PromptTemplate

_SHARDS = "shards"


class HeadIndex(SharedArtifact):
    """Keys of documents for late reading (``document_attention="late"``), in a folder.

    Make one from a corpus, for the heads that will rank, and give it to re-rankers, which then need no text::

        index = HeadIndex("scifact.heads").indexer(heads, llm=llm).index(dataset.get_corpus_iter())
        bm25 >> CoReHeadReranker(heads, llm=llm, index=index)

    Keys depend on nothing but model, prompt and document, so they serve every query. They are kept in int8 with one
    scale for each token and head, or in float16, and mapped into memory: an index may be larger than that. Texts are
    not in it; a checksum of each is, so that a frame with other texts is noticed.

    It is a PyTerrier artifact: ``from_hf``, ``to_hf`` and so on. Any number of processes may read while one appends.
    Several machines write an index each, for :meth:`merge`.

    Args:
        path: the folder; there need not be an index yet. ``~`` is expanded, a relative path made absolute.

    Raises:
        ArtifactError: on first use, for a folder that holds no index, or a damaged one, naming the file.
    """

    ARTIFACT_TYPE = "head_index"
    ARTIFACT_FORMAT = "numpy"
    ARTIFACT_PACKAGE_HINT = "pyterrier-routehead"

    path: Path

    def __init__(self, path: str | Path) -> None:
        super().__init__(absolute_path("index", path))
        self._known: IndexDescription | None = None
        self._content = b""
        self._view: IndexView | None = None
        self._lock = new_lock()

    @classmethod
    def of(cls, index: "HeadIndex | str | Path | None") -> "HeadIndex | None":
        """What an ``index=`` parameter means: the object itself, or the folder of one."""
        return index if index is None or isinstance(index, HeadIndex) else cls(index)

    def __repr__(self) -> str:
        return f"HeadIndex({str(self.path)!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(HeadIndex(str(state["path"])).__dict__)

    # What it holds

    @property
    def exists(self) -> bool:
        """Whether there is an index."""
        return (self.path / FILE).exists()

    @property
    def description(self) -> IndexDescription:
        """What its keys are; read again where another index has taken the place of the one that was there."""
        try:
            content = read_bytes(self.path / FILE)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{self.path} holds no head index: make one by "
                f"HeadIndex({str(self.path)!r}).indexer(heads).index(corpus_iter)"
            ) from None
        except OSError as error:
            raise ArtifactError(f"{self.path / FILE} cannot be read: {reason(error)}") from None
        with self._lock:
            # By content: a new file may have the inode and the time of the old one.
            if self._known is None or content != self._content:
                self._known, self._view = IndexDescription.load(self.path), None
                self._content = content
            return self._known

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads whose attention can be read."""
        return self.description.heads

    @property
    def model(self) -> ModelIdentity:
        """Which model encoded the documents."""
        return self.description.model

    @property
    def settings(self) -> ReadingSettings:
        """Prompt and truncation; calibration and filter are free to choose when ranking."""
        return self.description.settings

    def view(self) -> IndexView:
        """The documents that are there now."""
        with self._lock:
            description = self.description  # first: it forgets the view of another index
            self._view = open_view(self.path / _SHARDS, description, self._view)
            return self._view

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.view())

    def __contains__(self, docno: object) -> bool:
        if isinstance(docno, numbers.Integral) and not isinstance(docno, bool):
            docno = str(docno)  # as a corpus may give it
        return isinstance(docno, str) and bool(self.view().find([docno])[0] >= 0)

    def __bool__(self) -> bool:
        return True  # an index without documents is still one

    @property
    def docnos(self) -> list[str]:
        """Docnos, in the order in which the documents came."""
        return self.view().docnos()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.view().size

    @property
    def size_per_document(self) -> float:
        """Bytes on disk a document, on average; 0 without documents."""
        view = self.view()
        return view.size / len(view) if len(view) else 0.0

    def check(self) -> int:
        """Read every file; returns the number of documents.

        Raises:
            ArtifactError: naming all files that are damaged, and docnos that stand in two shards.
        """
        view = self.view()
        problems = [problem for shard in view.shards for problem in shard.check()]
        if not problems:
            twice = [docno for docno, count in Counter(view.docnos()).items() if count > 1]
            problems = [f"document {docno!r} is in {self} twice" for docno in twice[:10]]
        if problems:
            raise ArtifactError("\n".join(problems))
        return len(view)

    # Making one

    def indexer(
        self,
        heads: "HeadsLike | HeadSet | HeadRouter | str",
        *,
        llm: "FrozenLLM | str | None" = None,
        prompt: "PromptTemplate | str | None" = None,
        max_doc_tokens: int | None = None,
        dtype: str = "int8",
        text_field: str = "text",
        title_field: str | None = "auto",
        shard_documents: int = 2048,
        verbose: bool | None = None,
    ) -> "HeadIndexer[HeadIndex]":
        """What writes this index from a corpus, or appends to it.

        Args:
            heads: the heads that will rank: heads, ``"all"``, a :class:`HeadSet` (those of it that rank), the name of
                one with its method (``"core-smollm2-135m"``), or a :class:`HeadRouter` (its pool).
            llm: the model; None means the one that the heads belong to, else SmolLM2-135M-Instruct.
            prompt: the template; None means that of the head set, else the default.
            max_doc_tokens: title and text are cut to this many tokens; None means as the head set says, else 150.
            dtype: ``"int8"``, or ``"float16"`` at twice the size.
            text_field: the documents' text.
            title_field: their titles; ``"auto"`` means ``title`` where the first document has one, None no titles. The
                first document needs the field, later ones may lack it.
            shard_documents: documents a shard: what is lost, and done again, when the process is killed.
            verbose: whether to show progress; None shows it in a terminal or notebook.

        Raises:
            TypeError: naming the argument of a wrong type.
            ValueError: naming the argument of a wrong value.
        """
        return HeadIndexer(
            self,
            heads,
            llm=llm,
            prompt=prompt,
            max_doc_tokens=max_doc_tokens,
            dtype=dtype,
            text_field=text_field,
            title_field=title_field,
            shard_documents=shard_documents,
            verbose=verbose,
        )

    def create(self, description: IndexDescription) -> None:
        """Make the folder of an index without documents.

        Raises:
            FileExistsError: where the path exists already.
            ArtifactError: where it cannot be written.
        """
        save_artifact(self, self.path, FILE, description.to_json(), folders=[_SHARDS])

    def redefine(self, description: IndexDescription) -> None:
        """Make an index without documents another one.

        Raises:
            ArtifactError: where it cannot be written.
        """
        replace_description(self.path, FILE, description.to_json())

    @property
    def shards(self) -> Path:
        """The folder of the shards."""
        return self.path / _SHARDS

    @classmethod
    def merge(cls, path: str | Path, indexes: "Sequence[HeadIndex | str | Path]") -> "HeadIndex":
        """A new index of all documents of others, which stay as they are. Files are linked where that is possible.

        Raises:
            FileExistsError: where the path exists already.
            MismatchError: for indexes that were made otherwise than the first, naming the difference.
            TypeError: for one index instead of a list.
            ValueError: for no index, or a document that is in two of them, by docno.
        """
        if isinstance(indexes, str | Path | HeadIndex):
            raise TypeError(f"indexes is a list of indexes, got {indexes!r}")
        given = [index if isinstance(index, HeadIndex) else cls(index) for index in indexes]
        if not given:
            raise ValueError("there is no index to merge")
        for index in given[1:]:
            given[0].description.check_same(index.description, repr(given[0]))
        views = [index.view() for index in given]
        owner: dict[str, HeadIndex] = {}
        for index, view in zip(given, views, strict=True):
            for docno in view.docnos():
                if docno in owner:
                    raise ValueError(f"document {docno!r} is in {owner[docno]} and in {index}")
                owner[docno] = index
        merged = cls(path)
        description = given[0].description.renewed()
        merged.create(description)
        shards: list[Shard] = [shard for view in views for shard in view.shards]
        for number, shard in enumerate(shards):
            link_shard(shard, merged.shards, number, description.id)
        return merged

    def check_model(self, model: ModelIdentity) -> None:
        """Refuse another model than the one that encoded the documents.

        Raises:
            MismatchError: naming both.
        """
        if not self.model.is_same(model):
            raise MismatchError(f"{self} was made with {self.model}, not with {model}")

    # As an artifact

    def save(self, path: str | Path) -> "HeadIndex":
        """A copy in a new folder, linked where that is possible."""
        return HeadIndex.merge(path, [self])

    def _package_files(self) -> Iterator[tuple[str, str | io.BytesIO]]:
        """What is uploaded: not what is being written."""
        yield FILE, str(self.path / FILE)
        shards = self.view().shards
        if not shards:
            yield f"{_SHARDS}/.empty", io.BytesIO()  # a package has no empty folders
        for shard in shards:
            for file in sorted(shard.folder.iterdir()):
                yield str(file.relative_to(self.path)), str(file)
        yield "pt_meta.json", io.BytesIO(json.dumps(self._build_metadata()).encode())

    def _description(self) -> str:
        return (
            f"Keys of {len(self)} documents for {len(self.heads)} attention heads of a language model: what late "
            "reading needs to rank these documents for any query, without their texts."
        )

    def _facts(self) -> dict[str, object]:
        description = self.description
        return {
            "documents": len(self),
            "bytes": self.size,
            "model": str(description.model),
            "heads": " ".join(map(str, description.heads)),
            "prompt": description.settings.prompt.name,
            "max_doc_tokens": description.settings.max_doc_tokens,
            "titles": description.titles,
            "dtype": description.dtype,
        }

    def _usage(self, loaded: str) -> str:
        return (
            "from pyterrier_routehead import HeadIndex, StaticHeadReranker\n\n"
            f"index = {loaded}\n"
            "reranker = StaticHeadReranker(index.heads, index=index)  # needs qid, query and docno, no text"
        )
