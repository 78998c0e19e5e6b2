"""`RouteHeadReranker`: chooses, for every query, the heads that suit it (RouteHead, arXiv 2604.24608)."""

import inspect
import numbers
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .criteria import get_criterion
from .evidence import list_evidence
from .frames import CandidateRows, first_stage_scores, object_column, query_text, standardised
from .head_set import HeadSet
from .heads import HeadsLike, layers_needed
from .judged import FittedReranker, JudgedList
from .labels import Recipe, get_recipe, make_labels
from .llm import FrozenLLM
from .query_encoder import QueryState, check_layer, embed_query
from .reader import ListReader, model_identity
from .reading import ModelIdentity, Reading, ReadingSettings, resolve_settings
from .router import HeadRouter, Selection
from .search import JudgedLists
from .shipped import has_router, means_shipped_model, shipped_router
from .store import HeadScoreStore
from .template import PromptTemplate

if TYPE_CHECKING:
    from .training import RoutingData


_FOR_FIT = (
    "pool_size", "max_layer", "labels", "layer", "pooling", "source", "evidence", "hold_out", "training", "seed",
)


@cache
def _defaults_of_fit() -> list[tuple[str, object]]:
    """The arguments that only ``fit`` heeds, with their defaults; read once, since every query asks."""
    parameters = inspect.signature(RouteHeadReranker).parameters
    return [(name, parameters[name].default) for name in _FOR_FIT]


