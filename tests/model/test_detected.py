"""Head detection: what fit finds, what it chooses on validation queries, and how a fitted re-ranker behaves."""

import copy
import math
import os
import pickle
import warnings

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from frozen_llms import UNLOADED, passes
from judged_lists import QRELS, TRAIN, TRAIN_QRELS, VALID, VALID_QRELS, judged, same_ranking
from pyterrier_routehead import (
    CRITERIA,
    AttentionHeadScorer,
    CoReHeadReranker,
    Criterion,
    FrozenLLM,
    Head,
    HeadScoreStore,
    HeadSet,
    ListTooLongError,
    MismatchError,
    NotFittedError,
    QRHeadReranker,
    Reading,
    ReadingSettings,
    StaticHeadReranker,
    __version__,
    core_criterion,
)
from pyterrier_routehead.detection.criteria import get_criterion
from pyterrier_routehead.evaluation.measures import ideal_dcg
from pyterrier_routehead.fitting.judged import JudgedList, judge_heads, spread_positions
from pyterrier_routehead.ranking.policy import QueryList
from pyterrier_routehead.reading.reader import model_identity
from pyterrier_routehead.reading.reading import ModelIdentity
from tiny import tiny_model
from toys import byte_tokenizer, frame, toy_llm, two_queries

os.environ["PT_TEST_TRANSFORMER_REPORTS"] = "0"

# Heads of a random model rank no better than all of them together.
pytestmark = pytest.mark.filterwarnings("ignore:on the validation queries, no set that:UserWarning")
BOTH = pytest.mark.parametrize("reranker_class", [CoReHeadReranker, QRHeadReranker])


ALL = tuple(Head(layer, head) for layer in range(4) for head in range(4))
HEAD_SET = HeadSet.of("3-1,0-2,2-0,1-3", model=ModelIdentity("no/such-model", ("aa", "bb", "cc", "dd"), 4, 4))




@pytest.fixture(scope="module")
def scored(llm):
    """Two queries, the training and the validation lists, with head scores."""
    scorer = AttentionHeadScorer(llm=llm, raw=True)
    return {"two": scorer(two_queries()), "train": scorer(TRAIN), "valid": scorer(VALID)}


def by_head(head_set):
    return dict(zip(head_set.heads, head_set.scores, strict=True))


def same_scores(one, other, tolerance=1e-6):
    assert set(one.heads) == set(other.heads)
    own, others = by_head(one), by_head(other)
    np.testing.assert_allclose([own[h] for h in ALL if h in own], [others[h] for h in ALL if h in own], atol=tolerance)




def tried(reranker):
    """What was tried, of the validation table; beside it stand the first stage and all heads."""
    assert reranker.validation_["criterion"].tolist()[:2] == ["first stage", "ICR"]
    return reranker.validation_.iloc[2:]


def mean_ndcg(ranked, qrels):
    run = ranked.rename(columns={"qid": "query_id", "docno": "doc_id"})[["query_id", "doc_id", "score"]]
    known = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    measure = ir_measures.nDCG @ 10
    return ir_measures.calc_aggregate([measure], known, run)[measure]


# Scoring heads


@pytest.mark.parametrize("criterion", [*CRITERIA.values(), core_criterion(0.5, calibrated=True)], ids=lambda c: c.name)
def test_the_score_of_a_head_is_its_mean_over_the_informative_lists(criterion):
    generator = np.random.default_rng(0)
    labels = [[0, 1, 0], [0, 0], [2, 0, 0, 1, -1], [1, 1], [0, 1]]
    lists = []
    for number, own in enumerate(labels):
        raw, vectors = generator.normal(size=(2, len(own), 6)).astype(np.float32)
        query = QueryList(str(number), np.arange(len(own)))
        lists.append(JudgedList(query, np.array(own, dtype=float), ideal_dcg(own) + 0.5, vectors, raw))
    scores = judge_heads(criterion, lists)
    assert scores.shape == (6,)
    assert scores.dtype == np.float64
    for head in range(6):
        values = []
        for own in (lists[0], lists[2], lists[4]):
            column = (own.vectors if criterion.calibrated else own.raw)[:, head : head + 1]
            values.append(float(criterion(column, own.labels, ideal=own.ideal)[0]))
        assert scores[head] == pytest.approx(sum(values) / 3)


def test_lists_that_all_tell_nothing_are_refused():
    nothing = JudgedList(QueryList("q", np.arange(2)), np.zeros(2), 0.0, np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="no candidate list has both a relevant and a non-relevant candidate"):
        judge_heads(core_criterion(), [nothing])


def test_cores_score_is_the_papers_and_a_relevant_document_is_no_negative(llm, scored):
    """By hand from the raw scores; q1 has two relevant documents, each against the three others alone."""
    found = CoReHeadReranker(llm=llm, temperature=0.02).fit(two_queries(), QRELS).head_set_
    relevant = {"q1": ["q1-d2", "q1-d4"], "q2": ["q2-d1"]}
    for place, head in enumerate(ALL):
        means = []
        for qid, own in scored["two"].groupby("qid"):
            vectors = zip(own["docno"], own["head_scores_raw"], strict=True)
            power = {docno: math.exp(float(vector[place]) / 0.02) for docno, vector in vectors}
            negatives = sum(power[docno] for docno in power if docno not in relevant[qid])
            shares = [power[docno] / (power[docno] + negatives) for docno in relevant[qid]]
            means.append(sum(shares) / len(shares))
        assert by_head(found)[head] == pytest.approx(sum(means) / 2, abs=1e-6)


# Heads that are known to be good

PLANTED_RAW, PLANTED = (Head(1, 2), Head(2, 0)), (Head(0, 3), Head(3, 1))


def planted(llm, *, queries=12, documents=8, heads=ALL):
    """Frames in which two heads rank the relevant document first by raw, and two others by calibrated scores."""
    generator = np.random.default_rng(5)
    reading = Reading(model_identity(llm), tuple(heads), ReadingSettings(), complete=len(heads) == 16)
    inp = frame({f"q{i}": ["text"] * documents for i in range(queries)})
    relevant = {f"q{i}": f"q{i}-d{generator.integers(1, documents)}" for i in range(queries)}
    good = inp["docno"].isin(relevant.values()).to_numpy()
    columns = {}
    for column, own in (("head_scores", PLANTED), ("head_scores_raw", PLANTED_RAW)):
        scores = generator.uniform(0.1, 0.5, (len(inp), len(heads))).astype(np.float32)
        for head in own:
            scores[:, heads.index(head)] = np.where(good, 0.9, 0.1)
        columns[column] = list(scores)
    return inp.drop(columns="text").assign(**columns, head_reading=[reading] * len(inp)), judged(relevant)


@pytest.fixture(scope="module")
def planted_lists(llm):
    return planted(llm)


