"""`HeadRouter`: selects heads per query; an artifact that others can load.

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
_MAX_WEIGHT, _MIN_DEVIATION = 1e9, 1e-9
"""Bounds of learned weights and of standard deviations, to which training adds 1e-6."""
WEIGHT_NAMES = ("mean", "deviation", "projection", "head_embeddings", "bias")
WEIGHTINGS = ("even", "probability", "logit")
EVIDENCE_NAMES = ("evidence_mean", "evidence_deviation", "evidence_weights")


@dataclass(frozen=True)
class Selection:
    """How heads are selected by their probabilities.

    ``static_heads``, ``unsure`` and the weightings ``"probability"`` and ``"logit"`` are not in the paper.

    Args:
        threshold: heads with at least this probability are selected.
        min_heads: minimum number of selected heads, those with the highest probabilities.
        max_heads: maximum number of selected heads (P).
        weighting: how the selected heads are summed: ``"even"``, as published; by their ``"probability"``; or by their
            ``"logit"``: then all heads of the pool are summed, each standardised within the list and weighted by its
            logit, which may be negative, and the other arguments are ignored.
        static_heads: number of the best heads over all queries that are always selected, beside the routed ones.
        unsure: where no probability reaches this, the pool's first ``max_heads`` heads rank: the static set.

    Raises:
        TypeError: for a value of a wrong type, naming the argument.
        ValueError: for an invalid value, naming the argument.
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
        for name, minimum in (("min_heads", 1), ("max_heads", 1), ("static_heads", 0)):
            number = check_whole(name, getattr(self, name), least=minimum, what="number of heads")
            object.__setattr__(self, name, number)
        if self.min_heads > self.max_heads:
            raise ValueError(f"min_heads must be at most max_heads ({self.max_heads}), got {self.min_heads}")

    @property
    def by_logits(self) -> bool:
        """Whether heads are weighted by their logits, with scores standardised within the list."""
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
    """Probabilities, float64; no overflow for large logits. SciPy's function would slow down the import."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, dtype=np.float64))


def weigh(logits: np.ndarray, selection: Selection) -> np.ndarray:
    """From logits [heads] to the weight of each head in the sum: float64 [heads], 0 for heads not selected."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits if selection.by_logits else choose(sigmoid(logits), selection)


@dataclass(frozen=True)
class _Description:
    """The schema of the router's JSON file."""

    format: int
    pool: Mapping[str, Any]
    state: QueryState
    selection: Selection
    report: Mapping[str, Any]
    version: str
    weights_sha256: str | None = field(default=None, metadata=LATER)


class HeadRouter(SharedArtifact):
    """A trained router: a pool of heads and how to select from it per query.

    Attributes:
        pool: the heads to select from, a :class:`HeadSet` in order of their quality over all training queries. It names
            the model that the router is for, the settings of its scores, and the training data.
        state: which hidden state embeds the query.
        selection: how heads are selected by their probabilities.
        weights: float32 arrays by name: ``mean`` and ``deviation`` [hidden], by which query embeddings are
            standardised; ``projection`` [hidden, size]; ``head_embeddings`` [heads, size]; ``bias`` [heads]; and, of a
            router that uses features of the list, ``evidence_mean``, ``evidence_deviation``, ``evidence_weights`` [4].
        report: summary of the training.
        version: version of the package that created the router.

    Raises:
        ArtifactError: for a folder without a readable router, naming the file.
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
            described = typed(_Description, _with_present_names(description), "")
            if described.format > 1 and described.weights_sha256 is None:
                raise ValueError("it lacks weights_sha256")
            self.pool, self.state = HeadSet.from_json(described.pool), described.state
            self.selection = described.selection
            self.report, self.version = dict(described.report), described.version
            self._check_state()
        file = folder / _WEIGHTS
        with readable(str(file), "router"):
            self.weights = _read_weights(file, described.weights_sha256)
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
            TypeError: for arguments of a wrong type, and a report that JSON cannot represent.
            ValueError: for weights with wrong names or shapes, or with invalid numbers.
        """
        selection = Selection() if selection is None else selection
        types = {"pool": (pool, HeadSet), "state": (state, QueryState), "selection": (selection, Selection)}
        for name, (value, expected_type) in types.items():
            if not isinstance(value, expected_type):
                raise TypeError(f"{name} must be a {expected_type.__name__}, got {value!r}")
        made = cls.__new__(cls)
        pt.Artifact.__init__(made, pt.Artifact.NO_PATH)
        made.pool, made.state, made.selection = pool, state, selection
        with np.errstate(over="ignore"):  # overflow of float32 is rejected as not finite
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
            if np.abs(array).max() > _MAX_WEIGHT:
                raise ValueError(f"its weights {name!r} reach {np.abs(array).max():g}, beyond {_MAX_WEIGHT:g}")
            if name.endswith("deviation") and array.min() < _MIN_DEVIATION:
                raise ValueError(f"its weights {name!r} must be at least {_MIN_DEVIATION:g}, found {array.min():g}")

    @property
    def uses_evidence(self) -> bool:
        """Whether the router uses features of the list in addition to the query."""
        return "evidence_weights" in self.weights

    def with_selection(self, selection: Selection) -> "HeadRouter":
        """The same router with a different selection."""
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
            ValueError: for an embedding or evidence of a wrong shape or with non-finite numbers, or if a logit is not
                finite.
        """
        weights = self.weights
        _check_input("the query embedding", state, weights["mean"].shape)
        if self.uses_evidence:
            _check_input("the evidence", evidence, (len(self.pool), len(EVIDENCE)))
        with np.errstate(over="ignore", invalid="ignore"):
            query = ((state - weights["mean"]) / weights["deviation"]) @ weights["projection"]
            logits = weights["head_embeddings"] @ query / np.sqrt(len(query)) + weights["bias"]
            if self.uses_evidence:
                standard = (evidence - weights["evidence_mean"]) / weights["evidence_deviation"]
                logits = logits + standard @ weights["evidence_weights"]
        if not np.isfinite(logits).all():
            head = self.pool.heads[int(np.argmin(np.isfinite(logits)))]
            raise ValueError(
                f"the router's logit of head {head} is not finite: the query embedding reaches "
                f"{np.abs(state).max():g}, far from those that {self!r} was trained on"
            )
        as_float64: np.ndarray = logits.astype(np.float64)
        return as_float64

    def route(self, state: np.ndarray, evidence: np.ndarray | None = None) -> np.ndarray:
        """Weight of each head of the pool in a query's sum: float64 [heads], 0 for heads not selected."""
        return weigh(self.logits(state, evidence), self.selection)

    def save(self, path: str | Path) -> "HeadRouter":
        """Write the router to a new folder, atomically, and return the saved router.

        Args:
            path: the folder; ``~`` is expanded.

        Raises:
            FileExistsError: if the path exists already.
            ArtifactError: if it cannot be written.
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
            "selects heads, and candidates are re-ranked by the attention that these heads pay to them."
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


def _check_input(what: str, array: np.ndarray | None, shape: tuple[int, ...]) -> None:
    array = np.asarray(array)  # None has the shape ()
    if array.shape != shape:
        raise ValueError(f"{what} has the shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} is not finite; the model's dtype may overflow, try float32")


def _with_present_names(description: Mapping[str, Any]) -> dict[str, Any]:
    """A router's description with ``least`` and ``most``, the names in early files, replaced by the current names."""
    former, selection = {"least": "min_heads", "most": "max_heads"}, description.get("selection")
    if not isinstance(selection, dict):
        return dict(description)
    return {**description, "selection": {former.get(name, name): value for name, value in selection.items()}}