class RouteHeadReranker(FittedReranker):
    """Ranks each query by the heads that suit it.

    ``(bm25 % 20 >> text >> RouteHeadReranker()).fit(train_topics, train_qrels, valid_topics, valid_qrels)`` screens a
    pool of heads on the training queries, searches for each of them the heads that rank its candidates best (pseudo
    labels), and trains a router to foretell them from the query. Ranking routes each query and sums the heads that were
    chosen. What the paper leaves unknown to us is our choice: the default of every argument here, that the pool is
    screened by single-head nDCG@10, that scores are calibrated and filtered for each head, and what the modules
    ``search``, ``labels``, ``router`` and ``training`` mark so.

    Columns as for :class:`StaticHeadReranker`. A router that embeds the query alone needs ``query`` behind a scorer
    too, and one that embeds it from the re-ranking pass needs the scorer's ``hidden_state``; a router that looks at the
    list needs ``score`` too. With ``routed_heads`` the chosen heads are written to a column of
    that name: a tuple of ``"layer-head"`` strings in each row that was ranked.

    On text, a query is routed before its documents are read, and no layer above the deepest of its heads is run (a
    router that looks at the list needs all heads of the pool). Where a list is ranked in sliding windows, such a router
    looks at each window, and ``routed_heads`` says what it chose in the last window that a document was in.

    After ``fit``, ``router_`` is a :class:`HeadRouter`, to be saved and shared; ``labels_`` is the table of pseudo
    labels (heads, nDCG@10 before and after), ``left_out_`` the number of training lists that tell nothing, and
    ``report_`` the losses and held-out nDCG@10 of each epoch.

    Args:
        router: a :class:`HeadRouter` instead of ``fit``; it chooses as it was made to, and
            :meth:`HeadRouter.with_selection` changes that. Without either, SmolLM2-135M-Instruct is ranked by the
            router that comes with the package for the ``document_attention`` (:func:`shipped_router`), unless it could
            not have been trained so. ``max_heads`` and the arguments from ``threshold`` to ``unsure`` say how a
            router that was fitted or shipped chooses; the others from ``pool_size`` to ``training`` are for ``fit``.
        llm: see :class:`StaticHeadReranker`, as for whatever is not listed here.
        pool_size: how many heads are screened into the pool (K).
        max_heads: the largest number of heads a query (P).
        max_layer: only heads of so many layers (int) or of that share of them (float up to 1.0).
        labels: how pseudo labels are made: ``"search"``, the published steps, on a list's own nDCG@10;
            ``"search+prior"`` or ``"shrunk"``, which trust a single list less; ``"utility"``, soft labels that no
            search is needed for; or a function: see :mod:`~pyterrier_routehead.labels`.
        layer: the layer whose hidden state embeds the query; None for the middle one.
        pooling: ``"mean"`` over the query's tokens, or the ``"last"`` of them.
        source: ``"query"``: embed the query alone, in one short pass; ``"tail"``: take the column ``hidden_state``.
        evidence: let the router look at the list's own evidence too (an extension of ours).
        threshold: heads with at least this probability are chosen.
        min_heads: so many heads at least.
        weighting: how a query's heads are summed: ``"even"``, as published; by their ``"probability"``; or by their
            ``"logit"``, which may be below 0, over the whole pool: then heads are standardised within the list, the
            router is trained on the ranking itself, not on pseudo labels, and ``first_stage_weight`` takes part in the
            training, since the first stage's score is added to the sum as it is (the last two are extensions of ours).
        static_heads: so many of the best heads over all queries are always in; routed ones come in addition (an
            extension of ours).
        unsure: where no probability reaches this, the best ``max_heads`` heads over all queries rank (an extension of
            ours).
        hold_out: share of the training queries that is held out to choose the epoch, where no validation queries are
            given.
        training: settings of the training by name; see :class:`~pyterrier_routehead.training.TrainingSettings`.
        seed: of everything random in ``fit`` but the halves on which ``"shrunk"`` labels estimate their reliability,
            which are the same for all seeds.
        routed_heads: also write the column ``routed_heads``.
        detection_data: the training queries' name, kept in the router.
    """

    schematic = {"label": "RouteHead", "help_url": "https://arxiv.org/abs/2604.24608"}

    router_: HeadRouter
    labels_: pd.DataFrame
    left_out_: int
    report_: pd.DataFrame

    def __init__(
        self,
        router: HeadRouter | None = None,
        *,
        llm: FrozenLLM | str | None = None,
        pool_size: int = 64,
        max_heads: int = 8,
        max_layer: int | float | None = None,
        labels: str | Recipe = "shrunk",
        layer: int | None = None,
        pooling: str = "mean",
        source: str = "query",
        evidence: bool = False,
        threshold: float = 0.5,
        min_heads: int = 1,
        weighting: str = "even",
        static_heads: int = 0,
        unsure: float = 0.0,
        hold_out: float = 0.2,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        routed_heads: bool = False,
        detection_data: str | None = None,
        prompt: PromptTemplate | str | None = None,
        document_order: str | None = None,
        document_attention: str | None = None,
        max_doc_tokens: int | None = None,
        calibrate: bool | None = None,
        token_filter: str | None = None,
        depth: int | None = None,
        first_stage_weight: float = 0.0,
        allow_mismatch: bool = False,
        store: HeadScoreStore | str | None = None,
        batch_size: int = 1,
        text_field: str = "text",
        title_field: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.router = router
        self.pool_size = pool_size
        self.max_heads = max_heads
        self.max_layer = max_layer
        self.labels = labels
        self.layer = layer
        self.pooling = pooling
        self.source = source
        self.evidence = evidence
        self.threshold = threshold
        self.min_heads = min_heads
        self.weighting = weighting
        self.static_heads = static_heads
        self.unsure = unsure
        self.hold_out = hold_out
        self.training = training
        self.seed = seed
        self.routed_heads = routed_heads
        self.detection_data = detection_data
        self._query_llm: FrozenLLM | None = None
        self._attention = document_attention  # of what is being ranked
        self._learning = False
        self._routes: dict[int, tuple[str, ...]] = {}
        super().__init__(
            None,
            llm=llm,
            prompt=prompt,
            document_order=document_order,
            document_attention=document_attention,
            max_doc_tokens=max_doc_tokens,
            calibrate=calibrate,
            token_filter=token_filter,
            depth=depth,
            first_stage_weight=first_stage_weight,
            allow_mismatch=allow_mismatch,
            store=store,
            batch_size=batch_size,
            text_field=text_field,
            title_field=title_field,
            verbose=verbose,
        )

    def __repr__(self) -> str:
        depth = "" if self.depth is None else f", depth={self.depth}"
        return f"RouteHeadReranker(max_heads={self.max_heads}{depth})"

    # Ranking

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Route each query and rank anew; see the class."""
        self._routes, self._attention = {}, self.document_attention
        if self._attention is None and {"head_scores", "head_reading"} <= set(inp.columns):
            reading = next((one for one in inp["head_reading"] if isinstance(one, Reading)), None)
            self._attention = None if reading is None else reading.settings.document_attention
        self._check_first_stage_weight()
        out = super().transform(inp)
        if not self.routed_heads:
            return out
        column = object_column(len(inp))
        for row, names in self._routes.items():
            column[row] = names
        return out.assign(routed_heads=column)

    def _active(self) -> HeadRouter | None:
        """The router in use: given; fitted, choosing as the arguments say at this moment; or shipped."""
        if self.router is not None:
            return self.router
        router, selection = getattr(self, "router_", None), self._selection()
        if router is None:
            if not self._uses_shipped():
                return None
            router = shipped_router(self._attention or "listwise")
        elif router.selection.by_logits != selection.by_logits:
            raise ValueError(
                f"the router was fitted with weighting={router.selection.weighting!r}; with {self.weighting!r} its "
                "logits mean something else: fit again"
            )
        return router if selection == router.selection else router.with_selection(selection)

    def _check_first_stage_weight(self) -> None:
        router = self._active()
        if router is None or not router.standardises:
            return
        learnt_with = router.report.get("first stage's weight", self.first_stage_weight)
        if learnt_with != self.first_stage_weight:
            warnings.warn(
                f"the router's weights were learnt for first_stage_weight={learnt_with:g}, not "
                f"{self.first_stage_weight:g}",
                stacklevel=3,
            )

    def _uses_shipped(self) -> bool:
        if self.router is not None or hasattr(self, "router_") or self._learning or self._wants_fit():
            return False
        return has_router(self._attention or "listwise") and means_shipped_model(self.llm)

    def _wants_fit(self) -> bool:
        """Whether what only ``fit`` can do is asked for: the shipped router was trained with the defaults."""
        return self.weighting == "logit" or any(getattr(self, name) != value for name, value in _defaults_of_fit())

    def _selection(self) -> Selection:
        return Selection(
            self.threshold, self.min_heads, self.max_heads, self.weighting, self.static_heads, self.unsure
        )

    def _chosen(self) -> HeadSet | None:
        router = self._active()
        return None if router is None else router.pool

    def _settings(self) -> ReadingSettings:
        for name in ("pool_size", "max_heads"):
            number = getattr(self, name)
            if not isinstance(number, numbers.Integral) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name} is a number of heads from 1, got {number!r}")
        self._selection()
        if self.layer is not None and self.layer < 0:
            raise ValueError(f"layer is the number of a layer, from 0, got {self.layer!r}")
        get_recipe(self.labels)
        if not 0 < self.hold_out < 1:
            raise ValueError(f"hold_out is a share between 0 and 1, got {self.hold_out!r}")
        QueryState(self.layer or 0, self.pooling, self.source)
        if self.router is not None and not isinstance(self.router, HeadRouter):
            raise TypeError(f"router is a HeadRouter or None, got {type(self.router).__name__}")
        settings = super()._settings()
        if settings.token_filter == "sum":
            raise ValueError("token_filter='sum' has no scores per head to route over: use 'head' or 'none'")
        return settings

    def _beside_vectors(self) -> list[str]:
        router = self._active()
        source = self.source if router is None else router.state.source
        return ["query" if source == "query" else "hidden_state"]

    def _uses_first_stage(self) -> bool:
        router = self._active()
        return super()._uses_first_stage() or (self.evidence if router is None else router.uses_evidence)

    def _layers_to_load(self, heads: HeadsLike | HeadSet) -> int | None:
        router = self._active()
        if router is None or layers_needed(heads) is None:
            return None
        # Whichever heads the next query is given, the model is loaded once.
        return max(layers_needed(router.pool), router.state.layer + 1)

    def _read_text(
        self, inp: pd.DataFrame, lists: Sequence[CandidateRows], heads: HeadSet, settings: ReadingSettings
    ) -> Iterator[np.ndarray]:
        router = self._active()
        if router.state.source == "tail":
            raise ValueError(
                "this router embeds queries by the column 'hidden_state': put it behind "
                f"AttentionHeadScorer(hidden_layers=[{router.state.layer}])"
            )
        self._query_llm = None
        yield from super()._read_text(inp, lists, heads, settings)

    def _batch_reader(self, inp: pd.DataFrame, batch: Sequence[CandidateRows], reader: ListReader) -> ListReader:
        router = self._active()
        if router.uses_evidence:
            return reader
        weights = [router.route(embed_query(reader.llm, query_text(inp, own), router.state)) for own in batch]
        needed = np.any(np.stack(weights) != 0, axis=0)
        if not needed.any():
            needed[0] = True  # something must be read, if only to weigh nothing
        chosen = [head for head, one in zip(router.pool, needed, strict=True) if one]
        return reader.of_heads(chosen)

    def _columns(self, reading: Reading, heads: HeadSet) -> list[int]:
        columns = super()._columns(reading, heads)
        self._ready(reading)
        return columns

    def _rank(
        self, inp: pd.DataFrame, candidates: CandidateRows, vectors: np.ndarray, heads: HeadsLike | HeadSet
    ) -> np.ndarray:
        router = self._active()
        evidence = self._list_evidence(inp, candidates, vectors) if router.uses_evidence else None
        weights = router.route(self._state(inp, candidates, router.state), evidence)
        names = tuple(str(head) for head, weight in zip(router.pool, weights, strict=True) if weight)
        for row in candidates.rows[: len(vectors)]:
            self._routes[int(row)] = names
        weight_of = dict(zip(router.pool, weights, strict=True))
        own = np.array([weight_of[head] for head in heads])
        if not router.standardises:
            return self._with_first_stage(inp, candidates, vectors.astype(np.float64) @ own)
        scores = standardised(vectors.astype(np.float64)) @ own
        if self.first_stage_weight:  # the logits were trained to be added to the first stage's score as they are
            scores += self.first_stage_weight * standardised(first_stage_scores(inp, candidates, len(vectors)))
        return scores

    # What the router looks at

    def _ready(self, reading: Reading) -> None:
        """Have a model to embed queries for head scores of some reading."""
        router = self._active()
        state = self._wanted_state(reading.model) if router is None else router.state
        if state.source == "tail":
            if state.layer not in reading.hidden_layers:
                raise ValueError(
                    f"hidden_state holds the layers {list(reading.hidden_layers)}, the router needs {state.layer}: "
                    f"AttentionHeadScorer(hidden_layers=[{state.layer}])"
                )
            return
        self._query_llm = self._open(reading.model, state.layer + 1, self._query_llm)
        reading.check_model(model_identity(self._query_llm))

    def _wanted_state(self, model: ModelIdentity) -> QueryState:
        layer = model.num_layers // 2 if self.layer is None else self.layer
        return QueryState(layer, self.pooling, self.source)

    def _state(self, inp: pd.DataFrame, candidates: CandidateRows, state: QueryState) -> np.ndarray:
        if state.source == "tail":
            hidden, reading = (inp[name].iloc[candidates.rows[0]] for name in ("hidden_state", "head_reading"))
            return np.asarray(hidden)[reading.hidden_layers.index(state.layer)]
        llm = self._query_llm if self._query_llm is not None else self._backbone
        return embed_query(llm, query_text(inp, candidates), state)

    def _list_evidence(self, inp: pd.DataFrame, candidates: CandidateRows, vectors: np.ndarray) -> np.ndarray:
        return list_evidence(vectors, first_stage_scores(inp, candidates, len(vectors)))

    def _first_stage(
        self, frame: pd.DataFrame, lists: Sequence[JudgedList], shape: tuple[int, int]
    ) -> np.ndarray | None:
        """The first stage's part in each score, as it is added when ranking; 0 in padding."""
        if not self.first_stage_weight:
            return None
        added = np.zeros(shape)
        for own, one in zip(added, lists, strict=True):
            first = first_stage_scores(frame, one.candidates, len(one.labels))
            own[: len(first)] = self.first_stage_weight * standardised(first)
        return added

    def _labels_name(self) -> str:
        return self.labels if isinstance(self.labels, str) else getattr(self.labels, "__name__", "own")

    # Learning

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> "RouteHeadReranker":
        """Screen heads, make pseudo labels and train the router; see the class for what is set.

        Pool and labels come from the training queries alone, less those that are held out to choose the epoch;
        validation queries, if given, are held out instead.

        Args:
            topics_or_res_tr: candidates of the training queries, with text or head scores as for ``transform``.
            qrels_tr: their judgements: ``qid``, ``docno`` and ``label``. Above 0 is relevant.
            topics_or_res_va: candidates of validation queries.
            qrels_va: their judgements.

        Raises:
            ValueError: where no list tells anything, a query is in both parts, or a router was given.
        """
        if self.router is not None:
            raise ValueError("RouteHeadReranker was given a router: leave it out to train one")
        for name in ("router_", "labels_", "left_out_", "report_"):
            self.__dict__.pop(name, None)
        self._learning = True
        try:
            return self._learn(topics_or_res_tr, qrels_tr, topics_or_res_va, qrels_va)
        finally:
            self._learning = False

    def _learn(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None,
        qrels_va: pd.DataFrame | None,
    ) -> "RouteHeadReranker":
        from .training import FOR_LOGITS, TrainingSettings, train

        self._settings()
        settings = TrainingSettings(
            **{"seed": self.seed, **(FOR_LOGITS if self.weighting == "logit" else {}), **(self.training or {})}
        )
        self._check_frames(topics_or_res_tr, topics_or_res_va, qrels_va)
        self._check_layer(topics_or_res_tr)
        criterion = get_criterion("ndcg@10")
        reading, lists = self._judged(topics_or_res_tr, qrels_tr, [criterion], None)
        self.left_out_ = topics_or_res_tr["qid"].nunique() - len(lists)
        if topics_or_res_va is None:
            held_frame, (held, lists) = topics_or_res_tr, self._held_out(lists)
        else:
            held_frame = topics_or_res_va
            other, held = self._judged(topics_or_res_va, qrels_va, [criterion], None)
            if other.heads != reading.heads or not other.same_but_heads(reading):
                raise ValueError("the validation lists were read otherwise than the training lists")
            if self._has_vectors(topics_or_res_va):
                self._ready(other)
        if len(lists) < 2:
            raise ValueError(f"{len(lists)} training lists tell something about heads: too few to learn from")
        if not held:
            raise ValueError("no validation list has both a relevant and another candidate with head scores")
        state = self._wanted_state(reading.model)
        self._query_llm = None
        if self._has_vectors(topics_or_res_tr):
            self._ready(reading)
        pool = self._within(self._head_set(criterion, reading, lists)).top(self.pool_size)
        columns = reading.columns(pool)
        data = self._routing_data(topics_or_res_tr, lists, columns, state)
        held_out = self._routing_data(held_frame, held, columns, state)
        labels = make_labels(self.labels, data.lists, self.max_heads)
        qids = [one.candidates.qid for one in lists]
        if not set(qids).isdisjoint(one.candidates.qid for one in held):
            raise AssertionError("a held-out query has a label")
        self.labels_ = labels.table(qids, pool.heads)
        weights, self.report_ = train(
            replace(data, targets=labels.targets), held_out, self._selection(), settings, progress=self.verbose
        )
        best = self.report_["held-out nDCG@10"].idxmax()
        said = {
            "labels": self._labels_name() if settings.labels else None,
            "first stage's weight": float(self.first_stage_weight),
            "training queries": len(lists),
            "held-out queries": len(held),
            "left out": int(self.left_out_),
            "distinct labels": int(self.labels_["heads"].nunique()),
            "epoch": int(self.report_["epoch"][best]),
            "held-out nDCG@10": float(self.report_["held-out nDCG@10"][best]),
        }
        self.router_ = HeadRouter.of(pool, weights, state=state, selection=self._selection(), report=said)
        return self

    def _check_frames(self, train: pd.DataFrame, valid: pd.DataFrame | None, qrels_va: pd.DataFrame | None) -> None:
        """Refuse what can be refused before anything is read."""
        if (valid is None) != (qrels_va is None):
            raise ValueError("validation queries need both candidates and qrels")
        frames = [train] if valid is None else [train, valid]
        if self.source == "tail" and not all(map(self._has_vectors, frames)):
            raise ValueError("source='tail' needs the column 'hidden_state': fit behind an AttentionHeadScorer")
        if valid is not None and (both := set(train["qid"].astype(str)) & set(valid["qid"].astype(str))):
            raise ValueError(f"{len(both)} queries are in training and validation, such as {min(both)!r}")

    def _check_layer(self, frame: pd.DataFrame) -> None:
        """Refuse a layer that the model lacks before its lists are read."""
        if self.layer is None or self._has_vectors(frame):
            return
        check_layer(self.layer, self._reader("all", resolve_settings(self._given())).llm)

    def _held_out(self, lists: Sequence[JudgedList]) -> tuple[list[JudgedList], list[JudgedList]]:
        """A share of the training lists at random, which choose the epoch, and the others."""
        order = np.random.default_rng(self.seed).permutation(len(lists))
        count = max(1, round(self.hold_out * len(lists)))
        return [lists[i] for i in order[:count]], [lists[i] for i in sorted(order[count:])]

    def _routing_data(
        self, frame: pd.DataFrame, lists: Sequence[JudgedList], columns: Sequence[int], state: QueryState
    ) -> "RoutingData":
        """What the router sees of some judged lists of a frame."""
        from .training import RoutingData

        vectors = [own.vectors[:, columns] for own in lists]
        judged = JudgedLists.of(vectors, [own.labels for own in lists])
        evidence = None
        if self.evidence:
            pairs = zip(lists, vectors, strict=True)
            evidence = np.stack([self._list_evidence(frame, own.candidates, scores) for own, scores in pairs])
        states = np.stack([self._state(frame, own.candidates, state) for own in lists])
        first_stage = self._first_stage(frame, lists, judged.there.shape)
        return RoutingData(states, judged, evidence, first_stage=first_stage)