RERANKERS = {
    **{
        f"core {temperature} {calibrated}": (CoReHeadReranker, {"temperature": temperature, "calibrated": calibrated})
        for temperature in (1.0, 0.1, 0.001)
        for calibrated in (False, True)
    },
    **{name: (QRHeadReranker, {"criterion": name}) for name in CRITERIA},
    "own": (QRHeadReranker, {"criterion": Criterion("least", lambda s, y: -s[y <= 0].max(axis=0), calibrated=True)}),
}


@pytest.mark.parametrize("name", RERANKERS)
def test_heads_that_rank_the_relevant_document_first_come_out_on_top(llm, planted_lists, name):
    reranker_class, options = RERANKERS[name]
    inp, qrels = planted_lists
    reranker = reranker_class(llm=llm, k=2, **options).fit(inp, qrels)
    calibrated = reranker.head_set_.detection.settings["calibrated"]
    assert set(reranker.head_set_.top(2)) == set(PLANTED if calibrated else PLANTED_RAW)
    assert sorted(reranker.head_set_) == list(ALL)
    assert list(reranker.head_set_.scores) == sorted(reranker.head_set_.scores, reverse=True)
    if calibrated:
        best = reranker(inp).query("rank == 0")
        assert sorted(best["docno"]) == sorted(qrels["docno"])


# What is read, and where from


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ("core 0.1 False", "core 0.001 True", *CRITERIA)),
        ("core 0.001 False", {"document_attention": "blockwise", "max_doc_tokens": 6}),
        ("core 0.1 True", {"document_order": "best_first"}),
        ("mrr", {"token_filter": "none"}),
        ("qr", {"prompt": "core"}),
    ],
    ids=str,
)
def test_fit_on_text_and_behind_a_scorer_find_the_same(llm, scored, name, settings):
    reranker_class, options = RERANKERS[name]
    inp, behind = two_queries(), scored["two"]
    if settings:
        behind = AttentionHeadScorer(llm=llm, raw=True, **settings)(inp)
    on_text = reranker_class(llm=llm, k=3, **options, **settings).fit(inp, QRELS)
    on_scores = reranker_class(llm=llm, k=3, **options).fit(behind, QRELS)
    same_scores(on_text.head_set_, on_scores.head_set_)
    assert on_text.head_set_.settings == on_scores.head_set_.settings
    assert ReadingSettings(**on_text.head_set_.settings) == behind["head_reading"].iloc[0].settings
    on_text.head_set_ = on_scores.head_set_  # heads may tie
    same_ranking(on_text(inp), on_scores(behind))


@BOTH
def test_on_head_scores_no_model_is_needed(llm, scored, reranker_class):
    expected = reranker_class(llm=llm, k=2).fit(scored["train"], TRAIN_QRELS)
    reranker = reranker_class(k=2).fit(scored["train"], TRAIN_QRELS)
    assert reranker.head_set_ == expected.head_set_
    same_ranking(reranker(scored["valid"]), expected(scored["valid"]))


def test_uncalibrated_head_scores_are_raw_ones(llm):
    inp = two_queries()
    scored = AttentionHeadScorer(llm=llm, calibrate=False)(inp)  # no column head_scores_raw
    found = CoReHeadReranker(llm=llm, temperature=0.01).fit(scored, QRELS).head_set_
    same_scores(found, CoReHeadReranker(llm=llm, temperature=0.01, calibrate=False).fit(inp, QRELS).head_set_)
    same_scores(found, CoReHeadReranker(llm=llm, temperature=0.01).fit(inp, QRELS).head_set_)
    assert found.settings["calibrate"] is False


def test_fit_changes_no_frame(llm, scored):
    for own, valid in ((two_queries(), VALID), (scored["two"], scored["valid"])):
        before, qrels = [inp.copy(deep=True) for inp in (own, valid)], [QRELS.copy(), VALID_QRELS.copy()]
        CoReHeadReranker(llm=llm, k=[1, 2]).fit(own, qrels[0], valid, qrels[1])
        for after, as_it_was in zip((own, valid, *qrels), (*before, QRELS, VALID_QRELS), strict=True):
            pd.testing.assert_frame_equal(after, as_it_was)


def test_candidates_are_read_in_the_first_stages_order(llm):
    expected = CoReHeadReranker(llm=llm).fit(two_queries(), QRELS).head_set_
    shuffled = two_queries().sample(frac=1, random_state=3)
    for columns in (["score"], ["rank"]):
        found = CoReHeadReranker(llm=llm).fit(shuffled.drop(columns=columns), QRELS).head_set_
        same_scores(found, expected)
    backwards = two_queries().assign(rank=-two_queries()["rank"])
    found = CoReHeadReranker(llm=llm).fit(backwards, QRELS).head_set_
    assert max(abs(by_head(found)[head] - by_head(expected)[head]) for head in ALL) > 1e-4


def test_numbers_as_ids_find_their_judgements(llm):
    inp, qrels = two_queries(), QRELS.copy()
    expected = CoReHeadReranker(llm=llm).fit(inp, qrels).head_set_
    docnos = {docno: number for number, docno in enumerate(inp["docno"])}
    for own in (inp, qrels):
        own["qid"] = own["qid"].map({"q1": 1, "q2": 2})
        own["docno"] = own["docno"].map(docnos)
    same_scores(CoReHeadReranker(llm=llm).fit(inp, qrels).head_set_, expected)
    same_scores(CoReHeadReranker(llm=llm).fit(inp, qrels.astype({"qid": str, "docno": str})).head_set_, expected)


def test_lists_that_tell_nothing_are_not_read_and_do_not_count(llm):
    odd = frame({"none": ["a", "b"], "all": ["c", "d"], "alone": ["e"]})
    inp = pd.concat([odd, two_queries()])
    qrels = pd.concat([QRELS, judged({"all": {"all-d0": 1, "all-d1": 2}, "alone": "alone-d0", "none": "none-d7"})])
    reranker = CoReHeadReranker(llm=llm)
    assert passes(llm, lambda: reranker.fit(inp, qrels)) == 2
    same_scores(reranker.head_set_, CoReHeadReranker(llm=llm).fit(two_queries(), QRELS).head_set_)
    assert reranker.head_set_.detection.queries == 2


def test_only_candidates_down_to_the_depth_count(llm):
    cut = CoReHeadReranker(llm=llm).fit(two_queries().query("rank < 3"), QRELS).head_set_
    same_scores(CoReHeadReranker(llm=llm, depth=3).fit(two_queries(), QRELS).head_set_, cut)
    scored = AttentionHeadScorer(llm=llm, depth=3, raw=True)(two_queries())  # the others have no vector
    same_scores(CoReHeadReranker(llm=llm).fit(scored, QRELS).head_set_, cut)


