"""The measure that compares heads, head sets and routers: nDCG@10 as computed by ir_measures.

Gains are the labels, negative ones counting as 0, the discount is the logarithm of the rank, and the ideal ranking is
over all judged documents of the query, whether they are among its candidates or not.
"""

import numpy as np

CUTOFF = 10
NDCG = "nDCG@10"
"""Its name in tables."""


def discounts(length: int, cutoff: int = CUTOFF) -> np.ndarray:
    """The discount of each of the first ranks: float64 [at most cutoff]."""
    return 1 / np.log2(np.arange(2, min(length, cutoff) + 2))


def ideal_dcg(labels: np.ndarray, cutoff: int = CUTOFF) -> float:
    """DCG of the ideal ranking of judged documents; 0 if none is relevant."""
    gains = np.sort(np.maximum(np.asarray(labels, dtype=np.float64), 0))[::-1][:cutoff]
    return float(gains @ discounts(len(gains), cutoff))


def ndcg(
    gains: np.ndarray, scores: np.ndarray, ideal: np.ndarray, mask: np.ndarray | None = None, cutoff: int = CUTOFF
) -> np.ndarray:
    """The nDCG of several rankings of each of several lists.

    Args:
        gains: float64 [lists, documents], labels above 0, else 0.
        scores: [lists, documents, rankings]; the highest ranks first, ties keep the input order.
        ideal: DCG of each query's ideal ranking, float64 [lists]; where it is 0, so is the nDCG.
        mask: bool [lists, documents], False in padding; None without padding.
        cutoff: number of ranks that count.

    Returns:
        float64 [lists, rankings].
    """
    keys = -scores if mask is None else np.where(mask[..., None], -scores, np.inf)
    ranked = np.argsort(keys, axis=1, kind="stable")[:, :cutoff]
    ranked_gains = np.take_along_axis(gains[..., None], ranked, axis=1)
    dcg: np.ndarray = np.einsum("r,qrc->qc", discounts(ranked.shape[1], cutoff), ranked_gains)
    return dcg / np.where(ideal > 0, ideal, 1)[:, None] * (ideal > 0)[:, None]
