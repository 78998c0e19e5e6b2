"""Standard scores, by which unlike scores of one list are compared."""

import numpy as np


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores of one list less their mean, over their standard deviation; all 0 where that is 0.

    Any finite scores, however large or small. Shape [documents], or [documents, heads] for each head by itself.
    """
    # Squares of 1e200 or 1e-170 are no numbers: first to within 1, by a power of two, which rounds nothing.
    scores = np.asarray(scores, dtype=np.float64)
    scaled = np.ldexp(scores, -np.frexp(np.abs(scores).max(axis=0))[1])
    deviation = scaled.std(axis=0)
    # Equal scores can leave a deviation of rounding errors, which must not be blown up to 1.
    differ = deviation > 1e-12 * np.abs(scaled).max(axis=0)
    return np.where(differ, (scaled - scaled.mean(axis=0)) / np.where(differ, deviation, 1), 0)