def test_head_scores_of_some_heads_give_a_set_of_these(llm):
    scored = AttentionHeadScorer([(2, 3), (0, 1)], llm=llm, raw=True)(two_queries())
    found = CoReHeadReranker(llm=llm).fit(scored, QRELS).head_set_
    whole = CoReHeadReranker(llm=llm).fit(two_queries(), QRELS).head_set_
    assert set(found.heads) == {Head(2, 3), Head(0, 1)}
    assert by_head(found) == pytest.approx({head: by_head(whole)[head] for head in found}, abs=1e-6)


def test_a_model_used_in_part_gives_heads_of_that_part(llm):
    part = FrozenLLM(llm.model, tokenizer=llm.tokenizer, max_layers=2)
    found = CoReHeadReranker(llm=part).fit(two_queries(), QRELS).head_set_
    assert sorted(found) == list(ALL[:8])
    assert found.model.num_layers == 4


def test_batches_find_what_single_lists_find(llm, capsys):
    expected = CoReHeadReranker(llm=llm, temperature=0.1).fit(TRAIN, TRAIN_QRELS).head_set_
    in_batches = CoReHeadReranker(llm=llm, temperature=0.1, batch_size=3).fit(TRAIN, TRAIN_QRELS)
    same_scores(in_batches.head_set_, expected, 1e-5)
    CoReHeadReranker(llm=llm, verbose=True).fit(TRAIN, TRAIN_QRELS)
    assert "CoReHeadReranker.fit" in capsys.readouterr().err


def test_the_filter_over_sums_ranks_but_does_not_judge_heads(llm):
    by_sum = CoReHeadReranker(llm=llm, calibrated=True, token_filter="sum", k=4).fit(TRAIN, TRAIN_QRELS)
    same_scores(by_sum.head_set_, CoReHeadReranker(llm=llm, calibrated=True).fit(TRAIN, TRAIN_QRELS).head_set_)
    same_ranking(by_sum(VALID), StaticHeadReranker(by_sum.head_set_.top(4).heads, llm=llm, token_filter="sum")(VALID))


def test_the_set_says_how_it_was_found(llm, scored):
    reranker = CoReHeadReranker(llm=llm, temperature=0.5, depth=4, detection_data="some train")
    found = reranker.fit(scored["two"], QRELS).head_set_.detection
    assert (found.criterion, found.data, found.queries) == ("core", "some train", 2)
    assert found.settings == {"temperature": 0.5, "calibrated": False, "depth": 4}
    assert reranker.head_set_.model == model_identity(llm)
    assert reranker.head_set_.version == __version__
    found = QRHeadReranker(llm=llm, criterion="mrr", positions=2).fit(two_queries(), QRELS).head_set_.detection
    assert (found.criterion, found.data) == ("mrr", "not named")
    assert found.settings == {"calibrated": True, "depth": None, "positions": 2}


def test_the_set_can_be_saved_and_ranks_by_itself(llm, folder, tmp_path):
    reranker = CoReHeadReranker(llm=folder, k=3).fit(TRAIN, TRAIN_QRELS)
    reranker.head_set_.save(tmp_path / "set")
    loaded = pt.Artifact.load(str(tmp_path / "set"))
    assert loaded == reranker.head_set_
    same_ranking(StaticHeadReranker(loaded.top(3))(VALID), reranker(VALID))
    same_ranking(CoReHeadReranker(loaded, k=3)(VALID), reranker(VALID))


# Several positions of the relevant document


@pytest.mark.parametrize(
    ("labels", "positions", "orders"),
    [
        ([1, 0, 0], 3, [[0, 1, 2], [1, 0, 2], [1, 2, 0]]),
        ([0, 0, 1, 0, 0], 3, [[2, 0, 1, 3, 4], [0, 1, 2, 3, 4], [0, 1, 3, 4, 2]]),
        ([0, 0, 1, 0, 0], 1, [[2, 0, 1, 3, 4]]),
        ([0, 0, 0, 0, 0, 3], 4, [[5, 0, 1, 2, 3, 4], [0, 1, 5, 2, 3, 4], [0, 1, 2, 5, 3, 4], [0, 1, 2, 3, 4, 5]]),
        ([0, 1, -1, 2], 2, [[1, 0, 2], [0, 2, 1]]),
        ([0, 1], 9, [[1, 0], [0, 1]]),
    ],
    ids=str,
)
def test_positions_are_spread_from_first_to_last(labels, positions, orders):
    assert [order.tolist() for order in spread_positions(np.array(labels), positions)] == orders


@pytest.mark.parametrize("name", ["core 0.1 False", "mrr"])
def test_fit_reads_lists_with_the_relevant_document_at_several_places(llm, name):
    """Against frames in which the documents stand in these orders; q1's second relevant document is left out."""
    places = {
        "q1": [["d2", "d0", "d1", "d3"], ["d0", "d1", "d2", "d3"], ["d0", "d1", "d3", "d2"]],
        "q2": [["d1", "d0", "d2"], ["d0", "d1", "d2"], ["d0", "d2", "d1"]],
    }
    inp = two_queries().set_index("docno")
    frames, relevant = [], {}
    for qid, orders in places.items():
        for number, order in enumerate(orders):
            own = inp.loc[[f"{qid}-{name}" for name in order]].reset_index()
            frames.append(own.assign(qid=f"{qid} {number}", rank=range(len(own))))
            relevant[f"{qid} {number}"] = {"q1": "q1-d2", "q2": "q2-d1"}[qid]
    reranker_class, options = RERANKERS[name]
    expected = reranker_class(llm=llm, **options).fit(pd.concat(frames), judged(relevant)).head_set_
    reranker = reranker_class(llm=llm, positions=3, batch_size=2, **options)
    assert passes(llm, lambda: reranker.fit(two_queries(), QRELS)) == 6
    same_scores(reranker.head_set_, expected, 1e-5)
    assert reranker.head_set_.detection.queries == 2


def test_places_that_fall_together_are_read_once(llm):
    inp = frame({"q": ["cats", "dogs"]})
    assert passes(llm, lambda: CoReHeadReranker(llm=llm, positions=5).fit(inp, judged({"q": "q-d0"}))) == 2


def test_validation_lists_are_read_once_in_first_stage_order(llm):
    with_positions = CoReHeadReranker(llm=llm, positions=2, k=[1, 3])
    assert passes(llm, lambda: with_positions.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)) == 2 * 4 + 6
    for row in tried(with_positions).itertuples():
        own = StaticHeadReranker(with_positions.head_set_.top(row.k), llm=llm)
        assert row[-1] == pytest.approx(mean_ndcg(own(VALID), VALID_QRELS))


# Choosing on validation queries


