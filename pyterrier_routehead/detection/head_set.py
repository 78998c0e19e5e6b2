"""`HeadSet`: heads that rank well, with where they come from, as a PyTerrier artifact that others can load.

Heads are tied to the exact weights and to the settings of their scores, so a set says which model it is for, what these
settings were, and on what data and by which criterion its heads were found; whoever uses it compares.
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

_FILE = "head_set.json"


@dataclass(frozen=True)
class Detection:
    """How the heads of a set were found.

    Args:
        criterion: its name.
        settings: the criterion's own settings, and whether it saw calibrated scores.
        data: the name of the judged queries.
        queries: number of them that counted.
        source: where a published set comes from: paper and repository.
        note: what a user should know.

    Raises:
        TypeError: for a number of queries that is none.
        ValueError: for one below 0.
    """

    criterion: str
    settings: Mapping[str, Any]
    data: str
    queries: int
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", check_whole("queries", self.queries, least=0))


@dataclass(frozen=True)
class _Description:
    """What the file holds."""

    format: int
    heads: tuple[str, ...]
    scores: tuple[float, ...] | None
    model: ModelIdentity
    settings: Mapping[str, Any]
    detection: Detection | None
    version: str
    k: int | None = field(default=None, metadata=LATER)


class HeadSet(SharedArtifact):
    """Heads of one model in order, best first. A value: its methods give new sets.

    ``HeadSet(path)``, or PyTerrier's ``Artifact.load``, ``from_hf`` and ``from_zenodo``, load a saved set;
    :meth:`HeadSet.of` makes one; :func:`~pyterrier_routehead.published_heads` gives those of the papers.

    Attributes:
        heads: the heads, best first.
        k: number of heads that rank, the first ones; None: all of them.
        scores: their scores by the criterion, or None.
        model: the model's id, revision, shape and weights fingerprint (empty for published lists).
        settings: the settings of the scores, a mapping of names of :class:`ReadingSettings`; what is not known is left
            out.
        detection: how the heads were found, or None.
        version: of the package that made the set.

    Raises:
        ArtifactError: for a folder that holds no readable head set, naming the file.
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
    def from_json(cls, said: Mapping[str, Any]) -> "HeadSet":
        """A set, in memory, from what :meth:`to_json` gave.

        Raises:
            ArtifactError: for anything else.
        """
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made._take(said, "what was given")
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
            TypeError: for a model, settings, detection, score or k of another type.
            ValueError: for heads that the model does not have, another number of scores than heads, scores that are
                not finite, unknown settings, or a k beyond the heads.
        """
        if isinstance(settings, ReadingSettings):
            settings = {name: getattr(settings, name) for name in SETTING_NAMES}
        if not isinstance(settings, Mapping | None):
            raise TypeError(f"settings are ReadingSettings or a mapping of some, got {settings!r}")
        if not isinstance(detection, Detection | None):
            raise TypeError(f"detection is a Detection, got {detection!r}")
        if detection is not None:  # as a file has it, so that a saved set is equal to the one in memory
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
            raise TypeError(f"model is a ModelIdentity, got {self.model!r}")
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
                raise ValueError(f"k is a number of heads from 1 to the set's {len(self.heads)}, got {self.k}")

    # Choosing

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def _picked(self, places: Sequence[int], k: int | None = None) -> "HeadSet":
        scores = None if self.scores is None else [self.scores[i] for i in places]
        heads = [self.heads[i] for i in places]
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
            TypeError: for a k that is no number.
            ValueError: for one that is not from 1 to the number of heads.
        """
        return self._picked(range(len(self)), k)

    def top(self, k: int) -> "HeadSet":
        """The first k heads, all of which rank; all of the set's where there are fewer."""
        return self._picked(range(min(check_whole("k", k, what="number of heads"), len(self.heads))))

    def below(self, layer: int) -> "HeadSet":
        """The heads below a layer, as if the layers from there on were cut off (CoRe's pruning).

        As many of them rank as before, or all where fewer are left.
        """
        layer = check_whole("layer", layer, what="number of layers")
        places = [i for i, head in enumerate(self.heads) if head.layer < layer]
        return self._picked(places, self.k and min(self.k, len(places)))

    def subset(self, heads: HeadsLike) -> "HeadSet":
        """Some of the set's heads, in the set's order, all of which rank.

        Raises:
            ValueError: naming a head that is not in the set.
        """
        wanted = set(parse_heads(heads))
        if missing := [str(head) for head in wanted - set(self.heads)]:
            raise ValueError(f"{self!r} lacks the heads {', '.join(sorted(missing))}")
        return self._picked([i for i, head in enumerate(self.heads) if head in wanted])

    def random(self, k: int, seed: int, *, below: int | None = None) -> "HeadSet":
        """A control: k heads drawn evenly from all heads of the model, or of its first ``below`` layers.

        All of them rank.
        """
        k = check_whole("k", k, least=0, what="number of heads")
        layers = self.model.num_layers if below is None else check_whole("below", below, what="number of layers")
        if layers > self.model.num_layers:
            raise ValueError(f"below is a number of layers from 1 to {self.model.num_layers}, got {below!r}")
        pool = all_heads(layers, self.model.num_heads)
        if not 1 <= k <= len(pool):
            raise ValueError(f"k is a number from 1 to the {len(pool)} heads to draw from, got {k!r}")
        drawn = np.random.default_rng(seed).choice(len(pool), size=k, replace=False)
        detection = Detection("random", {"seed": seed, "k": k, "below": below}, "none", 0)
        return HeadSet.of([pool[i] for i in drawn], model=self.model, settings=self.settings, detection=detection)

    def union(self, other: "HeadSet") -> "HeadSet":
        """The heads of both, this set's first, all of which rank; without scores: those of two sets need not compare.

        Raises:
            MismatchError: for sets of other models or with different settings.
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
        """The share of the smaller set's heads that the other set has too."""
        return len(set(self.heads) & set(other.heads)) / min(len(self.heads), len(other.heads))

    # Comparing with a model and with a reading

    def check_model(self, model: ModelIdentity, *, allow_mismatch: bool = False) -> None:
        """Refuse another model than the set's.

        Where both have a fingerprint of the weights, that decides, whatever the ids. Otherwise shape and id must agree;
        of a model in a local folder only the shape can be compared, with a warning.

        Args:
            model: the model to be used.
            allow_mismatch: accept other weights of the same shape.

        Raises:
            MismatchError: naming both models.
        """
        check_same_model(self.model, model, allow_mismatch=allow_mismatch)

    def check_settings(self, settings: ReadingSettings, *, allow_mismatch: bool = False) -> None:
        """Refuse head scores that were computed with different settings than the set's.

        Args:
            settings: those of the head scores.
            allow_mismatch: accept them all the same.

        Raises:
            MismatchError: naming the settings that differ, with both values.
        """
        check_same_settings(self.settings, settings, allow_mismatch=allow_mismatch)

    # As a value and as a file

    def to_json(self) -> dict[str, Any]:
        """All of the set as plain JSON values."""
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
        """Write the set to a new folder, whole or not at all, and return the set that lies there.

        Args:
            path: the folder; ``~`` is expanded.

        Raises:
            FileExistsError: where the path exists already.
            ArtifactError: where it cannot be written.
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
        found = f", {self.detection.criterion}" if self.detection else ""
        rank = f", the first {self.k} rank" if self.k is not None else ""
        return f"<HeadSet of {len(self.heads)} heads of {self.model.name}{found}{rank}>"


def _normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, of which some may be left out: checked, templates looked up, numbers as plain ones."""
    if unknown := set(settings) - set(SETTING_NAMES):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(SETTING_NAMES)}")
    resolved = resolve_settings(settings)
    return {name: getattr(resolved, name) for name in settings}
