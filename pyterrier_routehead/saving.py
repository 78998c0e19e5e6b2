"""Writes artifacts as PyTerrier's own functions want them: a folder that appears whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path

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
    """Plain values as JSON for people to read."""
    return (json.dumps(said, indent=1) + "\n").encode()