@pytest.mark.parametrize("source", ["text", "scores"])
@pytest.mark.parametrize("options", [{}, {"first_stage_weight": 0.5, "max_layer": 2}], ids=str)
def test_k_and_temperature_are_chosen_by_ndcg_on_the_validation_lists(llm, scored, source, options):
    train, valid = scored["train"], scored["valid"]
    ks, temperatures = [1, 2, 5], [10.0, 0.001]
    reranker = CoReHeadReranker(llm=llm, k=ks, temperature=temperatures, **options)
    if source == "text":
        assert passes(llm, lambda: reranker.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)) == 4 + 6  # each list once
    else:
        reranker.fit(train, TRAIN_QRELS, valid, VALID_QRELS)
    expected, fitted = {}, {}
    for temperature in temperatures:
        for k in ks:
            own = CoReHeadReranker(llm=llm, k=k, temperature=temperature, **options).fit(train, TRAIN_QRELS)
            fitted[temperature, k] = own
            expected[temperature, k] = mean_ndcg(own(valid), VALID_QRELS)
    table = tried(reranker).set_index(["temperature", "k"])["nDCG@10"]
    assert table.to_dict() == pytest.approx(expected)
    assert set(tried(reranker)["criterion"]) == {"core"}
    best = max(expected, key=expected.get)
    assert expected[best] > expected[10.0, 1]  # something to choose
    same_scores(reranker.head_set_, fitted[best].head_set_)
    assert reranker.head_set_.detection.settings["temperature"] == best[0]
    same_ranking(reranker(valid), fitted[best](valid))


def test_f6_of_equals_the_lower_temperature_is_chosen(llm, scored):
    for temperatures in ([0.5, 0.1], [0.1, 0.5]):
        reranker = CoReHeadReranker(llm=llm, k=[16, 99], temperature=temperatures)  # all heads in any case
        reranker.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
        assert tried(reranker)["nDCG@10"].nunique() == 1
        assert len(tried(reranker)) == 4
        expected = CoReHeadReranker(llm=llm, k=99, temperature=0.1).fit(scored["train"], TRAIN_QRELS)
        assert reranker.head_set_ == expected.head_set_
        assert reranker.head_set_.k == 16
        same_ranking(reranker(scored["two"]), expected(scored["two"]))


def test_the_choice_is_by_the_validation_judgements_alone(llm, scored):
    """The same lists to train and validate on, with other judgements."""
    other = judged({row.qid: f"{row.qid}-d{(int(row.docno[-1]) + 3) % 5}" for row in TRAIN_QRELS.itertuples()})
    inp = scored["train"]
    again = [own.assign(qid="again " + own["qid"]) for own in (inp, other)]
    reranker = CoReHeadReranker(llm=llm, k=[1, 2, 3, 4, 8]).fit(inp, TRAIN_QRELS, *again)
    same_scores(reranker.head_set_, CoReHeadReranker(llm=llm).fit(inp, TRAIN_QRELS).head_set_)
    rankings = {k: StaticHeadReranker(reranker.head_set_.top(k))(inp) for k in (1, 2, 3, 4, 8)}
    expected = {k: mean_ndcg(ranked, other) for k, ranked in rankings.items()}
    assert tried(reranker).set_index("k")["nDCG@10"].to_dict() == pytest.approx(expected)
    on_train = {k: mean_ndcg(ranked, TRAIN_QRELS) for k, ranked in rankings.items()}
    best = max(expected, key=expected.get)
    assert best != max(on_train, key=on_train.get)
    same_ranking(reranker(inp), rankings[best])


def test_validation_lists_that_tell_nothing_do_not_count(llm, scored):
    odd = frame({"odd": ["a", "b"], "alone": ["c"]})
    more = pd.concat([scored["valid"], AttentionHeadScorer(llm=llm, raw=True)(odd)])
    qrels = pd.concat([VALID_QRELS, judged({"alone": "alone-d0", "odd": "odd-d5", "elsewhere": "x"})])
    tables = [
        CoReHeadReranker(llm=llm, k=[1, 4]).fit(scored["train"], TRAIN_QRELS, *valid).validation_
        for valid in ((scored["valid"], VALID_QRELS), (more, qrels))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_graded_validation_judgements_count_by_their_grade(llm, scored):
    graded = judged({qid: {f"{qid}-d{i}": (i + 1) % 4 for i in range(7)} for qid in VALID_QRELS["qid"]})
    reranker = CoReHeadReranker(llm=llm, k=[1, 2, 8]).fit(scored["train"], TRAIN_QRELS, scored["valid"], graded)
    for k, value in tried(reranker)[["k", "nDCG@10"]].to_numpy():
        ranked = StaticHeadReranker(reranker.head_set_.top(int(k)))(scored["valid"])
        assert value == pytest.approx(mean_ndcg(ranked, graded))


def test_one_of_several_criteria_is_chosen(llm, scored):
    names = ["qr", "mrr", "ndcg@10"]
    reranker = QRHeadReranker(llm=llm, criterion=names, k=3)
    reranker.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    assert tried(reranker)["criterion"].tolist() == names
    expected = {}
    for name in names:
        own = QRHeadReranker(llm=llm, criterion=name, k=3).fit(scored["train"], TRAIN_QRELS)
        expected[name] = mean_ndcg(own(scored["valid"]), VALID_QRELS)
    assert tried(reranker)["nDCG@10"].tolist() == pytest.approx(list(expected.values()))
    assert reranker.head_set_.detection.criterion == max(expected, key=expected.get)


def test_f6_where_there_is_nothing_to_choose_validation_still_compares(llm):
    reranker = CoReHeadReranker(llm=llm, k=[3], temperature=[0.2])
    assert passes(llm, lambda: reranker.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)) == 4 + 6
    assert reranker.head_set_.detection.settings["temperature"] == 0.2
    assert tried(reranker)["nDCG@10"].tolist() == pytest.approx([mean_ndcg(reranker(VALID), VALID_QRELS)])
    reranker.fit(TRAIN, TRAIN_QRELS)
    assert not hasattr(reranker, "validation_")


@BOTH
@pytest.mark.parametrize("options", [{}, {"first_stage_weight": 0.5}, {"max_layer": 2, "depth": 2}], ids=str)
def test_f6_the_first_stage_and_all_heads_stand_beside_what_was_tried(llm, scored, reranker_class, options):
    reranker = reranker_class(llm=llm, k=[1, 3], **options)
    reranker.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    icr = StaticHeadReranker("all", **{name: value for name, value in options.items() if name != "max_layer"})
    valid = scored["valid"]
    if "depth" in options:  # documents below the depth count as not found
        valid = valid[valid["rank"] < 2]
        informative = set(valid.merge(VALID_QRELS.query("label > 0"), on=["qid", "docno"])["qid"])
        valid = valid[valid["qid"].isin(informative)]
        assert 0 < len(informative) < 6
    qrels = VALID_QRELS[VALID_QRELS["qid"].isin(valid["qid"])]
    table = reranker.validation_.set_index("criterion")
    assert table["nDCG@10"]["first stage"] == pytest.approx(mean_ndcg(valid.assign(score=-valid["rank"]), qrels))
    assert table["nDCG@10"]["ICR"] == pytest.approx(mean_ndcg(icr(valid), qrels))
    assert table["k"].isna().tolist() == [True, False, False, False]
    assert table["k"].tolist()[1:] == [16, 1, 3]


