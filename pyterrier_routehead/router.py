"""`HeadRouter`: which heads suit a query, as an artifact that others can load.

The model is small (RouteHead, arXiv 2604.24608; its sizes and details are our choice): a learned embedding for each
head of a pool, a projection of the query's embedding, and from their product an independent probability for each head.
It is trained with torch (:mod:`pyterrier_routehead.training`) and applied with numpy.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from .arguments import check_choice, check_share, check_whole
from .evidence import EVIDENCE
from .head_set import HeadSet
from .query_encoder import QueryState
from .saving import as_json, save_artifact
from .version import __version__

_JSON, _WEIGHTS = "router.json", "router.safetensors"
_FORMAT = 1
WEIGHT_NAMES = ("mean", "deviation", "projection", "head_embeddings", "bias")
WEIGHTINGS = ("even", "probability", "logit")
EVIDENCE_NAMES = ("evidence_mean", "evidence_deviation", "evidence_weights")


@dataclass(frozen=True)
class Selection:
    """How probabilities become heads.

    Args:
        threshold: heads with at least this probability are chosen.
        min_heads: so many heads at least, those with the highest probabilities.
        max_heads: so many at most (P).
        weighting: how the chosen heads are summed: ``"even"``, as published; by their ``"probability"``; or by their
            ``"logit"``: then all heads of the pool are summed, each standardised within the list and weighted by its
            logit, which may be below 0, and the other arguments do not count (the last two are extensions of ours).
        static_heads: so many of the best heads over all queries are always in, routed ones come in addition (ours).
        unsure: where no probability reaches this, the pool's first ``max_heads`` heads rank: the static set (ours).
    """

    threshold: float = 0.5
    min_heads: int = 1
    max_heads: int = 8
    weighting: str = "even"
    static_heads: int = 0
    unsure: float = 0.0

    def __post_init__(self) -> None:
        check_choice("weighting", self.weighting, WEIGHTINGS)
        for name in ("threshold", "unsure"):
            object.__setattr__(self, name, check_share(name, getattr(self, name)))
        for name, least in (("min_heads", 1), ("max_heads", 1), ("static_heads", 0)):
            number = check_whole(name, getattr(self, name), least=least, what="number of heads")
            object.__setattr__(self, name, number)
        if self.min_heads > self.max_heads:
            raise ValueError(f"min_heads is at most max_heads ({self.max_heads}), got {self.min_heads}")

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Selection":
        """What was written by name; early files call the numbers of heads ``least`` and ``most``."""
        former = {"least": "min_heads", "most": "max_heads"}
        return cls(**{former.get(name, name): value for name, value in said.items()})

    @property
    def by_logits(self) -> bool:
        """Whether logits are the weights, over scores that are standardised within the list."""
        return self.weighting == "logit"


def choose(probabilities: np.ndarray, selection: Selection) -> np.ndarray:
    """From probabilities [heads], in the pool's order, to the weight of each head in the sum: float64 [heads]."""
    weights = np.zeros(len(probabilities))
    if probabilities.max() < selection.unsure:
        weights[: selection.max_heads] = 1.0  # the pool is in order of static quality
        return weights
    order = np.argsort(-probabilities, kind="stable")
    count = int(np.clip((probabilities >= selection.threshold).sum(), selection.min_heads, selection.max_heads))
    weights[order[:count]] = probabilities[order[:count]] if selection.weighting == "probability" else 1.0
    weights[: selection.static_heads] = np.maximum(weights[: selection.static_heads], 1.0)
    return weights


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64; no overflow for large logits. SciPy's would slow down the import."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, dtype=np.float64))


