"""Head scores of one candidate list, as numbers: what the kernel gives and the store keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ListScores:
    """Head scores of one candidate list. Rows are candidates in the order given, columns the heads in theirs.

    Attributes:
        raw: attention that the query rows pay to a document: mean over rows, sum over its tokens. float32
            [documents, heads].
        null: the same for the content-free query; None without calibration.
        filtered: calibrated (raw less null, token by token), after the 2-sigma token filter per head; None without
            calibration.
        summed: calibrated, summed over the heads, then filtered: float32 [documents]. ICR's score, not additive over
            heads; None without calibration.
        hidden: mean hidden state of the query rows after each layer asked for, float32 [hidden size].
    """

    raw: np.ndarray
    null: np.ndarray | None
    filtered: np.ndarray | None
    summed: np.ndarray | None
    hidden: dict[int, np.ndarray]

    def vectors(self, *, calibrate: bool, token_filter: str | None) -> np.ndarray:
        """Scores per head under some settings, float32 [documents, heads]; not for ``token_filter='sum'``."""
        if token_filter == "sum":
            raise ValueError("token_filter='sum' has no scores per head: use summed")
        if not calibrate:
            return self.raw
        return self.filtered if token_filter == "head" else self.raw - self.null

    def of_heads(self, columns: Sequence[int]) -> "ListScores":
        """The scores of some heads, by their places. ``summed``, a sum over other heads, is lost."""
        raw, null, filtered = (
            scores if scores is None else scores[:, columns] for scores in (self.raw, self.null, self.filtered)
        )
        return ListScores(raw, null, filtered, None, self.hidden)
