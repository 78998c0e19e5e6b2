"""Pseudo labels: which heads a router should choose for each training query.

A raw search over one list's judgements finds mostly luck: the best of as many random orders ranks as well as the best
single head of a list. What is real shows on halves of a list (:func:`half_list_quality`): heads chosen on one half of
the candidates, scored on the other. The recipes differ in how far they trust a single list: ``"search"`` takes the
published steps; ``"search+prior"``, ``"shrunk"`` and ``"utility"`` are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..heads import Head
from .search import PaddedLists, log_probability, search_sets, weighted_ndcg


@dataclass(frozen=True)
class PseudoLabels:
    """What a router is trained on.

    Attributes:
        targets: float64 [lists, heads], from 0 to 1.
        before: nDCG@10 of all heads of the pool together, [lists].
        after: nDCG@10 of the labelled heads, summed with the labels as weights, [lists].
    """

    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def table(self, qids: list[str], heads: tuple[Head, ...]) -> pd.DataFrame:
        """One row a query: its heads, and nDCG@10 of the pool (before) and of the label (after)."""
        chosen = [" ".join(str(head) for head, label in zip(heads, targets, strict=True) if label >= 0.5)
                  for targets in self.targets]
        sizes = (self.targets >= 0.5).sum(axis=1)
        columns = {"qid": qids, "heads": chosen, "size": sizes, "before": self.before, "after": self.after}
        return pd.DataFrame(columns)


UNKNOWN = 0.25
"""Reliability of a single list's evidence where it cannot be estimated: our guess."""

Recipe = Callable[[PaddedLists, int], np.ndarray]
"""From judged lists and the largest size of a set to targets [lists, heads]."""


def searched(lists: PaddedLists, most: int) -> np.ndarray:
    """The published steps, forward selection and exchange (RouteHead, 2604.24608), on each list's nDCG@10 (ours)."""
    return search_sets(lists, most).members.astype(float)


def searched_towards_prior(lists: PaddedLists, most: int) -> np.ndarray:
    """A search on nDCG@10 and the smooth criterion in equal parts, with a bonus for heads good over all lists."""
    utility = head_utility(lists)
    prior = utility.mean(axis=0)
    spread = prior.std() or 1.0
    return search_sets(lists, most, smooth=0.5, prior=(prior - prior.mean()) / spread).members.astype(float)


def shrunk(lists: PaddedLists, most: int) -> np.ndarray:
    """The heads with the highest utility on a list after shrinking it towards the mean over lists; always ``most``.

    The share of a single list's evidence that is kept is its reliability: how far a head's utility on one half of the
    candidates predicts that on the other half, over and above the means.
    """
    utility = head_utility(lists)
    mean = utility.mean(axis=0)
    posterior = mean + reliability(lists) * (utility - mean)
    return best_heads(posterior, most)


def by_utility(lists: PaddedLists, most: int) -> np.ndarray:
    """Soft labels: each head's utility on a list, less the list's mean over the heads, through a sigmoid.

    No head is in or out: a router that learns these and takes the ``most`` likely heads follows a head's expected
    utility. Use it with ``min_heads`` equal to ``max_heads``.
    """
    utility = head_utility(lists)
    centred = utility - utility.mean(axis=1, keepdims=True)
    targets: np.ndarray = 0.5 + 0.5 * np.tanh(0.5 * centred / (centred.std() or 1.0))
    return targets


def static(lists: PaddedLists, most: int) -> np.ndarray:
    """The same heads for every query, those with the highest mean utility: what any other recipe must beat."""
    utility = head_utility(lists)
    return best_heads(np.broadcast_to(utility.mean(axis=0), utility.shape), most)


