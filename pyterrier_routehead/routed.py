"""`RouteHeadReranker`: chooses, for every query, the heads that suit it (RouteHead, arXiv 2604.24608)."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

import numpy as np
import pandas as pd
import pyterrier as pt

from .common.arguments import check_choice, check_flag, check_share, check_text, check_whole
from .common.notices import warn
from .common.progress import shows_progress
from .detection.criteria import get_criterion
from .detection.pruning import check_max_layer, within
from .fitting.judged import JudgedList, JudgedLists, check_calibration, check_parts, ranked_heads, read_judged
from .fitting.routers import RouterLists, learn_router
from .kernel.patterns import DEFAULT_PATTERN
from .ranking.frames import object_column, with_ranking
from .ranking.options import as_depth, shown_depth
from .ranking.policy import FixedHeads, HeadPolicy, RoutedHeads, Unfitted
from .ranking.registry import how_to_get_heads, is_bundled, named_router
from .ranking.reranker import HeadReranker
from .ranking.sources import ScoreSource, TextSource
from .reading.reading import ModelIdentity, Reading, ReadingSettings
from .routing.labels import Recipe, get_recipe
from .routing.router import HeadRouter, Selection
from .routing.settings import AS_PUBLISHED, Extensions, RouterTraining
from .routing.state import POOLINGS, QueryState, check_layer


@dataclass(eq=False, repr=False)
class RouteHeadReranker(HeadReranker, pt.Estimator):
    """Ranks each query by the heads that suit it.

    ``(bm25 % 20 >> text >> RouteHeadReranker()).fit(train_topics, train_qrels, valid_topics, valid_qrels)`` screens a
    pool of heads on the training queries, searches for each of them the heads that rank its candidates best (pseudo
    labels), and trains a router to foretell them from the query. Ranking routes each query and sums the heads that were
    chosen. ``RouteHeadReranker("smollm2-135m")`` ranks by the router that comes with the package.

    What the paper leaves unknown to us is our choice: the default of every argument here, that the pool is screened by
    single-head nDCG@10, that scores are calibrated and filtered for each head, and what the modules ``search``,
    ``labels``, ``router`` and ``training`` mark so.

    Columns as for :class:`HeadReranker`. A router that embeds the query alone needs ``query`` behind a scorer too, and
    one that embeds it from the re-ranking pass needs the scorer's ``hidden_state``; a router that looks at the list
    needs ``score`` too. With ``routed_heads`` the chosen heads are written to a column of that name: a tuple of
    ``"layer-head"`` strings in each row that was ranked.

    On text, a query is routed before its documents are read, and no layer above the deepest of its heads is run (a
    router that looks at the list needs all heads of the pool). Where a list is ranked in sliding windows, such a router
    looks at each window, and ``routed_heads`` says what it chose in the last window that a document was in.

    After ``fit``, ``router_`` is a :class:`HeadRouter`, to be saved and shared; ``labels_`` is the table of pseudo
    labels (heads, nDCG@10 before and after), ``left_out_`` the number of training lists that tell nothing, and
    ``report_`` the losses and held-out nDCG@10 of each epoch.

    Args:
        router: instead of ``fit``: a :class:`HeadRouter`, or the name of one (:func:`available`); without ``llm``, its
            model is loaded. What only ``fit`` uses then has no effect: ``pool_size``, ``max_layer``, ``labels``,
            ``layer``, ``pooling``, ``hold_out``, ``training``, ``seed``, ``detection_data``, and ``source`` and
            ``evidence`` of the extensions.
        pool_size: how many heads are screened into the pool (K).
        max_heads: the largest number of heads a query (P). None, here and for ``threshold``, means what the router was
            made with, and in ``fit`` the value in brackets (8). A value that is set here counts for every router,
            given, named or fitted.
        max_layer: only heads of so many layers (int) or of that share of them (float up to 1.0).
        labels: how pseudo labels are made: ``"search"``, the published steps, on a list's own nDCG@10;
            ``"search+prior"`` or ``"shrunk"``, which trust a single list less; ``"utility"``, soft labels that no
            search is needed for; or a function: see :mod:`~pyterrier_routehead.routing.labels`.
        layer: the layer whose hidden state embeds the query; None for the middle one.
        pooling: ``"mean"`` over the query's tokens, or the ``"last"`` of them.
        threshold: heads with at least this probability are chosen (0.5).
        hold_out: share of the training queries that is held out to choose the epoch, where no validation queries are
            given.
        training: how the router is trained; None means the defaults.
        extensions: what goes beyond the paper.
        seed: of everything random in ``fit`` but the halves on which ``"shrunk"`` labels estimate their reliability,
            which are the same for all seeds.
        routed_heads: also write the column ``routed_heads``.
        detection_data: the training queries' name, kept in the router.
        allow_mismatch: see :class:`StaticHeadReranker`. Further arguments: see :class:`HeadReranker`.
    """

    schematic = {"label": "RouteHead", "help_url": "https://arxiv.org/abs/2604.24608"}

    router: HeadRouter | str | None = None
    _: KW_ONLY
    pool_size: int = 64
    max_heads: int | None = None
    max_layer: int | float | None = None
    labels: str | Recipe = "shrunk"
    layer: int | None = None
    pooling: str = "mean"
    threshold: float | None = None
    hold_out: float = 0.2
    training: RouterTraining | None = None
    extensions: Extensions = AS_PUBLISHED
    seed: int = 0
    routed_heads: bool = False
    detection_data: str | None = None
    allow_mismatch: bool = False

    router_: HeadRouter = field(init=False)
    labels_: pd.DataFrame = field(init=False)
    left_out_: int = field(init=False)
    report_: pd.DataFrame = field(init=False)

    def __repr__(self) -> str:
        given = repr(self.router) if isinstance(self.router, str) else ""
        most = "" if self.max_heads is None else f", max_heads={self.max_heads}"
        return f"RouteHeadReranker({(given + most + shown_depth(self)).removeprefix(', ')})"

    # Ranking

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Route each query and rank anew; see the class."""
        scores, choices = self._scored(inp)
        if not self.routed_heads:
            return with_ranking(inp, scores)
        column = object_column(len(inp))
        column[:] = [None if choice is None else choice.names for choice in choices]
        return with_ranking(inp, scores, {"routed_heads": column})

    def _policy(self, document_attention: str) -> HeadPolicy:
        router = self._used_router(document_attention)
        if router is None:
            return Unfitted(
                f"RouteHeadReranker has no router yet: {how_to_get_heads('route')}",
                needs_query=self.extensions.source == "query",
                needs_hidden_state=self.extensions.source == "tail",
                needs_first_stage=self.extensions.evidence,
            )
        selection = self._selection(router.selection)
        if selection != router.selection:
            router = router.with_selection(selection)
        bundled = isinstance(self.router, str) and is_bundled("route", self.router)
        return RoutedHeads(router, bundled, self.allow_mismatch)

    def _warn_of(self, policy: HeadPolicy) -> None:
        if isinstance(policy, RoutedHeads) and policy.router.standardises:
            learnt_with = policy.router.report.get("first stage's weight", self.first_stage_weight)
            if learnt_with != self.first_stage_weight:
                warn(
                    f"the router's weights were learnt for first_stage_weight={learnt_with:g}, not "
                    f"{self.first_stage_weight:g}"
                )

    def _used_router(self, document_attention: str) -> HeadRouter | None:
        """The router that was given, named or fitted."""
        if isinstance(self.router, str):
            return named_router(self.router, document_attention)
        return self.__dict__.get("router_") if self.router is None else self.router

    def _selection(self, made_with: Selection | None = None) -> Selection:
        """How heads are chosen: as set here, else as a router was made to."""
        given = {name: getattr(self, name) for name in ("threshold", "max_heads") if getattr(self, name) is not None}
        given |= self.extensions.chosen()
        current = made_with or Selection()
        if self.max_heads is not None and self.extensions.min_heads is None:
            most = check_whole("max_heads", self.max_heads, what="number of heads")
            if most < current.min_heads:
                raise ValueError(
                    f"max_heads={most} is below the min_heads={current.min_heads} that the router was made with: "
                    "set min_heads too"
                )
        selection = replace(current, **given)
        if made_with is not None and selection.by_logits != made_with.by_logits:
            raise ValueError(
                f"the router was fitted with weighting={made_with.weighting!r}; with {selection.weighting!r} "
                "its logits mean something else: fit again"
            )
        return selection

    def _check(self) -> ReadingSettings:
        check_whole("pool_size", self.pool_size, what="number of heads")
        check_max_layer(self.max_layer)
        get_recipe(self.labels)
        if self.layer is not None:
            check_whole("layer", self.layer, least=0)
        check_choice("pooling", self.pooling, POOLINGS)
        if not isinstance(self.extensions, Extensions):
            raise TypeError(f"extensions are Extensions, such as Extensions(evidence=True), got {self.extensions!r}")
        for name in ("routed_heads", "allow_mismatch"):
            check_flag(name, getattr(self, name))
        if self.router is not None and not isinstance(self.router, HeadRouter | str):
            raise TypeError(f"router is a HeadRouter, the name of one or None, got {type(self.router).__name__}")
        if isinstance(self.router, str):
            check_text("router", self.router)
        settings = super()._check()
        router = self._used_router(self.document_attention or DEFAULT_PATTERN)
        self._selection(None if router is None else router.selection)
        check_share("hold_out", self.hold_out, inside=True)
        check_whole("seed", self.seed, least=0)
        if not isinstance(self.training, RouterTraining | None):
            raise TypeError(f"training is a RouterTraining, such as RouterTraining(epochs=20), got {self.training!r}")
        if self.detection_data is not None:
            check_text("detection_data", self.detection_data)
        if router is not None:
            settings = self._settings(RoutedHeads(router))
        if not settings.aggregation.per_head:
            raise ValueError(
                f"token_filter={settings.token_filter!r} has no scores per head to route over: use 'head' or 'none'"
            )
        return settings

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
        settings = self._check()
        check_parts(topics_or_res_tr, topics_or_res_va, qrels_va)
        frames = [topics_or_res_tr] if topics_or_res_va is None else [topics_or_res_tr, topics_or_res_va]
        if self.extensions.source == "tail" and not all("hidden_state" in frame.columns for frame in frames):
            raise ValueError("source='tail' needs the column 'hidden_state': fit behind an AttentionHeadScorer")
        criterion = get_criterion("ndcg@10")
        check_calibration([criterion], settings)
        selection = self._selection()
        training = (self.training or RouterTraining()).resolved(selection.by_logits)
        source, judged = self._judged(topics_or_res_tr, qrels_tr, "training")
        if topics_or_res_va is None or qrels_va is None:  # both or neither
            held_source, (held, lists) = source, self._held_out(judged.lists)
        else:
            held_source, valid = self._judged(topics_or_res_va, qrels_va, "validation")
            judged.check_like(valid)
            held, lists = valid.lists, judged.lists
        if len(lists) < 2:
            raise ValueError(f"{len(lists)} training lists tell something about heads: too few to learn from")
        screened = ranked_heads(
            criterion,
            replace(judged, lists=lists),
            depth=as_depth(self.depth),
            positions=None,
            data=self.detection_data,
        )
        pool = within(screened, self.max_layer).top(self.pool_size)
        columns = judged.reading.columns(pool.heads)
        state = self._state(judged.reading.model)
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

    def _judged(self, frame: pd.DataFrame, qrels: pd.DataFrame, part: str) -> tuple[ScoreSource, JudgedLists]:
        policy = FixedHeads(
            "all",
            needs_query=self.extensions.source == "query",
            needs_hidden_state=self.extensions.source == "tail",
            needs_first_stage=self.extensions.evidence,
        )
        source = self._scores(frame, policy, by_head=True)

        def check(reading: Reading) -> None:
            check_calibration([get_criterion("ndcg@10")], reading.settings)
            if isinstance(source, TextSource):  # before its lists are read
                check_layer(self._state(reading.model).layer, source.reader.llm)

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

    def _state(self, model: ModelIdentity) -> QueryState:
        layer = model.num_layers // 2 if self.layer is None else self.layer
        return QueryState(layer, self.pooling, self.extensions.source)

    def _held_out(self, lists: Sequence[JudgedList]) -> tuple[list[JudgedList], list[JudgedList]]:
        """A share of the training lists at random, which choose the epoch, and the others."""
        order = np.random.default_rng(self.seed).permutation(len(lists))
        count = max(1, round(self.hold_out * len(lists)))
        return [lists[i] for i in order[:count]], [lists[i] for i in sorted(order[count:])]


def _router_lists(
    lists: Sequence[JudgedList], columns: Sequence[int], source: ScoreSource, state: QueryState
) -> RouterLists:
    """Lists over the pool's heads, with the query embeddings."""
    pooled = [replace(judged_list, vectors=judged_list.vectors[:, columns]) for judged_list in lists]
    return RouterLists(pooled, np.stack([source.embed(judged_list.query, state) for judged_list in lists]))
