"""The criteria of head detection against computations that share nothing with them: loops, decimals, ir_measures."""

import math
from decimal import Decimal, localcontext

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyterrier_routehead import CRITERIA, Criterion, core_criterion
from pyterrier_routehead.detection.criteria import (
    attention_mass,
    contrastive,
    get_criterion,
    reciprocal_rank,
    single_head_ndcg,
)
from pyterrier_routehead.evaluation.measures import ideal_dcg

quick = settings(max_examples=60, deadline=None)
ALL = [*CRITERIA.values(), core_criterion(0.1), core_criterion(0.001, calibrated=True)]


@st.composite
def judged_lists(draw, values=st.floats(-1e3, 1e3)):  # noqa: B008
    """Scores of one to three heads, and graded labels with at least one positive and one other."""
    documents = draw(st.integers(2, 14))
    scores = draw(arrays(np.float64, (documents, draw(st.integers(1, 3))), elements=values))
    labels = draw(st.lists(st.integers(-2, 3), min_size=documents, max_size=documents))
    one, other = draw(st.permutations(range(documents)))[:2]
    labels[one], labels[other] = draw(st.integers(1, 3)), draw(st.integers(-2, 0))
    return scores, np.array(labels)


@st.composite
def judged_rankings(draw):
    """The same without ties, so that it does not matter how those are broken."""
    _, labels = draw(judged_lists(st.just(0.0)))
    heads = [draw(st.permutations(range(len(labels)))) for _ in range(draw(st.integers(1, 3)))]
    return np.array(heads, dtype=float).T, labels


def softmax_of_positives(column, labels, temperature):
    """By definition, in decimals of sixty digits, from exactly the numbers that the doubles are."""
    with localcontext(prec=60, Emax=10**9, Emin=-(10**9)):
        logits = [Decimal(float(score)) / Decimal(temperature) for score in column]
        negatives = [logit for logit, label in zip(logits, labels, strict=True) if label <= 0]
        shares = [
            1 / (1 + sum((other - logit).exp() for other in negatives))
            for logit, label in zip(logits, labels, strict=True)
            if label > 0
        ]
        return float(sum(shares) / len(shares))


@quick
@given(judged_lists(), st.sampled_from([0.001, 0.01, 0.1, 1.0, 50.0]))
def test_contrastive_is_the_softmax_share_of_each_positive_against_the_negatives(judged, temperature):
    scores, labels = judged
    found = core_criterion(temperature)(scores, labels)
    expected = [softmax_of_positives(column, labels, temperature) for column in scores.T]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-300)
    assert found.dtype == np.float64
    assert ((found >= 0) & (found <= 1)).all()


def test_contrastive_of_one_small_list_in_plain_loops():
    scores = [[0.30, 0.1], [0.20, 0.4], [0.25, 0.1], [0.05, 0.3]]
    labels = [0, 1, 2, -1]
    for head in range(2):
        shares = []
        for positive in (1, 2):
            up = math.exp(scores[positive][head] / 0.1)
            shares.append(up / (up + math.exp(scores[0][head] / 0.1) + math.exp(scores[3][head] / 0.1)))
        found = contrastive(np.array(scores), np.array(labels), 0.1)[head]
        assert found == pytest.approx(sum(shares) / 2, rel=1e-12)


@pytest.mark.parametrize("base", [0.0, 1.0, 1e3, -1e3])
@pytest.mark.parametrize("gap", [0.0, 1e-9, -1e-9, 1e-3, -1e-3])
def test_contrastive_of_large_scores_that_hardly_differ(base, gap):
    """At a temperature of 0.001 the logits reach a million, and what they differ by is all that counts."""
    scores = np.array([[base + gap], [base], [base], [base - 5 * gap]])
    labels = np.array([1, 0, 0, 1])
    found = core_criterion(0.001)(scores, labels)[0]
    assert found == pytest.approx(softmax_of_positives(scores[:, 0], labels, 0.001), rel=1e-8)
    if gap == 0:
        assert found == pytest.approx(1 / 3, rel=1e-9)
    if gap == 1e-9 and abs(base) < 10:
        assert found != pytest.approx(1 / 3, rel=1e-7)


def test_contrastive_at_the_ends_of_the_scale():
    scores = np.array([[1e3, -1e3, 1e3], [-1e3, 1e3, 1e3], [-1e3, 1e3, -1e3]])
    found = core_criterion(0.001)(scores, np.array([1, 0, 0]))
    np.testing.assert_allclose(found, [1, 0, 0.5], atol=1e-9)


@quick
@given(judged_lists(st.floats(-3, 3)))
def test_a_positive_is_never_a_negative_of_another(judged):
    scores, labels = judged
    positives = np.flatnonzero(labels > 0)
    alone = [np.isin(np.arange(len(labels)), positives[positives != one], invert=True) for one in positives]
    expected = np.mean([contrastive(scores[kept], labels[kept], 0.1) for kept in alone], axis=0)
    np.testing.assert_allclose(contrastive(scores, labels, 0.1), expected, rtol=1e-9, atol=1e-300)


