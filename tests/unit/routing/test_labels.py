"""Pseudo labels: the recipes, halves of lists, and their quality on the unseen half."""

import numpy as np
import pandas as pd
import pytest

from pyterrier_routehead import Head
from pyterrier_routehead.routing.labels import (
    DEFAULT_RELIABILITY,
    RECIPES,
    half_list_quality,
    halves,
    head_utility,
    make_labels,
    reliability,
    static,
)
from pyterrier_routehead.routing.search import PaddedLists, list_ndcg, log_probability

NAMES = pytest.mark.parametrize("recipe", [*RECIPES, static], ids=str)


def some_lists(seed, count=60, heads=12, documents=24, relevant=8, strength=1.5, good=None):
    """Noise, and heads that see the relevant documents: two others on each list, or the same ones everywhere."""
    generator = np.random.default_rng(seed)
    scores, labels, planted = [], [], []
    for _ in range(count):
        own = np.zeros(documents)
        own[generator.permutation(documents)[:relevant]] = 1
        noise = generator.normal(size=(documents, heads))
        planted.append(generator.permutation(heads)[:2] if good is None else np.array(good))
        noise[:, planted[-1]] += strength * own[:, None]
        scores.append(noise)
        labels.append(own)
    return PaddedLists.of(scores, labels), planted


SPECIFIC, SPECIFIC_HEADS = some_lists(0)
NOISE, _ = some_lists(1, strength=0.0)
COMMON, _ = some_lists(2, good=[7, 3])


# Recipes


def test_the_recipes_have_names():
    assert list(RECIPES) == ["search", "search+prior", "shrunk", "utility"]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "utility"] + [static], ids=str)
@pytest.mark.parametrize("most", [1, 3, 12])
def test_labels_are_one_number_a_head_with_at_most_so_many_heads(recipe, most):
    lists = SPECIFIC[np.arange(10)]
    labels = make_labels(recipe, lists, most)
    assert labels.targets.shape == (10, 12)
    assert labels.targets.dtype == np.float64
    assert set(np.unique(labels.targets)) <= {0.0, 1.0}
    sizes = labels.targets.sum(axis=1)
    assert (sizes >= 1).all()
    assert (sizes <= most).all()
    if recipe in ("shrunk", static):
        assert (sizes == most).all()


@NAMES
def test_more_heads_than_there_are_may_be_asked_for(recipe):
    assert (make_labels(recipe, SPECIFIC[np.arange(5)].heads(np.arange(3)), 8).targets.sum(axis=1) <= 3).all()


@pytest.mark.parametrize("recipe", ["search", "search+prior", "shrunk"])
def test_heads_that_are_good_everywhere_are_found(recipe):
    targets = make_labels(recipe, COMMON, 2).targets
    shares = targets.mean(axis=0)
    assert set(np.argsort(-shares)[:2]) == {3, 7}


def test_heads_that_are_good_on_one_list_are_found_there():
    targets = make_labels("shrunk", SPECIFIC, 2).targets
    hits = [targets[i, own].mean() for i, own in enumerate(SPECIFIC_HEADS)]
    assert np.mean(hits) > 0.9


def test_static_labels_are_the_heads_with_the_highest_mean_utility():
    targets = make_labels(static, COMMON, 2).targets
    assert (targets == targets[0]).all()
    assert set(np.flatnonzero(targets[0])) == {3, 7}


def test_labels_by_utility_are_soft_and_in_the_order_of_utility():
    targets = make_labels("utility", SPECIFIC, 2).targets
    assert ((targets > 0) & (targets < 1)).all()
    utility = head_utility(SPECIFIC)
    np.testing.assert_array_equal(np.argsort(targets, axis=1), np.argsort(utility, axis=1))
    # A list's difficulty, which all of its heads share, is no reason to prefer any of them.
    centred = utility - utility.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(np.log(targets / (1 - targets)), centred / centred.std(), atol=1e-9)


def test_the_prior_makes_labels_more_alike():
    plain, drawn = (make_labels(recipe, SPECIFIC, 3).targets for recipe in ("search", "search+prior"))
    assert drawn.mean(axis=0).max() > plain.mean(axis=0).max() + 0.1


