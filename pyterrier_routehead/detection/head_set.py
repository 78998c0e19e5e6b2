"""`HeadSet`: heads that rank well with their provenance, as a PyTerrier artifact that others can load.

Heads are tied to the exact weights and to the settings of their scores, so a set names its model, these settings, and
the data and criterion of the detection; they are compared when the set is used.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from ..common.arguments import check_number, check_whole
from ..common.errors import MismatchError
from ..common.paths import absolute_path
from ..common.saving import FORMAT, as_plain, check_format, load_description, readable, save_artifact
from ..common.schema import LATER, typed
from ..common.sharing import SharedArtifact
from ..heads import Head, HeadsLike, all_heads, parse_heads
from ..reading.reading import (
    SETTING_NAMES,
    ModelIdentity,
    ReadingSettings,
    resolve_settings,
    settings_from_json,
    settings_to_json,
    shown_settings,
)
from ..version import __version__
from .card import description, facts, usage
from .comparing import check_same_model, check_same_settings
from .provenance import Detection

_FILE = "head_set.json"


@dataclass(frozen=True)
class _Description:
    """The schema of the JSON file."""

    format: int
    heads: tuple[str, ...]
    scores: tuple[float, ...] | None
    model: ModelIdentity
    settings: Mapping[str, Any]
    detection: Detection | None
    version: str
    k: int | None = field(default=None, metadata=LATER)


class HeadSet(SharedArtifact):
    """Heads of one model in order, best first. Immutable: its methods return new sets.

    ``HeadSet(path)``, or PyTerrier's ``Artifact.load``, ``from_hf`` and ``from_zenodo``, load a saved set;
    :meth:`HeadSet.of` creates one; :func:`~pyterrier_routehead.published_heads` returns those of the papers.

    Attributes:
        heads: the heads, best first.
        k: number of heads that rank, the first ones; None: all of them.
        scores: their scores by the criterion, or None.
        model: the model's id, revision, shape and weights fingerprint (empty for published lists).
        settings: the settings of the scores, a mapping of names of :class:`ReadingSettings`, without unknown ones.
        detection: how the heads were found, or None.
        version: version of the package that created the set.

    Raises:
        ArtifactError: for a folder without a readable head set, naming the file.
    """

    ARTIFACT_TYPE = "head_set"
    ARTIFACT_FORMAT = "json"
    ARTIFACT_PACKAGE_HINT = "pyterrier-routehead"

    heads: tuple[Head, ...]
    k: int | None
    scores: tuple[float, ...] | None
    model: ModelIdentity
    settings: dict[str, Any]
    detection: Detection | None
    version: str

    def __init__(self, path: str | Path) -> None:
        folder = absolute_path("path", path)
        super().__init__(folder)
        self._take(load_description(folder, _FILE, "head set"), str(folder / _FILE))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "HeadSet":
        """A set, in memory, from the result of :meth:`to_json`.

        Raises:
            ArtifactError: for anything else.
        """
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made._take(values, "what was given")
        return made

    @classmethod
    def of(
        cls,
        heads: HeadsLike,
        *,
        model: ModelIdentity,
        scores: Sequence[float] | None = None,
        settings: ReadingSettings | Mapping[str, Any] | None = None,
        detection: Detection | None = None,
        k: int | None = None,
    ) -> "HeadSet":
        """A new set, in memory.

        Args:
            heads: the heads, best first.
            model: the model that they belong to.
            scores: one number per head.
            settings: the settings of the scores; a mapping may leave some out.
            detection: how they were found.
            k: number of heads that rank, the first ones; None: all of them.

        Raises:
            TypeError: for a model, settings, detection, score or k of a wrong type.
            ValueError: for heads that the model does not have, a number of scores that differs from that of heads,
                scores that are not finite, unknown settings, or a k above the number of heads.
        """
        if isinstance(settings, ReadingSettings):
            settings = {name: getattr(settings, name) for name in SETTING_NAMES}
        if not isinstance(settings, Mapping | None):
            raise TypeError(f"settings must be ReadingSettings or a mapping of some, got {settings!r}")
        if not isinstance(detection, Detection | None):
            raise TypeError(f"detection must be a Detection, got {detection!r}")
        if detection is not None:  # as in a file, so that a saved set is equal to the set in memory
            detection = replace(detection, settings=as_plain(detection.settings, "detection.settings"))
        return cls._made(parse_heads(heads), scores, model, _normal(settings or {}), detection, __version__, k)

    @classmethod
    def _made(
        cls,
        heads: Sequence[Head],
        scores: Sequence[float] | None,
        model: ModelIdentity,
        settings: dict[str, Any],
        detection: Detection | None,
        version: str,
        k: int | None,
    ) -> "HeadSet":
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made.heads, made.model = tuple(heads), model
        made.scores = None if scores is None else tuple(scores)
        made.settings, made.detection, made.version, made.k = settings, detection, version, k
        made._check()
        return made

    def _check(self) -> None:
        if not isinstance(self.model, ModelIdentity):
            raise TypeError(f"model must be a ModelIdentity, got {self.model!r}")
        for name in ("num_layers", "num_heads"):
            check_whole(f"model.{name}", getattr(self.model, name))
        for head in self.heads:
            if head.layer >= self.model.num_layers or head.head >= self.model.num_heads:
                raise ValueError(f"there is no head {head} in {self.model}")
        if self.scores is not None:
            if len(self.scores) != len(self.heads):
                raise ValueError(f"{len(self.scores)} scores for {len(self.heads)} heads")
            pairs = zip(self.heads, self.scores, strict=True)
            self.scores = tuple(check_number(f"the score of head {head}", score) for head, score in pairs)
        if self.k is not None:
            self.k = check_whole("k", self.k, what="number of heads")
            if self.k > len(self.heads):
                raise ValueError(f"k must be at most the set's {len(self.heads)} heads, got {self.k}")

    # Choosing

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def _picked(self, indices: Sequence[int], k: int | None = None) -> "HeadSet":
        scores = None if self.scores is None else [self.scores[i] for i in indices]
        heads = [self.heads[i] for i in indices]
        if not heads:
            raise ValueError(f"no head of {self!r} is left")
        return self._made(heads, scores, self.model, self.settings, self.detection, self.version, k)

    @property
    def ranking(self) -> "HeadSet":
        """The heads that rank, as a set: the first k, or all of them where k is None."""
        return self.top(self.k or len(self))

    def with_k(self, k: int | None) -> "HeadSet":
        """The same heads, of which the first k rank; all of them for None.

        Raises:
            TypeError: for a k that is not an integer.
            ValueError: for a k below 1 or above the number of heads.
        """
        return self._picked(range(len(self)), k)

    def top(self, k: int) -> "HeadSet":
        """The first k heads, all of which rank; all heads of a smaller set."""
        return self._picked(range(min(check_whole("k", k, what="number of heads"), len(self.heads))))

    def below(self, layer: int) -> "HeadSet":
        """The heads below a layer, as if the layers from there on were removed (CoRe's pruning).

        k is kept, or reduced to the number of remaining heads.
        """
        layer = check_whole("layer", layer, what="number of layers")
        indices = [i for i, head in enumerate(self.heads) if head.layer < layer]
        return self._picked(indices, self.k and min(self.k, len(indices)))

    def subset(self, heads: HeadsLike) -> "HeadSet":
        """Some of the set's heads, in the set's order, all of which rank.

        Raises:
            ValueError: naming a head that is not in the set.
        """
        requested = set(parse_heads(heads))
        if missing := [str(head) for head in requested - set(self.heads)]:
            raise ValueError(f"{self!r} lacks the heads {', '.join(sorted(missing))}")
        return self._picked([i for i, head in enumerate(self.heads) if head in requested])

    def random(self, k: int, seed: int, *, below: int | None = None) -> "HeadSet":
        """A control: k heads drawn uniformly from all heads of the model, or of its first ``below`` layers.

        All of them rank.
        """
        k = check_whole("k", k, least=0, what="number of heads")
        layers = self.model.num_layers if below is None else check_whole("below", below, what="number of layers")
        if layers > self.model.num_layers:
            raise ValueError(f"below must be at most the model's {self.model.num_layers} layers, got {below!r}")
        pool = all_heads(layers, self.model.num_heads)
        if not 1 <= k <= len(pool):
            raise ValueError(f"k must be from 1 to the {len(pool)} heads to draw from, got {k!r}")
        drawn = np.random.default_rng(seed).choice(len(pool), size=k, replace=False)
        detection = Detection("random", {"seed": seed, "k": k, "below": below}, "none", 0)
        return HeadSet.of([pool[i] for i in drawn], model=self.model, settings=self.settings, detection=detection)

    def union(self, other: "HeadSet") -> "HeadSet":
        """The heads of both, this set's first, all of which rank; without scores, as those of two sets may not compare.

        Raises:
            MismatchError: for sets of different models or with different settings.
        """
        self.check_model(other.model)
        if self.settings != other.settings:
            raise MismatchError(
                f"sets with different settings have no union: {shown_settings(self.settings, other.settings)}"
            )
        names = [f"{set_.detection.criterion} on {set_.detection.data}" for set_ in (self, other) if set_.detection]
        counts = [set_.detection.queries for set_ in (self, other) if set_.detection]
        detection = Detection("union", {"of": names}, "see of", sum(counts)) if names else None
        heads = [*self.heads, *(head for head in other.heads if head not in self.heads)]
        return HeadSet.of(heads, model=self.model, settings=self.settings, detection=detection)

    def overlap(self, other: "HeadSet") -> float:
        """The fraction of the smaller set's heads that both sets have."""
        return len(set(self.heads) & set(other.heads)) / min(len(self.heads), len(other.heads))

    # Comparing with a model and with a reading

    def check_model(self, model: ModelIdentity, *, allow_mismatch: bool = False) -> None:
        """Raise an error for a model that differs from the set's.

        If both have a fingerprint of the weights, it decides, whatever the ids. Otherwise shape and id must agree; of a
        model in a local folder only the shape can be compared, with a warning.

        Args:
            model: the model in use.
            allow_mismatch: accept other weights of the same shape.

        Raises:
            MismatchError: naming both models.
        """
        check_same_model(self.model, model, allow_mismatch=allow_mismatch)

    def check_settings(self, settings: ReadingSettings, *, allow_mismatch: bool = False) -> None:
        """Raise an error for head scores that were computed with different settings than the set's.

        Args:
            settings: those of the head scores.
            allow_mismatch: accept them anyway.

        Raises:
            MismatchError: naming the settings that differ, with both values.
        """
        check_same_settings(self.settings, settings, allow_mismatch=allow_mismatch)

    # As a value and as a file

    def to_json(self) -> dict[str, Any]:
        """The set as plain JSON values."""
        return {
            "format": FORMAT,
            "heads": [str(head) for head in self.heads],
            "k": self.k,
            "scores": self.scores and list(self.scores),
            "model": asdict(self.model) | {"fingerprint": list(self.model.fingerprint)},
            "settings": settings_to_json(self.settings),
            "detection": self.detection and asdict(self.detection),
            "version": self.version,
        }

    def _take(self, values: Mapping[str, Any], where: str) -> None:
        with readable(where, "head set"):
            check_format(values)
            described: _Description = typed(_Description, values, "")
            self.heads, self.k, self.scores = parse_heads(described.heads), described.k, described.scores
            self.model, self.settings = described.model, _normal(settings_from_json(described.settings))
            self.detection, self.version = described.detection, described.version
            self._check()

    def save(self, path: str | Path) -> "HeadSet":
        """Write the set to a new folder, atomically, and return the saved set.

        Args:
            path: the folder; ``~`` is expanded.

        Raises:
            FileExistsError: if the path exists already.
            ArtifactError: if it cannot be written.
        """
        return HeadSet(save_artifact(self, path, _FILE, self.to_json()))

    # As a card

    def _description(self) -> str:
        return description(self)

    def _facts(self) -> dict[str, object]:
        return facts(self)

    def _usage(self, loaded: str) -> str:
        return usage(self, loaded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadSet) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.heads, self.model))

    def __repr__(self) -> str:
        criterion = f", {self.detection.criterion}" if self.detection else ""
        rank = f", the first {self.k} rank" if self.k is not None else ""
        return f"<HeadSet of {len(self.heads)} heads of {self.model.name}{criterion}{rank}>"


def _normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Some or all settings: checked, with templates looked up and plain numbers."""
    if unknown := set(settings) - set(SETTING_NAMES):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(SETTING_NAMES)}")
    resolved = resolve_settings(settings)
    return {name: getattr(resolved, name) for name in settings}
