"""What choosing heads for each query by its own judgements would give, and what chance would: ceilings and half lists.

Nothing here can be deployed; it says how much there is to route for. On half lists, heads are chosen on one half of a
query's candidates and judged on the other.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from pyterrier_routehead.fitting.judged import Judgements
from pyterrier_routehead.routing.labels import (
    RECIPES,
    best_heads,
    half_list_quality,
    halves,
    head_utility,
    make_labels,
    reliability,
    static,
)
from pyterrier_routehead.routing.search import PaddedLists, list_ndcg, search_sets

POOL, MOST = 64, 8


def judged_lists(frame: pd.DataFrame, qrels: pd.DataFrame) -> tuple[PaddedLists, list[str], list[str]]:
    """Lists with a relevant and a non-relevant candidate, over all heads, with their qids and queries.

    Their nDCG@10 is against all judgements, as everywhere: relevant documents that are not among the candidates count.
    """
    judgements = Judgements(qrels)
    labels = frame[["qid", "docno"]].merge(qrels, on=["qid", "docno"], how="left")["label"].fillna(0).to_numpy()
    scores, gains, ideal, qids, queries = [], [], [], [], []
    for qid, own in frame.assign(gain=np.maximum(labels, 0)).groupby("qid", sort=False):
        gain = own["gain"].to_numpy(dtype=float)
        if (gain > 0).any() and (gain == 0).any():
            scores.append(np.stack(own["head_scores"]).astype(np.float64))
            gains.append(gain)
            ideal.append(judgements.ideal(qid))
            qids.append(qid)
            queries.append(own["query"].iloc[0])
    return PaddedLists.of(scores, gains, ideal), qids, queries


def pool_of(lists: PaddedLists) -> np.ndarray:
    """The heads that rank best alone, as RouteHead screens them."""
    return np.argsort(-list_ndcg(lists, lists.scores).mean(axis=0), kind="stable")[:POOL]


def shuffled(lists: PaddedLists, seed: int = 0) -> PaddedLists:
    """The same lists with the judgements dealt anew among each list's candidates: nothing is left to learn."""
    rng, gains = np.random.default_rng(seed), lists.gains.copy()
    for own, there in zip(gains, lists.mask, strict=True):
        own[there] = rng.permutation(own[there])
    return replace(lists, gains=gains)


def label_quality(lists: PaddedLists) -> pd.DataFrame:
    """Half-list quality of each recipe, for real and for shuffled judgements.

    A recipe's labels rank as they are, soft ones as weights: ``heads`` is their sum.
    """
    own = lists.heads(pool_of(lists))
    recipes = {"static": static, **RECIPES, "best 8 of the other half": _best_single}
    rows = []
    for name, recipe in recipes.items():
        real, chance = (half_list_quality(recipe, some, MOST) for some in (own, shuffled(own)))
        labels = make_labels(recipe, own, MOST)
        rows.append({"labels": name, "half lists": real, "half lists, shuffled": chance,
                     "own list": labels.after.mean(), "heads": labels.targets.sum(axis=1).mean()})
    return pd.DataFrame(rows).assign(lists=len(halves(own, 0)[0]), reliability=reliability(own))


def _best_single(lists: PaddedLists, most: int) -> np.ndarray:
    """What a router takes of utility labels, which by themselves weigh the whole pool."""
    return best_heads(head_utility(lists), most)


def ceilings(lists: PaddedLists, heads: np.ndarray, seed: int = 0) -> dict[str, float]:
    """What choosing for each query by its own judgements would give, beside what as many random choices give."""
    rng = np.random.default_rng(seed)
    orders = rng.random((*lists.mask.shape, lists.scores.shape[2]))
    single = list_ndcg(lists, lists.scores)
    own = lists.heads(heads)
    random_heads = replace(own, scores=rng.random(own.scores.shape))
    return {
        "lists": len(lists),
        "static 8": list_ndcg(own, own.scores[:, :, :MOST].sum(axis=2, keepdims=True))[:, 0].mean(),
        "best head": single.max(axis=1).mean(),
        "best of as many random orders": list_ndcg(lists, orders).max(axis=1).mean(),
        "searched 8 of 64": search_sets(own, MOST).after.mean(),
        "searched 8 of 64 random columns": search_sets(random_heads, MOST).after.mean(),
    }