def test_before_is_the_whole_pool_and_after_the_labels():
    labels = make_labels("shrunk", SPECIFIC, 3)
    for i in range(0, len(SPECIFIC), 7):
        one, scores = SPECIFIC[np.array([i])], SPECIFIC.scores[i]
        members = np.flatnonzero(labels.targets[i])
        assert labels.before[i] == pytest.approx(list_ndcg(one, scores.sum(axis=1)[None, :, None])[0, 0])
        assert labels.after[i] == pytest.approx(list_ndcg(one, scores[:, members].sum(axis=1)[None, :, None])[0, 0])
    assert labels.after.mean() > labels.before.mean() + 0.1


def test_the_table_names_heads_and_qualities():
    heads = (Head(2, 1), Head(0, 3), Head(1, 1))
    targets = np.array([[1.0, 0, 1], [0, 1, 0]])
    labels = make_labels(lambda lists, most: targets, SPECIFIC[np.arange(2)].heads(np.arange(3)), 2)
    expected = pd.DataFrame(
        {
            "qid": ["q7", "q2"],
            "heads": ["2-1 1-1", "0-3"],
            "size": [2, 1],
            "before": labels.before,
            "after": labels.after,
        }
    )
    pd.testing.assert_frame_equal(labels.table(["q7", "q2"], heads), expected)
    assert not np.allclose(labels.before, labels.after)


def test_a_function_makes_labels_too_and_its_numbers_are_weights():
    seen = []

    def own(lists, most):
        seen.append((len(lists), most))
        return np.tile([0.9, 0.2], (len(lists), 1))

    lists = SPECIFIC[np.arange(6)].heads(np.array([4, 2]))
    labels = make_labels(own, lists, 5)
    assert seen == [(6, 5)]
    np.testing.assert_allclose(labels.after, list_ndcg(lists, (lists.scores @ [0.9, 0.2])[..., None])[:, 0])
    assert labels.table([str(i) for i in range(6)], (Head(0, 0), Head(0, 1)))["heads"].tolist() == ["0-0"] * 6


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no label recipe 'serach'; known: search, search\+prior, shrunk"):
        make_labels("serach", SPECIFIC, 2)


@pytest.mark.parametrize("wrong", [5, None, ["search"], {"search": 1}], ids=repr)
def test_f23_a_recipe_is_a_name_or_a_function(wrong):
    message = r"^labels must be the name of a recipe \(search, search\+prior, shrunk, utility\) or a function, got "
    with pytest.raises(TypeError, match=message):
        make_labels(wrong, SPECIFIC, 2)


# Halves


