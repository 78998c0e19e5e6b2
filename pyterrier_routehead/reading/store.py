"""`HeadScoreStore`: head scores on disk, so that no candidate list is read twice, as an artifact that can be shared.

Detection, the search for pseudo labels and experiments all want the scores of the same lists. One file a list, in the
safetensors format, and one for each hidden state that was asked for::

    <path>/store.json                                  says that this folder is a store
    <path>/pt_meta.json                                says so to PyTerrier; stores of earlier versions lack it
    <path>/3f/3f09...-30-5c1f0d2a.safetensors          one list: its key, the layers that were run, the weights' hash
    <path>/hidden/3f/3f09...-16-0b7e99d1.safetensors   one list's hidden state after this many layers, with their hash
    <path>/.writing/                                   files that are being written

A file appears whole, under its final name, or not at all, and is never changed: a process may be killed at any moment,
and several may share one store without locks (the worst that can happen is that two of them read the same list at the
same time).
"""

import contextlib
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import StoreError
from ..common.paths import absolute_path, read_bytes, reason
from ..common.schema import parse_json
from ..common.sharing import SharedArtifact
from ..kernel.patterns import PATTERNS
from ..kernel.scores import ListScores
from ..model.fingerprint import same_weights
from .entries import NAME, SCORES, STATE, Entry, entry_bytes, entry_name, read_entry

if TYPE_CHECKING:
    from ..model.fingerprint import ModelSnapshot
    from ..prompt.build import ListPrompt