@quick
@given(judged_lists())
def test_attention_mass_adds_up_the_positives(judged):
    scores, labels = judged
    expected = [
        math.fsum(score for score, label in zip(column, labels, strict=True) if label > 0) for column in scores.T
    ]
    np.testing.assert_allclose(CRITERIA["qr"](scores, labels), expected, rtol=1e-12, atol=1e-9)


def measured(measure, column, labels):
    """What ir_measures says of one head's ranking, the judged documents being those of the list."""
    names = [f"d{i}" for i in range(len(labels))]
    qrels = [ir_measures.Qrel("q", name, int(label)) for name, label in zip(names, labels, strict=True)]
    run = [ir_measures.ScoredDoc("q", name, float(score)) for name, score in zip(names, column, strict=True)]
    return ir_measures.calc_aggregate([measure], qrels, run)[measure]


@quick
@given(judged_rankings())
def test_single_head_ndcg_is_that_of_ir_measures(judged):
    scores, labels = judged
    expected = [measured(ir_measures.nDCG @ 10, column, labels) for column in scores.T]
    np.testing.assert_allclose(CRITERIA["ndcg@10"](scores, labels), expected, rtol=1e-12)


@quick
@given(judged_rankings())
def test_reciprocal_rank_is_that_of_ir_measures(judged):
    scores, labels = judged
    expected = [measured(ir_measures.RR, column, labels) for column in scores.T]
    np.testing.assert_allclose(CRITERIA["mrr"](scores, labels), expected, rtol=1e-12)


@quick
@given(judged_rankings(), st.lists(st.integers(-1, 3), max_size=12))
def test_single_head_ndcg_is_against_all_that_is_judged(judged, elsewhere):
    """In plain loops; the first stage did not find the documents with the other labels."""
    scores, labels = judged
    gains = [max(int(label), 0) for label in labels]
    best = sorted([*gains, *(max(label, 0) for label in elsewhere)], reverse=True)[:10]
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(best))
    found = CRITERIA["ndcg@10"](scores, labels, ideal=ideal_dcg(np.array([*labels, *elsewhere])))
    for value, column in zip(found, scores.T, strict=True):
        ranked = sorted(range(len(labels)), key=lambda document, own=column: -own[document])
        total = sum(gains[document] / math.log2(place + 2) for place, document in enumerate(ranked[:10]))
        assert value == pytest.approx(total / ideal, rel=1e-12)
    by_itself = single_head_ndcg(scores, labels, ideal_dcg(labels))
    np.testing.assert_array_equal(by_itself, CRITERIA["ndcg@10"](scores, labels))


def test_ndcg_weighs_labels_and_takes_negative_ones_for_0():
    scores = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    found = CRITERIA["ndcg@10"](scores, np.array([1, -2, 3]))
    ideal = 3 + 1 / math.log2(3)
    np.testing.assert_allclose(found, [(1 + 3 / 2) / ideal, (3 + 1 / 2) / ideal])
    np.testing.assert_array_equal(found, CRITERIA["ndcg@10"](scores, np.array([1, 0, 3])))


def test_positives_behind_the_cutoff_count_for_nothing_but_a_reciprocal_rank():
    scores = -np.arange(12.0)[:, None]
    labels = np.array([0] * 11 + [2])
    assert CRITERIA["ndcg@10"](scores, labels).tolist() == [0]
    assert reciprocal_rank(scores, labels).tolist() == [1 / 12]


@pytest.mark.parametrize("labels", [[1, 0, 0, 0], [0, 0, 1, 0], [0, 2, 0, 1], [-1, 0, 0, 3]])
def test_ties_keep_the_first_stages_order(labels):
    labels = np.array(labels)
    as_given = -np.arange(4.0)[:, None]
    for criterion in (CRITERIA["ndcg@10"], CRITERIA["mrr"]):
        for tied in (np.zeros((4, 1)), np.full((4, 1), 7.5), np.array([[0.0], [-0.0], [0.0], [-0.0]])):
            assert criterion(tied, labels) == criterion(as_given, labels)


def test_ties_in_part():
    scores = np.array([[1.0], [5.0], [1.0], [5.0]])  # the ranking is 1, 3, 0, 2
    assert reciprocal_rank(scores, np.array([0, 0, 0, 1])).tolist() == [1 / 2]
    assert reciprocal_rank(scores, np.array([1, 0, 1, 0])).tolist() == [1 / 3]
    assert reciprocal_rank(scores, np.array([0, 0, 1, 0])).tolist() == [1 / 4]


@quick
@given(judged_lists(st.floats(-1, 1)), st.randoms())
def test_each_head_is_judged_by_itself(judged, random):
    scores, labels = judged
    for criterion in ALL:
        whole = criterion(scores, labels)
        assert whole.shape == (scores.shape[1],)
        assert np.isfinite(whole).all()
        head = random.randrange(scores.shape[1])
        np.testing.assert_allclose(criterion(scores[:, [head]], labels), whole[[head]], rtol=1e-12)