def uneven_lists():
    """Lists of several lengths; the second, third and fifth have too few of one kind."""
    labels = [
        np.array([1.0, 0, 2, 0, 0, 1, 0, 3, 1]),
        np.array([1.0, 0, 0, 0]),
        np.array([1.0, 1, 0, 1, 1]),
        np.array([0.0, 1, 0, 1]),
        np.array([0.0, 0, 0, 0, -1]),
        np.array([-1.0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]
    generator = np.random.default_rng(3)
    return PaddedLists.of([generator.normal(size=(len(own), 4)) for own in labels], labels)


@pytest.mark.parametrize("seed", range(5))
def test_halves_share_no_candidate_and_are_whole_together(seed):
    lists = uneven_lists()
    one, other = halves(lists, seed)
    kept = lists[np.array([0, 3, 5])]
    assert len(one) == len(other) == 3
    assert not (one.mask & other.mask).any()
    assert ((one.mask | other.mask) == kept.mask).all()
    for name in ("scores", "gains"):
        np.testing.assert_array_equal(getattr(one, name) + getattr(other, name), getattr(kept, name))
    for half in (one, other):
        assert (half.scores[~half.mask] == 0).all()
        assert (half.gains[~half.mask] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_halves_have_relevant_documents_and_others_evenly(seed):
    for lists in (uneven_lists(), SPECIFIC):
        one, other = halves(lists, seed)
        for kind in (lambda half: half.gains > 0, lambda half: (half.gains <= 0) & half.mask):
            counts = [kind(half).sum(axis=1) for half in (one, other)]
            assert (np.abs(counts[0] - counts[1]) <= 1).all()
            assert (counts[0] >= 1).all()
            assert (counts[1] >= 1).all()


def test_halves_are_dealt_at_random_by_the_seed():
    deals = [halves(SPECIFIC, seed)[0].mask for seed in (0, 0, 1)]
    assert (deals[0] == deals[1]).all()
    assert (deals[0] != deals[2]).any()
    shares = np.mean([halves(SPECIFIC, seed)[0].mask for seed in range(60)], axis=0)
    assert shares.min() > 0.1
    assert shares.max() < 0.9


def test_lists_that_cannot_be_halved_leave_nothing():
    lists = uneven_lists()[np.array([1, 2, 4])]
    assert [len(half) for half in halves(lists, 0)] == [0, 0]
    assert reliability(lists) == DEFAULT_RELIABILITY
    assert make_labels("shrunk", lists, 2).targets.sum(axis=1).tolist() == [2, 2, 2]


# Quality on half lists


def test_utility_is_the_smooth_criterion_of_each_head_alone():
    utility = head_utility(SPECIFIC)
    assert utility.shape == (60, 12)
    for head in (0, 5):
        np.testing.assert_allclose(utility[:, head], log_probability(SPECIFIC, SPECIFIC.scores[:, :, head, None])[:, 0])


def test_noise_is_not_reliable_and_what_is_planted_in_lists_is():
    noise = [reliability(some_lists(seed, strength=0.0)[0], seed) for seed in range(8)]
    assert np.mean(noise) < 0.06
    assert max(noise) < 0.15
    assert min(noise) >= 0.0
    by_strength = [reliability(some_lists(5, documents=60, relevant=20, strength=s)[0]) for s in (0.3, 1.0, 2.5)]
    assert by_strength == sorted(by_strength)
    # In long lists, and with heads far apart, the halves are as good as the whole.
    long, _ = some_lists(6, count=40, documents=400, relevant=100, strength=2.0)
    assert 0.9 < reliability(long) <= 1.0


def test_what_is_good_on_every_list_makes_no_list_reliable():
    """Heads that differ, and lists that differ, but no list's own heads."""
    lists, _ = some_lists(7, count=150, strength=1.0, good=[1, 2, 3])
    assert reliability(lists) < 0.12


def test_noise_is_labelled_as_if_all_lists_were_one():
    """Without reliability, shrunk labels are the static ones."""
    unreliable = next(
        lists for lists in (some_lists(seed, strength=0.0)[0] for seed in range(20)) if not reliability(lists)
    )
    shrunk = make_labels("shrunk", unreliable, 3).targets
    assert shrunk.tolist() == make_labels(static, unreliable, 3).targets.tolist()


@pytest.mark.parametrize("recipe", ["shrunk", "search"])
def test_labels_beat_static_ones_on_unseen_halves_where_lists_have_heads_of_their_own(recipe):
    assert half_list_quality(recipe, SPECIFIC, 2) > half_list_quality(static, SPECIFIC, 2) + 0.15


@pytest.mark.parametrize("recipe", ["shrunk", "search", "search+prior"])
def test_labels_do_not_beat_static_ones_on_noise(recipe):
    """A search ranks the half that it has seen very well anyway."""
    assert half_list_quality(recipe, NOISE, 2) < half_list_quality(static, NOISE, 2) + 0.02
    seen = halves(NOISE, 0)[0]
    if recipe == "search":
        assert make_labels("search", seen, 2).after.mean() > 0.9


def test_static_heads_are_hard_to_beat_where_the_same_heads_are_good_everywhere():
    quality = {recipe: half_list_quality(recipe, COMMON, 2) for recipe in ("shrunk", "search", static)}
    assert quality["shrunk"] == pytest.approx(quality[static], abs=0.02)
    assert quality["search"] < quality[static] - 0.05


def test_the_quality_of_half_lists_is_the_mean_over_halves_seen_and_unseen():
    def first_half_or_other(lists, most):
        """Sees one half alone: labels heads by what that half holds."""
        targets = np.zeros(lists.scores.shape[::2])
        targets[np.arange(len(lists)), head_utility(lists).argmax(axis=1)] = 1
        return targets

    expected = []
    for seed in range(2):
        one, other = halves(SPECIFIC, seed)
        for seen, unseen in ((one, other), (other, one)):
            best = log_probability(seen, seen.scores).argmax(axis=1)
            alone = unseen.scores[np.arange(len(unseen)), :, best]
            expected.append(list_ndcg(unseen, alone[..., None]).mean())
    assert half_list_quality(first_half_or_other, SPECIFIC, 1, seeds=2) == pytest.approx(np.mean(expected))
