"""How a router is trained, as values; what does it, and needs torch, is :mod:`pyterrier_routehead.routing.training`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..common.arguments import check_choice, check_number, check_whole


@dataclass(frozen=True)
class TrainingSettings:
    """How a router is trained.

    Args:
        size: numbers in a head's embedding.
        dropout: on the projected query.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: queries in a step.
        epochs: at most so many.
        patience: epochs without a better held-out nDCG@10 after which training ends.
        labels: weight of the loss on pseudo labels.
        sparsity: weight of the regulariser on probabilities.
        target_size: None for the mean probability (L1); or the regulariser is the squared difference between the mean
            number of chosen heads and this number, as a share of the pool.
        balance: weight of positive labels at most; they weigh as much as the negatives up to this.
        ranking: weight of a listwise loss on the routed ranking itself (an extension of ours).
        ridge: weight of the mean sum of squared logits, which keeps them small where they are weights: use it without
            labels.
        query_ridge: the same for what the query alone adds to the logits; a few hundred training queries say little
            about it.
        start: ``"frequency"``: each head's own part from how often it is labelled (where logits are weights: from equal
            ones), the query's part small and at random; ``"ridge"``: from a ridge regression of the labels' log-odds on
            the query embedding, its penalty by generalised cross-validation (an extension of ours: where little is
            known of the query's part, it is kept small).
        seed: of the weights, the order of queries and dropout.
    """

    start: str = "frequency"
    size: int = 32
    dropout: float = 0.1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    epochs: int = 60
    patience: int = 12
    labels: float = 1.0
    sparsity: float = 1e-2
    target_size: float | None = None
    balance: float = 10.0
    ranking: float = 0.0
    ridge: float = 0.0
    query_ridge: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("start", self.start, ("frequency", "ridge"))
        for name, least in (("size", 1), ("batch_size", 1), ("epochs", 0), ("patience", 0), ("seed", 0)):
            check_whole(name, getattr(self, name), least=least)
        weights = ("labels", "sparsity", "balance", "ranking", "ridge", "query_ridge")
        for name in ("learning_rate", "weight_decay", "dropout", *weights):
            if check_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} is a number from 0, got {getattr(self, name)!r}")
        if self.dropout >= 1:
            raise ValueError(f"dropout is a share below 1, got {self.dropout!r}")
        if self.target_size is not None:
            check_number("target_size", self.target_size)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, *, seed: int, by_logits: bool) -> "TrainingSettings":
        """Settings by name, over the defaults for a router that weighs heads by their logits or not.

        Raises:
            TypeError: for a name that is no setting, listing those there are; or a value of a wrong type.
            ValueError: for a wrong value.
        """
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"training is a mapping of settings by name, got {given!r}")
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in given or {} if name not in known]:
            raise TypeError(f"training has no setting {unknown[0]!r}: {', '.join(known)}")
        return cls(**{"seed": seed, **(FOR_LOGITS if by_logits else {}), **(given or {})})


FOR_LOGITS = {"labels": 0.0, "sparsity": 0.0, "ranking": 1.0, "ridge": 0.5, "query_ridge": 300.0, "weight_decay": 0.0}
"""Settings for a router that weighs heads by their logits: trained on the ranking alone."""
