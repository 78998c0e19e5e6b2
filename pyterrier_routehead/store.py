"""`HeadScoreStore`: head scores on disk, so that no candidate list is read twice.

Detection, the search for pseudo labels and experiments all want the scores of the same lists. One file a list, in the
safetensors format, read by memory map::

    <path>/store.json                                  says that this folder is a store
    <path>/3f/3f09...-30-5c1f0d2a.safetensors          one list: its key, the layers that were run, the weights' hash
    <path>/.writing/                                   files that are being written

A file appears whole, under its final name, or not at all: a process may be killed at any moment, and several may share
one store (the worst that can happen is that two of them read the same list at the same time).
"""

import hashlib
import json
import os
import re
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import StoreError
from .fingerprint import same_weights
from .scores import ListScores

if TYPE_CHECKING:
    from .fingerprint import ModelSnapshot
    from .prompt import ListPrompt

_MARKER = {"type": "head_score_store", "format": 1}
_NAME = re.compile(r"(?P<key>[0-9a-f]{64})-(?P<layers>\d+)-[0-9a-f]{8}\.safetensors")
_ABANDONED = 3600
"""Seconds after which a file that is still being written belongs to a process that was killed."""


@dataclass(frozen=True)
class StoreKey:
    """Which scores are meant: of which list, by which model.

    Attributes:
        digest: SHA-256 over everything that changes the scores apart from the weights: the ids of prompt, documents,
            query and content-free query with their spans and order (which follow from template, tokenizer, truncation
            and texts), document attention, dtype, and the model's shape, configuration and embeddings.
        fingerprint: the weights, a hash per loaded layer.
        num_heads: heads per layer.
        about: model, dtype and document attention in words, kept beside the scores.
    """

    digest: str
    fingerprint: tuple[str, ...]
    num_heads: int
    about: dict[str, str]


def store_key(model: "ModelSnapshot", prompt: "ListPrompt", document_attention: str) -> StoreKey:
    """The key of a list's scores, as a model gives them at the moment of its snapshot."""
    shape = [model.total_layers, model.num_heads, model.surroundings]
    about = {"model": model.name, "dtype": model.weights_dtype, "document_attention": document_attention}
    blocks = [[block.ids, block.start, block.stop] for block in prompt.blocks]
    said = [shape, about["dtype"], document_attention, prompt.prefix, blocks, prompt.order, prompt.query, prompt.null]
    digest = hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()
    return StoreKey(digest, model.layer_fingerprint, model.num_heads, about)


