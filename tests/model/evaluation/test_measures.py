"""One nDCG@10 everywhere: that of ir_measures, against all judgements of a query, found by the first stage or not."""

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    ICRReranker,
    QRHeadReranker,
    RouteHeadReranker,
    RouterTraining,
    StaticHeadReranker,
)
from pyterrier_routehead.evaluation.measures import ideal_dcg, ndcg
from toys import toy_llm

# Heads of a random model rank no better than all of them together, and a router learns nothing from them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:on the validation queries, no set that:UserWarning"),
    pytest.mark.filterwarnings("ignore:no epoch of training ranked:UserWarning"),
]


def measured(ranked, qrels):
    """What ir_measures says of each query, by the ranks: of equal scores it would take the greater docno."""
    run = ranked.assign(score=-ranked["rank"]).rename(columns={"qid": "query_id", "docno": "doc_id"})
    known = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    known = known[known["query_id"].isin(run["query_id"])]
    found = ir_measures.iter_calc([ir_measures.nDCG @ 10], known, run[["query_id", "doc_id", "score"]])
    return {one.query_id: one.value for one in found}


def mean(ranked, qrels):
    return np.mean(list(measured(ranked, qrels).values()))


@st.composite
def judged_rankings(draw):
    """Labels of the documents of a list and of others elsewhere, and one to three rankings of the list."""
    labels = draw(st.lists(st.integers(-2, 4), min_size=1, max_size=25))
    elsewhere = draw(st.lists(st.integers(-2, 4), max_size=15))
    if not any(label > 0 for label in labels):
        elsewhere.append(draw(st.integers(1, 4)))  # trec_eval crashes where all labels are below 0
    rankings = [draw(st.permutations(range(len(labels)))) for _ in range(draw(st.integers(1, 3)))]
    return labels, elsewhere, rankings


@settings(max_examples=150, deadline=None)
@given(judged_rankings())
def test_ndcg_is_that_of_ir_measures(drawn):
    labels, elsewhere, rankings = drawn
    scores = np.empty((len(labels), len(rankings)))
    for column, ranking in enumerate(rankings):
        scores[ranking, column] = -np.arange(len(labels))
    gains, ideal = np.maximum(np.array(labels, dtype=float), 0), ideal_dcg(np.array([*labels, *elsewhere]))
    found = ndcg(gains[None], scores[None], np.array([ideal]))[0]
    qrels = [ir_measures.Qrel("q", f"d{i}", label) for i, label in enumerate([*labels, *elsewhere])]
    for value, column in zip(found, scores.T, strict=True):
        run = [ir_measures.ScoredDoc("q", f"d{i}", float(score)) for i, score in enumerate(column)]
        measure = ir_measures.nDCG @ 10
        assert value == pytest.approx(ir_measures.calc_aggregate([measure], qrels, run)[measure], abs=1e-12)
    # Padding, which other lists may need, changes nothing.
    there = np.arange(len(labels) + 3) < len(labels)
    padded = np.full((1, len(there), len(rankings)), 9.0)
    padded[0, : len(labels)] = scores
    wide = np.append(gains, [0.0] * 3)[None]
    np.testing.assert_allclose(ndcg(wide, padded, np.array([ideal]), there[None])[0], found, rtol=1e-14)


def test_equal_scores_keep_the_order_given_and_nothing_relevant_is_0():
    gains = np.array([[0.0, 1.0, 2.0]])
    ideal = np.array([ideal_dcg(gains[0])])
    assert ndcg(gains, np.zeros((1, 3, 1)), ideal)[0, 0] == pytest.approx(
        ndcg(gains, -np.arange(3.0)[None, :, None], ideal)[0, 0]
    )
    assert ndcg(np.zeros((1, 3)), np.zeros((1, 3, 2)), np.zeros(1)).tolist() == [[0.0, 0.0]]
    assert ideal_dcg(np.array([])) == ideal_dcg(np.array([0, -2])) == 0


