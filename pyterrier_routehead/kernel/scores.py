"""Head scores of one candidate list, as numbers: what the kernel gives and the store keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .aggregate import AGGREGATIONS, FILTERED, FILTERED_SUM, Aggregation


@dataclass(frozen=True)
class ListScores:
    """Head scores of one candidate list. Rows are candidates in the order given, columns the heads in theirs.

    Attributes:
        raw: attention that the query rows pay to a document: mean over rows, sum over its tokens. float32
            [documents, heads].
        null: the same for the content-free query; None without calibration.
        filtered: calibrated (raw less null, token by token), after the 2-sigma token filter per head; None without
            calibration.
        aggregated: scores by the other aggregations, by name: float32 [documents, heads], or [documents] where the
            heads are summed first; None where they are not known, as in what the store keeps.
        hidden: mean hidden state of the query rows after each layer asked for, float32 [hidden size].
    """

    raw: np.ndarray
    null: np.ndarray | None
    filtered: np.ndarray | None
    aggregated: Mapping[str, np.ndarray] | None
    hidden: dict[int, np.ndarray]

    @property
    def summed(self) -> np.ndarray | None:
        """Calibrated, summed over the heads, then filtered: float32 [documents]. ICR's score, not additive over heads.

        None without calibration, and where it is not known.
        """
        return (self.aggregated or {}).get(FILTERED_SUM.name)

    def vectors(self, aggregation: Aggregation, *, calibrate: bool) -> np.ndarray:
        """Scores by an aggregation: float32 [documents, heads], one column where it sums the heads first.

        Raises:
            ValueError: for scores that are not known.
        """
        if aggregation.linear:
            scores = self.raw if not calibrate else None if self.null is None else self.raw - self.null
        elif aggregation.name == FILTERED.name:
            scores = self.filtered
        else:
            scores = (self.aggregated or {}).get(aggregation.name)
        if scores is None:
            raise ValueError(f"there are no scores for token_filter={aggregation.name!r}, calibrate={calibrate}")
        return scores if aggregation.per_head else scores[:, None]

    def of_heads(self, columns: Sequence[int]) -> "ListScores":
        """The scores of some heads, by their places. Those of aggregations that sum the heads first are lost."""
        by_head = {
            name: scores[:, columns]
            for name, scores in (self.aggregated or {}).items()
            if AGGREGATIONS[name].per_head
        }
        return ListScores(
            self.raw[:, columns],
            None if self.null is None else self.null[:, columns],
            None if self.filtered is None else self.filtered[:, columns],
            by_head or None,
            self.hidden,
        )


def follow_from_stored(aggregation: Aggregation) -> bool:
    """Whether an aggregation's scores follow from raw, null and filtered ones, which are what the store keeps."""
    return aggregation.linear or aggregation.name == FILTERED.name