_MARKER = {"type": "head_score_store", "format": 1}
_MARKERS = ("store.json", "pt_meta.json")
_PART = re.compile("[0-9a-f]{2}")
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
    tokens: list[object] = [prompt.prefix, blocks, prompt.order, prompt.query, prompt.null]
    pattern = PATTERNS[document_attention]
    if not pattern.tail_sees_documents:  # then the tails' place does not follow from the blocks
        tokens.append(pattern.tail_position(prompt))
    content = json.dumps([shape, about["dtype"], document_attention, *tokens], separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return StoreKey(digest, model.layer_fingerprint, model.num_heads, about)


class HeadScoreStore(SharedArtifact):
    """Head scores of candidate lists in a folder: raw, content-free and filtered scores of all heads.

    Pass it as ``store=`` to scorers and re-rankers: they look there first and add what they have to read. An entry
    holds all heads of the layers that were run, so it serves every choice of heads within them, calibrated or not; when
    deeper heads are wanted the list is read again and the entry replaced. Qids and docnos play no part: the same query
    with the same texts in the same order is found again under any name. Models are told apart by their configuration
    and by all their weights. A store that may not be written to can be read.

    A store is a PyTerrier artifact: ``HeadScoreStore.from_hf("owner/name")`` gives one that others have shared with
    ``to_hf``. Texts and queries are not in it. Upload it while nobody writes to it.

    Args:
        path: the folder, made if it is not there. ``~`` is expanded, a relative path made absolute.

    Raises:
        TypeError: for a path that is none.
        StoreError: for a folder that is not empty and no store, or that cannot be read or made.
    """

    ARTIFACT_TYPE = "head_score_store"
    ARTIFACT_FORMAT = "safetensors"
    ARTIFACT_PACKAGE_HINT = "pyterrier-routehead"

    path: Path

    def __init__(self, path: str | Path) -> None:
        super().__init__(absolute_path("store", path))
        self._writing, self._hidden = self.path / ".writing", self.path / "hidden"
        marker = self.path / "store.json"
        with _named(marker, "read"):
            if not _is_there(marker):
                self._make(marker)
            try:
                found = parse_json(read_bytes(marker))
            except ValueError:
                found = None
        if found != _MARKER:
            raise StoreError(f"{marker} does not describe a store of head scores that this version can read: {found}")
        self._sweep()

    @classmethod
    def of(cls, store: "HeadScoreStore | str | Path | None") -> "HeadScoreStore | None":
        """What a ``store=`` parameter means: the object itself, or the folder of one."""
        return store if store is None or isinstance(store, HeadScoreStore) else cls(store)

    def __repr__(self) -> str:
        return f"HeadScoreStore({str(self.path)!r})"

    def __len__(self) -> int:
        """Number of lists that are stored; a list that several models have read counts once for each."""
        return sum(1 for _ in self._files(self.path))

    def get(self, key: StoreKey, layers: int, hidden_layers: Sequence[int] = ()) -> ListScores | None:
        """The scores of a list, or None where the store lacks them.

        Args:
            key: which list and model.
            layers: scores of all heads of this many layers are wanted: float32 [documents, layers * heads], layer by
                layer.
            hidden_layers: hidden states that are wanted.

        Raises:
            StoreError: naming a file that is damaged or not what its name says.
        """
        for file, entry in self._entries_read(key):
            if entry.layers < layers or not same_weights(entry.fingerprint[:layers], key.fingerprint[:layers]):
                continue
            if entry.arrays["raw"].shape[1] != entry.layers * key.num_heads:
                width = entry.arrays["raw"].shape[1]
                shape = f"{entry.layers} layers with {key.num_heads} heads each"
                raise StoreError(f"{file} has {width} columns for {shape}: delete it, and its list is read again")
            states = {layer: self._state(key, layer, entry) for layer in hidden_layers}
            hidden = {layer: state for layer, state in states.items() if state is not None}
            if len(hidden) == len(states):
                raw, null, filtered = (entry.arrays[name][:, : layers * key.num_heads] for name in SCORES)
                return ListScores(raw, null, filtered, None, hidden)
        return None

    def _state(self, key: StoreKey, layer: int, entry: Entry) -> np.ndarray | None:
        """A list's hidden state after a layer: it depends on the weights up to there, and has a separate file."""
        fingerprint = key.fingerprint[: layer + 1]
        if len(fingerprint) == layer + 1:
            file = self._hidden / key.digest[:2] / entry_name(key.digest, fingerprint)
            with contextlib.suppress(FileNotFoundError):
                found = read_entry(file, "hidden")
                if found.fingerprint == fingerprint:
                    return found.arrays[STATE]
        return entry.old_states.get(layer)

    def _entries_read(self, key: StoreKey) -> Iterator[tuple[Path, Entry]]:
        for attempt in range(3):
            gone = False
            for file in self._entries(key):
                if (entry := _read_if_there(file)) is not None:
                    yield file, entry
                else:
                    gone = True  # what replaced it may be what is wanted
            if not gone or attempt == 2:
                return

    def put(self, key: StoreKey, scores: ListScores, layers: int) -> None:
        """Store the calibrated scores of all heads of some layers; entries that they cover are removed.

        Hidden states, each in a separate file, stay whatever becomes of the scores. Scores or states that are not
        finite are not kept: whoever reads them says which query they are of.

        Raises:
            ValueError: for scores of other heads, without calibration, or beyond the layers whose weights are known.
            StoreError: naming a file that cannot be written.
        """
        width, fingerprint = layers * key.num_heads, key.fingerprint[:layers]
        arrays = {name: getattr(scores, name) for name in SCORES}
        if any(array is None or array.shape[1] != width for array in arrays.values()):
            raise ValueError(f"a store keeps calibrated scores of all {width} heads of {layers} layers")
        if len(fingerprint) != layers or any(layer >= layers for layer in scores.hidden):
            known, deepest = len(key.fingerprint), max([layers, *(layer + 1 for layer in scores.hidden)])
            raise ValueError(f"{layers} layers were run, weights of {known} are known, states are of {deepest}")
        if not all(np.isfinite(array).all() for array in (*arrays.values(), *scores.hidden.values())):
            return
        present = {file: entry for file in self._entries(key) if (entry := _read_if_there(file)) is not None}
        covered = {file: entry for file, entry in present.items()
                   if entry.layers <= layers and same_weights(entry.fingerprint, fingerprint)}
        # First the states: whoever finds the scores finds these too.
        for entry in covered.values():
            self._put_states(key, entry.fingerprint, entry.old_states)
        self._put_states(key, fingerprint, scores.hidden)
        if any(entry.layers > layers and same_weights(entry.fingerprint, fingerprint) for entry in present.values()):
            return  # the deeper entry serves what these would
        target = self.path / key.digest[:2] / entry_name(key.digest, fingerprint)
        self._write(target, entry_bytes(key.digest, fingerprint, arrays, key.about))
        for file in covered:
            if file != target:
                with contextlib.suppress(OSError):
                    file.unlink()

    def _put_states(self, key: StoreKey, fingerprint: Sequence[str], states: Mapping[int, np.ndarray]) -> None:
        for layer, state in states.items():
            weights = tuple(fingerprint[: layer + 1])
            target = self._hidden / key.digest[:2] / entry_name(key.digest, weights)
            self._write(target, entry_bytes(key.digest, weights, {STATE: state}, key.about))

    def check(self) -> int:
        """Read every file; returns the number of lists that are stored.

        Raises:
            StoreError: naming all files that are damaged or do not belong here.
        """
        problems = [f"{file} does not belong to a store of head scores" for file in self._foreign()]
        count = 0
        for kind, folder in (("scores", self.path), ("hidden", self._hidden)):
            for file in self._files(folder):
                try:
                    read_entry(file, kind)
                    count += kind == "scores"
                except FileNotFoundError:
                    pass
                except StoreError as error:
                    problems.append(str(error))
        if problems:
            raise StoreError("\n".join(problems))
        return count

    def _entries(self, key: StoreKey) -> list[Path]:
        """The files of a list, deepest first: of several models perhaps that agree in shape."""
        folder = self.path / key.digest[:2]
        named = [NAME.fullmatch(name) for name in _listed(folder) if name.startswith(key.digest)]
        found = [match for match in named if match is not None]
        return [folder / match[0] for match in sorted(found, key=lambda match: -int(match["layers"]))]

    def _files(self, folder: Path) -> Iterator[Path]:
        for part in sorted(name for name in _listed(folder) if _PART.fullmatch(name)):
            with _named(folder / part, "read"):
                names = sorted(_listed(folder / part)) if (folder / part).is_dir() else []
            yield from (folder / part / name for name in names if NAME.fullmatch(name) and name.startswith(part))

    def _foreign(self) -> Iterator[Path]:
        known = {self.path / name for name in _MARKERS} | {*self._files(self.path), *self._files(self._hidden)}
        with _named(self.path, "read"):
            for file in sorted(self.path.rglob("*")):
                if not (file in known or file.is_dir() or file.parent == self._writing):
                    yield file

    def _make(self, marker: Path) -> None:
        if _is_there(self.path):
            foreign = not self.path.is_dir() or set(_listed(self.path)) - {".writing", *_MARKERS}
            if foreign and not _is_there(marker):  # another process may be making the same store at this moment
                raise StoreError(f"{self.path} exists and is no store of head scores")
        self._write(marker, json.dumps(_MARKER).encode())
        self._write(self.path / "pt_meta.json", json.dumps(self._build_metadata()).encode())

    def _sweep(self) -> None:
        """Remove what killed processes were writing."""
        with contextlib.suppress(OSError):  # there is none, or it may not be written to
            for left in self._writing.iterdir():
                with contextlib.suppress(OSError):  # its writer, or another sweeper, was faster; or it is a folder
                    if time.time() - left.stat().st_mtime > _ABANDONED:
                        left.unlink()

    def _write(self, target: Path, data: bytes) -> None:
        """Write a file that appears whole or not at all."""
        scratch = self._writing / uuid.uuid4().hex
        with _named(target, "written"):
            self._writing.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with scratch.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(scratch, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    scratch.unlink()
                raise

    # As an artifact

    def save(self, path: str | Path) -> "HeadScoreStore":
        """Copy the store to a new folder, and return the copy.

        Args:
            path: the folder; ``~`` is expanded.

        Raises:
            FileExistsError: where the path exists already.
            StoreError: where a file cannot be read or written.
        """
        target = absolute_path("path", path)
        if _is_there(target):
            raise FileExistsError(f"{target} exists already: choose another path, or remove what lies there")
        copy = HeadScoreStore(target)
        for file in (*self._files(self._hidden), *self._files(self.path)):
            with _named(file, "read"):
                content = read_bytes(file)
            copy._write(target / file.relative_to(self.path), content)
        return copy

    def _package_files(self) -> Iterator[tuple[str, str | io.BytesIO]]:
        """What is uploaded: the store's files alone, and not what is being written."""
        for file in (self.path / "store.json", *self._files(self.path), *self._files(self._hidden)):
            yield str(file.relative_to(self.path)), str(file)
        yield "pt_meta.json", io.BytesIO(json.dumps(self._build_metadata()).encode())

    def _description(self) -> str:
        return (
            f"Attention-head scores of {len(self)} candidate lists: the attention that each head of a language model "
            "pays to each document from the query. With them, re-rankers of PyTerrier rank these lists without running "
            "the model. Queries and texts are not included: a list is found again by a hash over its tokens."
        )

    def _facts(self) -> dict[str, object]:
        """What the entries say of themselves; each is read and checked."""
        lists: Counter[str] = Counter()
        for file in self._files(self.path):
            entry = read_entry(file, "scores")
            lists[", ".join(f"{name}={value}" for name, value in (*entry.words.items(), ("layers", entry.layers)))] += 1
        by_model = {f"lists of {words}": count for words, count in lists.items()}
        return {"lists": len(self), **by_model, "hidden states": sum(1 for _ in self._files(self._hidden))}

    def _usage(self, loaded: str) -> str:
        return (
            "from pyterrier_routehead import HeadScoreStore, ICRReranker\n\n"
            f"reranker = ICRReranker(store={loaded})  # with the model and settings of the stored lists\n"
            "reranker(candidates)  # qid, query, docno and text, as from: bm25 >> dataset.text_loader()"
        )


def kept_store(store: HeadScoreStore | str | Path | None) -> HeadScoreStore | str | Path | None:
    """A ``store=`` argument to keep: a folder's path as it is where it is absolute, and else made so once.

    Raises:
        TypeError: for anything but a store, a path or None.
        ValueError: for an empty path.
    """
    if store is None or isinstance(store, HeadScoreStore):
        return store
    path = absolute_path("store", store)
    return store if str(path) == str(store) else str(path)


def _read_if_there(file: Path) -> Entry | None:
    try:
        return read_entry(file, "scores")
    except FileNotFoundError:
        return None  # replaced by another process since it was listed


def _is_there(path: Path) -> bool:
    """Whether something stands there; not being allowed to look is an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _listed(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    with _named(folder, "read"):
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []


@contextmanager
def _named(path: Path, verb: str) -> Iterator[None]:
    """An error of the operating system within names a path."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be {verb}: {reason(error)}") from error
