"""Which of several head sets, and with how many heads: the choice on validation queries."""

from collections.abc import Sequence
from itertools import product

import pandas as pd

from ..common.notices import warn
from ..detection.criteria import Criterion
from ..detection.head_set import HeadSet
from ..detection.pruning import within
from ..evaluation.measures import NDCG
from .judged import JudgedLists, mean_ndcg

_ROBUST = ("ndcg@10", "mrr", "qr-calibrated", "qr")
_TIE = 1e-9


def choose_set(
    head_sets: Sequence[HeadSet],
    criteria: Sequence[Criterion],
    ks: Sequence[int],
    valid: JudgedLists,
    *,
    max_layer: int | float | None,
    first_stage_weight: float,
    reranker: str,
) -> tuple[HeadSet, int, pd.DataFrame]:
    """The head set and the k that rank validation lists best, with the table of everything that was tried.

    Warns if no set ranks better than all heads together.

    Args:
        head_sets: all heads, best first by each criterion.
        criteria: the criteria.
        ks: numbers of heads to try.
        valid: the validation lists.
        max_layer: see :func:`~pyterrier_routehead.detection.pruning.within`.
        first_stage_weight: weight of the first stage's scores in the ranking.
        reranker: name of the re-ranker, for the warning.
    """
    tried = list(product(range(len(criteria)), ks))
    values = [
        mean_ndcg(valid, valid.reading.columns(within(head_sets[i], max_layer).top(k).heads), first_stage_weight)
        for i, k in tried
    ]
    number = len(valid.reading.heads)
    all_heads = mean_ndcg(valid, list(range(number)), first_stage_weight)
    rows = [
        {"criterion": "first stage", NDCG: mean_ndcg(valid, None, first_stage_weight)},
        {"criterion": "ICR", "k": number, NDCG: all_heads},
    ]
    rows += [
        {"criterion": criteria[i].name, **criteria[i].settings, "k": k, NDCG: value}
        for (i, k), value in zip(tried, values, strict=True)
    ]
    settings = dict.fromkeys(name for criterion in criteria for name in criterion.settings)
    table = pd.DataFrame(rows, columns=["criterion", *settings, "k", NDCG]).astype({"k": "Int64"})
    best = max(values)
    if best <= all_heads + _TIE:
        warn(
            f"on the validation queries, no set that {reranker} found ranks better than all heads together (ICR): "
            f"nDCG@10 {best:.4f} against {all_heads:.4f}; see validation_"
        )
    tied = [pair for pair, value in zip(tried, values, strict=True) if value > best - _TIE]
    chosen, k = min(tied, key=lambda pair: (_preference(criteria[pair[0]]), -pair[1]))
    return head_sets[chosen], k, table


def _preference(criterion: Criterion) -> tuple[float, int, bool]:
    """Orders tied criteria: first those that are least likely to prefer heads for other reasons than relevance."""
    place = _ROBUST.index(criterion.name) if criterion.name in _ROBUST else len(_ROBUST)
    return criterion.settings.get("temperature", 0.0), place, not criterion.calibrated
