"""Pseudo labels: which heads a router should select for each training query.

The labels that a plain search finds on the judgements of one list are mostly noise: the best of equally many random
orders ranks as well as the best single head of the list. :func:`half_list_quality` measures what generalises: heads are
selected on one half of the candidates and evaluated on the other. The recipes differ in how far they trust a single
list: ``"search"`` follows the published steps; ``"search+prior"``, ``"shrunk"`` and ``"utility"`` are extensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..heads import Head
from .search import PaddedLists, log_probability, search_sets, weighted_ndcg


@dataclass(frozen=True)
class PseudoLabels:
    """The training targets of a router.

    Attributes:
        targets: float64 [lists, heads], from 0 to 1.
        before: nDCG@10 of all heads of the pool together, [lists].
        after: nDCG@10 of the labelled heads, summed with the labels as weights, [lists].
    """

    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def table(self, qids: list[str], heads: tuple[Head, ...]) -> pd.DataFrame:
        """One row per query: its heads, and nDCG@10 of the pool (before) and of the label (after)."""
        chosen = [" ".join(str(head) for head, label in zip(heads, targets, strict=True) if label >= 0.5)
                  for targets in self.targets]
        sizes = (self.targets >= 0.5).sum(axis=1)
        columns = {"qid": qids, "heads": chosen, "size": sizes, "before": self.before, "after": self.after}
        return pd.DataFrame(columns)


DEFAULT_RELIABILITY = 0.25
"""Assumed reliability of a single list's utilities where it cannot be estimated; not tuned."""

Recipe = Callable[[PaddedLists, int], np.ndarray]
"""From judged lists and the maximum number of heads in a set to targets [lists, heads]."""


def searched(lists: PaddedLists, max_heads: int) -> np.ndarray:
    """The published steps, forward selection and exchange (RouteHead, 2604.24608), maximising each list's nDCG@10."""
    return search_sets(lists, max_heads).members.astype(float)


def searched_towards_prior(lists: PaddedLists, max_heads: int) -> np.ndarray:
    """A search on nDCG@10 and the smooth criterion in equal parts, with a bonus for heads that rank all lists well."""
    utility = head_utility(lists)
    prior = utility.mean(axis=0)
    spread = prior.std() or 1.0
    return search_sets(lists, max_heads, smooth=0.5, prior=(prior - prior.mean()) / spread).members.astype(float)


def shrunk(lists: PaddedLists, max_heads: int) -> np.ndarray:
    """The ``max_heads`` heads with the highest utility on a list, after shrinking it towards the mean over lists.

    The shrinkage factor is the reliability: how far a head's utility on one half of the candidates predicts that on the
    other half, beyond the means.
    """
    utility = head_utility(lists)
    mean = utility.mean(axis=0)
    posterior = mean + reliability(lists) * (utility - mean)
    return best_heads(posterior, max_heads)


def by_utility(lists: PaddedLists, max_heads: int) -> np.ndarray:
    """Soft labels: each head's utility on a list, less the list's mean over the heads, through a sigmoid.

    Labels are not binary: a router that learns them and selects the ``max_heads`` most probable heads ranks heads by
    expected utility. Use it with ``min_heads`` equal to ``max_heads``.
    """
    utility = head_utility(lists)
    centred = utility - utility.mean(axis=1, keepdims=True)
    targets: np.ndarray = 0.5 + 0.5 * np.tanh(0.5 * centred / (centred.std() or 1.0))
    return targets


def static(lists: PaddedLists, max_heads: int) -> np.ndarray:
    """The same heads for every query, those with the highest mean utility: the baseline for all recipes."""
    utility = head_utility(lists)
    return best_heads(np.broadcast_to(utility.mean(axis=0), utility.shape), max_heads)


def best_heads(values: np.ndarray, max_heads: int) -> np.ndarray:
    """Labels from one value per head, [lists, heads]: 1 for the ``max_heads`` highest of each list, 0 for the rest."""
    targets = np.zeros(values.shape)
    np.put_along_axis(targets, np.argsort(-values, axis=1, kind="stable")[:, :max_heads], 1.0, axis=1)
    return targets