def weigh(logits: np.ndarray, selection: Selection) -> np.ndarray:
    """From logits [heads] to the weight of each head in the sum: float64 [heads], 0 for heads that are not chosen."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits if selection.by_logits else choose(sigmoid(logits), selection)


class HeadRouter(pt.Artifact):
    """A trained router with its pool of heads, its static set and how it chooses.

    Attributes:
        pool: the heads to choose from, a :class:`HeadSet` in order of their quality over all training queries: it says
            which model the router is for, how scores are read, and on which data it was trained.
        state: which hidden state embeds the query.
        selection: how probabilities become heads.
        weights: float32 arrays by name: ``mean`` and ``deviation`` [hidden], by which query embeddings are
            standardised; ``projection`` [hidden, size]; ``head_embeddings`` [heads, size]; ``bias`` [heads]; and, of a
            router that looks at the list, ``evidence_mean``, ``evidence_deviation`` and ``evidence_weights`` [4].
        report: how training went.
        version: of the package that made the router.

    Raises:
        ValueError: for a folder that holds no readable router.
    """

    ARTIFACT_TYPE = "head_router"
    ARTIFACT_FORMAT = "safetensors"
    ARTIFACT_PACKAGE_HINT = "pyterrier-routehead"

    pool: HeadSet
    state: QueryState
    selection: Selection
    weights: dict[str, np.ndarray]
    report: dict[str, Any]
    version: str

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        super().__init__(path)
        try:
            said = json.loads((Path(path) / _JSON).read_text(encoding="utf-8"))
            if said["format"] != _FORMAT:
                raise ValueError(f"its format is {said['format']}, this version reads {_FORMAT}")
            self.pool = HeadSet.from_json(said["pool"])
            self.state, self.selection = QueryState(**said["state"]), Selection.from_json(said["selection"])
            self.report, self.version = said["report"], said["version"]
            if not (Path(path) / _WEIGHTS).is_file():
                raise ValueError(f"there is no {_WEIGHTS} in it")
            self.weights = load_file(Path(path) / _WEIGHTS)
            self._check()
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{path} holds no router: there is no {_JSON} in it") from None
        except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{path} holds no readable router: {error}") from None

    @classmethod
    def of(
        cls,
        pool: HeadSet,
        weights: Mapping[str, np.ndarray],
        *,
        state: QueryState,
        selection: Selection | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> "HeadRouter":
        """A new router, in memory."""
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made.pool, made.state, made.selection = pool, state, selection or Selection()
        made.weights = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}
        made.report, made.version = dict(report or {}), __version__
        made._check()
        return made

    def _check(self) -> None:
        expected = {*WEIGHT_NAMES, *(EVIDENCE_NAMES if self.uses_evidence else ())}
        if set(self.weights) != expected:
            raise ValueError(f"its weights are {sorted(self.weights)}, not {sorted(expected)}")
        if self.weights["projection"].ndim != 2:
            raise ValueError(f"its weights 'projection' have the shape {self.weights['projection'].shape}")
        hidden, size = self.weights["projection"].shape
        if self.uses_evidence and any(self.weights[name].shape != (len(EVIDENCE),) for name in EVIDENCE_NAMES):
            raise ValueError(f"its weights for evidence are not {len(EVIDENCE)} numbers each")
        shapes = {"mean": (hidden,), "deviation": (hidden,), "head_embeddings": (len(self.pool), size)}
        shapes["bias"] = (len(self.pool),)
        for name, shape in shapes.items():
            if self.weights[name].shape != shape:
                raise ValueError(f"its weights {name!r} have the shape {self.weights[name].shape}, not {shape}")
        if not all(np.isfinite(array).all() for array in self.weights.values()):
            raise ValueError("its weights are not finite")

    @property
    def uses_evidence(self) -> bool:
        """Whether the router looks at the list's own evidence beside the query."""
        return "evidence_weights" in self.weights

    def with_selection(self, selection: Selection) -> "HeadRouter":
        """The same router that chooses otherwise."""
        return HeadRouter.of(self.pool, self.weights, state=self.state, selection=selection, report=self.report)

    @property
    def standardises(self) -> bool:
        """Whether each head's scores are standardised within the list before they are summed."""
        return self.selection.by_logits

    def probabilities(self, state: np.ndarray, evidence: np.ndarray | None = None) -> np.ndarray:
        """Probability of each head of the pool: float64 [heads]; arguments and errors as for :meth:`logits`."""
        return sigmoid(self.logits(state, evidence))

    def logits(self, state: np.ndarray, evidence: np.ndarray | None = None) -> np.ndarray:
        """Logit of each head of the pool: float64 [heads].

        Args:
            state: the query's embedding, [hidden size].
            evidence: [heads, 4], for a router that uses it; see :mod:`pyterrier_routehead.evidence`.

        Raises:
            ValueError: for an embedding or evidence of another size.
        """
        weights = self.weights
        if np.shape(state) != weights["mean"].shape:
            raise ValueError(f"the query embedding has the shape {np.shape(state)}, not {weights['mean'].shape}")
        query = ((state - weights["mean"]) / weights["deviation"]) @ weights["projection"]
        logits = weights["head_embeddings"] @ query / np.sqrt(len(query)) + weights["bias"]
        if self.uses_evidence:
            if np.shape(evidence) != (len(self.pool), len(EVIDENCE)):
                wanted = len(self.pool), len(EVIDENCE)
                raise ValueError(f"the evidence has the shape {np.shape(evidence)}, not {wanted}")
            told = (evidence - weights["evidence_mean"]) / weights["evidence_deviation"]
            logits = logits + told @ weights["evidence_weights"]
        return logits.astype(np.float64)

    def route(self, state: np.ndarray, evidence: np.ndarray | None = None) -> np.ndarray:
        """Weight of each head of the pool in a query's sum: float64 [heads], 0 for heads that are not chosen."""
        return weigh(self.logits(state, evidence), self.selection)

    def save(self, path: str | Path) -> "HeadRouter":
        """Write the router to a new folder, whole or not at all, and return the router that lies there.

        Raises:
            FileExistsError: where the path exists already.
        """
        from safetensors.numpy import save

        said = {
            "format": _FORMAT,
            "pool": self.pool.to_json(),
            "state": asdict(self.state),
            "selection": asdict(self.selection),
            "report": self.report,
            "version": self.version,
        }
        save_artifact(self, path, {_JSON: as_json(said), _WEIGHTS: save(self.weights)})
        return HeadRouter(path)

    def __repr__(self) -> str:
        told = ", kept its start: nearly the same heads for every query" if self.report.get("kept its start") else ""
        return f"<HeadRouter over {len(self.pool)} heads of {self.pool.model.name}{told}>"
