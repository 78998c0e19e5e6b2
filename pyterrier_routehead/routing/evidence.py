"""What a candidate list itself says about its heads, without judgements: query performance prediction for heads.

An extension of ours to RouteHead: beside the query, a router may look at how each head's scores are spread over the
list and how far they agree with the other heads' and with the first stage's.
"""

import numpy as np

from ..common.standard import standardised

EVIDENCE = ("entropy", "margin", "agreement with heads", "agreement with first stage")
"""Names of the numbers, in order."""


def list_evidence(vectors: np.ndarray, first_stage: np.ndarray) -> np.ndarray:
    """Four numbers for each head of a list.

    Args:
        vectors: head scores, float [documents, heads].
        first_stage: the first stage's scores, float [documents].

    Returns:
        float64 [heads, 4], in the order of :data:`EVIDENCE`: entropy of the softmax over standardised scores as a share
        of its maximum; how far the best document stands above the second, in standard deviations; correlation with the
        mean of all heads; correlation with the first stage's scores. All are 0 for lists of one.
    """
    count, heads = vectors.shape
    if count < 2:
        return np.zeros((heads, len(EVIDENCE)))
    standard = standardised(vectors.astype(np.float64)).T  # [heads, documents]
    exponentials = np.exp(standard - standard.max(axis=1, keepdims=True))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1) / np.log(count)
    ranked = np.sort(standard, axis=1)
    common = standardised(standard.mean(axis=0))
    first = standardised(first_stage)
    return np.stack(
        [entropy, ranked[:, -1] - ranked[:, -2], standard @ common / count, standard @ first / count], axis=1
    )
