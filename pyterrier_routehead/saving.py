"""Writes artifacts as PyTerrier's own functions want them: a folder that appears whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyterrier as pt


def save_artifact(artifact: pt.Artifact, path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write an artifact's files and its ``pt_meta.json`` to a new folder.

    Raises:
        FileExistsError: where the path exists already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pt.io.finalized_directory(str(path.absolute())) as folder:
        for name, content in {**files, "pt_meta.json": as_json(artifact._build_metadata())}.items():
            (Path(folder) / name).write_bytes(content)


def as_json(said: object) -> bytes:
    """Plain values, numpy's too, as JSON for people to read."""
    return (json.dumps(said, indent=1, default=_plain) + "\n").encode()


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written as JSON")
