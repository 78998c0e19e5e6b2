"""Artifacts as folders: written whole or not at all, with a checksum, and read with everything checked.

The description of an artifact is a JSON file that holds the SHA-256 of its own content; files of format 1 have none.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from .errors import ArtifactError
from .paths import absolute_path, read_bytes, reason
from .schema import parse_json

FORMAT = 2
"""What this version writes. It reads format 1 too, which has no checksum."""


def save_artifact(
    artifact: pt.Artifact,
    path: str | Path,
    name: str,
    description: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    folders: Sequence[str] = (),
) -> Path:
    """Write an artifact to a new folder: its description, its files and the ``pt_meta.json``.

    Args:
        artifact: what is saved.
        path: the folder; ``~`` is expanded.
        name: the name of the description's file.
        description: the description, with plain values or numpy's.
        files: other files by name.
        folders: names of empty folders to make beside them.

    Returns:
        The folder's absolute path.

    Raises:
        FileExistsError: where the path exists already.
        ArtifactError: where it cannot be written.
    """
    path = absolute_path("path", path)
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already: choose another path, or remove what lies there")
    plain = as_plain(dict(description), name)
    contents = {
        **(files or {}),
        name: _with_checksum(plain),
        "pt_meta.json": _as_json(artifact._build_metadata()),
    }
    try:
        _write_folder(path, contents, folders)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and os.path.lexists(path):  # made in the meantime
            raise FileExistsError(f"{path} exists already: choose another path, or remove what lies there") from None
        raise ArtifactError(f"{path} cannot be written: {reason(error)}") from error
    return path


def replace_description(folder: Path, name: str, description: Mapping[str, Any]) -> None:
    """Put another description in the place of the one that :func:`save_artifact` wrote, at once.

    Raises:
        ArtifactError: where it cannot be written.
    """
    plain = as_plain(dict(description), name)
    scratch = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        scratch.write_bytes(_with_checksum(plain))
        scratch.replace(folder / name)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ArtifactError(f"{folder / name} cannot be written: {reason(error)}") from error


def _write_folder(path: Path, contents: Mapping[str, bytes], folders: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{uuid.uuid4().hex}.tmp"
    scratch.mkdir()
    try:
        for file, content in contents.items():
            (scratch / file).write_bytes(content)
        for folder in folders:
            (scratch / folder).mkdir()
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def load_description(folder: Path, name: str, what: str) -> dict[str, Any]:
    """What :func:`save_artifact` wrote as the description, less the checksum, which is compared.

    Args:
        folder: the artifact's folder.
        name: of the file of the description.
        what: what it should be, for messages.

    Raises:
        ArtifactError: naming the file.
    """
    file = folder / name
    try:
        description: dict[str, Any] = parse_json(read_bytes(file))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} holds no {what}: there is no {name} in it") from None
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged: {error}") from None
    with readable(str(file), what):
        check_format(description)
        checksum = description.pop("checksum", None)
        if description["format"] != 1 and checksum is None:
            raise ValueError("it has no checksum")
        if checksum is not None and checksum != _checksum(description):
            raise ValueError(
                "its checksum differs, so it was damaged or changed by hand: get it anew, or make and save another one"
            )
    return description


@contextmanager
def readable(where: str, what: str) -> Iterator[None]:
    """Turns errors of reading and of checks inside into an ArtifactError that names the place."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{where} cannot be read: {reason(error)}") from None
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where} is no readable {what}: {error}") from None


def check_format(description: object) -> None:
    """Check that a value is a description, in a format that this version reads."""
    if not isinstance(description, dict):
        raise ValueError(f"it is an object with fields, found {type(description).__name__}")
    if "format" not in description:
        raise ValueError("it lacks format")
    known = range(1, FORMAT + 1)
    if type(description["format"]) is not int or description["format"] not in known:
        raise ValueError(f"its format is {description['format']!r}, this version reads {' and '.join(map(str, known))}")


def as_plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Values as JSON has them: numpy's become Python's, tuples lists, names strings.

    Raises:
        TypeError: for values that JSON does not have.
        ValueError: for numbers that are not finite, and for nesting without end.
    """
    try:
        plain: dict[str, Any] = parse_json(json.dumps(values, default=_plain, allow_nan=False))
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from None
    return plain


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written as JSON")


def _as_json(values: object) -> bytes:
    """Plain values as JSON for people to read."""
    return (json.dumps(values, indent=1) + "\n").encode()


def _with_checksum(plain: Mapping[str, Any]) -> bytes:
    """A description as its file holds it."""
    return _as_json({**plain, "checksum": _checksum(plain)})


def _checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 over the content, however it is laid out."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
