"""`HeadRouter`: which heads suit a query, as an artifact that others can load.

The model is small (RouteHead, arXiv 2604.24608; its sizes and details are our choice): a learned embedding for each
head of a pool, a projection of the query's embedding, and from their product an independent probability for each head.
It is trained with torch (:mod:`pyterrier_routehead.routing.training`) and applied with numpy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from ..common.arguments import check_choice, check_share, check_whole
from ..common.paths import absolute_path, read_bytes
from ..common.saving import FORMAT, as_plain, load_description, readable, save_artifact
from ..common.schema import LATER, typed
from ..common.sharing import SharedArtifact
from ..common.tensors import check_finite_arrays, read_tensors
from ..detection.head_set import HeadSet
from ..version import __version__
from .evidence import EVIDENCE
from .state import QueryState

_JSON, _WEIGHTS = "router.json", "router.safetensors"
_LARGEST, _SMALLEST = 1e9, 1e-9
"""No number that is learnt is beyond the one, and no deviation below the other: training adds 1e-6."""
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

    Raises:
        TypeError: for a value of another type, naming the argument.
        ValueError: for a value that cannot be, naming the argument.
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


@dataclass(frozen=True)
class _Said:
    """What the router's description holds."""

    format: int
    pool: Mapping[str, Any]
    state: QueryState
    selection: Selection
    report: Mapping[str, Any]
    version: str
    weights_sha256: str | None = field(default=None, metadata=LATER)