def best_heads(values: np.ndarray, most: int) -> np.ndarray:
    """Labels from a number a head, [lists, heads]: 1 for the ``most`` highest of each list, 0 for the others."""
    targets = np.zeros(values.shape)
    np.put_along_axis(targets, np.argsort(-values, axis=1, kind="stable")[:, :most], 1.0, axis=1)
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
        TypeError: for what is neither.
        ValueError: for an unknown name, listing the known ones.
    """
    if callable(recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"labels are the name of a recipe ({', '.join(RECIPES)}) or a function, got {recipe!r}")
    if recipe not in RECIPES:
        raise ValueError(f"there is no label recipe {recipe!r}; known: {', '.join(RECIPES)}; or give a function")
    return RECIPES[recipe]


def make_labels(recipe: str | Recipe, lists: PaddedLists, most: int) -> PseudoLabels:
    """Labels by a recipe, with nDCG@10 before and after.

    Raises:
        ValueError: for an unknown recipe, listing the known ones.
    """
    targets = np.asarray(get_recipe(recipe)(lists, most), dtype=float)
    if targets.shape != lists.scores.shape[::2] or not ((targets >= 0) & (targets <= 1)).all():
        raise ValueError(f"labels are numbers from 0 to 1, {lists.scores.shape[::2]} of them; got {targets.shape}")
    return PseudoLabels(targets, weighted_ndcg(lists, np.ones_like(targets)), weighted_ndcg(lists, targets))


def head_utility(lists: PaddedLists) -> np.ndarray:
    """How well each head alone ranks each list by the smooth, list-wide criterion: float64 [lists, heads]."""
    return log_probability(lists, lists.scores)


def halves(lists: PaddedLists, seed: int) -> tuple[PaddedLists, PaddedLists]:
    """Each list's candidates dealt at random into two lists, relevant ones and others evenly.

    Lists with fewer than two relevant or two other candidates cannot be halved and are left out.
    """
    rng = np.random.default_rng(seed)
    relevant = lists.gains > 0
    enough = ((relevant & lists.there).sum(axis=1) >= 2) & ((~relevant & lists.there).sum(axis=1) >= 2)
    halved = lists[np.flatnonzero(enough)]
    first = np.zeros_like(halved.there)
    for i in range(len(halved)):
        for kind in (halved.gains[i] > 0, (halved.gains[i] <= 0) & halved.there[i]):
            first[i, rng.permutation(np.flatnonzero(kind))[::2]] = True
    return halved.documents(first & halved.there), halved.documents(~first & halved.there)


def reliability(lists: PaddedLists, seed: int = 0) -> float:
    """How far a head's utility on a half list, less its mean, says what it is on the other half: from 0 to 1.

    The correlation between halves, raised to whole lists by the Spearman-Brown formula; :data:`UNKNOWN` where fewer
    than two lists can be halved, which takes two relevant documents.
    """
    first_half, second_half = (head_utility(half) for half in halves(lists, seed))
    if len(first_half) < 2:
        return UNKNOWN
    first_half, second_half = first_half - first_half.mean(axis=0), second_half - second_half.mean(axis=0)
    # What all heads have in common on a list is the list's difficulty, not a reason to prefer some of them.
    first_half = first_half - first_half.mean(axis=1, keepdims=True)
    second_half = second_half - second_half.mean(axis=1, keepdims=True)
    scale = np.sqrt((first_half**2).sum() * (second_half**2).sum())
    correlation = min(max(float((first_half * second_half).sum() / scale), 0.0), 1.0) if scale > 0 else 0.0
    return 2 * correlation / (1 + correlation)


def half_list_quality(recipe: str | Recipe, lists: PaddedLists, most: int, seeds: int = 5) -> float:
    """What labels are worth: mean nDCG@10 on one half of each list's candidates with heads labelled on the other half.

    Labels that are luck do no better here than :func:`static` ones.
    """
    values = []
    for seed in range(seeds):
        parts = halves(lists, seed)
        if not len(parts[0]):
            raise ValueError("no list has two relevant and two other candidates, so none can be halved")
        for seen, unseen in (parts, parts[::-1]):
            targets = make_labels(recipe, seen, most).targets
            values.append(weighted_ndcg(unseen, targets).mean())
    return float(np.mean(values))
