"""The search for the heads that rank a judged list best, against plain loops and brute force."""

import math
import time
from itertools import combinations

import ir_measures
import numpy as np
import pandas as pd
import pytest

from pyterrier_routehead.common.standard import standardised
from pyterrier_routehead.routing import search
from pyterrier_routehead.routing.search import (
    PaddedLists,
    list_ndcg,
    log_probability,
    objective,
    search_sets,
    standardised_lists,
)


def random_lists(seed, count, heads, documents=(3, 14), relevant=0.3):
    """Lists of unlike lengths: scores and graded labels, some below 0; each has a relevant document and another."""
    generator = np.random.default_rng(seed)
    scores, labels = [], []
    for _ in range(count):
        length = int(generator.integers(*documents))
        own = generator.choice([-1, 0, 1, 2, 3], size=length, p=[0.1, 0.9 - relevant, *([relevant / 3] * 3)])
        own[generator.permutation(length)[:2]] = [0, 1]
        labels.append(own.astype(float))
        scores.append(generator.normal(size=(length, heads)) * 10.0 ** generator.integers(-3, 3, size=heads))
    return scores, labels


def plain_ndcg(scores, labels, cutoff=10):
    """nDCG of one ranking by a loop; ties in the order of the rows."""
    gains = [max(label, 0) for label in labels]
    ranked = sorted(range(len(gains)), key=lambda i: (-scores[i], i))
    found = sum(gains[i] / math.log2(place + 2) for place, i in enumerate(ranked[:cutoff]))
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)[:cutoff]))
    return found / ideal if ideal else 0.0


def plain_log_probability(scores, labels):
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    standard = [(s - mean) / deviation if deviation else 0.0 for s in scores]
    log_sum = math.log(sum(math.exp(s) for s in standard))
    gains = [max(label, 0) for label in labels]
    if not sum(gains):
        return 0.0
    return sum(gain * (s - log_sum) for gain, s in zip(gains, standard, strict=True)) / sum(gains)


def plain_objective(scores, labels, smooth=0.0):
    """nDCG@10 and the smooth criterion, which at 0 only breaks ties."""
    ranked, probable = plain_ndcg(scores, labels), plain_log_probability(scores, labels)
    return (1 - smooth) * ranked + (smooth or 1e-5) * probable


def value_of(scores, labels, members, smooth=0.0, bonus=None):
    """The objective of one list's set, with the mean bonus of its members."""
    members = list(members)
    value = plain_objective(scores[:, members].sum(axis=1).tolist(), labels.tolist(), smooth)
    return value + (0.0 if bonus is None else float(np.mean(bonus[members])))


def best_by_brute_force(scores, labels, most, smooth=0.0, bonus=None):
    heads = range(scores.shape[1])
    sets = [own for size in range(1, most + 1) for own in combinations(heads, size)]
    return max(value_of(scores, labels, own, smooth, bonus) for own in sets)


def chosen(found, i):
    return np.flatnonzero(found.members[i])


# Measures


def test_ndcg_is_ir_measures():
    scores, labels = random_lists(0, 30, 4, documents=(2, 25))
    values = list_ndcg(PaddedLists.of(scores, labels), PaddedLists.of(scores, labels).scores)
    assert values.shape == (30, 4)
    for head in range(4):
        run, qrels = [], []
        for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
            docs = [f"d{d}" for d in range(len(label))]
            run.append(pd.DataFrame({"query_id": str(i), "doc_id": docs, "score": own[:, head]}))
            qrels.append(pd.DataFrame({"query_id": str(i), "doc_id": docs, "relevance": label.astype(int)}))
        measure = ir_measures.nDCG @ 10
        by_query = {m.query_id: m.value for m in ir_measures.iter_calc([measure], pd.concat(qrels), pd.concat(run))}
        np.testing.assert_allclose(values[:, head], [by_query[str(i)] for i in range(30)], atol=1e-9)


def test_ties_keep_the_order_of_the_rows():
    labels = [np.array([0.0, 1, 0, 2]), np.array([2.0, 0])]
    scores = [np.zeros((4, 2)), np.zeros((2, 2))]
    scores[0][:, 1] = [1, 1, 1, 0]
    lists = PaddedLists.of(scores, labels)
    values = list_ndcg(lists, lists.scores)
    ideal = 2 + 1 / math.log2(3)
    np.testing.assert_allclose(values[0], (1 / math.log2(3) + 2 / math.log2(5)) / ideal)
    np.testing.assert_allclose(values[1], 1.0)


