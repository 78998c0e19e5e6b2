"""Standard scores, by which unlike scores of one list are compared."""

import numpy as np

ATTENTION_NOISE = 1e-3
"""Relative size of differences that rounding can make between attention scores of documents that are the same.

Scores are float32 differences of nearly equal numbers: the last bits of two copies of a document differ by up to some
2e-4 of the scores.
"""


def standardised(scores: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """Scores of one list less their mean, over their standard deviation; all 0 where that is 0.

    Any finite scores, however large or small. Shape [documents], or [documents, heads] for each head by itself.

    Args:
        scores: the scores.
        noise: relative size of differences that mean nothing: the deviation counts as at least this share of the
            largest score, so that scores of equal documents stay near 0.
    """
    # Squares of 1e200 or 1e-170 are no numbers: first to within 1, by a power of two, which rounds nothing.
    scores = np.asarray(scores, dtype=np.float64)
    scaled = np.ldexp(scores, -np.frexp(np.abs(scores).max(axis=0))[1])
    deviation = scaled.std(axis=0)
    # Equal scores can leave a deviation of rounding errors, which must not be blown up to 1.
    largest = np.abs(scaled).max(axis=0)
    differ = deviation > 1e-12 * largest
    deviation = np.maximum(deviation, noise * largest)
    return np.where(differ, (scaled - scaled.mean(axis=0)) / np.where(differ, deviation, 1), 0)
