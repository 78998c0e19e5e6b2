"""What an index of head keys says it is: everything that its keys depend on."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.errors import MismatchError
from ..common.saving import FORMAT, load_description, readable
from ..common.schema import typed
from ..heads import Head, parse_heads
from ..kernel.keys import KeyHead
from ..kernel.patterns import Late
from ..reading.reading import ModelIdentity, ReadingSettings, settings_from_json, shown_pair
from ..version import __version__
from .quantising import DTYPES

FILE = "head_index.json"


@dataclass(frozen=True)
class _File:
    """The description as JSON."""

    format: int
    id: str
    model: ModelIdentity
    surroundings: str
    weights_dtype: str
    settings: Mapping[str, Any]
    prefix: tuple[int, ...]
    block_capacity: int
    title_field: str | None
    heads: tuple[str, ...]
    key_heads: tuple[str, ...]
    dims: tuple[int, ...]
    dtype: str
    version: str


@dataclass(frozen=True)
class IndexDescription:
    """What the keys of an index are.

    Attributes:
        model: which model encoded the documents.
        surroundings: a hash over the embeddings and the configuration of the model.
        weights_dtype: the dtype of its weights then.
        settings: prompt and truncation; how scores are made of attention is free.
        prefix: ids that stand before each document.
        block_capacity: tokens of the longest block that there can be.
        title_field: the field that titles were read from; None where documents were encoded without titles.
        key_heads: for each head whose attention can be read, whose keys it attends by.
        dims: the size of each key-value head's keys.
        dtype: ``"int8"`` or ``"float16"``.
        version: of the package that made it.
        id: of this index; the name that its shards know it by.
    """

    model: ModelIdentity
    surroundings: str
    weights_dtype: str
    settings: ReadingSettings
    prefix: tuple[int, ...]
    block_capacity: int
    title_field: str | None
    key_heads: dict[Head, KeyHead]
    dims: dict[KeyHead, int]
    dtype: str
    version: str = __version__
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def renewed(self) -> "IndexDescription":
        """The same for another index."""
        return replace(self, id=uuid.uuid4().hex)

    @property
    def titles(self) -> bool:
        """Whether documents were encoded with their titles."""
        return self.title_field is not None

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads whose attention can be read."""
        return tuple(self.key_heads)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        settings = {"prompt": asdict(self.settings.prompt), "max_doc_tokens": self.settings.max_doc_tokens}
        return {
            "format": FORMAT,
            "id": self.id,
            "model": asdict(self.model),
            "surroundings": self.surroundings,
            "weights_dtype": self.weights_dtype,
            "settings": settings,
            "prefix": list(self.prefix),
            "block_capacity": self.block_capacity,
            "title_field": self.title_field,
            "heads": [str(head) for head in self.heads],
            "key_heads": [_name(key_head) for key_head in self.key_heads.values()],
            "dims": [self.dims[key_head] for key_head in self.key_heads.values()],
            "dtype": self.dtype,
            "version": self.version,
        }

    @classmethod
    def load(cls, folder: Path) -> "IndexDescription":
        """What a folder's index says.

        Raises:
            ArtifactError: for a folder that holds no readable index.
        """
        content = load_description(folder, FILE, "head index")
        with readable(str(folder / FILE), "head index"):
            read: _File = typed(_File, content, "")
            heads, keys = parse_heads(read.heads), [_key_head(name) for name in read.key_heads]
            if not len(heads) == len(keys) == len(read.dims) > 0:
                raise ValueError("it has other numbers of heads, key_heads and dims")
            if read.dtype not in DTYPES:
                raise ValueError(f"dtype is one of {', '.join(DTYPES)}, found {read.dtype!r}")
            settings = ReadingSettings(document_attention=Late.name, **settings_from_json(read.settings))
            return cls(
                read.model,
                read.surroundings,
                read.weights_dtype,
                settings,
                read.prefix,
                read.block_capacity,
                read.title_field,
                dict(zip(heads, keys, strict=True)),
                dict(zip(keys, read.dims, strict=True)),
                read.dtype,
                read.version,
                read.id,
            )

    def check_same(self, other: "IndexDescription", what: str) -> None:
        """Refuse keys that were made otherwise.

        Args:
            other: what was asked for.
            what: which index this is, for the message.

        Raises:
            MismatchError: naming the first difference.
        """
        if not self.model.is_same(other.model):
            raise MismatchError(f"{what} was made with {self.model}, not with {other.model}")
        if self.weights_dtype != other.weights_dtype:  # first, since the surroundings depend on it
            raise MismatchError(f"{what} was made with weights in {self.weights_dtype}, not in {other.weights_dtype}")
        self.check_surroundings(other.surroundings, what)
        self.check_settings(other.settings, what)
        if self.titles != other.titles:
            made, asked = ("with" if description.titles else "without" for description in (self, other))
            raise MismatchError(f"{what} was made {made} titles, not {asked}")
        for name in ("dtype", "prefix", "block_capacity"):
            found, wanted = getattr(self, name), getattr(other, name)
            if found != wanted:
                raise MismatchError(f"{what} was made with {name}={found!r}, not {wanted!r}")
        if set(self.heads) != set(other.heads):
            raise MismatchError(f"{what} is for the heads {shown(self.heads)}, not {shown(other.heads)}")

    def check_surroundings(self, surroundings: str, what: str) -> None:
        """Refuse a model whose layers are the same, but not what lies around them.

        The hash depends on the dtype of the weights: it says nothing of a model whose weights are in another one.

        Args:
            surroundings: of the model that is to be used, as its snapshot has them.
            what: which index this is, for the message.

        Raises:
            MismatchError: naming the model.
        """
        if surroundings != self.surroundings:
            raise MismatchError(f"{what} was made with another configuration or other embeddings of {self.model.name}")

    def check_settings(self, settings: ReadingSettings, what: str) -> None:
        """Refuse another prompt or truncation, naming both values."""
        for name in ("prompt", "max_doc_tokens", "document_attention"):
            found, wanted = getattr(self.settings, name), getattr(settings, name)
            if found != wanted:
                left, right = shown_pair(found, wanted)
                raise MismatchError(f"{what} was made with {name}={left}, not {right}")

    def check_heads(self, heads: Sequence[Head], what: str) -> None:
        """Refuse heads whose keys are not there.

        Raises:
            MismatchError: naming them.
        """
        if missing := [head for head in heads if head not in self.key_heads]:
            raise MismatchError(
                f"{what} lacks {len(missing)} of {len(heads)} heads: {shown(missing)}; it is for {shown(self.heads)}"
            )


def shown(heads: Sequence[Head], most: int = 8) -> str:
    """Some heads for a message."""
    return ", ".join(map(str, heads[:most])) + (f" and {len(heads) - most} more" if len(heads) > most else "")


def _name(key_head: KeyHead) -> str:
    return f"{key_head.layer}-{key_head.head}"


def _key_head(name: str) -> KeyHead:
    layer, _, head = name.partition("-")
    return KeyHead(int(layer), int(head))