def test_ndcg_has_a_cutoff_and_is_0_without_relevant_documents():
    lists = PaddedLists.of([-np.arange(12.0)[:, None]] * 3, [np.eye(12)[9], np.eye(12)[10], np.zeros(12)])
    np.testing.assert_allclose(list_ndcg(lists, lists.scores)[:, 0], [1 / math.log2(11), 0, 0])


def test_the_ideal_ranking_may_have_documents_that_are_in_no_list():
    scores, labels = random_lists(14, 10, 3)
    alone = PaddedLists.of(scores, labels)
    whole = PaddedLists.of(scores, labels, 2 * alone.ideal)
    np.testing.assert_allclose(list_ndcg(whole, whole.scores), list_ndcg(alone, alone.scores) / 2)
    part = whole[np.array([3, 1])].heads(np.array([2]))
    np.testing.assert_array_equal(part.ideal, whole.ideal[[3, 1]])
    np.testing.assert_array_equal(whole.standardised().ideal, whole.ideal)
    first = np.arange(whole.mask.shape[1])[None] < 2  # of some documents, the best ranking is that of those
    expected = PaddedLists.of([own[:2] for own in scores], [own[:2] for own in labels]).ideal
    np.testing.assert_allclose(whole.documents(np.repeat(first, 10, axis=0)).ideal, expected)


def test_measures_are_plain_loops():
    scores, labels = random_lists(1, 25, 5)
    scores[0][:, 1] = 3.0  # an uninformative head
    lists = PaddedLists.of(scores, labels)
    for measure, plain in ((list_ndcg, plain_ndcg), (log_probability, plain_log_probability)):
        expected = [
            [plain(own[:, head].tolist(), label.tolist()) for head in range(5)]
            for own, label in zip(scores, labels, strict=True)
        ]
        np.testing.assert_allclose(measure(lists, lists.scores), expected, atol=1e-9)
    for smooth in (0.0, 0.3, 1.0):
        expected = [
            [plain_objective(own[:, head].tolist(), label.tolist(), smooth) for head in range(5)]
            for own, label in zip(scores, labels, strict=True)
        ]
        np.testing.assert_allclose(objective(lists, lists.scores, smooth), expected, atol=1e-9)


def test_the_smooth_criterion_does_not_see_scale_and_shift():
    scores, labels = random_lists(2, 20, 6)
    lists = PaddedLists.of(scores, labels)
    moved = PaddedLists.of([own * 1e-4 + 7 for own in scores], labels)
    np.testing.assert_allclose(
        log_probability(lists, lists.scores), log_probability(moved, moved.scores), atol=1e-6
    )
    turned = PaddedLists.of([-own for own in scores], labels)
    assert not np.allclose(log_probability(lists, lists.scores), log_probability(turned, turned.scores), atol=0.1)


def test_the_smooth_criterion_rises_with_the_relevant_documents_score():
    labels = [np.array([0.0, 0, 1, 0, 0])]
    rising = np.zeros((5, 30))
    rising[:, :] = np.array([4.0, 3, 0, 2, 1])[:, None]
    rising[2] = np.linspace(-2, 8, 30)
    lists = PaddedLists.of([rising], labels)
    assert (np.diff(log_probability(lists, lists.scores)[0]) > 0).all()


def test_lists_are_padded_to_the_longest():
    scores, labels = [np.ones((2, 3)), np.ones((4, 3))], [np.array([-2.0, 1]), np.array([0.0, 3, 0, 0])]
    lists = PaddedLists.of(scores, labels)
    assert lists.scores.shape == (2, 4, 3)
    assert lists.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert lists.gains.tolist() == [[0, 1, 0, 0], [0, 3, 0, 0]]
    assert (lists.scores[0, 2:] == 0).all()
    assert len(lists) == 2
    part = lists[np.array([1])].heads(np.array([2, 0]))
    assert part.scores.shape == (1, 4, 2)


def test_lists_are_standardised_as_a_re_ranker_standardises_one():
    scores, labels = random_lists(12, 20, 5)
    scores[0][:, 1] = 0.1  # its sum is not exact
    scores[1], labels[1] = scores[1][:1], labels[1][:1]
    lists = PaddedLists.of(scores, labels)
    whole = lists.standardised()
    for i, own in enumerate(scores):
        np.testing.assert_allclose(whole.scores[i, : len(own)], standardised(own), atol=1e-9)
        assert not whole.scores[i, len(own) :].any()
    assert not whole.scores[0, :, 1].any()
    assert not whole.scores[1].any()
    np.testing.assert_allclose((whole.scores[2:] ** 2).sum(axis=1), np.tile(lists.mask[2:].sum(axis=1), (5, 1)).T)
    assert whole.gains is lists.gains
    assert whole.mask is lists.mask
    one = standardised_lists(lists.scores[..., 0], lists.mask)
    np.testing.assert_allclose(one, whole.scores[..., 0], atol=1e-12)