class HeadScoreStore:
    """Head scores of candidate lists in a folder: raw, content-free and filtered scores of all heads.

    Pass it as ``store=`` to scorers and re-rankers: they look there first and add what they have to read. An entry
    holds all heads of the layers that were run, so it serves every choice of heads within them, calibrated or not; when
    deeper heads are wanted the list is read again and the entry replaced. Qids and docnos play no part: the same query
    with the same texts in the same order is found again under any name. Models are told apart by their configuration
    and by all their weights.

    Args:
        path: the folder, made if it is not there.

    Raises:
        StoreError: for a folder that is not empty and no store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._writing = self.path / ".writing"
        marker = self.path / "store.json"
        if not marker.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self._foreign_to_a_new_store())):
                raise StoreError(f"{self.path} exists and is no store of head scores")
            self._writing.mkdir(parents=True, exist_ok=True)
            self._write(marker, json.dumps(_MARKER).encode())
        try:
            found = json.loads(marker.read_text())
        except ValueError:
            found = None
        if found != _MARKER:
            raise StoreError(f"{marker} does not describe a store of head scores that this version can read: {found}")
        self._writing.mkdir(exist_ok=True)
        for left in self._writing.iterdir():
            try:
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()
            except OSError:
                pass  # its writer, or another sweeper, was faster; or a folder of somebody's

    @classmethod
    def of(cls, store: "HeadScoreStore | str | Path | None") -> "HeadScoreStore | None":
        """What a ``store=`` parameter means: the object itself, or the folder of one."""
        return store if store is None or isinstance(store, HeadScoreStore) else cls(store)

    def __repr__(self) -> str:
        return f"HeadScoreStore({str(self.path)!r})"

    def __len__(self) -> int:
        """How many lists are stored; a list that several models have read counts once for each."""
        return sum(1 for _ in self._files())

    def get(self, key: StoreKey, layers: int, hidden_layers: Sequence[int] = ()) -> ListScores | None:
        """The scores of a list, or None where the store lacks them.

        Args:
            key: which list and model.
            layers: scores of all heads of so many layers are wanted: float32 [documents, layers * heads], layer by
                layer.
            hidden_layers: hidden states that are wanted.

        Raises:
            StoreError: naming a file that is damaged or not what its name says.
        """
        for entry in self._entries_read(key):
            enough = entry.layers >= layers and set(hidden_layers) <= set(entry.scores.hidden)
            if enough and same_weights(entry.fingerprint[:layers], key.fingerprint[:layers]):
                columns = slice(0, layers * key.num_heads)
                own = entry.scores
                hidden = {layer: own.hidden[layer] for layer in hidden_layers}
                return ListScores(own.raw[:, columns], own.null[:, columns], own.filtered[:, columns], None, hidden)
        return None

    def _entries_read(self, key: StoreKey) -> Iterator["_Entry"]:
        for attempt in range(3):
            gone = False
            for file in self._entries(key):
                if (entry := self._read_if_there(file)) is not None:
                    yield entry
                else:
                    gone = True  # what replaced it may be what is wanted
            if not gone or attempt == 2:
                return

    def put(self, key: StoreKey, scores: ListScores, layers: int) -> None:
        """Store the calibrated scores of all heads of so many layers; entries that they cover are removed.

        Hidden states of an entry that is replaced are kept.

        Raises:
            ValueError: for scores of other heads, or without calibration.
        """
        from safetensors.numpy import save

        width = layers * key.num_heads
        arrays = {"raw": scores.raw, "null": scores.null, "filtered": scores.filtered}
        if any(array is None or array.shape[1] != width for array in arrays.values()):
            raise ValueError(f"a store keeps calibrated scores of all {width} heads of {layers} layers")
        own = {file: entry for file in self._entries(key) if (entry := self._read_if_there(file)) is not None}
        # Hidden states can be asked for below what has been read: then the deeper entry is kept and gets them.
        deeper = (
            entry
            for entry in own.values()
            if entry.layers > layers and same_weights(entry.fingerprint, key.fingerprint)
        )
        host = next(deeper, _Entry(layers, key.fingerprint[:layers], scores))
        covered = {file: entry for file, entry in own.items()
                   if entry.layers <= host.layers and same_weights(entry.fingerprint, host.fingerprint)}
        hidden = {layer: state for entry in covered.values() for layer, state in entry.scores.hidden.items()}
        hidden |= scores.hidden
        tensors = {name: getattr(host.scores, name) for name in arrays}
        tensors |= {f"hidden.{layer}": state for layer, state in hidden.items()}
        tensors = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
        about = {**key.about, "key": key.digest, "layers": host.layers, "fingerprint": list(host.fingerprint)}
        said = json.dumps({**about, "checksum": _checksum(tensors, about)})
        weights = hashlib.sha256("".join(host.fingerprint).encode()).hexdigest()[:8]
        target = self.path / key.digest[:2] / f"{key.digest}-{host.layers}-{weights}.safetensors"
        target.parent.mkdir(exist_ok=True)
        self._write(target, save(tensors, {"head_scores": said}))
        for file in covered:
            if file != target:
                file.unlink(missing_ok=True)

    def check(self) -> int:
        """Read every file; returns how many lists are stored.

        Raises:
            StoreError: naming all files that are damaged or do not belong here.
        """
        problems = [f"{file} does not belong to a store of head scores" for file in self._foreign()]
        count = 0
        for file in self._files():
            try:
                _read(file)
                count += 1
            except FileNotFoundError:
                pass
            except StoreError as error:
                problems.append(str(error))
        if problems:
            raise StoreError("\n".join(problems))
        return count

    def _read_if_there(self, file: Path) -> "_Entry | None":
        try:
            return _read(file)
        except FileNotFoundError:
            return None  # replaced by another process since it was listed

    def _entries(self, key: StoreKey) -> list[Path]:
        """The files of a list, deepest first: of several models perhaps that agree in shape."""
        folder = self.path / key.digest[:2]
        try:
            names = [name for name in os.listdir(folder) if name.startswith(key.digest) and _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []
        return [folder / name for name in sorted(names, key=lambda name: -int(_NAME.fullmatch(name)["layers"]))]

    def _files(self) -> Iterator[Path]:
        for folder in sorted(self.path.glob("[0-9a-f][0-9a-f]")):
            for file in sorted(folder.iterdir()):
                if _NAME.fullmatch(file.name) and file.name.startswith(folder.name):
                    yield file

    def _foreign(self) -> Iterator[Path]:
        for file in sorted(self.path.rglob("*")):
            named = _NAME.fullmatch(file.name)
            entry = named is not None and file.parent == self.path / named["key"][:2]
            if not (entry or file.is_dir() or file.parent == self._writing or file == self.path / "store.json"):
                yield file

    def _foreign_to_a_new_store(self) -> Iterator[Path]:
        # Another process may be making the same store at this moment.
        return (file for file in self.path.iterdir() if file.name not in (".writing", "store.json"))

    def _write(self, target: Path, data: bytes) -> None:
        """Write a file that appears whole or not at all."""
        scratch = self._writing / uuid.uuid4().hex
        try:
            with scratch.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class _Entry:
    layers: int
    fingerprint: tuple[str, ...]
    scores: ListScores


def _read(file: Path) -> _Entry:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            about = json.loads((opened.metadata() or {}).get("head_scores", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise
    except (SafetensorError, ValueError, OSError) as error:
        raise StoreError(f"{file} is damaged ({error}): delete it, and its list is read again") from None
    try:
        checksum, named = about.pop("checksum"), _NAME.fullmatch(file.name)
        foreign = about["key"] != named["key"] or about["layers"] != int(named["layers"])
        hidden = {int(name.split(".")[1]): state for name, state in tensors.items() if name.startswith("hidden.")}
        scores = ListScores(tensors["raw"], tensors["null"], tensors["filtered"], None, hidden)
        entry = _Entry(about["layers"], tuple(about["fingerprint"]), scores)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        foreign = True
    if foreign:
        raise StoreError(f"{file} does not hold the head scores that its name promises: delete it")
    if checksum != _checksum(tensors, about):
        raise StoreError(f"{file} is damaged (its checksum differs): delete it, and its list is read again")
    return entry


def _checksum(tensors: dict[str, Any], about: dict[str, Any]) -> int:
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].tobytes(), zlib.crc32(f"{name}{tensors[name].shape}".encode(), total))
    return total