class HeadRouter(SharedArtifact):
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
        ArtifactError: for a folder that holds no readable router, naming the file.
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
        folder = absolute_path("path", path)
        super().__init__(folder)
        description = load_description(folder, _JSON, "router")
        with readable(str(folder / _JSON), "router"):
            found = typed(_Said, _with_present_names(description), "")
            if found.format > 1 and found.weights_sha256 is None:
                raise ValueError("it lacks weights_sha256")
            self.pool, self.state, self.selection = HeadSet.from_json(found.pool), found.state, found.selection
            self.report, self.version = dict(found.report), found.version
            self._check_state()
        file = folder / _WEIGHTS
        with readable(str(file), "router"):
            self.weights = _read_weights(file, found.weights_sha256)
            self._check_weights()

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
        """A new router, in memory; arguments as the attributes of the same names.

        Raises:
            TypeError: for arguments of another type, and a report that JSON cannot hold.
            ValueError: for weights of another name or shape, or with numbers that cannot be.
        """
        selection = Selection() if selection is None else selection
        kinds = {"pool": (pool, HeadSet), "state": (state, QueryState), "selection": (selection, Selection)}
        for name, (value, kind) in kinds.items():
            if not isinstance(value, kind):
                raise TypeError(f"{name} is a {kind.__name__}, got {value!r}")
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made.pool, made.state, made.selection = pool, state, selection
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
            made.weights = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}
        made.report, made.version = as_plain(report or {}, "report"), __version__
        made._check_state()
        made._check_weights()
        return made

    def _check_state(self) -> None:
        if not 0 <= self.state.layer < self.pool.model.num_layers:
            raise ValueError(f"there is no layer {self.state.layer} in {self.pool.model} to embed queries by")

    def _check_weights(self) -> None:
        expected = {*WEIGHT_NAMES, *(EVIDENCE_NAMES if self.uses_evidence else ())}
        if set(self.weights) != expected:
            raise ValueError(f"its weights are {sorted(self.weights)}, not {sorted(expected)}")
        if self.weights["projection"].ndim != 2:
            raise ValueError(f"its weights 'projection' have the shape {self.weights['projection'].shape}")
        hidden, size = self.weights["projection"].shape
        if not hidden or not size:
            raise ValueError(f"its weights 'projection' are empty: they have the shape {(hidden, size)}")
        if self.uses_evidence and any(self.weights[name].shape != (len(EVIDENCE),) for name in EVIDENCE_NAMES):
            raise ValueError(f"its weights for evidence are not {len(EVIDENCE)} numbers each")
        shapes = {"mean": (hidden,), "deviation": (hidden,), "head_embeddings": (len(self.pool), size)}
        shapes["bias"] = (len(self.pool),)
        for name, shape in shapes.items():
            if self.weights[name].shape != shape:
                raise ValueError(f"its weights {name!r} have the shape {self.weights[name].shape}, not {shape}")
        check_finite_arrays(self.weights)
        for name, array in self.weights.items():
            if np.abs(array).max() > _LARGEST:
                raise ValueError(f"its weights {name!r} go to {np.abs(array).max():g}, beyond {_LARGEST:g}")
            if name.endswith("deviation") and array.min() < _SMALLEST:
                raise ValueError(f"its weights {name!r} go down to {array.min():g}: deviations are above {_SMALLEST:g}")

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
            evidence: [heads, 4], for a router that uses it; see :mod:`pyterrier_routehead.routing.evidence`.

        Raises:
            ValueError: for an embedding or evidence of another size, or with numbers that are not finite or so large
                that the logits are not.
        """
        weights = self.weights
        _check_told("the query embedding", state, weights["mean"].shape)
        if self.uses_evidence:
            _check_told("the evidence", evidence, (len(self.pool), len(EVIDENCE)))
        with np.errstate(over="ignore", invalid="ignore"):
            query = ((state - weights["mean"]) / weights["deviation"]) @ weights["projection"]
            logits = weights["head_embeddings"] @ query / np.sqrt(len(query)) + weights["bias"]
            if self.uses_evidence:
                standard = (evidence - weights["evidence_mean"]) / weights["evidence_deviation"]
                logits = logits + standard @ weights["evidence_weights"]
        if not np.isfinite(logits).all():
            head = self.pool.heads[int(np.argmin(np.isfinite(logits)))]
            raise ValueError(
                f"the router's logit of head {head} is not finite: the query embedding goes to "
                f"{np.abs(state).max():g}, far from those that {self!r} was trained on"
            )
        as_float64: np.ndarray = logits.astype(np.float64)
        return as_float64

    def route(self, state: np.ndarray, evidence: np.ndarray | None = None) -> np.ndarray:
        """Weight of each head of the pool in a query's sum: float64 [heads], 0 for heads that are not chosen."""
        return weigh(self.logits(state, evidence), self.selection)

    def save(self, path: str | Path) -> "HeadRouter":
        """Write the router to a new folder, whole or not at all, and return the router that lies there.

        Args:
            path: the folder; ``~`` is expanded.

        Raises:
            FileExistsError: where the path exists already.
            ArtifactError: where it cannot be written.
        """
        from safetensors.numpy import save

        weights = save(self.weights)
        description = {
            "format": FORMAT,
            "pool": self.pool.to_json(),
            "state": asdict(self.state),
            "selection": asdict(self.selection),
            "report": self.report,
            "version": self.version,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        return HeadRouter(save_artifact(self, path, _JSON, description, {_WEIGHTS: weights}))

    # As a card

    def _description(self) -> str:
        return (
            f"A router over {len(self.pool)} attention heads of {self.pool.model.name}: from a query's embedding it "
            "tells which of them suit the query, and candidates are re-ranked by the attention that these pay to them."
        )

    def _facts(self) -> dict[str, object]:
        return {
            **{name: value for name, value in self.pool._facts().items() if name != "heads that rank (k)"},
            "query embedding": ", ".join(f"{name}={value}" for name, value in asdict(self.state).items()),
            "choice of heads": ", ".join(f"{name}={value}" for name, value in asdict(self.selection).items()),
            "evidence of the list": self.uses_evidence or None,
            **{f"training: {name}": value for name, value in self.report.items()},
            "pyterrier-routehead": self.version,
        }

    def _usage(self, loaded: str) -> str:
        return (
            "from pyterrier_routehead import HeadRouter, RouteHeadReranker\n\n"
            f"reranker = RouteHeadReranker({loaded})  # loads {self.pool.model.name}\n"
            "reranker(candidates)  # qid, query, docno and text, as from: bm25 >> dataset.text_loader()"
        )

    def __repr__(self) -> str:
        note = ", kept its start: nearly the same heads for every query" if self.report.get("kept its start") else ""
        return f"<HeadRouter over {len(self.pool)} heads of {self.pool.model.name}{note}>"


def _read_weights(file: Path, sha256: str | None) -> dict[str, np.ndarray]:
    if sha256 is not None and hashlib.sha256(read_bytes(file)).hexdigest() != sha256:
        raise ValueError(f"it is damaged: its checksum differs from the one in {_JSON}")
    weights, _ = read_tensors(file)
    return weights


def _check_told(what: str, array: np.ndarray | None, shape: tuple[int, ...]) -> None:
    array = np.asarray(array)  # None, for one, has the shape ()
    if array.shape != shape:
        raise ValueError(f"{what} has the shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} is not finite; the model's dtype may overflow, try float32")


def _with_present_names(description: Mapping[str, Any]) -> dict[str, Any]:
    """A router's description in which early files' ``least`` and ``most`` are named as they are now."""
    former, selection = {"least": "min_heads", "most": "max_heads"}, description.get("selection")
    if not isinstance(selection, dict):
        return dict(description)
    return {**description, "selection": {former.get(name, name): value for name, value in selection.items()}}
