"""From judged lists to a router: screen a pool of heads, make pseudo labels, train (RouteHead, arXiv 2604.24608)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.notices import warn
from ..common.standard import standardised
from ..detection.head_set import HeadSet
from ..routing.evidence import list_evidence
from ..routing.labels import Recipe, make_labels
from ..routing.router import HeadRouter, Selection
from ..routing.search import PaddedLists
from ..routing.settings import RouterTraining
from ..routing.state import QueryState
from .judged import JudgedList

if TYPE_CHECKING:
    from ..routing.training import RoutingData


@dataclass(frozen=True)
class RouterLists:
    """Judged lists with the query embeddings of a router.

    Attributes:
        lists: the lists, with vectors over the pool's heads.
        states: float32 [lists, hidden size].
    """

    lists: list[JudgedList]
    states: np.ndarray

    def data(self, *, evidence: bool, first_stage_weight: float) -> "RoutingData":
        """The arrays for training, without labels.

        Args:
            evidence: whether the router uses features of the list too.
            first_stage_weight: weight of the first stage's score in the ranking.
        """
        from ..routing.training import RoutingData

        vectors = [judged_list.vectors for judged_list in self.lists]
        labels = [judged_list.labels for judged_list in self.lists]
        padded = PaddedLists.of(vectors, labels, [judged_list.ideal for judged_list in self.lists])
        list_features = None
        if evidence:
            list_features = np.stack(
                [list_evidence(judged_list.vectors, judged_list.query.known_first_stage) for judged_list in self.lists]
            )
        first_stage = _first_stage(self.lists, padded.mask.shape, first_stage_weight)
        return RoutingData(self.states, padded, list_features, first_stage=first_stage)


@dataclass(frozen=True)
class LearntRouter:
    """The result of training.

    Attributes:
        router: the router.
        labels: one row per training query: its labelled heads, and nDCG@10 before and after.
        report: one row per epoch: losses, chosen heads, and held-out nDCG@10.
    """

    router: HeadRouter
    labels: pd.DataFrame
    report: pd.DataFrame


def learn_router(
    train: RouterLists,
    held_out: RouterLists,
    pool: HeadSet,
    *,
    state: QueryState,
    recipe: str | Recipe,
    max_heads: int,
    selection: Selection,
    settings: RouterTraining,
    seed: int,
    evidence: bool,
    first_stage_weight: float,
    left_out: int,
    progress: bool,
) -> LearntRouter:
    """Make pseudo labels for the training lists, train on them, and keep the epoch that ranks held-out lists best.

    Warns if that is the initial router, from the labels' frequencies: it has learned nothing from the queries.
    """
    from ..routing.training import train as train_weights

    data = train.data(evidence=evidence, first_stage_weight=first_stage_weight)
    held_out_data = held_out.data(evidence=evidence, first_stage_weight=first_stage_weight)
    labels = make_labels(recipe, data.lists, max_heads)
    qids = [judged_list.query.qid for judged_list in train.lists]
    if not set(qids).isdisjoint(judged_list.query.qid for judged_list in held_out.lists):
        raise AssertionError("a held-out query has a label")
    table = labels.table(qids, pool.heads)
    weights, report = train_weights(
        replace(data, targets=labels.targets), held_out_data, selection, settings, seed=seed, progress=progress
    )
    best = int(report["held-out nDCG@10"].argmax())
    epoch = int(report["epoch"].iloc[best])
    # A start by ridge regression has learned from the queries already.
    kept_start = epoch == 0 and settings.start == "frequency"
    recipe_name = recipe if isinstance(recipe, str) else getattr(recipe, "__name__", "own")
    summary = {
        "labels": recipe_name if settings.labels else None,
        "first stage's weight": float(first_stage_weight),
        "training queries": len(train.lists),
        "held-out queries": len(held_out.lists),
        "left out": int(left_out),
        "distinct labels": int(table["heads"].nunique()),
        "epoch": epoch,
        "kept its start": kept_start,
        "held-out nDCG@10": float(report["held-out nDCG@10"].iloc[best]),
    }
    if kept_start:
        warn(
            f"no epoch of training ranked the {len(held_out.lists)} held-out queries better than the router as it "
            f"started: it has learnt nothing from {len(train.lists)} training queries, and chooses nearly the same "
            "heads for every query"
        )
    return LearntRouter(HeadRouter.of(pool, weights, state=state, selection=selection, report=summary), table, report)


def _first_stage(lists: Sequence[JudgedList], shape: tuple[int, int], weight: float) -> np.ndarray | None:
    """The first stage's part of each score; 0 in padding."""
    if not weight:
        return None
    added = np.zeros(shape)
    for list_part, judged_list in zip(added, lists, strict=True):
        list_part[: len(judged_list.labels)] = weight * standardised(judged_list.query.known_first_stage)
    return added
