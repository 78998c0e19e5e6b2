"""Uploads artifacts, with a card that says what they are.

PyTerrier packs the folder that an artifact was loaded from, and leaves its card to be written by hand. Here a set or
router in memory can be uploaded as it is, and the card says what the artifact knows of itself.
"""

import html
import json
import tempfile
from pathlib import Path
from typing import Any

import pyterrier as pt

from .errors import ArtifactError


class SharedArtifact(pt.Artifact):
    """An artifact that knows what it is. Subclasses save themselves and say what the card holds."""

    ARTIFACT_PACKAGE_HINT: str

    def save(self, path: str | Path) -> "SharedArtifact":
        """Write the artifact to a new folder and return the one that lies there."""
        raise NotImplementedError

    def _description(self) -> str:
        """A paragraph on what the artifact is."""
        raise NotImplementedError

    def _facts(self) -> dict[str, object]:
        """What the artifact knows, by name, in the order of the card."""
        raise NotImplementedError

    def _usage(self, loaded: str) -> str:
        """Python code that uses the artifact, which an expression loads."""
        raise NotImplementedError

    @property
    def _in_memory(self) -> bool:
        # Not "is": a copy or a pickled artifact has a copy of the sentinel.
        return isinstance(self.path, type(pt.Artifact.NO_PATH))

    def build_package(self, package_path: str | None = None, **options: Any) -> str:
        """As PyTerrier's; what was never saved is packed as it is in memory, and needs a ``package_path``.

        Raises:
            ArtifactError: without a path to build the package at.
        """
        if not self._in_memory:
            return super().build_package(package_path, **options)
        if package_path is None:
            raise ArtifactError(f"{self!r} lies in no folder: give package_path, or use what save(path) returns")
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder) / "artifact").build_package(package_path, **options)

    def to_p2p(self) -> None:
        """As PyTerrier's.

        Raises:
            ArtifactError: for what was never saved: the receiver's folder is named after the sender's.
        """
        if self._in_memory:
            raise ArtifactError(f"{self!r} lies in no folder: use what save(path) returns")
        super().to_p2p()  # type: ignore[no-untyped-call]  # PyTerrier does not annotate it

    def _sections(self, loaded: str, metadata: dict[str, Any]) -> list[tuple[str, str, bool]]:
        """The card: title, text and whether it is code."""
        known = {name: value for name, value in self._facts().items() if value not in (None, "", {})}
        facts = "\n".join(f"{name}: {value}" for name, value in known.items())
        return [
            ("Description", self._description(), False),
            ("Usage", f"pip install {self.ARTIFACT_PACKAGE_HINT}", True),
            ("", self._usage(loaded), True),
            ("What it knows", facts, True),
            ("Metadata", json.dumps(metadata, indent=2), True),
        ]

    def _hf_readme(
        self,
        *,
        repo: str,
        branch: str | None = "main",
        pretty_name: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """The README of a repository on the Hugging Face Hub."""
        start = super()._hf_readme(repo=repo, branch=branch, pretty_name=pretty_name, metadata=metadata)
        assert start is not None, "PyTerrier writes one for every artifact"
        front = start.split("---\n")[1]
        place = repo if branch in (None, "main") else f"{repo}@{branch}"
        card = ["---", f"{front}# license: # yours to choose, such as cc-by-4.0", "---"]
        card += ["", f"# {pretty_name or repo.split('/')[-1]}"]
        for title, text, code in self._sections(f"{type(self).__name__}.from_hf({place!r})", metadata or {}):
            card += ["", f"## {title}"] if title else []
            card += ["", f"```\n{text}\n```" if code else text]
        return "\n".join(card) + "\n"

    def _zenodo_metadata(
        self, *, zenodo_id: str, pretty_name: str | None = None, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        """The form of a deposit on Zenodo; the licence is chosen there."""
        form = super()._zenodo_metadata(zenodo_id=zenodo_id, pretty_name=pretty_name, metadata=metadata)
        loaded = f"{type(self).__name__}.from_zenodo({str(zenodo_id)!r})"
        parts = []
        for title, text, code in self._sections(loaded, metadata):
            parts += [f"<h2>{title}</h2>"] if title else []
            parts.append(f"<pre>{html.escape(text)}</pre>" if code else f"<p>{html.escape(text)}</p>")
        return {**form, "description": "\n".join(parts)}
