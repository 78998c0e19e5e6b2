"""Settings of `RouteHeadReranker`, as values: how its router is trained, and extensions beyond the paper.

The training itself, which needs torch, is in :mod:`pyterrier_routehead.routing.training`.
"""

from dataclasses import dataclass, replace
from typing import Any

from ..common.arguments import check_choice, check_flag, check_number, check_whole
from .router import Selection
from .state import SOURCES


@dataclass(frozen=True)
class RouterTraining:
    """How a router is trained. None means the default for its weighting of heads: see FOR_LABELS and FOR_LOGITS.

    ``ranking``, ``ridge``, ``query_ridge`` and the start ``"ridge"`` are not in the paper.

    Args:
        size: dimension of a head's embedding.
        dropout: dropout rate on the projected query.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: number of queries per step.
        epochs: maximum number of epochs.
        patience: number of epochs without a better held-out nDCG@10 after which training stops.
        labels: weight of the loss on pseudo labels.
        sparsity: weight of the regulariser on probabilities.
        target_size: None for the mean probability (L1); or the regulariser is the squared difference between the mean
            number of chosen heads and this number, as a share of the pool.
        balance: maximum weight of a positive label; up to it, positives and negatives have equal total weight.
        ranking: weight of a listwise loss on the routed ranking itself.
        ridge: weight of the mean sum of squared logits, which keeps them small where they are weights: use it without
            labels.
        query_ridge: the same for the part of the logits that depends on the query, which a few hundred training queries
            estimate poorly.
        start: initial weights. ``"frequency"``: each head's bias from how often it is labelled (where logits are
            weights: equal biases), the query's part small and random. ``"ridge"``: from a ridge regression of the
            labels' log-odds on the query embedding, its penalty chosen by generalised cross-validation.
    """

    start: str = "frequency"
    size: int = 32
    dropout: float = 0.1
    learning_rate: float = 3e-3
    weight_decay: float | None = None
    batch_size: int = 64
    epochs: int = 60
    patience: int = 12
    labels: float | None = None
    sparsity: float | None = None
    target_size: float | None = None
    balance: float = 10.0
    ranking: float | None = None
    ridge: float | None = None
    query_ridge: float | None = None

    def __post_init__(self) -> None:
        check_choice("start", self.start, ("frequency", "ridge"))
        for name, minimum in (("size", 1), ("batch_size", 1), ("epochs", 0), ("patience", 0)):
            check_whole(name, getattr(self, name), least=minimum)
        given = [name for name in FOR_LABELS if getattr(self, name) is not None]
        for name in ("learning_rate", "dropout", "balance", *given):
            if check_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} must be a number >= 0, got {getattr(self, name)!r}")
        if self.dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {self.dropout!r}")
        if self.target_size is not None:
            check_number("target_size", self.target_size)

    def resolved(self, by_logits: bool) -> "RouterTraining":
        """The same settings with None replaced by the defaults, which depend on whether logits are the weights."""
        defaults = FOR_LOGITS if by_logits else FOR_LABELS
        missing: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)


FOR_LABELS = {
    "labels": 1.0, "sparsity": 1e-2, "ranking": 0.0, "ridge": 0.0, "query_ridge": 0.0, "weight_decay": 1e-2,
}  # fmt: skip
"""Defaults for None in :class:`RouterTraining`: trained on pseudo labels, with a regulariser."""

FOR_LOGITS = {"labels": 0.0, "sparsity": 0.0, "ranking": 1.0, "ridge": 0.5, "query_ridge": 300.0, "weight_decay": 0.0}
"""Defaults where logits are weights: trained on the ranking alone."""


@dataclass(frozen=True)
class Extensions:
    """Extensions of `RouteHeadReranker` beyond the paper. None means: as stored in the router.

    Args:
        evidence: let the router use features of the list too; see :mod:`~pyterrier_routehead.routing.evidence`.
        source: ``"query"``: embed the query alone, in one short pass; ``"tail"``: by the pass that reads the heads,
            from the column ``hidden_state`` or, in late reading, at no cost. None means ``"tail"`` in late reading,
            else ``"query"``.
        min_heads: minimum number of heads (1).
        weighting: how a query's heads are summed: ``"even"``, as published (the default); by their ``"probability"``;
            or by their ``"logit"``, which may be negative, over the full pool: then heads are standardised within the
            list, the router is trained on the ranking itself, not on pseudo labels, and ``first_stage_weight`` takes
            part in the training, since the first stage's score is added to the sum unscaled.
        static_heads: number of the best heads over all queries that are always selected, beside the routed ones (0).
        unsure: where no probability reaches this, the best ``max_heads`` heads over all queries rank (0).

    Raises:
        TypeError: for a value of a wrong type, naming the argument.
        ValueError: for an invalid value, naming the argument.
    """

    evidence: bool = False
    source: str | None = None
    min_heads: int | None = None
    weighting: str | None = None
    static_heads: int | None = None
    unsure: float | None = None

    def __post_init__(self) -> None:
        check_flag("evidence", self.evidence)
        if self.source is not None:
            check_choice("source", self.source, SOURCES)
        Selection(**self.chosen(), max_heads=1 << 20)  # checks the values; max_heads is not known here

    def chosen(self) -> dict[str, Any]:
        """The fields of :class:`Selection` that are set here, by name."""
        names = ("min_heads", "weighting", "static_heads", "unsure")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


AS_PUBLISHED = Extensions()
"""No extension, or as stored in the router."""