@quick
@given(judged_lists(st.integers(-64, 64).map(lambda number: number / 64)))  # so that 0.25 more blurs no difference
def test_better_heads_get_higher_numbers(judged):
    scores, labels = judged
    better = scores + 0.25 * (labels > 0)[:, None]
    for criterion in ALL:
        assert (criterion(better, labels) >= criterion(scores, labels) - 1e-12).all()


@quick
@given(judged_lists(st.floats(-1, 1)))
def test_only_the_sign_of_a_label_matters_but_for_ndcg(judged):
    scores, labels = judged
    for criterion in ALL:
        if criterion.name != "ndcg@10":
            np.testing.assert_array_equal(criterion(scores, labels > 0), criterion(scores, labels))


@pytest.mark.parametrize("criterion", ALL, ids=lambda criterion: criterion.name)
@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 2, 3], [-1, 0, -2], [1], [0], []], ids=str)
def test_a_list_without_a_positive_or_without_a_negative_is_uninformative(criterion, labels):
    assert criterion(np.ones((len(labels), 2)), np.array(labels, dtype=int)) is None


@pytest.mark.parametrize("criterion", ALL, ids=lambda criterion: criterion.name)
def test_lists_floats_and_booleans_do_as_well(criterion):
    scores = [[0.5, 0.0625], [0.25, 0.75], [0.125, 0.5]]
    expected = criterion(np.array(scores), np.array([0, 1, 0]))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(criterion(scores, [0, 1, 0]), expected)
    np.testing.assert_array_equal(criterion(np.float32(scores), [0.0, 1.0, 0.0]), expected)
    np.testing.assert_array_equal(criterion(scores, [False, True, False]), expected)


@pytest.mark.parametrize(
    ("scores", "labels"), [((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1)), ((2, 3), (3,)), ((3, 2, 1), (3,)), ((), ())]
)
def test_wrong_shapes_are_refused(scores, labels):
    for criterion in ALL:
        with pytest.raises(ValueError, match=r"scores must be \[documents, heads\], labels \[documents\]; got"):
            criterion(np.ones(scores), np.ones(labels))


@pytest.mark.parametrize("temperature", [0, 0.0, -0.1, -math.inf, math.inf, math.nan])
def test_a_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match="temperature is a number above 0, got"):
        core_criterion(temperature)


@pytest.mark.parametrize("temperature", ["a", "0.1", None, True, [0.1], 1j])
def test_f23_a_temperature_is_a_number(temperature):
    with pytest.raises(TypeError, match="temperature is a number above 0, got"):
        core_criterion(temperature)
    with pytest.raises(TypeError, match="calibrated is True or False, got 'yes'"):
        core_criterion(calibrated="yes")


@pytest.mark.parametrize("criterion", [3, None, ["mrr"], {"mrr": 1}, np.ndarray])
def test_f23_a_criterion_is_a_name_or_a_criterion(criterion):
    with pytest.raises(TypeError, match="criterion must be the name of a criterion or a Criterion, got"):
        get_criterion(criterion)


def test_cores_criterion_says_its_settings():
    core = core_criterion(temperature=np.float32(0.5), calibrated=True)
    assert (core.name, core.calibrated, core.settings) == ("core", True, {"temperature": 0.5})
    assert type(core.settings["temperature"]) is float
    scores, labels = np.array([[1.0], [2.0]]), np.array([1, 0])
    assert core(scores, labels) == pytest.approx(1 / (1 + math.exp(2)), rel=1e-12)


def test_names():
    assert {"core", "qr", "ndcg@10", "mrr"} <= set(CRITERIA)
    for name, criterion in CRITERIA.items():
        assert criterion.name == name
        assert get_criterion(name) is criterion
        assert get_criterion(criterion) is criterion
    judges = {"core": contrastive, "qr": attention_mass, "ndcg@10": single_head_ndcg, "mrr": reciprocal_rank}
    assert {name: CRITERIA[name].judge for name in judges} == judges
    assert {name: CRITERIA[name].calibrated for name in judges} == {n: n in ("ndcg@10", "mrr") for n in judges}


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=f"no criterion 'map'; known: {', '.join(CRITERIA)}; or give a Criterion"):
        get_criterion("map")


def test_a_criterion_of_ones_own(monkeypatch):
    def margin(scores, labels, power):
        return (scores[labels > 0].min(axis=0) - scores[labels <= 0].max(axis=0)) ** power

    own = Criterion("margin", margin, calibrated=False, settings={"power": 3})
    scores, labels = np.array([[4.0, 1.0], [1.0, 3.0], [2.0, 0.0]]), np.array([1, 0, 0])
    assert own(scores, labels).tolist() == [8.0, -8.0]
    assert own(scores, np.zeros(3)) is None  # the function is not asked
    assert get_criterion(own) is own
    with pytest.raises(ValueError, match="no criterion 'margin'"):
        get_criterion("margin")
    monkeypatch.setitem(CRITERIA, "margin", own)
    assert get_criterion("margin") is own
    with pytest.raises(ValueError, match=r"no criterion 'other'.*, margin; or give"):
        get_criterion("other")