# Sets


@pytest.mark.parametrize(("smooth", "with_prior"), [(0.0, False), (0.5, False), (1.0, False), (0.3, True)])
def test_small_pools_give_the_best_set_of_all(smooth, with_prior):
    scores, labels = random_lists(3, 12, 6)
    bonus = np.random.default_rng(5).normal(size=6) * 0.2 if with_prior else None
    found = search_sets(PaddedLists.of(scores, labels), 4, smooth=smooth, prior=bonus)
    for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
        best = best_by_brute_force(own, label, 4, smooth, bonus)
        assert value_of(own, label, chosen(found, i), smooth, bonus) == pytest.approx(best, abs=1e-8)


def test_large_pools_come_near_the_best_set():
    """Of 30 heads, sets of up to three: 4,525, too many for trying all in the package, few enough here."""
    scores, labels = random_lists(4, 8, 30, documents=(10, 16))
    scores = [own / own.std(axis=0) for own in scores]
    lists = PaddedLists.of(scores, labels)
    found = search_sets(lists, 3, smooth=1.0)
    missed = []
    for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
        single = max(value_of(own, label, [head], 1.0) for head in range(30))
        value = value_of(own, label, chosen(found, i), 1.0)
        assert value >= single - 1e-9
        missed.append(best_by_brute_force(own, label, 3, 1.0) - value)
    assert min(missed) >= -1e-9
    assert np.mean(missed) < 0.05
    assert (found.members.sum(axis=1) > 1).any()


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_adding_and_exchange_mostly_find_the_best_set_of_a_small_pool(smooth, monkeypatch):
    """What large pools are searched by, on pools so small that brute force says what there is to be found."""
    monkeypatch.setattr(search, "_MAX_EXHAUSTIVE", 0)
    scores, labels = random_lists(13, 60, 8, documents=(8, 16))
    scores = [own / own.std(axis=0) for own in scores]
    one, three = (search_sets(PaddedLists.of(scores, labels), most, smooth=smooth) for most in (1, 3))
    missed = []
    for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
        single = best_by_brute_force(own, label, 1, smooth)
        assert value_of(own, label, chosen(one, i), smooth) == pytest.approx(single, abs=1e-8)
        missed.append(best_by_brute_force(own, label, 3, smooth) - value_of(own, label, chosen(three, i), smooth))
    assert min(missed) >= -1e-8
    assert np.mean(np.array(missed) < 1e-8) > 0.7


@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_no_single_step_improves_what_was_found_in_a_large_pool(smooth):
    scores, labels = random_lists(6, 10, 24, documents=(12, 20))
    found = search_sets(PaddedLists.of(scores, labels), 5, smooth=smooth)
    for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
        members = set(chosen(found, i).tolist())
        value = value_of(own, label, members, smooth)
        others = set(range(24)) - members
        steps = [members - {out} | {into} for out in members for into in others]
        steps += [members - {out} for out in members if len(members) > 1]
        assert max(value_of(own, label, step, smooth) for step in steps) <= value + 1e-8


@pytest.mark.parametrize(("heads", "most"), [(6, 3), (30, 5)])
def test_padding_changes_nothing(heads, most):
    scores, labels = random_lists(7, 15, heads, documents=(2, 30))
    prior = np.random.default_rng(1).normal(size=(15, heads)) * 0.1
    together = search_sets(PaddedLists.of(scores, labels), most, smooth=0.2, prior=prior)
    for i in range(15):
        alone = search_sets(PaddedLists.of([scores[i]], [labels[i]]), most, smooth=0.2, prior=prior[i])
        assert chosen(alone, 0).tolist() == chosen(together, i).tolist()
        np.testing.assert_allclose([alone.before[0], alone.after[0]], [together.before[i], together.after[i]])


@pytest.mark.parametrize("heads", [5, 40])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_set_has_from_one_to_most_heads(heads, most):
    scores, labels = random_lists(8, 10, heads, documents=(12, 20))
    sizes = search_sets(PaddedLists.of(scores, labels), most).members.sum(axis=1)
    assert sizes.min() >= 1
    assert sizes.max() <= most
    if most == 1:
        single = search_sets(PaddedLists.of(scores, labels), 1, exchange=False)
        for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
            best = max(value_of(own, label, [head]) for head in range(heads))
            assert value_of(own, label, chosen(single, i)) == pytest.approx(best, abs=1e-8)


