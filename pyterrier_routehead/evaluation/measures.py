"""The measure by which heads, head sets and routers are compared: nDCG@10 as ir_measures has it.

Gains are the labels, negative ones counting as 0, the discount is the logarithm of the rank, and the ideal ranking is
that of all judged documents of the query, whether they are among its candidates or not.
"""

import numpy as np

CUTOFF = 10
NDCG = "nDCG@10"
"""What tables call it."""


def discounts(length: int, cutoff: int = CUTOFF) -> np.ndarray:
    """What a gain counts at each of the first ranks: float64 [at most cutoff]."""
    return 1 / np.log2(np.arange(2, min(length, cutoff) + 2))


def ideal_dcg(labels: np.ndarray, cutoff: int = CUTOFF) -> float:
    """DCG of the best ranking of some judged documents; 0 where none is relevant."""
    gains = np.sort(np.maximum(np.asarray(labels, dtype=np.float64), 0))[::-1][:cutoff]
    return float(gains @ discounts(len(gains), cutoff))


def ndcg(
    gains: np.ndarray, scores: np.ndarray, ideal: np.ndarray, there: np.ndarray | None = None, cutoff: int = CUTOFF
) -> np.ndarray:
    """The nDCG of several rankings of each of several lists.

    Args:
        gains: float64 [lists, documents], labels above 0, else 0.
        scores: [lists, documents, rankings]; the highest ranks first, ties keep the order given.
        ideal: DCG of each query's ideal ranking, float64 [lists]; where it is 0, so is the nDCG.
        there: bool [lists, documents], False in padding; None where there is none.
        cutoff: ranks that count.

    Returns:
        float64 [lists, rankings].
    """
    keys = -scores if there is None else np.where(there[..., None], -scores, np.inf)
    ranked = np.argsort(keys, axis=1, kind="stable")[:, :cutoff]
    ranked_gains = np.take_along_axis(gains[..., None], ranked, axis=1)
    dcg: np.ndarray = np.einsum("r,qrc->qc", discounts(ranked.shape[1], cutoff), ranked_gains)
    return dcg / np.where(ideal > 0, ideal, 1)[:, None] * (ideal > 0)[:, None]
