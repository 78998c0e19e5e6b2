"""`HeadSet`: heads that rank well, with where they come from, as a PyTerrier artifact that others can load.

Heads are tied to the exact weights and to the way of reading, so a set says which model it is for, how its scores were
read, and on what data and by which criterion its heads were found; whoever uses it compares.
"""

import json
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from .errors import MismatchError
from .heads import Head, HeadsLike, all_heads, parse_heads
from .reading import (
    SETTING_NAMES,
    ModelIdentity,
    ReadingSettings,
    resolve_settings,
    settings_from_json,
    settings_to_json,
    shown_settings,
)
from .saving import as_json, save_artifact
from .version import __version__

_FILE = "head_set.json"
_FORMAT = 1


@dataclass(frozen=True)
class Detection:
    """How the heads of a set were found.

    Args:
        criterion: its name.
        settings: the criterion's own settings, and whether it saw calibrated scores.
        data: the name of the judged queries.
        queries: how many of them counted.
        source: where a published set comes from: paper and repository.
        note: what a user should know.
    """

    criterion: str
    settings: Mapping[str, Any]
    data: str
    queries: int
    source: str = ""
    note: str = ""


class HeadSet(pt.Artifact):
    """Heads of one model in order, best first. A value: its methods give new sets.

    ``HeadSet(path)``, or PyTerrier's ``Artifact.load``, ``from_hf`` and ``from_zenodo``, load a saved set;
    :meth:`HeadSet.of` makes one; :func:`~pyterrier_routehead.published_heads` gives those of the papers.

    Attributes:
        heads: the heads, best first.
        scores: their scores by the criterion, or None.
        model: the model's id, revision, shape and weights fingerprint (empty for published lists).
        settings: how the scores were read, a mapping of names of :class:`ReadingSettings`; what is not known is left
            out.
        detection: how the heads were found, or None.
        version: of the package that made the set.

    Raises:
        ValueError: for a folder that holds no readable head set.
    """

    ARTIFACT_TYPE = "head_set"
    ARTIFACT_FORMAT = "json"
    ARTIFACT_PACKAGE_HINT = "pyterrier-routehead"

    heads: tuple[Head, ...]
    scores: tuple[float, ...] | None
    model: ModelIdentity
    settings: dict[str, Any]
    detection: Detection | None
    version: str

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        file = Path(path) / _FILE
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{path} holds no head set: there is no {_FILE} in it") from None
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
        self._take(said, str(file))

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "HeadSet":
        """A set, in memory, from what :meth:`to_json` gave.

        Raises:
            ValueError: for anything else.
        """
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made._take(said, "the head set")
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
    ) -> "HeadSet":
        """A new set, in memory.

        Args:
            heads: the heads, best first.
            model: the model that they belong to.
            scores: one number per head.
            settings: how they were read; a mapping may leave settings out.
            detection: how they were found.
        """
        if isinstance(settings, ReadingSettings):
            settings = {field.name: getattr(settings, field.name) for field in fields(settings)}
        return cls._made(parse_heads(heads), scores, model, _normal(settings or {}), detection, __version__)

    @classmethod
    def _made(
        cls,
        heads: Sequence[Head],
        scores: Sequence[float] | None,
        model: ModelIdentity,
        settings: dict[str, Any],
        detection: Detection | None,
        version: str,
    ) -> "HeadSet":
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made.heads = tuple(heads)
        made.scores = None if scores is None else tuple(float(score) for score in scores)
        made.model, made.settings, made.detection, made.version = model, settings, detection, version
        made._check("a head set")
        return made

    def _check(self, what: str) -> None:
        for number in (self.model.num_layers, self.model.num_heads):
            if not isinstance(number, numbers.Integral) or number < 1:
                raise ValueError(f"{what}: {number!r} is no number of layers or heads")
        for head in self.heads:
            if head.layer >= self.model.num_layers or head.head >= self.model.num_heads:
                raise ValueError(f"{what}: there is no head {head} in {self.model}")
        if self.scores is not None and len(self.scores) != len(self.heads):
            raise ValueError(f"{what}: {len(self.scores)} scores for {len(self.heads)} heads")

    # Choosing

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def _picked(self, places: Sequence[int]) -> "HeadSet":
        scores = None if self.scores is None else [self.scores[i] for i in places]
        heads = [self.heads[i] for i in places]
        if not heads:
            raise ValueError(f"no head of {self!r} is left")
        return self._made(heads, scores, self.model, self.settings, self.detection, self.version)

    k = None

    @property
    def ranking(self) -> "HeadSet":
        return self.top(self.k or len(self))

    def with_k(self, k):
        made = self._picked(range(len(self)))
        made.k = k
        return made

    def top(self, k: int) -> "HeadSet":
        """The first k heads; all of them where there are fewer."""
        if k < 1:
            raise ValueError(f"k is a number of heads from 1, got {k!r}")
        return self._picked(range(min(k, len(self.heads))))

    def below(self, layer: int) -> "HeadSet":
        """The heads of the first so many layers, as if the layers above were cut off (CoRe's pruning)."""
        return self._picked([i for i, head in enumerate(self.heads) if head.layer < layer])

    def subset(self, heads: HeadsLike) -> "HeadSet":
        """Some of the set's heads, in the set's order.

        Raises:
            ValueError: naming a head that is not in the set.
        """
        wanted = set(parse_heads(heads))
        if missing := [str(head) for head in wanted - set(self.heads)]:
            raise ValueError(f"{self!r} lacks the heads {', '.join(sorted(missing))}")
        return self._picked([i for i, head in enumerate(self.heads) if head in wanted])

    def random(self, k: int, seed: int, *, below: int | None = None) -> "HeadSet":
        """A control: k heads drawn evenly from all heads of the model, or of its first ``below`` layers."""
        layers = self.model.num_layers if below is None else below
        if not 1 <= layers <= self.model.num_layers:
            raise ValueError(f"below is a number of layers from 1 to {self.model.num_layers}, got {below!r}")
        pool = all_heads(layers, self.model.num_heads)
        if not 1 <= k <= len(pool):
            raise ValueError(f"k is a number from 1 to the {len(pool)} heads to draw from, got {k!r}")
        drawn = np.random.default_rng(seed).choice(len(pool), size=k, replace=False)
        detection = Detection("random", {"seed": seed, "k": k, "below": below}, "none", 0)
        return HeadSet.of([pool[i] for i in drawn], model=self.model, settings=self.settings, detection=detection)

    def union(self, other: "HeadSet") -> "HeadSet":
        """The heads of both, own ones first; without scores, since those of two sets need not compare.

        Raises:
            MismatchError: for sets of other models or read otherwise.
        """
        self.check_model(other.model)
        if self.settings != other.settings:
            raise MismatchError(
                f"sets that were read otherwise have no union: {shown_settings(self.settings, other.settings)}"
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
        both = f"the head set is for {self.model}, not for {model}"
        if (self.model.num_layers, self.model.num_heads) != (model.num_layers, model.num_heads):
            raise MismatchError(both)
        if allow_mismatch:
            return
        if self.model.fingerprint and model.fingerprint:
            same = self.model.is_same(model)
        elif same := self.model.name == model.name:
            pass
        elif same := Path(model.name).is_dir():
            warnings.warn(f"{both}, as far as their shapes tell: nothing else can be compared", stacklevel=3)
        if not same:
            raise MismatchError(f"{both}; allow_mismatch=True uses it all the same")

    def check_settings(self, settings: ReadingSettings, *, allow_mismatch: bool = False) -> None:
        """Refuse head scores that were read otherwise than the set's.

        Raises:
            MismatchError: naming the settings that differ, with both values.
        """
        differing = {name: value for name, value in self.settings.items() if getattr(settings, name) != value}
        if differing and not allow_mismatch:
            own = {name: getattr(settings, name) for name in differing}
            raise MismatchError(
                f"head_scores was read otherwise than the head set's scores: {shown_settings(own, differing)}; "
                "allow_mismatch=True uses the set all the same"
            )

    # As a value and as a file

    def to_json(self) -> dict[str, Any]:
        """All of the set as plain JSON values."""
        return {
            "format": _FORMAT,
            "heads": [str(head) for head in self.heads],
            "scores": self.scores and list(self.scores),
            "model": asdict(self.model) | {"fingerprint": list(self.model.fingerprint)},
            "settings": settings_to_json(self.settings),
            "detection": self.detection and asdict(self.detection),
            "version": self.version,
        }

    def _take(self, said: dict[str, Any], where: str) -> None:
        try:
            if said["format"] != _FORMAT:
                raise ValueError(f"its format is {said['format']}, this version reads {_FORMAT}")
            self.heads = parse_heads(said["heads"])
            self.scores = None if said["scores"] is None else tuple(_number(score) for score in said["scores"])
            self.model = ModelIdentity(**said["model"] | {"fingerprint": tuple(said["model"]["fingerprint"])})
            self.settings = _normal(settings_from_json(said["settings"]))
            self.detection = said["detection"] and Detection(**said["detection"])
            self.version = said["version"]
            self._check(where)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is no head set: {error!r}") from None
        except ValueError as error:
            raise ValueError(f"{where} is no readable head set: {error}") from None

    def save(self, path: str | Path) -> "HeadSet":
        """Write the set to a new folder, whole or not at all, and return the set that lies there.

        Raises:
            FileExistsError: where the path exists already.
        """
        save_artifact(self, path, {_FILE: as_json(self.to_json())})
        return HeadSet(path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadSet) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.heads, self.model))

    def __repr__(self) -> str:
        found = f", {self.detection.criterion}" if self.detection else ""
        return f"<HeadSet of {len(self.heads)} heads of {self.model.name}{found}>"


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"a score is a number, not {value!r}")
    return float(value)


def _normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, some may be left out, as a reading has them: checked, templates looked up, numbers as plain ones."""
    if unknown := set(settings) - set(SETTING_NAMES):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(SETTING_NAMES)}")
    whole = resolve_settings(settings)
    return {name: getattr(whole, name) for name in settings}
