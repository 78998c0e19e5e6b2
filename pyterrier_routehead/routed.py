"""`RouteHeadReranker`: a router selects the heads that suit each query (RouteHead, arXiv 2604.24608)."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import pyterrier as pt

from .common.arguments import (
    argument,
    by_value,
    check_choice,
    check_flag,
    check_share,
    check_text,
    check_whole,
    optional,
    shown_if_named,
    shown_if_set,
)
from .common.progress import shows_progress
from .detection.criteria import get_criterion
from .detection.pruning import check_max_layer, within
from .fitting.judged import JudgedList, JudgedLists, check_calibration, check_parts, ranked_heads, read_judged
from .fitting.routers import RouterLists, learn_router
from .index.head_index import HeadIndex
from .kernel.patterns import PATTERNS
from .ranking.frames import object_column, with_ranking
from .ranking.index_source import IndexSource
from .ranking.options import Method, as_depth
from .ranking.policy import FixedHeads, HeadPolicy, RoutedHeads, Unfitted
from .ranking.reranker import HeadReranker
from .ranking.sources import ScoreSource, TextSource
from .reading.reading import ModelIdentity, Reading
from .registry import how_to_get_heads, is_bundled, named_router
from .routing.labels import Recipe, get_recipe
from .routing.router import HeadRouter, Selection
from .routing.settings import AS_PUBLISHED, Extensions, RouterTraining
from .routing.state import POOLINGS, QueryState, check_layer


def heads_by_router(reranker: "RouteHeadReranker", document_attention: str) -> HeadPolicy:
    """The heads that the router selects: the router that the re-ranker was given, or that fit trained."""
    router, bundled = reranker.router, False
    if router is None:
        router = reranker.__dict__.get("router_")
    elif isinstance(router, str):
        bundled = is_bundled("route", router)
        router = named_router(router, document_attention)
    policy = _unfitted(reranker, document_attention) if router is None else _routed(router, bundled, reranker)
    settings = reranker._settings(policy)
    if not settings.aggregation.per_head:
        raise ValueError(
            f"token_filter={settings.token_filter!r} has no scores per head to route over: use 'head' or 'none'"
        )
    return policy


def _routed(router: HeadRouter, bundled: bool, reranker: "RouteHeadReranker") -> HeadPolicy:
    selection = selection_of(reranker, router.selection)
    if selection != router.selection:
        router = router.with_selection(selection)
    return RoutedHeads(router, bundled, reranker.allow_mismatch)


def _unfitted(reranker: "RouteHeadReranker", document_attention: str) -> HeadPolicy:
    selection_of(reranker)  # also checks the values together
    source = embedding_source(reranker.extensions, document_attention)
    return Unfitted(
        f"RouteHeadReranker has no router yet: {how_to_get_heads('route')}",
        needs_query=source == "query",
        needs_hidden_state=source == "tail",
        needs_first_stage=reranker.extensions.evidence,
    )


def embedding_source(extensions: Extensions, document_attention: str) -> str:
    """By which pass queries are embedded: in late reading, the one that reads the heads has seen no document."""
    return extensions.source or ("query" if PATTERNS[document_attention].tail_sees_documents else "tail")


def selection_of(reranker: "RouteHeadReranker", default: Selection | None = None) -> Selection:
    """How heads are selected: as set by hand, else as a router was made to."""
    names = ("threshold", "max_heads")
    by_hand = {name: getattr(reranker, name) for name in names if getattr(reranker, name) is not None}
    by_hand |= reranker.extensions.chosen()
    current = default or Selection()
    if "max_heads" in by_hand and "min_heads" not in by_hand and by_hand["max_heads"] < current.min_heads:
        raise ValueError(
            f"max_heads={reranker.max_heads} is below the min_heads={current.min_heads} that the router was made with: "
            "set min_heads too"
        )
    selection = replace(current, **by_hand)
    if default is not None and selection.by_logits != default.by_logits:
        raise ValueError(
            f"the router was fitted with weighting={default.weighting!r}; with {selection.weighting!r} its logits mean "
            "something else: fit again"
        )
    return selection


def check_router(name: str, router: object) -> None:
    """A router, or the name of one."""
    if not isinstance(router, HeadRouter | str):
        raise TypeError(f"{name} is a HeadRouter, the name of one or None, got {type(router).__name__}")
    if isinstance(router, str):
        check_text(name, router)


def check_training(name: str, training: object) -> None:
    """Settings of the training."""
    if not isinstance(training, RouterTraining):
        raise TypeError(f"{name} is a RouterTraining, such as RouterTraining(epochs=20), got {training!r}")


def check_extensions(name: str, extensions: object) -> None:
    """Extensions of the published method."""
    if not isinstance(extensions, Extensions):
        raise TypeError(f"{name} are Extensions, such as Extensions(evidence=True), got {extensions!r}")


@dataclass(eq=False, repr=False)
class RouteHeadReranker(HeadReranker, pt.Estimator):
    """Ranks each query by the heads that suit it.

    ``(bm25 % 20 >> text >> RouteHeadReranker()).fit(train_topics, train_qrels, valid_topics, valid_qrels)`` screens a
    pool of heads on the training queries, searches for each query the heads that rank its candidates best (pseudo
    labels), and trains a router to predict them from the query. Ranking routes each query and sums the scores of the
    selected heads. ``RouteHeadReranker("smollm2-135m")`` ranks by the bundled router.

    Details that we do not know from the paper are our choice: the default of every argument here, screening by
    single-head nDCG@10, calibration and filtering per head, and the choices that are marked in the modules ``search``,
    ``labels``, ``router`` and ``training``.

    Columns as for :class:`HeadReranker`. A router that embeds the query alone requires ``query`` behind a scorer too,
    and one that embeds it by the re-ranking pass requires the scorer's ``hidden_state``; a router that uses the list's
    evidence requires ``score`` too. With ``routed_heads`` the selected heads are written to a column of that name: a
    tuple of ``"layer-head"`` strings in each row that was re-ranked.

    On text, a query is routed before its documents are read, and no layer above the deepest of its heads is run (with
    the list's evidence, all heads of the pool are read; in late reading, documents are encoded for the pool). If a list
    is ranked in sliding windows, each window has its evidence, and ``routed_heads`` has the heads of the last window
    that a document was in.

    After ``fit``, ``router_`` is a :class:`HeadRouter`, to be saved and shared; ``labels_`` is the table of pseudo
    labels (heads, nDCG@10 before and after), ``left_out_`` the number of uninformative training lists, and ``report_``
    has the losses and held-out nDCG@10 of each epoch.

    Args:
        router: instead of ``fit``: a :class:`HeadRouter`, or the name of one (:func:`available`); without ``llm``, its
            model is loaded. Arguments of ``fit`` then have no effect: ``pool_size``, ``max_layer``, ``labels``,
            ``layer``, ``pooling``, ``hold_out``, ``training``, ``seed``, ``detection_data``, and ``source`` and
            ``evidence`` of the extensions.
        pool_size: number of heads that are screened into the pool (K).
        max_heads: maximum number of heads per query (P). None, here and for ``threshold``, means the router's value,
            and in ``fit`` the value in brackets (8). A value that is set here applies to every router, given, named or
            fitted.
        max_layer: only heads of the first layers: this many (int) or this share of them (float up to 1.0).
        labels: how pseudo labels are made: ``"search"``, the published steps, on the nDCG@10 of the list alone;
            ``"search+prior"`` or ``"shrunk"``, which trust a single list less; ``"utility"``, soft labels that need no
            search; or a function: see :mod:`~pyterrier_routehead.routing.labels`.
        layer: the layer whose hidden state embeds the query; None for the middle one.
        pooling: ``"mean"`` over the query's tokens, or the ``"last"`` of them.
        threshold: heads with at least this probability are selected (0.5).
        hold_out: share of the training queries that is held out to choose the epoch, without validation queries.
        training: how the router is trained; None means the defaults.
        extensions: options beyond the paper.
        seed: of everything random in ``fit`` except the halves on which ``"shrunk"`` labels estimate their reliability,
            which are the same for all seeds.
        routed_heads: also write the column ``routed_heads``.
        detection_data: the training queries' name, kept in the router.
        allow_mismatch: see :class:`StaticHeadReranker`. Further arguments: see :class:`HeadReranker`.
    """

    schematic = {"label": "RouteHead", "help_url": "https://arxiv.org/abs/2604.24608"}

    _method = Method(heads_by_router)

    router: HeadRouter | str | None = argument(None, optional(check_router), shown=shown_if_named)
    _: KW_ONLY
    pool_size: int = argument(64, partial(check_whole, what="number of heads"))
    max_heads: int | None = argument(None, optional(partial(check_whole, what="number of heads")), shown=shown_if_set)
    max_layer: int | float | None = argument(None, by_value(check_max_layer))
    labels: str | Recipe = argument("shrunk", by_value(get_recipe))
    layer: int | None = argument(None, optional(partial(check_whole, least=0)))
    pooling: str = argument("mean", partial(check_choice, allowed=POOLINGS))
    threshold: float | None = argument(None, optional(check_share))
    hold_out: float = argument(0.2, partial(check_share, inside=True))
    training: RouterTraining | None = argument(None, optional(check_training))
    extensions: Extensions = argument(AS_PUBLISHED, check_extensions)
    seed: int = argument(0, partial(check_whole, least=0))
    routed_heads: bool = argument(False, check_flag)
    detection_data: str | None = argument(None, optional(check_text))
    allow_mismatch: bool = argument(False, check_flag)

    router_: HeadRouter = field(init=False)
    labels_: pd.DataFrame = field(init=False)
    left_out_: int = field(init=False)
    report_: pd.DataFrame = field(init=False)

    # Ranking

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Route each query and re-rank; see the class."""
        scores, choices = self._scored(inp)
        if not self.routed_heads:
            return with_ranking(inp, scores)
        column = object_column(len(inp))
        column[:] = [None if choice is None else choice.names for choice in choices]
        return with_ranking(inp, scores, {"routed_heads": column})

    # Training

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> "RouteHeadReranker":
        """Screen heads, make pseudo labels and train the router; see the class for the attributes that are set.

        Pool and labels come from the training queries alone, without those that are held out to choose the epoch;
        validation queries, if given, are held out instead.

        Args:
            topics_or_res_tr: candidates of the training queries, with text or head scores as for ``transform``.
            qrels_tr: their judgements: ``qid``, ``docno`` and ``label``. Above 0 is relevant.
            topics_or_res_va: candidates of validation queries.
            qrels_va: their judgements.

        Raises:
            ValueError: if no list is informative, a query is in both parts, or a router was given.
        """
        if self.router is not None:
            raise ValueError("RouteHeadReranker was given a router: leave it out to train one")
        for name in ("router_", "labels_", "left_out_", "report_"):
            self.__dict__.pop(name, None)
        settings = self._check()
        check_parts(topics_or_res_tr, topics_or_res_va, qrels_va)
        frames = [topics_or_res_tr] if topics_or_res_va is None else [topics_or_res_tr, topics_or_res_va]
        pattern = self._pattern(topics_or_res_tr) or settings.document_attention
        embed_by = embedding_source(self.extensions, pattern)
        for frame in frames:
            given = "head_scores" in frame.columns or PATTERNS[pattern].tail_sees_documents
            if embed_by == "tail" and given and "hidden_state" not in frame.columns:
                raise ValueError("source='tail' needs the column 'hidden_state': fit behind an AttentionHeadScorer")
        criterion = get_criterion("ndcg@10")
        check_calibration([criterion], settings)
        selection = selection_of(self)
        training = (self.training or RouterTraining()).resolved(selection.by_logits)
        source, judged = self._judged(topics_or_res_tr, qrels_tr, "training", embed_by)
        if topics_or_res_va is None or qrels_va is None:  # both or neither
            held_source, (held, lists) = source, self._held_out(judged.lists)
        else:
            held_source, valid = self._judged(topics_or_res_va, qrels_va, "validation", embed_by)
            judged.check_like(valid)
            held, lists = valid.lists, judged.lists
        if len(lists) < 2:
            raise ValueError(f"{len(lists)} training lists are informative: too few to learn from")
        screened = ranked_heads(
            criterion,
            replace(judged, lists=lists),
            depth=as_depth(self.depth),
            positions=None,
            data=self.detection_data,
        )
        pool = within(screened, self.max_layer).top(self.pool_size)
        columns = judged.reading.columns(pool.heads)
        state = self._state(judged.reading.model, embed_by)
        learnt = learn_router(
            _router_lists(lists, columns, source, state),
            _router_lists(held, columns, held_source, state),
            pool,
            state=state,
            recipe=self.labels,
            max_heads=selection.max_heads,
            selection=selection,
            settings=training,
            seed=self.seed,
            evidence=self.extensions.evidence,
            first_stage_weight=self.first_stage_weight,
            left_out=judged.left_out,
            progress=shows_progress(self.verbose),
        )
        self.labels_, self.report_, self.left_out_ = learnt.labels, learnt.report, judged.left_out
        self.router_ = learnt.router
        return self

    def _judged(
        self, frame: pd.DataFrame, qrels: pd.DataFrame, part: str, embed_by: str
    ) -> tuple[ScoreSource, JudgedLists]:
        policy = FixedHeads(
            "all",
            needs_query=embed_by == "query",
            needs_hidden_state=embed_by == "tail",
            needs_first_stage=self.extensions.evidence,
        )
        index = HeadIndex.of(self.index)
        layers = () if index is None else (self._state(index.model, embed_by).layer,)
        source = self._scores(frame, policy, by_head=True, hidden_layers=layers)

        def check(reading: Reading) -> None:
            check_calibration([get_criterion("ndcg@10")], reading.settings)
            if isinstance(source, TextSource | IndexSource):  # before its lists are read
                check_layer(self._state(reading.model, embed_by).layer, source.reader.llm)

        judged = read_judged(
            source,
            qrels,
            depth=self.depth,
            check=check,
            query=policy.needs_query,
            first_stage=self._weighs(policy),
            part=part,
            desc="RouteHeadReranker.fit",
            verbose=self.verbose,
        )
        return source, judged

    def _state(self, model: ModelIdentity, embed_by: str) -> QueryState:
        layer = model.num_layers // 2 if self.layer is None else self.layer
        return QueryState(layer, self.pooling, embed_by)

    def _held_out(self, lists: Sequence[JudgedList]) -> tuple[list[JudgedList], list[JudgedList]]:
        """A random share of the training lists, held out to choose the epoch, and the others."""
        order = np.random.default_rng(self.seed).permutation(len(lists))
        count = max(1, round(self.hold_out * len(lists)))
        return [lists[i] for i in order[:count]], [lists[i] for i in sorted(order[count:])]


def _router_lists(
    lists: Sequence[JudgedList], columns: Sequence[int], source: ScoreSource, state: QueryState
) -> RouterLists:
    """Lists over the pool's heads, with the query embeddings."""
    pooled = [replace(judged_list, vectors=judged_list.vectors[:, columns]) for judged_list in lists]
    return RouterLists(pooled, source.embed([judged_list.query for judged_list in lists], state))