def aligned(llm, qids, heads_that_rank, documents=6):
    """Lists in which some heads, in calibrated and raw scores, rank the relevant document first, all others last."""
    inp = frame({qid: ["text"] * documents for qid in qids})
    relevant = {qid: f"{qid}-d{documents - 1}" for qid in qids}
    good = inp["docno"].isin(relevant.values()).to_numpy()
    scores = np.where(good[:, None], -1.0, 1.0) * np.ones((len(inp), 16), dtype=np.float32)
    for head in heads_that_rank:
        scores[:, ALL.index(head)] *= -1
    reading = Reading(model_identity(llm), ALL, ReadingSettings(), complete=True)
    columns = {"head_scores": list(scores), "head_scores_raw": list(scores), "head_reading": [reading] * len(inp)}
    return inp.drop(columns="text").assign(**columns), judged(relevant)


def test_f6_a_choice_among_ties_is_the_robust_one(llm):
    """Few validation queries, on which nine settings rank alike: the lowest temperature, then the most heads."""
    good = ALL[3:12]
    train, valid = aligned(llm, ["t1", "t2"], good), aligned(llm, ["v1", "v2", "v3"], good)
    for temperatures in ([0.1, 0.01, 0.001], [0.001, 0.1, 0.01]):
        reranker = CoReHeadReranker(llm=llm, temperature=temperatures, k=[4, 8, 2]).fit(*train, *valid)
        assert tried(reranker)["nDCG@10"].tolist() == [1.0] * 9
        assert reranker.head_set_.detection.settings["temperature"] == 0.001
        assert reranker.head_set_.k == 8
    names = ["core", "qr", "qr-calibrated", "mrr", "ndcg@10"]
    for start in range(len(names)):
        criteria = [get_criterion(name) for name in names[start:] + names[:start] if name != "core"]
        reranker = QRHeadReranker(llm=llm, criterion=criteria, k=2).fit(*train, *valid)
        assert reranker.head_set_.detection.criterion == "ndcg@10"
        reranker.criterion = [criterion for criterion in criteria if criterion.name.startswith("qr")]
        assert reranker.fit(*train, *valid).head_set_.detection.criterion == "qr-calibrated"


def test_f6_a_set_no_better_than_all_heads_warns(llm):
    train = aligned(llm, ["t1", "t2"], ALL[:4])
    with pytest.warns(UserWarning, match=r"no set that CoReHeadReranker found .*1\.0000 against 1"):
        CoReHeadReranker(llm=llm, k=4).fit(*train, *aligned(llm, ["v"], ALL[:12]))
    with pytest.warns(UserWarning, match=r"no set that QRHeadReranker found .*\(ICR\).*; see validation_") as caught:
        QRHeadReranker(llm=llm, k=[2, 4]).fit(*train, *aligned(llm, ["v"], ALL[4:]))
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CoReHeadReranker(llm=llm, k=4).fit(*train, *aligned(llm, ["v"], ALL[:4]))
        CoReHeadReranker(llm=llm, k=4).fit(*train)  # nothing to compare on


@BOTH
def test_f10_queries_in_training_and_validation_are_refused(scored, reranker_class):
    mixed = pd.concat([scored["valid"], scored["train"].iloc[:5]])
    for inp in (scored["train"], TRAIN):
        with pytest.raises(ValueError, match="1 queries are in training and validation, such as '1-0'"):
            reranker_class(llm=UNLOADED).fit(inp, TRAIN_QRELS, mixed, VALID_QRELS)
    numbers = TRAIN.assign(qid=TRAIN["qid"].str[-1].astype(int)), VALID.assign(qid=VALID["qid"].str[-1])
    with pytest.raises(ValueError, match="4 queries are in training and validation, such as '0'"):  # 0 and "0"
        reranker_class(llm=UNLOADED).fit(numbers[0], TRAIN_QRELS, numbers[1], VALID_QRELS)


def test_the_filter_over_sums_has_no_validation_table(llm):
    reranker = CoReHeadReranker(llm=llm, token_filter="sum", k=4)
    assert passes(llm, lambda: reranker.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)) == 4
    assert not hasattr(reranker, "validation_")
    with pytest.raises(ValueError, match="token_filter='sum' has no scores per head to choose by"):
        CoReHeadReranker(llm=UNLOADED, token_filter="sum", k=[1, 2]).fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)


# After fitting


@BOTH
@pytest.mark.parametrize(
    ("k", "max_layer", "layers"), [(1, None, 4), (5, None, 4), (99, None, 4), (3, 2, 2), (3, 0.75, 3), (2, 0.1, 1)]
)
def test_k_and_max_layer_can_change_after_fitting(llm, scored, reranker_class, k, max_layer, layers):
    reranker = reranker_class(llm=llm).fit(scored["train"], TRAIN_QRELS)
    found = reranker.head_set_
    reranker.k, reranker.max_layer = k, max_layer
    chosen = found.below(layers).top(k)
    expected = StaticHeadReranker(chosen)(scored["two"])
    assert passes(llm, lambda: same_ranking(reranker(scored["two"]), expected)) == 0
    assert passes(llm, lambda: same_ranking(reranker(two_queries()), expected)) == 2  # once for each list
    assert reranker.head_set_ is found


def test_a_list_of_k_can_be_replaced_by_a_number(llm, scored):
    reranker = CoReHeadReranker(llm=llm, k=[1, 2]).fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    reranker.k = 6
    same_ranking(reranker(scored["valid"]), StaticHeadReranker(reranker.head_set_.top(6))(scored["valid"]))


@pytest.mark.parametrize(
    ("max_layer", "layers"),
    [(None, 100), (1, 1), (29, 29), (np.int64(7), 7), (500, 100), (0.29, 29), (0.5, 50), (1.0, 100), (0.001, 1)],
)
def test_max_layer_keeps_so_many_layers_or_that_share(max_layer, layers):
    """A model of 100 layers with one head each; every head gives 1 to the first document."""
    model = ModelIdentity("deep", ("aa",), 100, 1)
    heads = tuple(Head(layer, 0) for layer in range(100))
    inp = frame({"q": ["a", "b"]}).drop(columns="text")
    inp["head_scores"] = [np.ones(100), np.zeros(100)]
    inp["head_reading"] = [Reading(model, heads, ReadingSettings())] * 2
    out = CoReHeadReranker(HeadSet.of(heads, model=model), k=1000, max_layer=max_layer)(inp)
    assert out["score"].tolist() == [layers, 0]


