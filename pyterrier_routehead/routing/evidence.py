"""Features of each head on a candidate list, without judgements: query performance prediction for heads.

An extension of RouteHead: in addition to the query, a router may use how each head's scores are spread over the list
and how well they correlate with those of the other heads and of the first stage.
"""

import numpy as np

from ..common.standard import standardised

EVIDENCE = ("entropy", "margin", "agreement with heads", "agreement with first stage")
"""Names of the features, in order."""

_LEAST_DEVIATION = 1e-3
"""Of the mean of all heads' standard scores; below it, the heads do not agree on anything."""


def list_evidence(vectors: np.ndarray, first_stage: np.ndarray) -> np.ndarray:
    """Four features of each head of a list.

    Args:
        vectors: head scores, float [documents, heads].
        first_stage: the first stage's scores, float [documents].

    Returns:
        float64 [heads, 4], in the order of :data:`EVIDENCE`: entropy of the softmax over standardised scores as a share
        of its maximum; the margin of the best document over the second, in standard deviations; correlation with the
        mean of all heads; correlation with the first stage's scores. All are 0 for a list of one document.
    """
    count, heads = vectors.shape
    if count < 2:
        return np.zeros((heads, len(EVIDENCE)))
    standard = standardised(vectors.astype(np.float64)).T  # [heads, documents]
    exponentials = np.exp(standard - standard.max(axis=1, keepdims=True))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1) / np.log(count)
    ranked = np.sort(standard, axis=1)
    mean = standard.mean(axis=0)
    # Heads that contradict each other leave rounding errors of a mean, which must not be blown up to 1.
    mean_scores = (mean - mean.mean()) / max(mean.std(), _LEAST_DEVIATION)
    standard_first_stage = standardised(first_stage)
    margin = ranked[:, -1] - ranked[:, -2]
    return np.stack(
        [entropy, margin, standard @ mean_scores / count, standard @ standard_first_stage / count], axis=1
    )
