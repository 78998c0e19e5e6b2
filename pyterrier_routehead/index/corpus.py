"""Documents of a corpus, as they are indexed: checked by field and docno."""

import hashlib
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..prompt.build import Candidate
from .shard import why_no_docno


@dataclass(frozen=True)
class Document:
    """One document of a corpus."""

    docno: str
    candidate: Candidate
    checksum: int


@dataclass(frozen=True)
class CorpusFields:
    """The fields that texts are read from.

    Args:
        text: of the documents' texts.
        title: of their titles; ``"auto"`` means ``title`` where the first document has one, None no titles.
    """

    text: str
    title: str | None

    def document(self, found: Mapping[str, Any], title_field: str | None) -> Document:
        """One document, with its title from a field, or without.

        Raises:
            TypeError: naming document and field of what is no string.
            ValueError: naming a docno that cannot be kept, or a document without its text.
        """
        docno = found.get("docno")
        if isinstance(docno, numbers.Integral) and not isinstance(docno, bool):
            docno = str(docno)
        if not isinstance(docno, str):
            raise TypeError(f"a document of the corpus has the docno {docno!r}, which is neither a string nor a number")
        if (problem := why_no_docno(docno)) is not None:
            raise ValueError(f"a document of the corpus has the docno {docno!r}, which cannot be kept: {problem}")
        text = self._text(docno, found, self.text)
        passed_over = title_field is None and self.title == "auto" and self.text != "title"
        if passed_over and self._text(docno, found, "title", needed=False):
            raise ValueError(
                f"document {docno!r} has a title, but the first document of the corpus had none: give "
                "title_field='title', with a title (it may be empty) in the first document, or title_field=None"
            )
        title = "" if title_field is None else self._text(docno, found, title_field, needed=False)
        candidate = Candidate(text, title)
        return Document(docno, candidate, text_checksum(candidate))

    @staticmethod
    def _text(docno: str, found: Mapping[str, Any], field: str, *, needed: bool = True) -> str:
        if field not in found and needed:
            raise ValueError(f"document {docno!r} has no {field!r}: it has {', '.join(map(str, found))}")
        value = found.get(field)
        if value is None or value is pd.NA or (isinstance(value, float) and value != value):
            return ""
        if not isinstance(value, str):
            raise TypeError(f"document {docno!r}: {field!r} is no string, but {type(value).__name__}")
        return str(value)

    def title_field_of(self, first: Mapping[str, Any] | None) -> str | None:
        """The field of titles in a corpus that begins with this document, which is None in an empty one."""
        text, title = self.text, self.title
        if title != "auto":
            if title is not None and first is not None and title not in first:
                raise ValueError(
                    f"document {first.get('docno')!r}, the first of the corpus, has no {title!r}: it has "
                    f"{', '.join(map(str, first))}; title_field=None reads no titles"
                )
            return title
        return "title" if first is not None and "title" in first and text != "title" else None


def text_checksum(candidate: Candidate) -> int:
    """A checksum of what is encoded of a document, before truncation: 64 bits of BLAKE2b."""
    digest = hashlib.blake2b(candidate.joined().encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def records(corpus: object) -> Iterable[Mapping[str, Any]]:
    """A corpus as dictionaries; a frame's rows.

    Raises:
        TypeError: for what is no corpus.
    """
    if isinstance(corpus, pd.DataFrame):
        rows: list[Any] = corpus.to_dict("records")
        return rows
    if isinstance(corpus, str | bytes | Mapping | pd.Series) or not isinstance(corpus, Iterable):
        raise TypeError(f"a corpus is an iterable of dictionaries with docno and text, got {_shown(corpus)}")
    return corpus


def _record(found: object) -> Mapping[str, Any]:
    """A document of a corpus.

    Raises:
        TypeError: for what is no dictionary.
    """
    if not isinstance(found, Mapping):
        raise TypeError(f"a corpus is an iterable of dictionaries with docno and text, this one gives {_shown(found)}")
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"


def peeked(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any] | None]:
    """The first document, or None, to look at; then all of them."""
    documents = map(_record, corpus)
    first = next(documents, None)
    yield first
    if first is not None:
        yield first
        yield from documents