def test_given_heads_need_no_fit(llm, scored):
    found = CoReHeadReranker(llm=llm).fit(scored["train"], TRAIN_QRELS).head_set_
    inp = scored["valid"]
    for reranker_class in (CoReHeadReranker, QRHeadReranker):
        same_ranking(reranker_class(found, k=3, max_layer=2)(inp), StaticHeadReranker(found.below(2).top(3))(inp))
        same_ranking(reranker_class("1-0,2-3,0-1", k=1)(inp), StaticHeadReranker("1-0,2-3,0-1")(inp))  # all by name
        assert not hasattr(reranker_class(found), "head_set_")


def test_layers_above_the_deepest_chosen_head_do_not_run():
    llm = toy_llm()
    entered = []
    for i, layer in enumerate(llm.model.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: entered.append(i))
    reranker = CoReHeadReranker(llm=llm, k=2).fit(two_queries(), QRELS)
    assert set(entered) == {0, 1, 2, 3}  # fitting looks at all heads
    for max_layer in (3, 1):
        reranker.max_layer = max_layer
        deepest = max(head.layer for head in reranker.head_set_.below(max_layer).top(2))
        entered.clear()
        reranker(two_queries())
        assert set(entered) == set(range(deepest + 1))


def test_a_named_model_is_loaded_once_for_fit_and_transform(llm, folder):
    reranker = CoReHeadReranker(llm=folder, k=2).fit(two_queries(), QRELS)
    loaded = reranker._models.open(folder, max_layers=1)  # what the next call takes
    assert loaded.is_loaded
    reranker(two_queries())
    assert reranker._models.open(folder, max_layers=1) is loaded


def test_fit_in_pipelines(llm, scored):
    inp = two_queries()
    topics = inp[["qid", "query"]].drop_duplicates()
    expected = CoReHeadReranker(llm=llm, k=2).fit(scored["two"], QRELS)
    scorer = AttentionHeadScorer(llm=llm, raw=True)
    first = pt.Transformer.from_df(inp)
    for before, own in ((scorer, inp), (first >> scorer, topics), (first, topics)):
        reranker = CoReHeadReranker(llm=llm, k=2)
        pipeline = before >> reranker
        pipeline.fit(own, QRELS)
        same_scores(reranker.head_set_, expected.head_set_)
        out = pipeline(own).set_index("docno")["score"]
        np.testing.assert_allclose(out[inp["docno"]], expected(scored["two"])["score"], atol=1e-6)
    choosing = CoReHeadReranker(llm=llm, k=[1, 2])
    (scorer >> choosing).fit(inp, QRELS, VALID, VALID_QRELS)
    assert tried(choosing)["k"].tolist() == [1, 2]


def test_a_cut_pipeline_fits_on_what_is_left(llm):
    reranker = CoReHeadReranker(llm=llm)
    topics = two_queries()[["qid", "query"]].drop_duplicates()
    (pt.Transformer.from_df(two_queries()) % 3 >> reranker).fit(topics, QRELS)
    expected = CoReHeadReranker(llm=llm).fit(two_queries().query("rank < 3"), QRELS)
    same_scores(reranker.head_set_, expected.head_set_)


def test_a_store_spares_every_second_reading(llm, tmp_path):
    def fitted(reranker_class=CoReHeadReranker, store=str(tmp_path), **options):
        return reranker_class(llm=llm, store=store, **options).fit(two_queries(), QRELS)

    assert passes(llm, fitted) == 2
    assert len(HeadScoreStore(tmp_path)) == 2
    again = {}

    def fit_again():
        again["core"] = fitted(temperature=0.01, store=HeadScoreStore(tmp_path))
        again["qr"] = fitted(QRHeadReranker, criterion="qr")
        again["core"](two_queries())

    assert passes(llm, fit_again) == 0
    plain = CoReHeadReranker(llm=llm, temperature=0.01).fit(two_queries(), QRELS)
    same_scores(again["core"].head_set_, plain.head_set_)
    assert passes(llm, lambda: fitted(positions=3)) == 3 + 2  # q2's order as it was is among the three
    assert passes(llm, lambda: fitted(positions=3, temperature=1.0)) == 0


def test_a_fitted_reranker_of_a_named_model_can_be_pickled(folder):
    reranker = CoReHeadReranker(llm=folder, k=[1, 3]).fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)
    thawed = pickle.loads(pickle.dumps(reranker))
    assert len(pickle.dumps(reranker)) < 20_000  # no weights
    assert thawed.head_set_ == reranker.head_set_
    pd.testing.assert_frame_equal(thawed.validation_, reranker.validation_)
    same_ranking(thawed(VALID), reranker(VALID))


def test_copies_of_a_fitted_reranker_go_their_own_ways(llm, scored):
    reranker = CoReHeadReranker(llm=llm, k=2).fit(scored["train"], TRAIN_QRELS)
    expected = reranker(scored["valid"])
    for other in (copy.copy(reranker), copy.deepcopy(reranker)):
        assert other.llm is llm
        assert other.head_set_ == reranker.head_set_
        other.k = 5
        other.fit(scored["valid"], VALID_QRELS)
        assert other.head_set_ != reranker.head_set_
        same_ranking(reranker(scored["valid"]), expected)


def test_fitting_again_starts_anew(llm, scored):
    reranker = CoReHeadReranker(llm=llm, k=3).fit(scored["valid"], VALID_QRELS).fit(scored["train"], TRAIN_QRELS)
    assert reranker.head_set_ == CoReHeadReranker(llm=llm, k=3).fit(scored["train"], TRAIN_QRELS).head_set_


# PyTerrier's own checks


@pt.testing.transformer_test_class
def test_core_reranker():
    return CoReHeadReranker(llm=UNLOADED)


@pt.testing.transformer_test_class
def test_core_reranker_with_heads():
    return CoReHeadReranker(HEAD_SET, llm=UNLOADED, k=2, max_layer=0.5, first_stage_weight=1.0)


@pt.testing.transformer_test_class
def test_qr_reranker():
    return QRHeadReranker(llm=UNLOADED, k=[1, 2], title_field="title")


@pt.testing.transformer_test_class
def test_qr_reranker_that_was_fitted():
    return fitted_without_a_model(QRHeadReranker)


def fitted_without_a_model(reranker_class):
    """Fitted on head scores; on text it would need a model that cannot be loaded."""
    reranker = reranker_class(llm=toy_llm(), k=2)
    reranker.fit(*planted(reranker.llm, queries=3))
    reranker.llm = UNLOADED
    return reranker


@pytest.fixture(scope="module")
def transformers():
    unfitted = [reranker_class(llm=UNLOADED) for reranker_class in (CoReHeadReranker, QRHeadReranker)]
    fitted = [fitted_without_a_model(reranker_class) for reranker_class in (CoReHeadReranker, QRHeadReranker)]
    return [*unfitted, *fitted, CoReHeadReranker(HEAD_SET, llm=UNLOADED), QRHeadReranker("0-1", llm=UNLOADED)]