RECIPES: dict[str, Recipe] = {
    "search": searched,
    "search+prior": searched_towards_prior,
    "shrunk": shrunk,
    "utility": by_utility,
}
"""Label recipes by name."""


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, or the function itself.

    Raises:
        TypeError: for any other value.
        ValueError: for an unknown name, listing the known ones.
    """
    if callable(recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"labels must be the name of a recipe ({', '.join(RECIPES)}) or a function, got {recipe!r}")
    if recipe not in RECIPES:
        raise ValueError(f"there is no label recipe {recipe!r}; known: {', '.join(RECIPES)}; or give a function")
    return RECIPES[recipe]


def make_labels(recipe: str | Recipe, lists: PaddedLists, max_heads: int) -> PseudoLabels:
    """Labels by a recipe, with nDCG@10 before and after.

    Raises:
        ValueError: for an unknown recipe, listing the known ones.
    """
    targets = np.asarray(get_recipe(recipe)(lists, max_heads), dtype=float)
    if targets.shape != lists.scores.shape[::2] or not ((targets >= 0) & (targets <= 1)).all():
        raise ValueError(
            f"labels must be numbers from 0 to 1 of shape {lists.scores.shape[::2]}, got shape {targets.shape}"
        )
    return PseudoLabels(targets, weighted_ndcg(lists, np.ones_like(targets)), weighted_ndcg(lists, targets))


def head_utility(lists: PaddedLists) -> np.ndarray:
    """The smooth criterion of each list ranked by each head alone: float64 [lists, heads]."""
    return log_probability(lists, lists.scores)


def halves(lists: PaddedLists, seed: int) -> tuple[PaddedLists, PaddedLists]:
    """Each list's candidates split at random into two lists, relevant and non-relevant ones evenly.

    Lists with fewer than two relevant or two non-relevant candidates cannot be halved and are left out.
    """
    rng = np.random.default_rng(seed)
    relevant = lists.gains > 0
    can_be_halved = ((relevant & lists.mask).sum(axis=1) >= 2) & ((~relevant & lists.mask).sum(axis=1) >= 2)
    halved = lists[np.flatnonzero(can_be_halved)]
    first = np.zeros_like(halved.mask)
    for i in range(len(halved)):
        for group in (halved.gains[i] > 0, (halved.gains[i] <= 0) & halved.mask[i]):
            first[i, rng.permutation(np.flatnonzero(group))[::2]] = True
    return halved.documents(first & halved.mask), halved.documents(~first & halved.mask)


def reliability(lists: PaddedLists, seed: int = 0) -> float:
    """How well a head's utility on a half list, less its mean, predicts that on the other half: from 0 to 1.

    The correlation between halves, corrected to full lists by the Spearman-Brown formula;
    :data:`DEFAULT_RELIABILITY` where fewer than two lists can be halved, which requires two relevant documents.
    """
    first_half, second_half = (head_utility(half) for half in halves(lists, seed))
    if len(first_half) < 2:
        return DEFAULT_RELIABILITY
    first_half, second_half = first_half - first_half.mean(axis=0), second_half - second_half.mean(axis=0)
    # The mean over heads is the list's difficulty, which does not distinguish heads.
    first_half = first_half - first_half.mean(axis=1, keepdims=True)
    second_half = second_half - second_half.mean(axis=1, keepdims=True)
    scale = np.sqrt((first_half**2).sum() * (second_half**2).sum())
    correlation = min(max(float((first_half * second_half).sum() / scale), 0.0), 1.0) if scale > 0 else 0.0
    return 2 * correlation / (1 + correlation)


def half_list_quality(recipe: str | Recipe, lists: PaddedLists, max_heads: int, seeds: int = 5) -> float:
    """Mean nDCG@10 on one half of each list's candidates, ranked by the heads labelled on the other half.

    Labels that are noise score no higher here than :func:`static` ones.
    """
    values = []
    for seed in range(seeds):
        both_halves = halves(lists, seed)
        if not len(both_halves[0]):
            raise ValueError("no list has two relevant and two non-relevant candidates, so none can be halved")
        for seen, unseen in (both_halves, both_halves[::-1]):
            targets = make_labels(recipe, seen, max_heads).targets
            values.append(weighted_ndcg(unseen, targets).mean())
    return float(np.mean(values))
