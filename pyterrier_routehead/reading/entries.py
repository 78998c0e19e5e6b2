"""Files of a store: what one holds, and what is checked when it is read.

An entry holds float32 arrays and says beside them which list and model they belong to. It is called after that, so a
file that was renamed, or put into another's place, is recognised by its name.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..common.errors import StoreError
from ..common.paths import reason
from ..common.schema import parse_json, typed
from ..common.tensors import read_tensors

NAME = re.compile(r"(?P<key>[0-9a-f]{64})-(?P<layers>[1-9]\d{0,5})-[0-9a-f]{8}\.safetensors")
SCORES = ("raw", "null", "filtered")
STATE = "hidden"
_OLD_STATE = re.compile(r"hidden\.(0|[1-9]\d{0,5})")


@dataclass(frozen=True)
class _About:
    """What an entry says beside its arrays; model, dtype and document attention in words stand there too."""

    key: str
    layers: int
    fingerprint: tuple[str, ...]
    checksum: int


@dataclass(frozen=True)
class Entry:
    """One file's content.

    Attributes:
        layers: number of layers that were run.
        fingerprint: their weights, a hash per layer.
        arrays: float32 and finite. Of a list's scores: ``raw``, ``null`` and ``filtered`` [documents, heads], layer by
            layer; earlier versions kept hidden states beside them. Of a hidden state: ``hidden`` [hidden size].
        words: model, dtype and document attention.
    """

    layers: int
    fingerprint: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    words: dict[str, str]

    @property
    def old_states(self) -> dict[int, np.ndarray]:
        """Hidden states by layer that an earlier version kept beside the scores."""
        named = {_OLD_STATE.fullmatch(name): array for name, array in self.arrays.items()}
        return {int(match[1]): array for match, array in named.items() if match}


def entry_name(key: str, fingerprint: tuple[str, ...]) -> str:
    """What a file of some layers is called, from the weights of each of them."""
    return f"{key}-{len(fingerprint)}-{hashlib.sha256(''.join(fingerprint).encode()).hexdigest()[:8]}.safetensors"


def entry_bytes(
    key: str, fingerprint: tuple[str, ...], arrays: Mapping[str, np.ndarray], words: Mapping[str, str]
) -> bytes:
    """A file's content; arrays become float32."""
    from safetensors.numpy import save

    stored = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
    about = {**words, "key": key, "layers": len(fingerprint), "fingerprint": list(fingerprint)}
    return save(stored, {"head_scores": json.dumps({**about, "checksum": _checksum(stored, about)})})


def read_entry(file: Path, kind: str) -> Entry:
    """What a file holds, with everything checked.

    Args:
        file: of a store.
        kind: ``"scores"`` or ``"hidden"``.

    Raises:
        FileNotFoundError: where there is none.
        StoreError: naming a file that cannot be read, is damaged or is not what its name says.
    """
    try:
        arrays, metadata = read_tensors(file)
        about = parse_json(metadata.get("head_scores", "null"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {reason(error)}; if it is damaged, delete it") from None
    except ValueError as error:
        raise StoreError(f"{file} is damaged ({error}): delete it, and its list is read again") from None
    try:
        entry, checksum = _checked(file, kind, arrays, about)
    except ValueError as error:
        raise StoreError(f"{file} does not hold what its name promises ({error}): delete it") from None
    if checksum != _checksum(arrays, {name: value for name, value in about.items() if name != "checksum"}):
        raise StoreError(f"{file} is damaged (its checksum differs): delete it, and its list is read again")
    return entry


def _checked(file: Path, kind: str, arrays: dict[str, np.ndarray], description: object) -> tuple[Entry, int]:
    """The entry by name, types, shapes and whose it is."""
    if not isinstance(description, dict):
        raise ValueError("it does not say what it is")
    required = {field.name for field in fields(_About)}
    about: _About = typed(_About, {name: value for name, value in description.items() if name in required}, "")
    words = {name: typed(str, value, name) for name, value in description.items() if name not in required}
    named = NAME.fullmatch(file.name)
    if named is None or (about.key, about.layers) != (named["key"], int(named["layers"])):
        raise ValueError("it is of another list")
    if len(about.fingerprint) != about.layers:
        raise ValueError(f"it has {about.layers} layers, but weights of {len(about.fingerprint)}")
    entry = Entry(about.layers, about.fingerprint, arrays, words)
    states = [STATE] if kind == "hidden" else [f"hidden.{layer}" for layer in entry.old_states]
    scores = () if kind == "hidden" else SCORES
    if set(arrays) != {*scores, *states}:
        raise ValueError(f"its arrays are {', '.join(sorted(arrays))}")
    for name in states:
        if arrays[name].ndim != 1:
            raise ValueError(f"{name} has the shape {arrays[name].shape}")
    shapes = {arrays[name].shape for name in scores}
    if any(len(shape) != 2 or not shape[1] or shape[1] % about.layers for shape in shapes) or len(shapes) > 1:
        raise ValueError(f"its scores have the shapes {sorted(shapes)} for {about.layers} layers")
    return entry, about.checksum


def _checksum(arrays: Mapping[str, np.ndarray], about: Mapping[str, object]) -> int:
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].tobytes(), zlib.crc32(f"{name}{arrays[name].shape}".encode(), total))
    return total