def test_empty_frames_need_neither_fit_nor_model(transformers, planted_lists):
    for transformer in transformers:
        for inp in (two_queries().assign(url="http://x").iloc[:0], planted_lists[0].iloc[:0]):
            out = transformer(inp)
            assert len(out) == 0
            assert list(out.columns) == pt.inspect.transformer_outputs(transformer, list(inp.columns))
            assert set(inp.columns) <= set(out.columns)
            assert (out["score"].dtype, out["rank"].dtype) == ("float64", "int64")


def test_fitted_or_not_they_can_be_inspected_changed_and_drawn(transformers):
    for transformer in transformers:
        name = type(transformer).__name__
        assert pt.inspect.transformer_inputs(transformer) == [
            ["qid", "docno", "head_scores", "head_reading"],
            ["qid", "docno", "query", "text"],
        ]
        attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(transformer)}
        assert attributes["llm"] is UNLOADED
        assert attributes["heads"] is transformer.heads
        assert {"k", "max_layer", "positions", "detection_data"} <= set(attributes)
        changed = pt.inspect.transformer_apply_attributes(transformer, k=3, max_layer=0.5)
        assert (type(changed), changed.k, changed.max_layer) == (type(transformer), 3, 0.5)
        given = f"{transformer.heads!r}, " if isinstance(transformer.heads, str) else ""
        assert repr(changed) == f"{name}({given}k=3)"
        assert name.removesuffix("Reranker")[:2] in pt.schematic.draw(AttentionHeadScorer(llm=UNLOADED) >> transformer)
        with pytest.raises(pt.validate.InputValidationError, match=name):
            transformer(pd.DataFrame({"qid": ["1"], "docno": ["d"], "score": [1.0]}))


def test_a_fitted_reranker_stays_the_same_key(llm, scored):
    reranker = CoReHeadReranker(llm=llm)
    kept = {reranker: 1}
    reranker.fit(scored["train"], TRAIN_QRELS).k = 3
    assert kept[reranker] == 1
    assert reranker != CoReHeadReranker(llm=llm, k=3)


# Bad input


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("k", value) for value in (0, -1, [], [4, 0])),
        *(("max_layer", value) for value in (0, 0.0, -1, 1.5, math.nan)),
        ("positions", 0),
        ("detection_data", ""),
        ("depth", 0),
        ("document_order", "any"),
    ],
)
def test_wrong_values_are_refused_at_once_and_when_set_later(reranker_class, name, value):
    refuse_at_once_and_later(reranker_class, name, value, ValueError)


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("k", value) for value in ("8", True, 2.5, ["4"], [None])),
        *(("max_layer", value) for value in (True, "2", [2])),
        *(("positions", value) for value in (1.5, "3", True)),
        *(("detection_data", value) for value in (3, ["train"])),
        *(("allow_mismatch", value) for value in (1, "yes", None)),
        *(("first_stage_weight", value) for value in ("1", None, True)),
    ],
)
def test_f23_wrong_types_are_refused_at_once_and_when_set_later(reranker_class, name, value):
    refuse_at_once_and_later(reranker_class, name, value, TypeError)


def refuse_at_once_and_later(reranker_class, name, value, error):
    with pytest.raises(error, match=f"^{name} (is|must be) "):
        reranker_class(llm=UNLOADED, **{name: value})
    later = reranker_class(llm=UNLOADED)
    setattr(later, name, value)
    for call in (lambda: later(two_queries()), lambda: later.fit(two_queries(), QRELS)):
        with pytest.raises(error, match=f"^{name} (is|must be) "):
            call()


@pytest.mark.parametrize(
    ("temperature", "error"),
    [
        *((value, ValueError) for value in (0, -0.1, math.inf, math.nan, [0.1, 0.0], [])),
        *((value, TypeError) for value in ("0.1", None, True, [0.1, "0.01"])),
    ],
    ids=str,
)
def test_f23_wrong_temperatures_are_refused(temperature, error):
    refuse_at_once_and_later(CoReHeadReranker, "temperature", temperature, error)


@pytest.mark.parametrize(
    ("criterion", "error"), [([], ValueError), (3, TypeError), (None, TypeError), ([["mrr"]], TypeError)], ids=str
)
def test_f23_wrong_criteria_are_refused(criterion, error):
    refuse_at_once_and_later(QRHeadReranker, "criterion", criterion, error)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_f23_calibrated_is_a_flag(value):
    refuse_at_once_and_later(CoReHeadReranker, "calibrated", value, TypeError)


@BOTH
def test_f23_wrong_heads_are_refused(reranker_class):
    for heads, error, message in (
        (3, TypeError, "heads are .*, got 3"),
        ("1-2-3", ValueError, "'1-2-3' does not name a head"),
        ([], ValueError, "set of heads is empty"),
        ("gpt-7", ValueError, f"{reranker_class.__name__} knows no 'gpt-7': '.*smollm2-135m'"),
    ):
        with pytest.raises(error, match=message):
            reranker_class(heads, llm=UNLOADED)
        later = reranker_class(llm=UNLOADED)
        later.heads = heads
        with pytest.raises(error, match=message):
            later(two_queries())


def test_choices_that_can_be_read_only_once_are_kept(llm, scored):
    data = scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS
    reranker = CoReHeadReranker(llm=llm, k=iter([1, 3]), temperature=iter([0.1, 0.01])).fit(*data)
    assert len(tried(reranker.fit(*data))) == 4
    assert len(tried(QRHeadReranker(llm=llm, criterion=iter(["mrr", "qr"])).fit(*data))) == 2


@pytest.mark.parametrize("criterion", ["best", ["mrr", "best"]])
def test_unknown_criteria_are_refused_with_the_known_ones(criterion):
    with pytest.raises(ValueError, match=r"no criterion 'best'; known: core, qr.*mrr"):
        QRHeadReranker(llm=UNLOADED, criterion=criterion)


@pytest.mark.parametrize(
    "qrels",
    [QRELS.iloc[:0], pd.DataFrame(columns=["qid", "docno", "label"]), QRELS.assign(qid=["7", "7", "7", "8"])],
    ids=["empty", "bare", "other qids"],
)
def test_judgements_that_never_match_are_refused_before_anything_is_read(scored, qrels):
    for inp in (two_queries(), scored["two"]):
        with pytest.raises(ValueError, match=r"none of the 2 candidate lists has both.*qids and docnos.*agree\?"):
            CoReHeadReranker(llm=UNLOADED).fit(inp, qrels)


def test_validation_judgements_that_never_match_are_refused(llm, scored):
    reranker = CoReHeadReranker(llm=llm, k=[1, 2])
    with pytest.raises(ValueError, match="none of the 2 candidate lists"):
        reranker.fit(scored["train"], TRAIN_QRELS, scored["two"], TRAIN_QRELS)
    assert not hasattr(reranker, "head_set_")