@pytest.fixture(scope="module")
def vaswani():
    """Judged queries of Vaswani, each with three of its relevant documents and five others, read by a random model.

    Most of the relevant documents are in no list.
    """
    dataset, generator = pt.get_dataset("irds:vaswani"), np.random.default_rng(3)
    qrels = dataset.get_qrels()
    relevant = qrels[qrels["label"] > 0].groupby("qid")["docno"].apply(list)
    topics = dataset.get_topics()
    topics = topics[topics["qid"].map(lambda qid: len(relevant.get(qid, [])) > 8)].head(14)
    rows = []
    for topic in topics.itertuples():
        others = [str(number) for number in generator.choice(11_000, 40, replace=False) + 1]
        docnos = [*relevant[topic.qid][:3], *[docno for docno in others if docno not in relevant[topic.qid]][:5]]
        order = generator.permutation(len(docnos))
        rows += [(topic.qid, topic.query, docnos[place], rank) for rank, place in enumerate(order)]
    candidates = pd.DataFrame(rows, columns=["qid", "query", "docno", "rank"])
    llm = toy_llm()
    scored = AttentionHeadScorer(llm=llm, raw=True, max_doc_tokens=40)(dataset.text_loader(verbose=False)(candidates))
    train = scored["qid"].isin(topics["qid"].head(9))
    return llm, scored[train].reset_index(drop=True), scored[~train].reset_index(drop=True), qrels


def test_the_lists_leave_relevant_documents_out(vaswani):
    _, train, valid, qrels = vaswani
    for inp in (train, valid):
        best = inp.merge(qrels, on=["qid", "docno"], how="left").sort_values("label", ascending=False)
        best["rank"] = best.groupby("qid").cumcount()
        assert max(measured(best, qrels).values()) < 0.7  # against the list's own documents, this would be 1


def test_the_criterion_judges_heads_by_it(vaswani):
    llm, train, _, qrels = vaswani
    found = QRHeadReranker(llm=llm, criterion="ndcg@10").fit(train, qrels).head_set_
    for head, score in list(zip(found.heads, found.scores, strict=True))[::5]:
        assert score == pytest.approx(mean(StaticHeadReranker([head])(train), qrels))


def test_validation_tables_hold_it(vaswani):
    llm, train, valid, qrels = vaswani
    reranker = CoReHeadReranker(llm=llm, k=[2, 5]).fit(train, qrels, valid, qrels)
    table = reranker.validation_
    expected = [
        valid,
        ICRReranker()(valid),
        *(StaticHeadReranker(reranker.head_set_.top(k))(valid) for k in (2, 5)),
    ]
    assert table["nDCG@10"].tolist() == pytest.approx([mean(ranked, qrels) for ranked in expected])


@pytest.mark.parametrize("first_stage_weight", [0.0, 0.5])
def test_labels_and_epochs_of_a_router_are_told_by_it(vaswani, first_stage_weight):
    llm, train, valid, qrels = vaswani
    train, valid = (inp.assign(score=-inp["rank"].astype(float)) for inp in (train, valid))
    router = RouteHeadReranker(
        llm=llm,
        pool_size=6,
        max_heads=2,
        labels="search",
        first_stage_weight=first_stage_weight,
        training=RouterTraining(epochs=3),
        verbose=False,
    ).fit(train, qrels, valid, qrels)
    best = router.report_["held-out nDCG@10"].max()
    assert best == pytest.approx(mean(router(valid), qrels))
    assert router.router_.report["held-out nDCG@10"] == pytest.approx(best)
    whole = measured(StaticHeadReranker(router.router_.pool)(train), qrels)
    for label in router.labels_.itertuples():
        own = train[train["qid"] == label.qid]
        assert label.before == pytest.approx(whole[label.qid])
        assert label.after == pytest.approx(measured(StaticHeadReranker(label.heads.split())(own), qrels)[label.qid])
