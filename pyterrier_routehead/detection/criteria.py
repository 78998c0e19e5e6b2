"""The criteria of head detection: the quality of each head on a judged list.

Each is a function of head scores, float [documents, heads] in first-stage order, and judgements, numbers [documents],
that returns one number per head, float64 [heads], higher for better heads; or None for an uninformative list. A
document counts as relevant (positive) if its label is above 0; only nDCG uses the value of the label. All others are
negatives, judged or not, and a positive is never a negative of another positive. Detection takes the mean over lists.

A custom criterion is a :class:`Criterion` around such a function; in :data:`CRITERIA` it is registered by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.arguments import check_flag, check_number
from ..evaluation.measures import ideal_dcg, ndcg

Judge = Callable[..., "np.ndarray | None"]


@dataclass(frozen=True)
class Criterion:
    """A criterion with its settings.

    Args:
        name: its name in results and files.
        judge: the function, called as ``judge(scores, labels, **settings)``.
        calibrated: whether it requires calibrated, filtered scores, or the raw attention.
        settings: additional arguments of the function.
        needs_ideal: whether the function also requires ``ideal=``, the DCG@10 of the ideal ranking of all documents
            judged for the query.
    """

    name: str
    judge: Judge
    calibrated: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_ideal: bool = False

    def __call__(self, scores: np.ndarray, labels: np.ndarray, ideal: float | None = None) -> np.ndarray | None:
        """One number per head, float64 [heads]; None for a list without a positive or without a negative.

        Without ``ideal``, it is computed from the list's documents.
        """
        scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
        if scores.ndim != 2 or labels.shape != scores.shape[:1]:
            shapes = f"{scores.shape}, {labels.shape}"
            raise ValueError(f"scores must be [documents, heads], labels [documents]; got {shapes}")
        positive = labels > 0
        if positive.all() or not positive.any():
            return None
        extra = {"ideal": ideal_dcg(labels) if ideal is None else ideal} if self.needs_ideal else {}
        return self.judge(scores, labels, **self.settings, **extra)


def contrastive(scores: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """CoRe's score: the softmax probability of a positive against the negatives of its list.

    exp(s+ / t) / (exp(s+ / t) + sum over negatives of exp(s- / t)), with t the temperature and s the attention to a
    document (CoRe, arXiv 2510.02219, and its code, which has one positive per list). Several positives are each
    contrasted with all negatives, and averaged. Numerically stable at any temperature.
    """
    positive = labels > 0
    logits = scores / temperature
    highest = logits[~positive].max(axis=0)
    negatives = np.log(np.exp(logits[~positive] - highest).sum(axis=0)) + highest
    log_odds = logits[positive] - negatives
    mean: np.ndarray = np.exp(-np.logaddexp(0, -log_odds)).mean(axis=0)
    return mean


def attention_mass(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """QRscore: the total attention to the positives of a list (QRHead, arXiv 2506.09944, equations 2 to 4)."""
    mass: np.ndarray = scores[labels > 0].sum(axis=0)
    return mass


def single_head_ndcg(scores: np.ndarray, labels: np.ndarray, ideal: float) -> np.ndarray:
    """The nDCG@10 of the ranking by a single head, by which QRHead's code selects heads for BEIR.

    Ties keep the first stage's order; see :mod:`~pyterrier_routehead.evaluation.measures`.
    """
    values: np.ndarray = ndcg(np.maximum(labels, 0)[None].astype(np.float64), scores[None], np.array([ideal]))[0]
    return values


def reciprocal_rank(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One over the rank of the first positive in the ranking by a single head. Ties keep the first stage's order."""
    ranked = np.argsort(-scores, axis=0, kind="stable")
    reciprocal: np.ndarray = 1 / (np.argmax((labels > 0)[ranked], axis=0) + 1.0)
    return reciprocal


def core_criterion(temperature: float = 0.001, calibrated: bool = False) -> Criterion:
    """CoRe's criterion, on raw attention as published or on calibrated scores.

    Raises:
        TypeError: for a temperature that is not a number, or a flag that is not a bool.
        ValueError: for a temperature that is not above 0.
    """
    number = check_number("temperature", temperature, what="a number above 0")
    if number <= 0:
        raise ValueError(f"temperature is a number above 0, got {temperature!r}")
    return Criterion("core", contrastive, check_flag("calibrated", calibrated), {"temperature": number})


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        core_criterion(),
        # The paper's equations have raw attention; its code, for LongMemEval, calibrates and filters.
        Criterion("qr", attention_mass, False),
        Criterion("qr-calibrated", attention_mass, True),
        Criterion("ndcg@10", single_head_ndcg, True, needs_ideal=True),
        Criterion("mrr", reciprocal_rank, True),
    )
}
"""Criteria by name."""


def get_criterion(criterion: str | Criterion) -> Criterion:
    """A criterion by name, or the criterion itself.

    Raises:
        TypeError: for any value but a name or a criterion.
        ValueError: for an unknown name, listing the known ones.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if not isinstance(criterion, str):
        raise TypeError(f"criterion must be the name of a criterion or a Criterion, got {criterion!r}")
    if criterion not in CRITERIA:
        raise ValueError(f"there is no criterion {criterion!r}; known: {', '.join(CRITERIA)}; or give a Criterion")
    return CRITERIA[criterion]