def test_missing_columns_of_judgements_and_frames_are_named(scored):
    reranker = CoReHeadReranker(llm=UNLOADED)
    for column in ("label", "qid", "docno"):
        with pytest.raises(pt.validate.InputValidationError, match=f"missing_columns=\\['{column}'\\]"):
            reranker.fit(two_queries(), QRELS.drop(columns=column))
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        reranker.fit(two_queries().drop(columns="text"), QRELS)
    with pytest.raises(pt.validate.InputValidationError, match="head_reading"):
        reranker.fit(scored["two"].drop(columns="head_reading"), QRELS)


@pytest.mark.parametrize("choice", [{"k": [1, 2]}, {"temperature": [0.1, 1.0]}], ids=str)
def test_a_choice_without_validation_queries_is_refused(choice):
    for valid, said in (((), "chosen on"), ((VALID,), "need both"), ((None, VALID_QRELS), "need both")):
        with pytest.raises(ValueError, match=rf"{said}.*: fit\(topics, qrels, topics, qrels\)"):
            CoReHeadReranker(llm=UNLOADED, **choice).fit(two_queries(), QRELS, *valid)


def test_unfitted_they_say_so(scored):
    for reranker_class in (CoReHeadReranker, QRHeadReranker):
        for inp in (two_queries(), scored["two"]):
            with pytest.raises(
                NotFittedError, match=f"{reranker_class.__name__} has no heads yet: fit it, or .*'llama-3.*-8b'"
            ):
                reranker_class(llm=UNLOADED)(inp)
        with pytest.raises(RuntimeError, match=f"{reranker_class.__name__} has no heads"):
            reranker_class()(scored["two"])


def test_given_heads_are_not_fitted():
    for heads in (HEAD_SET, "1-0", "all"):
        with pytest.raises(ValueError, match="CoReHeadReranker was given heads: leave them out"):
            CoReHeadReranker(heads, llm=UNLOADED).fit(two_queries(), QRELS)


def test_validation_ranks_and_needs_no_raw_scores(llm, scored):
    valid, qrels = scored["valid"].drop(columns="head_scores_raw"), VALID_QRELS.astype({"label": str})
    found = CoReHeadReranker(llm=llm, k=[1, 4]).fit(scored["train"], TRAIN_QRELS, valid, qrels)
    expected = CoReHeadReranker(llm=llm, k=[1, 4]).fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    pd.testing.assert_frame_equal(found.validation_, expected.validation_)


def test_raw_scores_that_are_wanted_must_be_there_and_fit(llm, scored):
    inp = scored["two"]
    raw = list(inp["head_scores_raw"])
    without = inp.drop(columns="head_scores_raw")
    message = r"uncalibrated scores.* no column 'head_scores_raw': give AttentionHeadScorer\(raw=True\)"
    for reranker in (CoReHeadReranker(llm=llm), QRHeadReranker(llm=llm, criterion="qr")):
        with pytest.raises(ValueError, match=message):
            reranker.fit(without, QRELS)
        for wrong in (raw[1][:-1], None, 0.5, np.stack([raw[1]])):
            with pytest.raises(ValueError, match="query 'q1', document 'q1-d1': head_scores_raw does not fit"):
                reranker.fit(inp.assign(head_scores_raw=pd.Series([raw[0], wrong, *raw[2:]], dtype=object)), QRELS)
    same_scores(  # on calibrated scores it is not looked at
        CoReHeadReranker(llm=llm, calibrated=True).fit(without, QRELS).head_set_,
        CoReHeadReranker(llm=llm, calibrated=True).fit(two_queries(), QRELS).head_set_,
    )


def test_calibrated_criteria_need_calibrated_scores(llm):
    uncalibrated = AttentionHeadScorer(llm=llm, calibrate=False)(two_queries())
    for reranker_class, options in ((CoReHeadReranker, {"calibrated": True}), (QRHeadReranker, {"criterion": "mrr"})):
        with pytest.raises(ValueError, match=r"'(core|mrr)' requires calibrated scores, but calibrate=False"):
            reranker_class(llm=UNLOADED, calibrate=False, **options).fit(two_queries(), QRELS)
        with pytest.raises(ValueError, match="requires calibrated scores, but calibrate=False"):
            reranker_class(llm=llm, **options).fit(uncalibrated, QRELS)


def test_positions_are_for_text(llm, scored):
    with pytest.raises(ValueError, match="positions moves documents in the prompt: it is for text"):
        CoReHeadReranker(llm=llm, positions=3).fit(scored["two"], QRELS)


def test_frames_of_several_readings_are_refused(llm, scored):
    other = AttentionHeadScorer(llm=llm, raw=True, document_order="best_first")(two_queries())
    some = AttentionHeadScorer("1-0", llm=llm, raw=True)(two_queries())
    reranker = CoReHeadReranker(llm=llm)
    for within in (other, some):
        with pytest.raises(ValueError, match="read with other settings"):
            reranker.fit(pd.concat([scored["two"].iloc[:2], within.iloc[2:]]), QRELS)
        with pytest.raises(ValueError, match="query 'q2': its head_scores were read with other settings"):
            reranker.fit(pd.concat([scored["two"].iloc[:5], within.iloc[5:]]), QRELS)
        valid = [own.assign(qid="v" + own["qid"]) for own in (within, QRELS)]
        with pytest.raises(ValueError, match="validation lists were read with other settings than the training lists"):
            CoReHeadReranker(llm=llm, k=[1, 2]).fit(scored["two"], QRELS, *valid)


def test_head_scores_of_another_model_or_setting_are_refused(llm, scored):
    other = FrozenLLM(tiny_model("Llama", initializer_range=0.2), tokenizer=byte_tokenizer())
    with pytest.raises(MismatchError, match=r"read from LlamaModel .*which is not LlamaModel"):
        CoReHeadReranker(llm=other).fit(scored["two"], QRELS)
    with pytest.raises(MismatchError, match="document_order='best_first' was asked for"):
        CoReHeadReranker(llm=llm, document_order="best_first").fit(scored["two"], QRELS)
    fitted = CoReHeadReranker(llm=llm).fit(scored["two"], QRELS)
    fitted.llm = None
    with pytest.raises(MismatchError, match=r"the head set is for LlamaModel .*not for LlamaModel"):
        fitted(AttentionHeadScorer(llm=other)(two_queries()))
    with pytest.raises(MismatchError, match="max_doc_tokens=3 instead of 150"):
        fitted(AttentionHeadScorer(llm=llm, max_doc_tokens=3)(two_queries()))


def test_lists_beyond_the_context_are_refused_by_qid():
    llm = toy_llm(context=300)
    inp = frame({"short": ["a", "b"], "long": ["x" * 140] * 3})
    with pytest.raises(ListTooLongError, match="query 'long' with 3 candidates"):
        CoReHeadReranker(llm=llm).fit(inp, judged({"short": "short-d0", "long": "long-d1"}))