def test_the_smaller_of_equal_sets_wins_in_a_small_pool():
    """Three heads with the same scores, and an uninformative one: sets of them are equal."""
    labels = [np.array([0.0, 1, 0, 0])]
    same = np.array([1.0, 5, 2, 3])
    scores = [np.stack([same, np.ones(4), same, same], axis=1)]
    assert chosen(search_sets(PaddedLists.of(scores, labels), 3), 0).tolist() == [0]


def test_adding_stops_where_nothing_is_gained_in_a_large_pool():
    """Thirty copies of one head: a second copy gains nothing."""
    scores = [np.repeat(np.array([1.0, 5, 2, 3])[:, None], 30, axis=1)]
    found = search_sets(PaddedLists.of(scores, [np.array([0.0, 1, 0, 0])]), 5)
    assert found.members.sum() == 1
    assert found.after.tolist() == [1.0]


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_exchange_is_never_worse_and_sometimes_better(smooth):
    scores, labels = random_lists(9, 40, 32, documents=(15, 25))
    scores = [own / own.std(axis=0) for own in scores]
    lists = PaddedLists.of(scores, labels)
    with_, without = (search_sets(lists, 4, exchange=exchange, smooth=smooth) for exchange in (True, False))
    gains = np.array([
        value_of(own, label, chosen(with_, i), smooth) - value_of(own, label, chosen(without, i), smooth)
        for i, (own, label) in enumerate(zip(scores, labels, strict=True))
    ])
    assert gains.min() >= -1e-9
    assert gains.max() > 1e-6


def test_exchange_ends_where_documents_tie_but_for_rounding():
    """Whether sums of decimals tie depends on the order in which they are added."""
    generator = np.random.default_rng(0)
    scores = [(generator.normal(size=(20, 64)) * 0.05).round(2) for _ in range(400)]
    labels = [(generator.random(20) < 0.3).astype(float) for _ in range(400)]
    for own in labels:
        own[:2] = 1, 0
    lists = PaddedLists.of(scores, labels)
    found, added = (search_sets(lists, 8, exchange=exchange) for exchange in (True, False))
    assert (found.after >= added.after - 1e-4).all()
    assert found.after.mean() > added.after.mean()


@pytest.mark.parametrize("heads", [6, 32])
def test_a_prior_draws_sets_towards_favoured_heads(heads):
    scores, labels = random_lists(10, 20, heads, documents=(12, 20))
    lists = PaddedLists.of(scores, labels)
    favour = np.zeros(heads)
    favour[[1, 4]] = 1.0
    plain, drawn = (search_sets(lists, 3, prior=prior).members for prior in (None, 0.4 * favour))
    assert drawn[:, [1, 4]].mean() > plain[:, [1, 4]].mean() + 0.2
    whole = search_sets(lists, 3, prior=1000 * favour).members
    assert not np.delete(whole, [1, 4], axis=1).any()
    own = np.zeros((20, heads))
    own[np.arange(20), np.arange(20) % heads] = 1000
    assert search_sets(lists, 3, prior=own).members.tolist() == (own > 0).tolist()


@pytest.mark.parametrize("heads", [5, 30])
def test_before_is_the_whole_pool_and_after_the_set(heads):
    scores, labels = random_lists(11, 10, heads)
    found = search_sets(PaddedLists.of(scores, labels), 4)
    for i, (own, label) in enumerate(zip(scores, labels, strict=True)):
        assert found.before[i] == pytest.approx(plain_ndcg(own.sum(axis=1).tolist(), label.tolist()))
        own_sum = own[:, found.members[i]].sum(axis=1)
        assert found.after[i] == pytest.approx(plain_ndcg(own_sum.tolist(), label.tolist()))
    assert found.members.dtype == bool


def test_lists_of_an_everyday_size_are_searched_in_a_minute():
    generator = np.random.default_rng(0)
    labels = (generator.random((1000, 20)) < 0.15).astype(float)
    labels[:, 0] = 1
    labels[:, 1] = 0
    lists = PaddedLists.of(list(generator.normal(size=(1000, 20, 64))), list(labels))
    start = time.process_time()
    found = search_sets(lists, 8)
    assert time.process_time() - start < 60
    assert found.after.mean() > 0.95
